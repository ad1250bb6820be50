"""Vectors on a map: two coordinates each, neighbours near each other (UMAP).

The map is learned from a bounded sample; the other vectors are placed on it afterwards, a batch at a
time, so that an archive of any size costs the time of the sample and a pass. Distances on a map say
who is near whom, not how far apart groups are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bioembed_ray.unit_rows import unit_rows

Vectors = npt.NDArray[np.floating[Any]]
Map = npt.NDArray[np.float32]
Metric = Literal["cosine", "euclidean"]

# UMAP's defaults (McInnes et al. 2018, arXiv:1802.03426, and umap-learn's documentation).
N_NEIGHBORS = 15
MIN_DIST = 0.1
# Below it, umap-learn computes all distances, which a projection would not make cheaper.
EXACT_BELOW = 4096
PCA_DIMS = 50
# Fewer distinct vectors have no graph to lay out.
FEWEST_DISTINCT = 8
PLACE_ROWS = 8192


@dataclass(frozen=True)
class FittedMap:
    """A map learned from a sample.

    Attributes:
        coordinates: (n, 2) float32 of the sample's rows.
        place: (m, D) vectors -> (m, 2) float32; which rows come in one call moves them slightly,
            since they are laid out together.
    """

    coordinates: Map
    place: Callable[[Vectors], Map]


def umap_coordinates(
    vectors: Vectors, *, n_fit: int = 20_000, metric: Metric = "cosine", seed: int = 0
) -> Map:
    """Return two coordinates per vector: (n, 2) float32, finite; the same input gives the same map.

    Args:
        vectors: (n, D), finite.
        n_fit: Rows that the map is learned from, drawn with `seed`; the rest is placed on it.
        metric: `cosine` compares directions, `euclidean` vectors as they are.
        seed: Of the draw and of UMAP.

    Raises:
        ValueError: numbers that are not finite.
    """
    n = len(vectors)
    if n <= n_fit:
        return fit_map(vectors, metric=metric, seed=seed).coordinates
    drawn = np.sort(np.random.default_rng(seed).permutation(n)[:n_fit])
    fitted = fit_map(vectors[drawn], metric=metric, seed=seed)
    found = np.empty((n, 2), np.float32)
    found[drawn] = fitted.coordinates
    rest = np.setdiff1d(np.arange(n), drawn, assume_unique=True)
    for low in range(0, len(rest), PLACE_ROWS):
        rows = rest[low : low + PLACE_ROWS]
        found[rows] = fitted.place(vectors[rows])
    return found


def fit_map(sample: Vectors, *, metric: Metric = "cosine", seed: int = 0) -> FittedMap:
    """Learn a map from all rows of a sample (n, D).

    Vectors of length 1 stand for their directions: their squared euclidean distance is twice the
    cosine distance, so neighbours are the same, and a projection to few dimensions keeps them.

    Raises:
        ValueError: numbers that are not finite.
    """
    if not np.isfinite(sample).all():
        raise ValueError("vectors hold numbers that are not finite")
    scaled = _scaled(sample, metric)
    wide = len(scaled) >= EXACT_BELOW and scaled.shape[1] > PCA_DIMS
    mean, axes = _principal_axes(scaled, PCA_DIMS if wide else 2)
    if len(scaled) < FEWEST_DISTINCT or len(np.unique(scaled, axis=0)) < FEWEST_DISTINCT:
        axes = axes[:, :2]

        def project(vectors: Vectors) -> Map:
            return _two_columns((_scaled(vectors, metric) - mean) @ axes)

        return FittedMap(project(sample), project)

    def reduce(vectors: Vectors) -> Map:
        rows = _scaled(vectors, metric)
        return ((rows - mean) @ axes).astype(np.float32) if wide else rows

    model = _umap(len(scaled), seed)
    with warnings.catch_warnings():
        # Of disconnected graphs and of threads; both are meant.
        warnings.simplefilter("ignore")
        coordinates = np.asarray(model.fit_transform(reduce(sample)), np.float32)

    def place(vectors: Vectors) -> Map:
        if not len(vectors):
            return np.empty((0, 2), np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(model.transform(reduce(vectors)), np.float32)

    return FittedMap(coordinates, place)


def _umap(n: int, seed: int) -> Any:
    import umap

    return umap.UMAP(
        n_neighbors=min(N_NEIGHBORS, n - 1),
        min_dist=MIN_DIST,
        metric="euclidean",
        # The spectral start needs more rows than a handful.
        init="spectral" if n > 4 * N_NEIGHBORS else "random",
        random_state=seed,
        transform_seed=seed,
        # More threads would make every map another one.
        n_jobs=1,
    )


def _scaled(vectors: Vectors, metric: Metric) -> Map:
    rows = np.asarray(vectors, np.float32)
    if metric == "euclidean":
        return rows
    return unit_rows(rows, np.float32)


def _principal_axes(rows: Map, n_axes: int) -> tuple[Map, Map]:
    """Return the mean (D,) and the directions of most variance (D, up to n_axes)."""
    if not len(rows):
        return np.zeros(rows.shape[1], np.float32), np.zeros((rows.shape[1], n_axes), np.float32)
    mean = rows.mean(axis=0, dtype=np.float64)
    spread = np.zeros((rows.shape[1], rows.shape[1]))
    for low in range(0, len(rows), PLACE_ROWS):
        centred = rows[low : low + PLACE_ROWS] - mean
        spread += centred.T @ centred
    _, axes = np.linalg.eigh(spread)
    axes = axes[:, ::-1][:, :n_axes]
    # Eigenvectors come with any sign: the largest number is made positive.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return mean.astype(np.float32), (axes * np.where(largest < 0, -1, 1)).astype(np.float32)


def _two_columns(rows: npt.NDArray[np.floating[Any]]) -> Map:
    found = np.zeros((len(rows), 2), np.float32)
    found[:, : rows.shape[1]] = rows
    return found
