"""Tokens as they arise: a frame without a token is a gap, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from bioembed_ray.apply import Place
from bioembed_ray.assigned import Assigned
from bioembed_ray.audio.spans import Track
from bioembed_ray.codebooks.nearest import make_codes
from bioembed_ray.config import EncoderConfig
from bioembed_ray.encode import encode
from bioembed_ray.encoders import registry
from bioembed_ray.tokens import TokenPlaces, tokens_table
from bioembed_ray.windows import Clock, WindowRule
from tests.tiny import RATE_HZ, torchscript

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


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_windows_are_named_by_their_vectors_as_they_are_stored(stored: str, tmp_path: Path) -> None:
    config = EncoderConfig(
        model=str(torchscript(tmp_path / "t.pt")), rate_hz=RATE_HZ, window_s=1.0, hop_s=1.0
    )
    network = registry.load("t", config, registry.checkpoint("t", config), "cpu")
    wave = 0.1 * np.random.default_rng(0).standard_normal(40 * RATE_HZ).astype(np.float32)
    places = [Place(0, Clock(RATE_HZ, RATE_HZ), 0, None, len(wave), Track(0, 0, wave))]
    rule = WindowRule(RATE_HZ, RATE_HZ, "pad")
    windows, _, _ = encode(network, rule, places, "cpu", 1, False)
    vectors = windows.vectors[0]
    rounded = vectors.astype(np.float16).astype(np.float32)
    # Two centroids for every vector, the one nearest before rounding and the other one after it.
    away = rounded - vectors
    centroids = np.concatenate([vectors - 0.4 * away, rounded + 0.4 * away])
    codes = [(0, make_codes(centroids, "euclidean"))]
    _, _, (table,) = encode(network, rule, places, "cpu", 1, False, codes, stored)
    wanted = cdist(vectors if stored == "float32" else rounded, centroids).argmin(1)
    assert table.labels[:, 0].tolist() == wanted.tolist()
    assert wanted.tolist() == (np.arange(40) + 40 * (stored == "float16")).tolist()
