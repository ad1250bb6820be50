"""Whatever a recording is cut into, an encoder gives the same vectors to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray.config import EncoderConfig
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.encode import encode
from bioembed_ray.encoders.base import Encoder
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.versions import reach_s
from bioembed_ray.windows import Clock, WindowRule
from tests.unit.references import (
    FakeFrames,
    FakeWindows,
    frame_encoder,
    frames_by_loop,
    place_of,
    sound,
    window_encoder,
)

torch.set_num_threads(1)
RATE = 1000


def planned(encoder: FakeWindows | FakeFrames, rule: WindowRule) -> PlannedEncoder:
    config = EncoderConfig(model="fake", frames="all" if encoder.facts.grid else "none")
    return PlannedEncoder("fake", config, encoder.facts, Checkpoint("local", "0"), rule, ())


def check(
    encoder: FakeWindows | FakeFrames, rule: WindowRule, clock: Clock, n: int, cuts: list[int]
) -> None:
    """Encode in spans, with just the reach that a run reads, and compare with one span."""
    network: Encoder = encoder
    keep = encoder.facts.grid is not None
    wave = sound(clock.length(n))
    whole, frames, _ = encode(network, rule, [place_of(wave, clock, n)], "cpu", 1, keep)
    before, after = (round(s * RATE) for s in reach_s((planned(encoder, rule),)))
    edges = sorted({0, *(cut for cut in cuts if 0 < cut < n)})
    places = [
        place_of(wave, clock, n, start, stop, (before, after), span)
        for span, (start, stop) in enumerate(zip(edges, [*edges[1:], None], strict=True))
    ]
    found, own, _ = encode(network, rule, places, "cpu", 1, keep)
    assert found.start.tolist() == whole.start.tolist()
    assert found.valid == whole.valid
    assert np.array_equal(found.vectors[0], whole.vectors[0])
    assert {(e.start, str(e.error)) for e in found.lost} == {
        (e.start, str(e.error)) for e in whole.lost
    }
    if keep:
        assert own is not None
        assert frames is not None
        assert own.start.tolist() == frames.start.tolist()
        assert np.array_equal(own.vectors[0], frames.vectors[0])
        assert len(frames.start) == len(frames_by_loop(wave, 20, 25))


CLOCKS = st.sampled_from(
    [Clock(RATE, RATE), Clock(441, RATE), Clock(2500, RATE), Clock(2501, RATE, 3)]
)
RULES = st.builds(
    WindowRule,
    st.integers(40, 9000),
    st.integers(50, 3000),
    st.sampled_from(["pad", "drop", "shift"]),
)
CUTS = st.lists(st.integers(0, 30_000), max_size=5)


def near_the_end(n: int, cuts: list[int]) -> list[int]:
    """Mirror every other cut, so that many lie where the tail is."""
    return [cut if k % 2 else n - cut // 4 for k, cut in enumerate(cuts)]


@settings(deadline=None, max_examples=60)
@given(RULES, CLOCKS, st.integers(1, 30_000), CUTS)
def test_window_encoders(rule: WindowRule, clock: Clock, n: int, cuts: list[int]) -> None:
    check(window_encoder(), rule, clock, n, near_the_end(n, cuts))


@settings(deadline=None, max_examples=150)
@given(RULES, CLOCKS, st.integers(1, 30_000), CUTS, st.integers(1, 6), st.integers(0, 3))
def test_frame_encoders_cut_anywhere(
    rule: WindowRule, clock: Clock, n: int, cuts: list[int], block_s: int, context_s: int
) -> None:
    check(
        frame_encoder(block_s=block_s, context_s=context_s), rule, clock, n, near_the_end(n, cuts)
    )


class Whole(FakeFrames):
    """Frames that depend on everything in their block, as attention makes them."""

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        total = waves.double().sum(dim=1).float()[:, None, None]
        return [layer + total for layer in super().frames(waves)]


@settings(deadline=None, max_examples=150)
@given(RULES, CLOCKS, st.integers(1, 30_000), CUTS, st.integers(1, 6), st.integers(0, 3))
def test_frame_encoders_that_hear_their_whole_block(
    rule: WindowRule, clock: Clock, n: int, cuts: list[int], block_s: int, context_s: int
) -> None:
    facts = frame_encoder(block_s=block_s, context_s=context_s).facts
    check(Whole(facts, batch_size=1), rule, clock, n, near_the_end(n, cuts))


@pytest.mark.parametrize("over", [1, 999, 1999, 2000])
def test_a_tail_that_joins_the_block_before_the_span(over: int) -> None:
    # Block 4 s: a recording that ends less than 2 s behind a segment's start.
    facts = frame_encoder(block_s=4, context_s=1).facts
    rule = WindowRule(1000, 500)
    check(Whole(facts), rule, Clock(RATE, RATE), 8000 + over, [4000, 8000])


@pytest.mark.parametrize(("block_s", "context_s"), [(7, 0), (7, 2)])
def test_a_span_that_starts_deep_in_a_joined_tail(block_s: int, context_s: int) -> None:
    """Another time expansion leaves old spans off the grid: they may start anywhere in a block."""
    facts = frame_encoder(block_s=block_s, context_s=context_s).facts
    n = 24_000  # blocks [0, 7), [7, 14), [14, 24): a tail of 3 s joined
    for window in (1000, 7000, 9000):
        rule = WindowRule(window, 500)
        check(Whole(facts), rule, Clock(RATE, RATE), n, [13_900, 20_100, 23_400])
