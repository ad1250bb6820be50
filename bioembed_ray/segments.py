"""Recordings become segments, segments become shards; all bounds are native samples.

A segment is the grain of planning; adjacent segments of one recording in one shard are one span,
read and encoded as a piece. A shard is named by what is in it, so that the listing of a partition
says what is done.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from bioembed_ray.audio.probe import Header
from bioembed_ray.inputs.listing import Source

# Opening an object costs a round trip, so a shard of very short recordings is cut by count.
MAX_SPANS = 400
# 128 kbit/s, the usual rate of compressed sound.
GUESSED_BYTES_PER_S = 16_000


@dataclass(frozen=True, slots=True)
class Span:
    """Adjacent segments of one recording in one shard.

    Attributes:
        recording: Name of the recording.
        source: Where its bytes are.
        header: What its header says.
        start: First native sample.
        stop: One past the last native sample; None runs to wherever decoding ends.
    """

    recording: str
    source: Source
    header: Header
    start: int
    stop: int | None

    @property
    def planned(self) -> int:
        """Native samples that are expected in this span; 0 where nobody knows."""
        end = (self.header.n_samples or 0) if self.stop is None else self.stop
        return max(0, end - self.start)

    @property
    def promised(self) -> int:
        """Native samples of this span that are lost if they do not come; 0 without a promise."""
        end = self.header.n_promised or 0
        return max(0, (end if self.stop is None else min(self.stop, end)) - self.start)

    def missing(self, n_extent: int) -> int:
        """Return how many samples a span lacks that has `n_extent` before its stop or its end."""
        whole = self.header.n_promised or 0
        if whole - self.start - n_extent <= self.header.slack:
            return 0
        return max(0, self.promised - n_extent)


@dataclass(frozen=True, slots=True)
class Shard:
    """A fixed list of spans: the unit that is planned, streamed, retried and committed."""

    spans: tuple[Span, ...]

    @property
    def id(self) -> str:
        """Return the digest of what is in it: recordings, their stamps, bounds."""
        return shard_id(
            (span.recording, span_stamp(span.source), span.start, span.stop) for span in self.spans
        )


@dataclass(frozen=True, slots=True)
class Cutting:
    """What decides how recordings are cut.

    Attributes:
        segment_s: Longest segment, encoder seconds; None never cuts a recording.
        shard_s: Audio per shard, encoder seconds.
        time_expansion: Recordings are treated as rate / time_expansion.
        channels: With "each", every channel costs as much as a recording of its own.
    """

    segment_s: int | None
    shard_s: float
    time_expansion: int
    channels: Literal["mix", "first", "each"]


def span_stamp(source: Source) -> str:
    """Return the stamp of a recording: its object's, and its place inside it."""
    return place_stamp(source.stamp, source.offset, source.row, source.column)


def place_stamp(stamp: str, offset: int, row: int | None, column: str | None) -> str:
    """Return the stamp of a recording from what its source says."""
    if row is not None:
        return f"{stamp}#{column}[{row}]"
    return f"{stamp}@{offset}" if offset else stamp


def shard_id(parts: Iterable[tuple[str, str, int, int | None]]) -> str:
    """Return 80 bits of SHA-256 over (recording, stamp, start, stop) in order, as hex."""
    body = json.dumps([list(part) for part in parts], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:20]


def segment_bounds(
    n_samples: int | None, rate_hz: int, cutting: Cutting
) -> list[tuple[int, int | None]]:
    """Return the (start, stop) of every segment; the last is open, since headers lie.

    Segments begin on multiples of `segment_s` encoder seconds. A last one shorter than half a
    segment joins the one before.

    >>> cut = Cutting(segment_s=300, shard_s=1800, time_expansion=1, channels="mix")
    >>> segment_bounds(16_000 * 1000, 16_000, cut)
    [(0, 4800000), (4800000, 9600000), (9600000, None)]
    """
    if n_samples is None or cutting.segment_s is None:
        return [(0, None)]
    step = Fraction(cutting.segment_s * rate_hz, cutting.time_expansion)
    n_segments = max(1, int(n_samples / step + Fraction(1, 2)))
    edges = [-(-(k * step).numerator // (k * step).denominator) for k in range(n_segments)]
    return [*itertools.pairwise(edges), (edges[-1], None)]


def encoder_seconds(span: Span, cutting: Cutting) -> float:
    """Return how long an encoder works on a span: encoder seconds times channels encoded.

    A length that no header tells is guessed from the size.
    """
    n_channels = span.header.channels if cutting.channels == "each" else 1
    seconds = span.planned / span.header.rate_hz
    if span.stop is None and span.header.n_samples is None:
        seconds = span.source.size_bytes / GUESSED_BYTES_PER_S
    return seconds * cutting.time_expansion * n_channels


def cut_gaps(
    bounds: list[tuple[int, int | None]], pieces: Iterable[tuple[int, int | None]]
) -> list[tuple[int, int | None]]:
    """Return the parts of segments that no piece covers yet, in order.

    >>> cut_gaps([(0, 100), (100, None)], [(0, 60)])
    [(60, 100), (100, None)]
    """
    free = bounds
    for taken_start, taken_stop in pieces:
        free = [part for gap in free for part in _without(gap, taken_start, taken_stop)]
    return free


def _without(
    gap: tuple[int, int | None], start: int, stop: int | None
) -> Iterator[tuple[int, int | None]]:
    low, high = gap
    if low < start:
        yield low, start if high is None else min(high, start)
    if stop is not None and (high is None or stop < high):
        yield max(low, stop), high


def form_shards(
    recordings: Iterable[tuple[str, Source, Header, list[tuple[int, int | None]]]],
    cutting: Cutting,
) -> Iterator[Shard]:
    """Yield shards of about `shard_s`, filled with segments in the order given.

    The same recordings in the same order always give the same shards. A recording has at most one
    span in a shard, since what becomes of it there is accounted for by its name.

    Args:
        recordings: Name, source, header and the segments to place.
        cutting: Audio per shard, time expansion, channels.
    """
    spans: list[Span] = []
    filled = 0.0
    for name, source, header, bounds in recordings:
        for start, stop in bounds:
            segment = Span(name, source, header, start, stop)
            length = encoder_seconds(segment, cutting)
            # Half a segment over is nearer the goal than half a segment under.
            is_full = filled + length / 2 > cutting.shard_s or len(spans) >= MAX_SPANS
            is_known = bool(spans) and spans[-1].recording == name
            if spans and (is_full or (is_known and spans[-1].stop != start)):
                yield Shard(tuple(spans))
                spans, filled, is_known = [], 0.0, False
            if is_known:
                spans[-1] = Span(name, source, header, spans[-1].start, stop)
            else:
                spans.append(segment)
            filled += length
    if spans:
        yield Shard(tuple(spans))


def shard_seconds(total_s: float, shard_minutes: float) -> float:
    """Return the audio per shard: as configured, less where the archive is small.

    An archive is cut into sixteen at least, so that a few actors share even a small one; below
    half a minute the cost of a part outweighs that.
    """
    return min(shard_minutes * 60, max(30.0, total_s / 16))


def span_to_json(span: Span) -> dict[str, Any]:
    """Return a span as plain values, for a part's metadata."""
    return {
        "recording": span.recording,
        "stamp": span_stamp(span.source),
        "start": span.start,
        "stop": span.stop,
    }


def id_of_json(spans: Iterable[dict[str, Any]]) -> str:
    """Return the id of the shard that holds these spans, given as in a part's metadata."""
    return shard_id((s["recording"], s["stamp"], s["start"], s["stop"]) for s in spans)
