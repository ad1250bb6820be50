"""Segments and shards on numbers worked by hand; names of shards."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from bioembed_ray.inputs.listing import Source
from bioembed_ray.segments import (
    MAX_SPANS,
    Cutting,
    Shard,
    Span,
    cut_gaps,
    encoder_seconds,
    form_shards,
    segment_bounds,
    shard_id,
    shard_seconds,
    span_stamp,
    span_to_json,
)
from tests.unit.references import header_of, source_named

CUTTING = Cutting(segment_s=300, shard_s=1800, time_expansion=1, channels="mix")


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0, [0]),
        (10, [0]),
        (300, [0]),
        (449, [0]),
        (450, [0, 300]),
        (900, [0, 300, 600]),
        (1049, [0, 300, 600]),
    ],
)
def test_a_last_segment_under_half_joins_the_one_before(seconds: int, wanted: list[int]) -> None:
    found = segment_bounds(seconds * 16_000, 16_000, CUTTING)
    assert [start / 16_000 for start, _ in found] == wanted


def test_an_unknown_length_or_no_limit_is_one_open_segment() -> None:
    assert segment_bounds(None, 16_000, CUTTING) == [(0, None)]
    assert segment_bounds(10**9, 16_000, replace(CUTTING, segment_s=None)) == [(0, None)]


def test_time_expansion_makes_segments_shorter_in_real_time() -> None:
    found = segment_bounds(384_000 * 90, 384_000, replace(CUTTING, time_expansion=10))
    assert [start for start, _ in found] == [0, 30 * 384_000, 60 * 384_000]


def test_segments_of_a_day_at_384_khz_are_exact() -> None:
    found = segment_bounds(86_400 * 384_000, 384_000, CUTTING)
    assert len(found) == 288
    assert found[-1] == (287 * 300 * 384_000, None)


def test_an_odd_rate_that_the_expansion_does_not_divide_rounds_each_edge_once() -> None:
    found = segment_bounds(250_001 * 100, 250_001, replace(CUTTING, time_expansion=7))
    edges = [start for start, _ in found]
    assert edges == [-(-k * 300 * 250_001 // 7) for k in range(len(edges))]


def test_a_promise_counts_even_where_the_file_was_cut_off() -> None:
    header = header_of(1000, n_promised=5000)
    source = source_named("a.wav")
    assert Span("a.wav", source, header, 600, None).promised == 4400
    assert Span("a.wav", source, header, 600, None).planned == 400
    assert Span("a.wav", source, header, 0, 600).promised == 600
    assert Span("a.wav", source, header, 0, 600).missing(500) == 100
    assert Span("a.wav", source, header_of(None), 0, None).promised == 0
    assert Span("a.wav", source, header_of(None), 0, None).missing(0) == 0


def test_a_rounded_promise_is_kept_by_what_is_nearly_as_long() -> None:
    header = header_of(1000, n_promised=1000, slack=50)
    source = source_named("a.mka")
    assert Span("a.mka", source, header, 0, None).missing(950) == 0
    assert Span("a.mka", source, header, 0, None).missing(949) == 51
    assert Span("a.mka", source, header, 600, None).missing(350) == 0


def test_each_channel_costs_as_much_as_a_recording() -> None:
    span = Span("a.wav", source_named("a.wav"), header_of(160_000, 16_000, 4), 0, None)
    assert encoder_seconds(span, CUTTING) == 10
    assert encoder_seconds(span, replace(CUTTING, channels="each")) == 40
    assert encoder_seconds(span, replace(CUTTING, time_expansion=10)) == 100


def shards_of(n_recordings: int, seconds: int, shard_s: float) -> list[Shard]:
    header = header_of(seconds * 16_000)
    names = [f"{number:03}.wav" for number in range(n_recordings)]
    bounds = segment_bounds(seconds * 16_000, 16_000, CUTTING)
    recordings = [(name, source_named(name), header, bounds) for name in names]
    return list(form_shards(recordings, replace(CUTTING, shard_s=shard_s)))


def test_a_long_recording_is_one_span_per_shard() -> None:
    found = shards_of(1, 3600, 1800)
    assert [len(shard.spans) for shard in found] == [1, 1]
    assert found[0].spans[0].stop == found[1].spans[0].start == 1800 * 16_000


def test_short_recordings_share_shards_up_to_the_limits() -> None:
    assert [len(shard.spans) for shard in shards_of(10, 60, 240)] == [4, 4, 2]
    counts = [len(shard.spans) for shard in shards_of(MAX_SPANS + 5, 0, 240)]
    assert counts == [MAX_SPANS, 5]


def test_a_small_archive_is_cut_into_sixteen_but_not_below_half_a_minute() -> None:
    assert shard_seconds(100 * 3600, 30) == 1800
    assert shard_seconds(1600, 30) == 100
    assert shard_seconds(60, 30) == 30
    assert shard_seconds(60, 0.25) == 15


def test_gaps_between_pieces_of_older_shards_are_found() -> None:
    bounds: list[tuple[int, int | None]] = [(0, 100), (100, 200), (200, None)]
    assert cut_gaps(bounds, [(0, 100), (200, None)]) == [(100, 200)]
    assert cut_gaps(bounds, [(50, 150)]) == [(0, 50), (150, 200), (200, None)]
    assert cut_gaps(bounds, [(0, None)]) == []


def test_two_gaps_of_a_recording_never_share_a_shard() -> None:
    """What became of a recording in a shard is accounted for under its name."""
    gaps: list[tuple[int, int | None]] = [(0, 100), (200, 300), (300, None)]
    other = ("b.wav", source_named("b.wav"), header_of(1000), [(0, None)])
    loose = [("a.wav", source_named("a.wav"), header_of(1000), gaps), other]
    found = list(form_shards(loose, CUTTING))
    assert [[(s.recording, s.start, s.stop) for s in shard.spans] for shard in found] == [
        [("a.wav", 0, 100)],
        [("a.wav", 200, None), ("b.wav", 0, None)],
    ]


SPAN = Span("a.wav", source_named("a.wav"), header_of(1000), 0, None)


@pytest.mark.parametrize(
    "other",
    [
        replace(SPAN, recording="b.wav"),
        replace(SPAN, source=source_named("a.wav", stamp="2-2")),
        replace(SPAN, start=1),
        replace(SPAN, stop=1000),
        replace(SPAN, source=replace(SPAN.source, offset=512)),
        replace(SPAN, source=replace(SPAN.source, row=3, column="audio.bytes")),
    ],
)
def test_what_is_in_a_shard_decides_its_name(other: Span) -> None:
    assert Shard((SPAN,)).id != Shard((other,)).id


def test_where_a_shard_is_read_from_does_not_decide_its_name() -> None:
    moved = replace(SPAN, source=replace(SPAN.source, uri="s3://mirror/a.wav"))
    assert Shard((SPAN,)).id == Shard((moved,)).id


def test_order_and_unicode_count() -> None:
    a, b = ("å/1.wav", "s", 0, None), ("b.wav", "s", 0, 5)
    assert shard_id([a, b]) != shard_id([b, a])
    assert shard_id([a]) != shard_id([("a/1.wav", "s", 0, None)])


def test_a_name_is_the_same_in_every_process() -> None:
    code = (
        "from bioembed_ray.segments import shard_id;"
        "print(shard_id([('å.wav', '12-34', 0, 480000), ('b.wav', 'etag', 5, None)]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Written down: shards that stand in an output keep their names with the next release.
    assert run.stdout.strip() == "5927c91c24d852f042d9"
    assert (
        shard_id([("å.wav", "12-34", 0, 480_000), ("b.wav", "etag", 5, None)])
        == "5927c91c24d852f042d9"
    )


def test_stamps_tell_members_of_one_object_apart() -> None:
    source = Source("s3://b/a.tar", "etag", 10)
    stamps = {
        span_stamp(source),
        span_stamp(replace(source, offset=512)),
        span_stamp(replace(source, row=0, column="audio.bytes")),
        span_stamp(replace(source, row=0, column="other")),
        span_stamp(replace(source, row=1, column="audio.bytes")),
    }
    assert len(stamps) == 5


def test_a_span_in_a_part_names_the_shard_again() -> None:
    spans = [span_to_json(span) for span in (SPAN, replace(SPAN, start=5, stop=9))]
    again = shard_id((s["recording"], s["stamp"], s["start"], s["stop"]) for s in spans)
    assert again == Shard((SPAN, replace(SPAN, start=5, stop=9))).id
