"""Maps of vectors: neighbours stay neighbours, the same input gives the same map."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from bioembed_ray import umap_maps
from bioembed_ray.umap_maps import fit_map, umap_coordinates


def groups(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors around four directions, of very different lengths, and their group."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4, dim))
    group = rng.integers(0, 4, n)
    vectors = centres[group] + 0.1 * rng.standard_normal((n, dim))
    return (vectors * rng.uniform(0.1, 10, (n, 1))).astype(np.float32), group


def share_of_own_group(found: np.ndarray, group: np.ndarray) -> float:
    distances = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((group[distances.argmin(axis=1)] == group).mean())


def test_directions_that_belong_together_lie_together() -> None:
    vectors, group = groups(300, 64)
    found = umap_coordinates(vectors)
    assert found.shape == (300, 2)
    assert found.dtype == np.float32
    assert share_of_own_group(found, group) == 1.0
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert trustworthiness(scaled, found, n_neighbors=15) > 0.8
    assert np.array_equal(found, umap_coordinates(vectors))
    assert not np.array_equal(found, umap_coordinates(vectors, seed=1))


def test_vectors_beyond_the_sample_are_placed_among_their_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(umap_maps, "PLACE_ROWS", 70)
    vectors, group = groups(400, 16)
    found = umap_coordinates(vectors, n_fit=200)
    assert np.isfinite(found).all()
    assert share_of_own_group(found, group) > 0.98
    assert np.array_equal(found, umap_coordinates(vectors, n_fit=200))


def test_many_wide_vectors_go_through_their_principal_axes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(umap_maps, "EXACT_BELOW", 100)
    vectors, group = groups(200, 120)
    fitted = fit_map(vectors[:150])
    found = np.concatenate([fitted.coordinates, fitted.place(vectors[150:])])
    assert share_of_own_group(found, group) > 0.98


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 9, 20])
def test_few_vectors_have_coordinates_too(n: int) -> None:
    vectors, _ = groups(n, 5)
    found = umap_coordinates(vectors)
    assert found.shape == (n, 2)
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == n


def test_equal_vectors_share_a_point_where_there_is_nothing_else() -> None:
    vectors = np.repeat(groups(3, 6)[0], 30, axis=0)
    found = umap_coordinates(vectors)
    assert len(np.unique(found, axis=0)) == 3
    assert not umap_coordinates(np.ones((40, 6), np.float32)).any()
    zeros = np.concatenate([np.zeros((20, 6), np.float32), groups(30, 6)[0]])
    assert np.isfinite(umap_coordinates(zeros)).all()


def test_one_dimension_is_enough() -> None:
    found = umap_coordinates(np.arange(5, dtype=np.float32)[:, None], metric="euclidean")
    assert np.isfinite(found).all()
    assert np.all(np.diff(found[:, 0]) > 0) or np.all(np.diff(found[:, 0]) < 0)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        umap_coordinates(np.full((10, 3), np.nan, np.float32))
