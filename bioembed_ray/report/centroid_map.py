"""Centroids in two dimensions, and in an order in which neighbours are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioembed_ray.codebooks.card import Codebook
from bioembed_ray.unit_rows import unit_rows

# Below this, neighbourhoods are too small for UMAP, and principal axes show most of it.
LEAST_FOR_UMAP = 15
# Trustworthiness looks this many neighbours far, scikit-learn's default.
NEIGHBOURS = 5
MOST_JUDGED = 4000


@dataclass(frozen=True, slots=True)
class CentroidMap:
    """Where centroids lie on a map.

    Attributes:
        points: (K, 2) between 0 and 1, the longer side filled.
        note: How it was made and how far to trust it, plain text.
    """

    points: npt.NDArray[np.float64]
    note: str


def directions(book: Codebook) -> npt.NDArray[np.float64]:
    """Return centroids as the codebook's metric sees them: of length 1 under "cosine"."""
    if book.metric == "euclidean":
        return book.centroids.astype(np.float64)
    return unit_rows(book.centroids)


def centroid_map(book: Codebook) -> CentroidMap:
    """Return a map of all centroids: UMAP for 15 and more, principal axes for fewer."""
    rows = directions(book)
    if len(rows) < LEAST_FOR_UMAP:
        points, share = principal_plane(rows)
        note = f"Principal axes of the centroids: the plane holds {share:.0%} of their variance."
    else:
        from sklearn.manifold import trustworthiness

        from bioembed_ray.umap_maps import fit_map

        fitted = fit_map(rows.astype(np.float32), metric="euclidean")
        points = fitted.coordinates.astype(np.float64)
        # All distances at once: of more than some thousands they would not fit.
        some = slice(None, None, -(-len(rows) // MOST_JUDGED))
        trust = trustworthiness(rows[some], points[some], n_neighbors=NEIGHBOURS)
        note = (
            "UMAP of the centroids: who is near whom counts, not how far apart groups are. "
            f"Trustworthiness {trust:.2f} (1: every neighbour on the map is one in truth)."
        )
        # A map has no up: its longest way lies flat.
        points, _ = principal_plane(points)
    low = points.min(axis=0)
    size = max(float(np.ptp(points, axis=0).max()), 1e-12)
    return CentroidMap((points - low) / size, note)


def principal_plane(rows: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """Return rows on their two principal axes, (K, 2), and the share of variance these hold."""
    centred = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(rows), 2))
    n_axes = min(2, len(sizes))
    points[:, :n_axes] = left[:, :n_axes] * sizes[:n_axes]
    # An axis has no sign of its own: the farthest row lies on its positive side.
    farthest = points[np.abs(points).argmax(axis=0), [0, 1]]
    total = float((sizes**2).sum())
    share = float((sizes[:n_axes] ** 2).sum()) / total if total else 1.0
    return points * np.where(farthest < 0, -1, 1), share


def alike_order(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return an order in which neighbours are alike: the leaves of average linkage, best turned."""
    if len(rows) < 3:
        return np.arange(len(rows))
    from scipy.cluster.hierarchy import leaves_list, linkage

    order = leaves_list(linkage(rows, "average", optimal_ordering=True))
    return np.asarray(order, np.int64)
