"""What became of a shard under one encoder: sums that add up, and why the rest is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bioembed_ray.audio.spans import SpanAudio
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.segments import Shard, Span
from bioembed_ray.versions import READER_VERSION
from bioembed_ray.windows import Coverage, WindowRule, coverage

if TYPE_CHECKING:
    from bioembed_ray.apply import LostWindow, Place, Windows


@dataclass(frozen=True, slots=True)
class Failure:
    """Input that was not embedded, and why.

    Attributes:
        recording: Name.
        reason: From the closed list.
        detail: One line for people.
        encoder: The encoder it concerns; None for all.
        version: The encoder's version; None for all.
        channel: None for all.
        start_s: Start in the recording, seconds; None where it never opened.
        end_s: End, seconds.
        n_samples: Native samples lost; None where nobody knows.
        shard: The shard it happened in; None before planning.
        reader_version: Which reader said so.
    """

    recording: str
    reason: Reason
    detail: str
    encoder: str | None = None
    version: str | None = None
    channel: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    n_samples: int | None = None
    shard: str | None = None
    reader_version: int = READER_VERSION

    @property
    def line(self) -> str:
        """What is said of it to people."""
        return f"{self.recording}: {self.reason.value}: {self.detail}"


@dataclass(frozen=True, slots=True)
class SpanOutcome:
    """What became of one span; samples of all channels encoded.

    Attributes:
        recording: Name.
        n_decoded: Native samples per channel that came.
        n_nonfinite: NaN or infinite values set to zero.
        n_rows: Rows in the part: windows, frames, or rows of tokens.
        coverage: Embedded, padded, failed (with what the header promised in vain) and skipped.
    """

    recording: str
    n_decoded: int
    n_nonfinite: int
    n_rows: int
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """All of one shard in one dataset; stands in the part's own metadata.

    Attributes:
        dataset: Where the part is.
        shard: Shard id.
        spans: One outcome per span, in order.
        failures: What is missing and why.
        n_checked: Windows of different sound whose vectors were compared.
        n_distinct: Different vectors among them.
    """

    dataset: Dataset
    shard: str
    spans: tuple[SpanOutcome, ...]
    failures: tuple[Failure, ...]
    n_checked: int = 0
    n_distinct: int = 0


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
            judged.spans.append(SpanOutcome(span.recording, 0, 0, 0, failed))
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
        # A length worked out from a bit rate is no promise.
        is_promise = not span.header.is_estimate
        missing = max(0, span.promised - audio.n_decoded) if is_promise else 0
        if missing or audio.fault is not None:
            judged.failures.append(_truncated(span, audio, missing, n_channels, shard_name))
        total += Coverage(failed=missing * n_channels)
        n_rows = int(sum(rows_at[index] for index in places_at.get(number, [])))
        judged.spans.append(
            SpanOutcome(span.recording, audio.n_decoded, audio.n_nonfinite, n_rows, total)
        )
    return judged


def _judge_place(
    span: Span,
    audio: SpanAudio,
    place: Place,
    rule: WindowRule,
    lost: list[LostWindow],
    n_rows: int,
) -> tuple[Coverage, list[Failure]]:
    stop = span.start + audio.n_decoded
    absent = [entry.start for entry in lost if entry.error.reason == Reason.TOO_SHORT]
    bad = [entry for entry in lost if entry.error.reason != Reason.TOO_SHORT]
    failures = [_window_failure(span, place, rule, group) for group in _runs(bad, rule.hop)]
    if absent and not n_rows and not bad and audio.n_decoded:
        # Not one frame in the whole span: it failed, rather than having a short tail.
        error = lost[0].error
        return Coverage(failed=audio.n_decoded), [
            _span_failure(span, error, span.start, audio.n_decoded, 1, None, place.track.channel)
        ]
    covered = coverage(
        place.clock,
        rule,
        span.start,
        stop,
        place.n_native,
        np.array([entry.start for entry in bad], np.int64),
        np.array(absent, np.int64),
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


def _truncated(span: Span, audio: SpanAudio, missing: int, n_channels: int, shard: str) -> Failure:
    rate = span.header.rate_hz
    end = span.start + audio.n_decoded
    detail = f"data end at {end / rate:.3f} s; embedded up to there"
    if not audio.n_decoded:
        # The end lies somewhere before this span, and the span it lies in says where.
        detail = f"data end before {end / rate:.3f} s"
    if missing:
        detail = f"header promises {(end + missing) / rate:.3f} s, {detail}"
    if audio.fault is not None:
        detail = f"{detail} ({audio.fault})"
    error = RecordingError(Reason.TRUNCATED, detail)
    return _span_failure(span, error, end, missing, n_channels, shard)


def outcome_to_json(outcome: PartOutcome) -> dict[str, Any]:
    """Return a part's outcome as plain values."""
    return asdict(outcome)


def outcome_from_json(raw: dict[str, Any]) -> PartOutcome:
    """Return a part's outcome from plain values."""
    return PartOutcome(
        dataset=Dataset(**raw["dataset"]),
        shard=raw["shard"],
        spans=tuple(
            SpanOutcome(**{**span, "coverage": Coverage(**span["coverage"])})
            for span in raw["spans"]
        ),
        failures=tuple(failure_from_json(failure) for failure in raw["failures"]),
        n_checked=raw["n_checked"],
        n_distinct=raw["n_distinct"],
    )


def failure_from_json(raw: dict[str, Any]) -> Failure:
    """Return a failure from plain values."""
    return Failure(**{**raw, "reason": Reason(raw["reason"])})
