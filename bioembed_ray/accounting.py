"""Every promised and every decoded sample of a shard accounted for, under one encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bioembed_ray.audio.holes import Holes, clip_holes, hole_samples
from bioembed_ray.audio.spans import SpanAudio
from bioembed_ray.coverage import Coverage, coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.outcomes import Failure, SpanOutcome
from bioembed_ray.segments import Shard, Span
from bioembed_ray.windows import WindowRule

if TYPE_CHECKING:
    from bioembed_ray.apply import LostWindow, Place, Windows

# Windows that are lost for these have no row, and no failure of their own.
_ABSENT = frozenset({Reason.TOO_SHORT, Reason.DAMAGED})
# Rows of failures/ for the holes of one channel of a span.
MOST_HOLE_ROWS = 100


@dataclass(slots=True)
class Judged:
    """Outcomes and failures of a shard under one encoder and layer."""

    spans: list[SpanOutcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def judge(
    shard: Shard,
    audios: Sequence[SpanAudio | RecordingError],
    places: Sequence[Place],
    rule: WindowRule,
    windows: Windows,
    dataset: Dataset,
    n_channels_of: Sequence[int],
) -> Judged:
    """Account for every promised and every decoded sample of a shard.

    Args:
        shard: The spans.
        audios: What decoding each gave.
        places: The tracks, each pointing to its span.
        rule: Window, hop and tail.
        windows: Rows made, and windows lost.
        dataset: Which encoder and version.
        n_channels_of: Channels encoded, per span.
    """
    judged = Judged()
    lost_at: dict[int, list[LostWindow]] = {}
    for lost in windows.lost:
        lost_at.setdefault(lost.place, []).append(lost)
    rows_at = np.bincount(windows.place, minlength=len(places))
    places_at: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        places_at.setdefault(place.span, []).append(index)
    shard_name = shard.id
    for number, (span, audio) in enumerate(zip(shard.spans, audios, strict=True)):
        n_channels = n_channels_of[number]
        if isinstance(audio, RecordingError):
            failed = Coverage(failed=span.promised * n_channels)
            judged.spans.append(SpanOutcome(span.recording, 0, 0, 0, 0, failed))
            judged.failures.append(
                _span_failure(span, audio, span.start, span.promised, n_channels, shard_name)
            )
            continue
        total = Coverage()
        for index in places_at.get(number, []):
            part, failures = _judge_place(
                span, audio, places[index], rule, lost_at.get(index, []), int(rows_at[index])
            )
            total += part
            judged.failures += [
                replace(f, encoder=dataset.encoder, version=dataset.version, shard=shard_name)
                for f in failures
            ]
        missing = span.missing(audio.n_extent)
        flaw = _flaw(span, audio)
        if missing or flaw is not None:
            judged.failures.append(_truncated(span, audio, missing, flaw, n_channels, shard_name))
        total += Coverage(failed=missing * n_channels)
        holes = _own_holes(span, audio)
        judged.failures += _hole_failures(span, holes, n_channels, shard_name)
        n_rows = int(sum(rows_at[index] for index in places_at.get(number, [])))
        n_lost = min(map(hole_samples, holes), default=0)
        counts = (audio.n_extent - n_lost, audio.n_extent, audio.n_nonfinite, n_rows)
        judged.spans.append(SpanOutcome(span.recording, *counts, total, holes))
    return judged


def _judge_place(
    span: Span,
    audio: SpanAudio,
    place: Place,
    rule: WindowRule,
    lost: list[LostWindow],
    n_rows: int,
) -> tuple[Coverage, list[Failure]]:
    stop = span.start + audio.n_extent
    absent = [entry.start for entry in lost if entry.error.reason in _ABSENT]
    bad = [entry for entry in lost if entry.error.reason not in _ABSENT]
    failures = [_window_failure(span, place, rule, group) for group in _runs(bad, rule.hop)]
    short = [entry.error for entry in lost if entry.error.reason is Reason.TOO_SHORT]
    if short and not n_rows and not bad and audio.n_extent:
        # Not one frame in the whole span: it failed, rather than having a short tail.
        channel = place.track.channel
        return Coverage(failed=audio.n_extent), [
            _span_failure(span, short[0], span.start, audio.n_extent, 1, None, channel)
        ]
    covered = coverage(
        place.clock,
        rule,
        span.start,
        stop,
        place.n_native,
        np.array([entry.start for entry in bad], np.int64),
        np.array(absent, np.int64),
        place.holes,
    )
    return covered, failures


def _runs(lost: list[LostWindow], hop: int) -> list[list[LostWindow]]:
    """Group neighbouring windows that were lost for the same reason."""
    groups: list[list[LostWindow]] = []
    for entry in sorted(lost, key=lambda entry: entry.start):
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and entry.start - last.start <= hop
            and str(entry.error) == str(last.error)
        ):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _window_failure(span: Span, place: Place, rule: WindowRule, group: list[LostWindow]) -> Failure:
    start = place.clock.native(group[0].start)
    stop = place.clock.native(group[-1].start + rule.window)
    if place.n_native is not None:
        stop = min(stop, place.n_native)
    error = group[0].error
    rate = span.header.rate_hz
    detail = f"{len(group)} windows: {error.detail}"
    return Failure(
        span.recording,
        error.reason,
        detail,
        channel=place.track.channel,
        # The first window's own start, as its row would have had it: it may lie between two samples.
        start_s=place.clock.seconds(group[0].start),
        end_s=stop / rate,
        n_samples=stop - start,
    )


def _span_failure(
    span: Span,
    error: RecordingError,
    start: int,
    n_samples: int,
    n_channels: int,
    shard: str | None,
    channel: int | None = None,
) -> Failure:
    rate = span.header.rate_hz
    return Failure(
        span.recording,
        error.reason,
        error.detail,
        channel=channel,
        start_s=start / rate,
        end_s=(start + n_samples) / rate,
        n_samples=n_samples * n_channels,
        shard=shard,
    )


def _flaw(span: Span, audio: SpanAudio) -> str | None:
    """Return what is wrong with the end of the recording, where it lies in this span."""
    is_here = audio.n_native is not None and (span.stop is None or audio.n_native <= span.stop)
    return (audio.fault or span.header.flaw) if is_here and audio.n_extent else None


def _truncated(
    span: Span, audio: SpanAudio, missing: int, flaw: str | None, n_channels: int, shard: str
) -> Failure:
    rate = span.header.rate_hz
    end = span.start + audio.n_extent
    detail = f"data end at {end / rate:.3f} s; embedded up to there"
    if not audio.n_extent:
        # The end lies somewhere before this span, and the span it lies in says where.
        detail = f"data end before {end / rate:.3f} s"
    if missing:
        detail = f"header promises {(span.header.n_promised or 0) / rate:.3f} s, {detail}"
    if flaw is not None:
        detail = f"{detail} ({flaw})"
    failure = _span_failure(
        span, RecordingError(Reason.TRUNCATED, detail), end, missing, n_channels, shard
    )
    # Without a promise nobody knows how much is lost.
    return failure if missing else replace(failure, n_samples=None)


def _own_holes(span: Span, audio: SpanAudio) -> tuple[Holes, ...]:
    """Return the holes of each channel inside the span; once where all have the same."""
    own = [clip_holes(holes, span.start, span.start + audio.n_extent) for holes in audio.holes]
    if len(set(own)) == 1:
        own = own[:1]
    return tuple(own) if any(own) else ()


def _hole_failures(
    span: Span, holes: tuple[Holes, ...], n_channels: int, shard: str
) -> Iterator[Failure]:
    """Yield a failure for every hole; of very many the last row has the rest."""
    for channel, own in enumerate(holes):
        is_of_all = len(holes) == 1
        for number, (start, stop) in enumerate(own[:MOST_HOLE_ROWS]):
            detail = "cannot be decoded, or is not finite; what follows keeps its place"
            n_lost = stop - start
            if number == MOST_HOLE_ROWS - 1 and len(own) > MOST_HOLE_ROWS:
                rest = own[number:]
                stop, n_lost = rest[-1][1], hole_samples(rest)
                detail = f"{len(rest)} stretches that cannot be decoded, or are not finite"
            failure = _span_failure(
                span,
                RecordingError(Reason.DAMAGED, detail),
                start,
                n_lost,
                n_channels if is_of_all else 1,
                shard,
                None if is_of_all else channel,
            )
            yield replace(failure, end_s=stop / span.header.rate_hz)
