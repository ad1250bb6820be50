"""Tokens as they arise: a frame without a token is a gap, and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from bioembed_ray.assigned import Assigned
from bioembed_ray.codebooks.nearest import make_codes
from bioembed_ray.tokens import TokenPlaces, tokens_table

STRIDE = 320


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e19])
@pytest.mark.parametrize("per_step", [1, 2])
def test_only_the_time_steps_with_a_frame_that_has_no_token_are_gaps(
    bad: float, per_step: int
) -> None:
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((5, 3)).astype(np.float32)
    frames = rng.standard_normal((6 * per_step, 3)).astype(np.float32)
    wanted: list[int | None] = cdist(frames, centroids).argmin(1).tolist()
    for step, column in ((2, 1), (5, 0)):
        frames[step * per_step, column] = bad
        wanted[step * per_step : (step + 1) * per_step] = [None] * per_step
    named = Assigned([(1, make_codes(centroids, "euclidean"))])
    steps = np.arange(6) * STRIDE
    named.add(0, steps, [torch.zeros(0), torch.from_numpy(frames)])
    # A second block, of which nothing is left, and a third one.
    named.add(0, steps + 6 * STRIDE, [torch.zeros(0), torch.full((6 * per_step, 3), bad)])
    named.add(0, steps[:1] + 12 * STRIDE, [torch.zeros(0), torch.ones(per_step, 3)])
    wanted[5 * per_step :] = [None] * (7 * per_step)
    wanted += cdist(np.ones((1, 3)), centroids).argmin(1).tolist() * per_step
    (table,) = named.tables()
    places = TokenPlaces(["a.wav"], [0], 16_000)
    assert tokens_table(places, table, STRIDE, None, 5).column("tokens").to_pylist() == [wanted]


def test_a_place_without_a_token_has_no_row() -> None:
    named = Assigned([(0, make_codes(np.eye(3, dtype=np.float32), "euclidean"))])
    named.add(0, np.arange(2) * STRIDE, [torch.full((2, 3), torch.nan)])
    (table,) = named.tables()
    assert len(table.place) == len(table.start) == len(table.labels) == 0
