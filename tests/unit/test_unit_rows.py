"""Directions do not depend on how long vectors are, down to the smallest and up to the largest floats."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_distances

from bioembed_ray.codebooks.nearest import assign, make_codes
from bioembed_ray.compare.vectors import neighbour_overlap
from bioembed_ray.exports.atlas import _neighbors
from bioembed_ray.unit_rows import unit_rows

# Squares of the first vanish in float32, those of the last are infinite.
LENGTHS = (1e-30, 1e-22, 1.0, 1e18, 1e30)


def rows(length: float, n: int = 40) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((n, 6)) * length).astype(np.float32)


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_have_length_one_and_keep_their_direction(length: float) -> None:
    found = unit_rows(rows(length))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(found, unit_rows(rows(1.0)), atol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_neighbours_are_those_of_vectors_of_any_length(length: float) -> None:
    assert neighbour_overlap(rows(length), rows(1.0), 5) == 1.0
    found = _neighbors(rows(length))
    distances = cosine_distances(rows(1.0).astype(np.float64))
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :15]
    assert found.field("ids").to_pylist() == nearest.tolist()


@pytest.mark.parametrize("length", [*LENGTHS[:3], 1e17])
def test_the_distance_to_a_centroid_is_the_cosine_one(length: float) -> None:
    centroids = rows(1.0, 4)
    tokens, found = assign(rows(length), make_codes(centroids, "cosine"))
    wanted = cosine_distances(rows(1.0).astype(np.float64), centroids.astype(np.float64))
    assert tokens.tolist() == wanted.argmin(axis=1).tolist()
    np.testing.assert_allclose(found, wanted.min(axis=1), atol=1e-5)
