"""Windows through fake networks against direct computation; one bad row stays one bad row."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from bioembed_ray.apply import Place, Windows
from bioembed_ray.encode import encode
from bioembed_ray.encoders.base import Encoder
from bioembed_ray.errors import Reason
from bioembed_ray.frames import Frames
from bioembed_ray.windows import Clock, WindowRule
from tests.unit.references import (
    FakeFrames,
    FakeWindows,
    frame_encoder,
    frames_by_loop,
    means_by_loop,
    place_of,
    sound,
    starts_by_loop,
    window_encoder,
)

torch.set_num_threads(1)
RATE = 1000
CLOCK = Clock(RATE, RATE)
RULE = WindowRule(1000, 500)


def run(
    encoder: FakeWindows | FakeFrames,
    rule: WindowRule,
    places: list[Place],
    n_layers: int = 1,
    keep_frames: bool = False,
) -> tuple[Windows, Frames | None]:
    network: Encoder = encoder
    return encode(network, rule, places, "cpu", n_layers, keep_frames)[:2]


def recording(n: int, seed: int = 0, span: int = 0) -> Place:
    return place_of(sound(n, seed), CLOCK, n, span=span)


def direct(wave: np.ndarray, start: int, window: int) -> np.ndarray:
    cut = np.zeros(window)
    part = wave[start : start + window]
    cut[: len(part)] = part
    return np.array([cut.mean(), cut.std(ddof=1), cut[0], cut[-1]])


@pytest.mark.parametrize("tail", ["pad", "drop", "shift"])
def test_every_window_is_the_network_applied_to_its_samples(tail: str) -> None:
    rule = WindowRule(1000, 300, tail)  # type: ignore[arg-type]
    lengths = [3210, 1000, 400, 5000]
    places = [recording(n, seed, span=seed) for seed, n in enumerate(lengths)]
    windows, frames = run(window_encoder(), rule, places)
    assert frames is None
    row = 0
    for index, place in enumerate(places):
        n = len(place.track.samples)
        for start, _ in starts_by_loop(RATE, RATE, 1, 1000, 300, tail, n):  # type: ignore[arg-type]
            assert (windows.place[row], windows.start[row]) == (index, start)
            assert windows.valid[row] == min(1000, n - start)
            wanted = direct(place.track.samples, start, 1000)
            np.testing.assert_allclose(windows.vectors[0][row], wanted, atol=1e-6)
            row += 1
    assert row == len(windows.start) == len(windows.vectors[0])
    assert windows.lost == []


def test_what_is_in_the_batch_beside_a_window_does_not_matter() -> None:
    places = [recording(4321, seed) for seed in range(4)]
    alone = [run(window_encoder(batch_size=1), RULE, [place])[0] for place in places]
    together, _ = run(window_encoder(batch_size=7), RULE, places)
    joined = np.concatenate([windows.vectors[0] for windows in alone])
    assert np.array_equal(together.vectors[0], joined)


def test_batches_hold_at_most_the_batch_size() -> None:
    encoder = window_encoder(batch_size=5)
    run(encoder, RULE, [recording(4000), recording(1300, 1)])
    assert [shape[0] for shape in encoder.log] == [5, 5, 1]
    assert {shape[1] for shape in encoder.log} == {1000}


def test_several_layers_come_in_order() -> None:
    windows, _ = run(window_encoder(n_layers=3), RULE, [recording(2000)], n_layers=3)
    assert len(windows.vectors) == 3
    assert np.array_equal(windows.vectors[2], windows.vectors[0] * 3)


def test_an_encoder_that_pads_by_itself_gets_windows_at_their_own_length() -> None:
    encoder = window_encoder(pads=False, batch_size=10)
    places = [recording(2300), recording(2300, 1)]
    windows, _ = run(encoder, RULE, places)
    # 2300 samples: full windows at 0, 500, 1000; 800 real samples at 1500, 300 at 2000.
    assert sorted(encoder.log) == [(2, 300), (2, 800), (6, 1000)]
    short = places[0].track.samples[2000:2300]
    row = int(np.flatnonzero((windows.place == 0) & (windows.start == 2000))[0])
    np.testing.assert_allclose(windows.vectors[0][row][0], short.mean(), atol=1e-6)
    assert windows.valid[row] == 300


def test_a_tail_below_one_analysis_frame_is_too_short_for_an_encoder_that_pads_by_itself() -> None:
    windows, _ = run(window_encoder(pads=False), RULE, [recording(2020)])
    assert windows.start.tolist() == [0, 500, 1000, 1500]
    (lost,) = windows.lost
    assert (lost.place, lost.start, lost.error.reason) == (0, 2000, Reason.TOO_SHORT)


def test_one_row_that_raises_fails_alone() -> None:
    places = [recording(2000, seed) for seed in range(3)]
    places[1].track.samples[700] = 0.999

    class Picky(FakeWindows):
        def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
            if (windows == 0.999).any():
                raise RuntimeError("cannot\nhear this")
            return super().embed(windows)

    encoder = Picky(window_encoder().facts, batch_size=100)
    windows, _ = run(encoder, RULE, places)
    lost = [(entry.place, entry.start, str(entry.error)) for entry in windows.lost]
    text = "encoder_error: RuntimeError: cannot hear this"
    assert lost == [(1, 0, text), (1, 500, text)]
    whole, _ = run(window_encoder(), RULE, places)
    keep = ~((whole.place == 1) & (whole.start <= 500))
    assert np.array_equal(windows.vectors[0], whole.vectors[0][keep])
    assert np.array_equal(windows.start, whole.start[keep])
    assert windows.valid == [v for v, kept in zip(whole.valid, keep, strict=True) if kept]


def test_a_vector_that_is_not_finite_fails_alone() -> None:
    class Unstable(FakeWindows):
        def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
            layers = super().embed(windows)
            layers[1][2, 3] = float("nan")
            return layers

    encoder = Unstable(window_encoder().facts, batch_size=100, n_layers=2)
    windows, _ = run(encoder, RULE, [recording(3000)], n_layers=2)
    assert windows.start.tolist() == [0, 500, 1500, 2000, 2500]
    assert [(entry.start, entry.error.reason) for entry in windows.lost] == [
        (1000, Reason.NONFINITE_VECTOR)
    ]
    assert all(np.isfinite(vectors).all() for vectors in windows.vectors)


class Small(FakeWindows):
    """A device that takes `room` rows at once."""

    room = 3

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        if len(windows) > self.room:
            self.log.append(tuple(windows.shape))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().embed(windows)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    encoder = Small(window_encoder().facts, batch_size=8)
    windows, _ = run(encoder, RULE, [recording(4000)])
    assert [shape[0] for shape in encoder.log] == [8, 4, 2, 2, 4, 2, 2]
    assert windows.lost == []
    wanted, _ = run(window_encoder(), RULE, [recording(4000)])
    assert np.array_equal(windows.vectors[0], wanted.vectors[0])


def test_a_row_that_does_not_fit_alone_is_out_of_memory_and_so_transient() -> None:
    encoder = Small(window_encoder().facts, batch_size=8)
    encoder.room = 0
    windows, _ = run(encoder, RULE, [recording(1500)])
    assert [entry.error.reason for entry in windows.lost] == [Reason.OUT_OF_MEMORY] * 3
    assert len(windows.start) == 0
    assert windows.vectors[0].shape == (0, 4)


def test_a_shard_without_any_sound_gives_empty_tables() -> None:
    windows, _ = run(window_encoder(), RULE, [])
    assert windows.vectors[0].shape == (0, 4)
    windows, frames = run(frame_encoder(), RULE, [], keep_frames=True)
    assert windows.vectors[0].shape == (0, 3)
    assert frames is not None
    assert frames.vectors[0].shape == (0, 3)
    types = [str(column.dtype) for column in (frames.place, frames.start, frames.patch)]
    assert types == ["int64", "int64", "int16"]


@pytest.mark.parametrize("n", [3000, 5900, 6000, 12_345, 24, 25, 26, 700])
@pytest.mark.parametrize("rule", [RULE, WindowRule(9000, 700), WindowRule(30, 110, "shift")])
def test_window_means_are_those_over_the_frames_of_the_whole_recording(
    n: int, rule: WindowRule
) -> None:
    place = recording(n)
    windows, frames = run(frame_encoder(), rule, [place], keep_frames=True)
    wave = place.track.samples
    starts = [s for s, _ in starts_by_loop(RATE, RATE, 1, rule.window, rule.hop, rule.tail, n)]
    wanted = means_by_loop(wave, rule, starts, 20, 25)
    assert windows.start.tolist() == list(wanted)
    assert {entry.start for entry in windows.lost} == set(starts) - set(wanted)
    assert all(entry.error.reason == Reason.TOO_SHORT for entry in windows.lost)
    if wanted:
        np.testing.assert_allclose(windows.vectors[0], np.stack(list(wanted.values())), atol=1e-6)
    assert frames is not None
    reference = frames_by_loop(wave, 20, 25)
    assert frames.start.tolist() == [20 * t for t in range(len(reference))]
    np.testing.assert_allclose(frames.vectors[0], reference.astype(np.float32), atol=1e-6)


def test_frames_of_several_recordings_stand_in_order() -> None:
    places = [recording(n, seed) for seed, n in enumerate([9000, 500, 20, 13_001])]
    _, frames = run(frame_encoder(batch_size=2), RULE, places, keep_frames=True)
    assert frames is not None
    for index, place in enumerate(places):
        reference = frames_by_loop(place.track.samples, 20, 25).astype(np.float32)
        own = frames.place == index
        assert frames.start[own].tolist() == [20 * t for t in range(len(reference))]
        np.testing.assert_allclose(frames.vectors[0][own], reference, atol=1e-6)
    assert np.all(np.diff(frames.place) >= 0)


class Patches(FakeFrames):
    """Two frames per time step, the second ten times the first."""

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        return [
            torch.stack([layer, layer * 10], dim=2).flatten(1, 2) for layer in super().frames(waves)
        ]


def test_patches_are_frames_of_the_same_time_step() -> None:
    plain = frame_encoder()
    assert plain.facts.grid is not None
    facts = replace(plain.facts, grid=replace(plain.facts.grid, per_step=2))
    place = recording(9000)
    windows, frames = run(Patches(facts), RULE, [place], keep_frames=True)
    wanted, steps = run(plain, RULE, [place], keep_frames=True)
    assert frames is not None
    assert steps is not None
    assert frames.patch.tolist() == [0, 1] * len(steps.start)
    assert frames.start.tolist() == np.repeat(steps.start, 2).tolist()
    assert np.array_equal(frames.vectors[0][::2], steps.vectors[0])
    assert np.array_equal(frames.vectors[0][1::2], steps.vectors[0] * 10)
    np.testing.assert_allclose(windows.vectors[0], wanted.vectors[0] * 5.5, atol=1e-5)


def test_a_block_that_fails_takes_the_windows_along_that_need_it() -> None:
    place = recording(13_000)
    place.track.samples[6000] = 0.999  # block 1 owns [4000, 8000)

    class Picky(FakeFrames):
        def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
            if (waves == 0.999).any():
                raise ValueError("no")
            return super().frames(waves)

    encoder = Picky(frame_encoder().facts, batch_size=10)
    windows, frames = run(encoder, RULE, [place], keep_frames=True)
    lost = [entry.start for entry in windows.lost]
    assert lost == list(range(3500, 8000, 500))
    assert all(entry.error.reason == Reason.ENCODER_ERROR for entry in windows.lost)
    wanted, _ = run(frame_encoder(), RULE, [place])
    keep = ~np.isin(wanted.start, lost)
    assert np.array_equal(windows.vectors[0], wanted.vectors[0][keep])
    assert frames is not None
    assert not ((frames.start >= 4000) & (frames.start < 8000)).any()


def test_valid_lengths_are_exact_fractions() -> None:
    clock = Clock(11_025, 1000)
    place = place_of(sound(1001), clock, 11_026)
    windows, _ = run(window_encoder(), RULE, [place])
    assert windows.valid == [
        Fraction(1000),
        11_026 * Fraction(1000, 11_025) - 500,
        Fraction(1000, 11_025),
    ]
