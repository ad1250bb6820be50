"""Windows, their real seconds and coverage against loops over exact fractions; blocks tile."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from bioembed_ray.coverage import Coverage, coverage
from bioembed_ray.encoders.base import FrameGrid
from bioembed_ray.windows import Clock, WindowRule, blocks, valid_samples, window_starts
from tests.unit.references import ODD_RATES, starts_by_loop

DAY_S = 86_400
WAV2VEC = FrameGrid(20, 2, joins_tail=True, stride=320, receptive=400)
BEATS = FrameGrid(10, 0, joins_tail=False, stride=2560, receptive=2960, per_step=8)


def starts(clock: Clock, rule: WindowRule, n_native: int) -> list[int]:
    return [int(start) for start in window_starts(clock, rule, 0, None, n_native)]


def test_three_seconds_at_one_second_and_half_a_hop_are_six_windows() -> None:
    clock, rule = Clock(48_000, 16_000), WindowRule(16_000, 8000)
    table = window_starts(clock, rule, 0, None, 3 * 48_000)
    assert [clock.seconds(int(start)) for start in table] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [float(v) / 16_000 for v in valid_samples(clock, rule, table, 3 * 48_000)] == [
        1, 1, 1, 1, 1, 0.5,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tail", "n_native", "wanted"),
    [
        ("pad", 25, [0, 5, 10, 15, 20]),
        ("drop", 25, [0, 5, 10, 15]),
        ("shift", 25, [0, 5, 10, 15]),
        ("pad", 27, [0, 5, 10, 15, 20, 25]),
        ("drop", 27, [0, 5, 10, 15]),
        ("shift", 27, [0, 5, 10, 15, 17]),
        ("pad", 4, [0]),
        ("drop", 4, []),
        ("shift", 4, [0]),
        ("pad", 10, [0, 5]),
        ("drop", 10, [0]),
        ("shift", 10, [0]),
        ("pad", 0, []),
        ("drop", 0, []),
        ("shift", 0, []),
    ],
)
def test_tail_rules_on_numbers_worked_by_hand(tail: str, n_native: int, wanted: list[int]) -> None:
    rule = WindowRule(10, 5, tail)  # type: ignore[arg-type]
    assert starts(Clock(1000, 1000), rule, n_native) == wanted


def test_hop_above_the_window_leaves_gaps() -> None:
    clock, rule = Clock(1000, 1000), WindowRule(10, 25)
    assert starts(clock, rule, 60) == [0, 25, 50]
    none = np.zeros(0, np.int64)
    assert coverage(clock, rule, 0, 60, 60, none, none) == Coverage(embedded=30, skipped=30)


@pytest.mark.parametrize("rate_hz", ODD_RATES)
@pytest.mark.parametrize("expansion", [1, 10])
def test_every_rate_gives_the_windows_of_the_loop(rate_hz: int, expansion: int) -> None:
    n_native = rate_hz * 3 // expansion + 17
    for tail in ("pad", "drop", "shift"):
        rule = WindowRule(16_000, 4000, tail)
        wanted = starts_by_loop(rate_hz, 16_000, expansion, 16_000, 4000, tail, n_native)
        assert starts(Clock(rate_hz, 16_000, expansion), rule, n_native) == [s for s, _ in wanted]


def test_a_span_without_stop_or_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a span needs a stop or the recording's length"):
        window_starts(Clock(1000, 1000), WindowRule(10, 5), 0, None, None)


def test_windows_at_the_end_of_a_day_at_384_khz_are_exact() -> None:
    clock, rule = Clock(384_000, 16_000), WindowRule(16_000, 8000)
    n_native = DAY_S * 384_000
    table = window_starts(clock, rule, n_native - 384_000, None, n_native)
    assert table.tolist() == [(DAY_S - 1) * 16_000, (DAY_S - 1) * 16_000 + 8000]
    assert [clock.seconds(int(s)) for s in table] == [DAY_S - 1, DAY_S - 0.5]


def test_a_hop_of_a_third_of_a_second_does_not_drift_over_a_day() -> None:
    clock, rule = Clock(250_001, 48_000), WindowRule(48_000, 16_000)
    n_native = DAY_S * 250_001
    table = window_starts(clock, rule, 0, None, n_native)
    assert len(table) == DAY_S * 3
    # Rounded once: the double next to k/3, not the sum of k rounded thirds.
    assert clock.seconds(int(table[-1])) == float(Fraction(3 * DAY_S - 1, 3))


def test_time_expansion_gives_real_seconds() -> None:
    clock, rule = Clock(384_000, 16_000, 10), WindowRule(16_000, 16_000)
    table = window_starts(clock, rule, 0, None, 384_000)
    assert [clock.seconds(int(s)) for s in table] == [k / 10 for k in range(10)]


def test_coverage_of_a_recording_one_sample_short_of_a_window_is_padded() -> None:
    none = np.zeros(0, np.int64)
    for tail in ("pad", "shift"):
        rule = WindowRule(10, 5, tail)
        found = coverage(Clock(1000, 1000), rule, 0, 9, 9, none, none)
        assert found == Coverage(padded=9), tail


def test_coverage_adds_up_over_a_day_at_384_khz() -> None:
    clock, rule = Clock(384_000, 16_000), WindowRule(16_000, 20_000)
    n_native = DAY_S * 384_000 + 7
    none = np.zeros(0, np.int64)
    found = coverage(clock, rule, n_native - 384_000 * 100, n_native, n_native, none, none)
    assert found.total == 384_000 * 100
    assert found.skipped == 384_000 * 20  # 0.25 s of each 1.25 s; the last 7 samples are window 0
    assert found.padded == 7


def test_coverage_of_nothing_is_nothing() -> None:
    none = np.zeros(0, np.int64)
    assert coverage(Clock(1000, 1000), WindowRule(10, 5), 7, 7, 7, none, none) == Coverage()


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (5, [(0, 5)]),
        (20, [(0, 20)]),
        (29.9, [(0, 29.9)]),
        (30, [(0, 20), (20, 30)]),
        (49.9, [(0, 20), (20, 49.9)]),
        (50, [(0, 20), (20, 40), (40, 50)]),
    ],
)
def test_a_tail_under_half_a_block_joins_the_block_before(
    seconds: float, wanted: list[tuple[float, float]]
) -> None:
    length = int(seconds * 16_000)
    found = blocks(WAV2VEC, 16_000, 0, length, length)
    assert [(b.start / 16_000, b.stop / 16_000) for b in found] == wanted


def test_a_block_reads_its_context_and_the_rest_of_its_last_frame() -> None:
    found = blocks(WAV2VEC, 16_000, 0, 60 * 16_000, 100 * 16_000)
    assert [(b.read_start, b.read_stop) for b in found] == [
        (0, 22 * 16_000 + 80),
        (18 * 16_000, 42 * 16_000 + 80),
        (38 * 16_000, 62 * 16_000 + 80),
    ]


def test_a_grid_without_joining_keeps_the_tail_as_a_block_of_its_own() -> None:
    length = 21 * 16_000
    found = blocks(BEATS, 16_000, 0, length, length)
    assert [(b.start, b.stop, b.read_start, b.read_stop) for b in found] == [
        (0, 160_000, 0, 160_000),
        (160_000, 320_000, 160_000, 320_000),
        (320_000, length, 320_000, length),
    ]


def test_whole_is_one_block_and_needs_the_length() -> None:
    whole = FrameGrid(None, 0, joins_tail=True, stride=320, receptive=400)
    assert [(b.start, b.stop) for b in blocks(whole, 16_000, 5, 10, 99)] == [(0, 99)]
    with pytest.raises(ValueError, match="needs its length"):
        blocks(whole, 16_000, 5, 10, None)


def test_blocks_at_the_end_of_a_day_are_exact() -> None:
    length = DAY_S * 16_000 + 3
    last = blocks(WAV2VEC, 16_000, length - 16_000, length, length)
    assert [(b.start, b.stop) for b in last] == [((DAY_S - 20) * 16_000, length)]
