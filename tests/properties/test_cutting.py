"""Whatever a recording is cut into, the same windows, blocks and shards come out, each once."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray.coverage import Coverage, coverage
from bioembed_ray.encoders.base import FrameGrid
from bioembed_ray.segments import (
    MAX_SPANS,
    Cutting,
    Shard,
    cut_gaps,
    encoder_seconds,
    form_shards,
    segment_bounds,
)
from bioembed_ray.windows import Clock, Tail, WindowRule, blocks, valid_samples, window_starts
from tests.unit.references import (
    coverage_by_flags,
    header_of,
    source_named,
    starts_by_loop,
)

quick = settings(deadline=None, max_examples=100)

RATES = st.sampled_from([1000, 8000, 11_025, 22_050, 44_100, 250_001, 500_000])
CLOCKS = st.builds(
    Clock, RATES, st.sampled_from([1000, 16_000, 48_000]), st.sampled_from([1, 3, 10])
)
TAILS: st.SearchStrategy[Tail] = st.sampled_from(["pad", "drop", "shift"])
RULES = st.builds(WindowRule, st.integers(1, 40_000), st.integers(500, 60_000), TAILS)


def spans_of(cuts: list[int], n: int) -> list[tuple[int, int | None]]:
    """Return adjacent spans of [0, n), the last one open."""
    edges = sorted({0, *(cut for cut in cuts if cut < n)})
    return [*itertools.pairwise(edges), (edges[-1], None)]


@quick
@given(CLOCKS, RULES, st.integers(0, 300_000))
def test_windows_are_those_of_the_loop(clock: Clock, rule: WindowRule, n_native: int) -> None:
    wanted = starts_by_loop(
        clock.native_hz,
        clock.encoder_hz,
        clock.time_expansion,
        rule.window,
        rule.hop,
        rule.tail,
        n_native,
    )
    found = window_starts(clock, rule, 0, None, n_native)
    assert found.tolist() == [start for start, _ in wanted]
    valid = valid_samples(clock, rule, found, n_native)
    end = n_native * clock.ratio
    assert valid == [min(rule.window, end - start) for start, _ in wanted]
    assert all(0 < v <= rule.window for v in valid)


@quick
@given(CLOCKS, RULES, st.integers(1, 200_000), st.lists(st.integers(0, 200_000), max_size=6))
def test_any_cut_gives_every_window_once_and_where_it_starts(
    clock: Clock, rule: WindowRule, n_native: int, cuts: list[int]
) -> None:
    pieces = []
    for start, stop in spans_of(cuts, n_native):
        # A reader does not know an end that lies a window or more beyond what it wants.
        is_far = stop is not None and clock.length(stop) + rule.window < n_native * clock.ratio
        found = window_starts(clock, rule, start, stop, None if is_far else n_native)
        assert all(at >= start * clock.ratio for at in found)
        assert stop is None or all(at < stop * clock.ratio for at in found)
        pieces += found.tolist()
    assert pieces == window_starts(clock, rule, 0, None, n_native).tolist()


@st.composite
def covered(draw: st.DrawFn) -> tuple[Clock, WindowRule, int]:
    clock = Clock(draw(st.sampled_from([7, 11, 16, 30])), draw(st.sampled_from([11, 16])))
    clock = replace(clock, time_expansion=draw(st.sampled_from([1, 3])))
    rule = WindowRule(draw(st.integers(1, 25)), draw(st.integers(1, 30)), draw(TAILS))
    return clock, rule, draw(st.integers(1, 60))


@quick
@given(covered(), st.data())
def test_coverage_is_what_flags_per_sample_say(
    case: tuple[Clock, WindowRule, int], data: st.DataObject
) -> None:
    clock, rule, n_native = case
    starts = window_starts(clock, rule, 0, None, n_native).tolist()
    some = st.sets(st.sampled_from(starts)) if starts else st.just(set())
    failed = data.draw(some)
    absent = data.draw(some) - failed
    letters = coverage_by_flags(clock, rule.window, rule.tail, starts, n_native, failed, absent)
    start = data.draw(st.integers(0, n_native))
    stop = data.draw(st.integers(start, n_native))
    found = coverage(clock, rule, start, stop, n_native, array(failed), array(absent))
    counts = Counter(letters[start:stop].tolist())
    assert found == Coverage(counts["e"], counts["p"], counts["f"], counts["s"])
    assert found.total == stop - start


def array(values: set[int]) -> np.ndarray:
    return np.array(sorted(values), np.int64)


@quick
@given(
    st.integers(1, 6),
    st.integers(0, 3),
    st.booleans(),
    st.integers(1, 4000),
    st.lists(st.integers(0, 4000), max_size=5),
)
def test_every_sample_has_one_block_whatever_is_asked_for(
    block_s: int, context_s: int, joins_tail: bool, length: int, cuts: list[int]
) -> None:
    rate_hz, stride, receptive = 100, 4, 5
    grid = FrameGrid(block_s, context_s, joins_tail, stride, receptive)
    whole = blocks(grid, rate_hz, 0, length, length)
    assert whole[0].start == 0
    assert whole[-1].stop == length
    assert all(a.stop == b.start for a, b in itertools.pairwise(whole))
    size = block_s * rate_hz
    assert all(b.stop - b.start == size for b in whole[:-1])
    last = whole[-1].stop - whole[-1].start
    assert last < 1.5 * size if joins_tail else last <= size
    assert not joins_tail or len(whole) == 1 or last * 2 >= size
    for start, stop in spans_of(cuts, length):
        end = length if stop is None else stop
        is_far = length >= end + 1.5 * size + context_s * rate_hz + receptive
        found = blocks(grid, rate_hz, start, end, None if is_far else length)
        assert found == [b for b in whole if b.start < end and b.stop > start]


@quick
@given(st.integers(0, 10**7), RATES, st.integers(1, 400), st.sampled_from([1, 3, 10]))
def test_segments_lie_end_to_end_on_whole_encoder_seconds(
    n_samples: int, rate_hz: int, segment_s: int, expansion: int
) -> None:
    bounds = segment_bounds(n_samples, rate_hz, Cutting(segment_s, 1800, expansion, "mix"))
    assert bounds[0][0] == 0
    assert bounds[-1][1] is None
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    step = segment_s * rate_hz  # in units of 1 / expansion of a native sample
    for k, (start, _) in enumerate(bounds):
        assert 0 <= start * expansion - k * step < expansion
    last = n_samples * expansion - (len(bounds) - 1) * step
    assert last * 2 < 3 * step
    assert len(bounds) == 1 or last * 2 >= step


PIECES = st.lists(
    st.tuples(st.integers(0, 40), st.one_of(st.none(), st.integers(1, 15))), max_size=4
)


@quick
@given(st.lists(st.integers(1, 40), max_size=4, unique=True), PIECES)
def test_gaps_are_the_samples_that_no_piece_has(
    edges: list[int], raw: list[tuple[int, int | None]]
) -> None:
    bounds = spans_of(edges, 60)
    pieces = [(start, None if n is None else start + n) for start, n in raw]
    gaps = cut_gaps(bounds, pieces)
    far = 100

    def samples(spans: list[tuple[int, int | None]]) -> list[int]:
        return [s for start, stop in spans for s in range(start, far if stop is None else stop)]

    assert samples(gaps) == sorted(set(range(far)) - set(samples(pieces)))
    for gap in gaps:
        assert any(low <= gap[0] and (high is None or gap[0] < high) for low, high in bounds)


RECORDINGS = st.lists(st.tuples(st.integers(0, 4_000_000), st.integers(1, 4)), max_size=25)


@quick
@given(RECORDINGS, st.integers(5, 100), st.floats(10, 500), st.sampled_from(["mix", "each"]))
def test_shards_tile_every_recording_once_and_keep_their_size(
    lengths: list[tuple[int, int]], segment_s: int, shard_s: float, channels: str
) -> None:
    cutting = Cutting(segment_s, shard_s, 1, channels)  # type: ignore[arg-type]
    recordings = []
    for number, (n, n_channels) in enumerate(lengths):
        name = f"{number}.wav"
        header = header_of(n, 16_000, n_channels)
        recordings.append((name, source_named(name), header, segment_bounds(n, 16_000, cutting)))
    shards = list(form_shards(recordings, cutting))
    assert shards == list(form_shards(recordings, cutting))
    assert len({shard.id for shard in shards}) == len(shards)
    spans = [span for shard in shards for span in shard.spans]
    for name, _, _, _ in recordings:
        own = [span for span in spans if span.recording == name]
        assert own[0].start == 0
        assert own[-1].stop is None
        assert all(a.stop == b.start for a, b in itertools.pairwise(own))
    for shard in shards:
        check_size(shard, cutting)


def check_size(shard: Shard, cutting: Cutting) -> None:
    assert 0 < len(shard.spans) <= MAX_SPANS
    names = [span.recording for span in shard.spans]
    assert len(set(names)) == len(names), "adjacent segments are one span"
    length = sum(encoder_seconds(span, cutting) for span in shard.spans)
    segment_s = cutting.segment_s or 0
    most = max(span.header.channels for span in shard.spans) if cutting.channels == "each" else 1
    # A joined last segment is half as long again.
    assert length <= cutting.shard_s + segment_s * 1.5 * most
