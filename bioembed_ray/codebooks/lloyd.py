"""K-means by Lloyd's algorithm as stateless steps: sums in, the next centroids out.

As scikit-learn's `KMeans(algorithm="lloyd")` does it: empty clusters move to the farthest rows, the
end is where labels stay or the centroids' squared shift is at most `tolerance`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.codebooks.partial_sums import Against, Partial, add_group, tile_rows
from bioembed_ray.codebooks.rule import Centroids, LloydRule, Metric

End = Literal["labels stayed", "converged", "max_iterations"]


@dataclass(frozen=True, slots=True)
class FarRows:
    """Rows far from their centroid, the farthest first.

    Attributes:
        distances: (E,) squared distance.
        rows: (E,) number of the row in the sample.
        labels: (E,) their centroid.
        vectors: (E, D) float32.
    """

    distances: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class State:
    """Where a fit stands after an iteration: all that is needed to go on.

    Attributes:
        centroids: (K, D) float32, in the space of prepared rows.
        digest: Of the labels that led to them.
        inertia: Per iteration, before its update.
        shift: Per iteration, sum of the centroids' squared shifts.
        n_empty: Per iteration, clusters that had no row.
        ended: Why it ended; None goes on.
    """

    centroids: Centroids
    digest: str = ""
    inertia: tuple[float, ...] = field(default=())
    shift: tuple[float, ...] = field(default=())
    n_empty: tuple[int, ...] = field(default=())
    ended: End | None = None

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return len(self.inertia)


def far_rows(
    rows: torch.Tensor, norms: torch.Tensor, centroids: Against, n: int, first_row: int
) -> FarRows:
    """Return the n different rows of a group that are farthest from their nearest centroid.

    Args:
        rows: (N, D) float32, prepared.
        norms: (N,) their squared lengths.
        centroids: From `against`.
        n: How many at most.
        first_row: Number of the group's first row in the sample.
    """
    _, labels = add_group(rows, norms, centroids)
    codes, index = centroids.codes, torch.from_numpy(labels).long()
    size = tile_rows(rows)
    distances = torch.cat(
        [
            (tile - codes[label.to(rows.device)]).square().sum(dim=1)
            for tile, label in zip(torch.split(rows, size), torch.split(index, size), strict=True)
        ]
    )
    found = distances.double().cpu().numpy()
    order = np.argsort(-found, kind="stable")
    order = order[found[order] > 0]
    kept: dict[bytes, int] = {}
    for row in order:
        if len(kept) == n:
            break
        kept.setdefault(rows[int(row)].cpu().numpy().tobytes(), int(row))
    chosen = np.array(list(kept.values()), np.int64)
    return FarRows(
        found[chosen],
        chosen + first_row,
        labels[chosen].astype(np.int64),
        rows[torch.from_numpy(chosen).to(rows.device)].cpu().numpy(),
    )


def farthest(found: Iterable[FarRows], n: int) -> FarRows:
    """Return the n different rows that are farthest of all, from the farthest of every group."""
    every = list(found)
    distances = np.concatenate([far.distances for far in every])
    rows = np.concatenate([far.rows for far in every])
    labels = np.concatenate([far.labels for far in every])
    vectors = np.concatenate([far.vectors for far in every])
    kept: dict[bytes, int] = {}
    for index in np.lexsort((rows, -distances)):
        kept.setdefault(vectors[index].tobytes(), int(index))
    chosen = np.array(list(kept.values())[:n], np.int64)
    return FarRows(distances[chosen], rows[chosen], labels[chosen], vectors[chosen])


def advance(
    state: State,
    partial: Partial,
    digest: str,
    far: FarRows | None,
    rule: LloydRule,
    tolerance: float,
) -> State:
    """Return the state after one iteration.

    Args:
        state: Before it.
        partial: Sums over all rows for `state.centroids`.
        digest: Of all labels.
        far: Where there are empty clusters, the farthest rows, which become their centroids.
        rule: Metric and limits.
        tolerance: Squared shift at which to stop: `rule.tolerance` times the rows' variance.
    """
    empty = np.flatnonzero(partial.counts == 0)
    sums, counts = partial.sums, partial.counts
    if far is not None and len(empty):
        sums, counts = sums.copy(), counts.copy()
        for cluster, vector, label in zip(empty, far.vectors, far.labels, strict=False):
            # As scikit-learn: the row leaves the cluster it was in.
            sums[label] -= vector
            counts[label] -= 1
            sums[cluster], counts[cluster] = vector, 1
    centroids = _means(sums, counts, state.centroids, rule.metric)
    difference = centroids.astype(np.float64) - state.centroids
    shift = float(np.einsum("kd,kd->", difference, difference))
    ended: End | None = None
    if digest == state.digest:
        ended = "labels stayed"
    elif shift <= tolerance:
        ended = "converged"
    elif state.iteration + 1 >= rule.max_iterations:
        ended = "max_iterations"
    return replace(
        state,
        centroids=centroids,
        digest=digest,
        inertia=(*state.inertia, partial.inertia),
        shift=(*state.shift, shift),
        n_empty=(*state.n_empty, len(empty)),
        ended=ended,
    )


def _means(
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    old: Centroids,
    metric: Metric,
) -> Centroids:
    if metric == "cosine":
        weights = np.linalg.norm(sums, axis=1)
    else:
        weights = counts.astype(np.float64)
    # A cluster without rows, or whose unit rows cancel out, has no mean: it stays where it is.
    has_mean = weights > 0
    means = sums / np.where(has_mean, weights, 1.0)[:, None]
    return np.where(has_mean[:, None], means, old).astype(np.float32)
