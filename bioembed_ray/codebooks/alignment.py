"""Ids that stay: a refitted codebook's ids are matched with the last one's, and the drift told."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bioembed_ray.codebooks.rule import Centroids, Metric
from bioembed_ray.unit_rows import unit_rows


def align(centroids: Centroids, previous: Centroids, metric: Metric) -> npt.NDArray[np.int64]:
    """Return which new centroid takes each id, so that ids mean what they meant.

    The matching minimises the sum of squared distances ("cosine": of 1 - cosine) over pairs (the
    Hungarian method). New centroids without a partner take the free ids in their own order.

    Args:
        centroids: (K, D) new ones.
        previous: (K', D) last ones, of the same frames' space.
        metric: The codebook's.

    Returns:
        (K,) order: `centroids[order]` has the ids of `previous`.
    """
    from scipy.optimize import linear_sum_assignment

    new, old = _unit(centroids, metric), _unit(previous, metric)
    costs = (new**2).sum(axis=1)[:, None] - 2 * new @ old.T + (old**2).sum(axis=1)
    rows, columns = linear_sum_assignment(costs)
    order = np.full(len(new), -1, np.int64)
    # Where there are fewer ids now, those beyond K cannot be kept.
    kept = columns < len(new)
    order[columns[kept]] = rows[kept]
    rest = np.setdiff1d(np.arange(len(new)), order)
    order[order < 0] = rest
    return order


def drift(
    centroids: Centroids, previous: Centroids, spread: float, metric: Metric
) -> dict[str, Any]:
    """Return how far centroids moved from those that had their ids.

    Args:
        centroids: (K, D) new ones, aligned.
        previous: (K', D) last ones.
        spread: Root mean square distance of held-out or fitted frames from their centroid.
        metric: The codebook's.

    Returns:
        Distances relative to the spread: 1 means that a centroid moved as far as a frame lies from
        it on average. `mean`, `max`, and the ids that moved most.
    """
    n = min(len(centroids), len(previous))
    moved = np.linalg.norm(
        _unit(centroids, metric)[:n] - _unit(previous, metric)[:n], axis=1
    ) / max(spread, 1e-30)
    most = np.argsort(-moved, kind="stable")[:10]
    return {
        "codes": n,
        "mean_shift": float(moved.mean()),
        "max_shift": float(moved.max()),
        "most_moved": {str(code): float(moved[code]) for code in most},
    }


def _unit(centroids: Centroids, metric: Metric) -> npt.NDArray[np.float64]:
    return unit_rows(centroids) if metric == "cosine" else centroids.astype(np.float64)
