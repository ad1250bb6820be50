"""Spans become waveforms at the encoders' rates, the same whatever span they are read in.

A recording's waveform at an encoder's rate is *defined* piece by piece: ten-second pieces of the
recording's own encoder-time axis, each resampled alone (soxr HQ) from its source interval plus a
guard. So a sample does not depend on how the recording was cut, to the last bit, and a machine
holds one piece at the native rate at a time, also of a 24 h recording at 384 kHz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr

from bioembed_ray.audio.decode import native_blocks
from bioembed_ray.audio.holes import Holes, merge_holes, runs_of
from bioembed_ray.segments import Span
from bioembed_ray.windows import Clock

Wave = npt.NDArray[np.float32]

PIECE_S = 10
# Holes kept apart in a span; of more, those that lie nearest each other become one.
MOST_HOLES = 2000
# Values in a row that are not finite, from which on they are a hole; fewer become zeros. Below GUARD,
# so that every span sees enough of a run to tell the same.
LEAST_SILENCED = 128
# Samples of the slower rate read on both sides of a piece. soxr's HQ filter is shorter: pieces
# then agree with the whole recording resampled at once to 5e-7 of full scale, and to 5e-6 at rates
# such as 250001 Hz, where soxr rounds its phase; a longer guard changes neither (tests/unit/test_audio.py).
GUARD = 256


@dataclass(frozen=True, slots=True)
class Track:
    """One channel of a span at one encoder rate; zeros where the recording has a hole.

    Attributes:
        channel: Channel of the recording; 0 for a mix.
        offset: Position of `samples[0]` in the recording, encoder samples.
        samples: (N,) float32, full scale ±1, finite.
    """

    channel: int
    offset: int
    samples: Wave


@dataclass(slots=True)
class SpanAudio:
    """What decoding a span gave.

    Attributes:
        tracks: Encoder rate -> one track per channel.
        n_native: Native samples in the recording, where its end was met; else None.
        n_extent: Native samples of the span itself up to its stop or the end of the sound, holes
            counted.
        holes: For each channel encoded, what of it could not be decoded or is not finite.
        n_nonfinite: NaN or infinite values in the span, set to zero.
        fault: What is wrong with the end of the sound, where it was met; what came before it is good.
    """

    tracks: dict[int, list[Track]] = field(default_factory=dict)
    n_native: int | None = None
    n_extent: int = 0
    holes: tuple[Holes, ...] = ()
    n_nonfinite: int = 0
    fault: str | None = None


def read_span(
    span: Span,
    rates_hz: tuple[int, ...],
    reach: tuple[float, float],
    channels: Literal["mix", "first", "each"] = "mix",
    time_expansion: int = 1,
) -> SpanAudio:
    """Decode a span with its context and resample it for every encoder rate.

    Args:
        span: What to read.
        rates_hz: Encoder rates.
        reach: Encoder seconds read before the span's start and after its stop.
        channels: `mix` takes the mean, `first` channel 0, `each` all.
        time_expansion: The recording is treated as rate / time_expansion.

    Raises:
        RecordingError: damaged, unsupported, empty.
        StorageError: reading failed, after retries.
    """
    clocks = {rate: Clock(span.header.rate_hz, rate, time_expansion) for rate in rates_hz}
    anchor = next(iter(clocks.values()))
    unit = PIECE_S * anchor.encoder_hz
    before, after = (round(seconds * anchor.encoder_hz) for seconds in reach)
    first = max(0, int(span.start * anchor.ratio) - before) // unit
    beyond = None if span.stop is None else -(-(anchor.length(span.stop) + after) // unit)

    audio = SpanAudio()
    found: dict[int, list[Wave]] = {rate: [] for rate in rates_hz}
    source = _Rolling(span, clocks, first, beyond, channels)
    piece = first
    while beyond is None or piece < beyond:
        if not source.advance(piece):
            break
        for rate, clock in clocks.items():
            found[rate].append(_piece(clock, source, piece))
        piece += 1

    audio.n_native, audio.fault = source.n_native, source.fault
    end = source.end if span.stop is None else min(source.end, span.stop)
    audio.n_extent = max(0, end - span.start)
    audio.n_nonfinite, audio.holes = source.n_nonfinite, source.holes()
    for rate, pieces in found.items():
        joined = np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32)  # (N, C)
        audio.tracks[rate] = [
            Track(c, first * PIECE_S * rate, np.ascontiguousarray(joined[:, c]))
            for c in range(joined.shape[1])
        ]
    return audio


def _interval(clock: Clock, piece: int) -> tuple[int, int, int]:
    """Return (first output, first and one past the last native sample) that make a piece.

    The first output falls on a native sample, so that every piece is resampled in phase.
    """
    a, b = clock.ratio.numerator, clock.ratio.denominator
    size = PIECE_S * clock.encoder_hz
    slack = GUARD * max(1, -(-a // b))
    start_out = max(0, (piece * size - slack) // a * a)
    stop_out = (piece + 1) * size + slack
    return start_out, start_out * b // a, -(-stop_out * b // a)


def _piece(clock: Clock, source: _Rolling, piece: int) -> Wave:
    """Return encoder samples [10 k, 10 (k+1)) s of the recording, fewer at its end, (N, C)."""
    start_out, start, stop = _interval(clock, piece)
    native = source.get(start, stop)
    size = PIECE_S * clock.encoder_hz
    wanted = size
    if source.n_native is not None:
        wanted = min(size, clock.length(source.n_native) - piece * size)
    a, b = clock.ratio.numerator, clock.ratio.denominator
    if a == b:
        return native[piece * size - start_out :][:wanted]
    if len(native) < stop - start:
        # Silence after the end, so that the filter's tail and the last sample come out.
        silence = np.zeros((stop - start - len(native), native.shape[1]), np.float32)
        native = np.concatenate([native, silence])
    resampled = soxr.resample(native, b, a, quality="HQ")
    skip = piece * size - start_out
    return np.ascontiguousarray(resampled[skip : skip + wanted])


class _Rolling:
    """A moving view of the native samples: just what the current piece needs, (n, C) float32."""

    def __init__(
        self,
        span: Span,
        clocks: dict[int, Clock],
        first: int,
        beyond: int | None,
        channels: Literal["mix", "first", "each"],
    ) -> None:
        self.clocks = clocks
        self.channels = channels
        self.start = min(_interval(clock, first)[1] for clock in clocks.values())
        self.stop = (
            None
            if beyond is None
            else max(_interval(clock, beyond - 1)[2] for clock in clocks.values())
        )
        self.buffer = np.zeros((0, 1), np.float32)
        self.end = self.start
        self.n_native: int | None = None
        self.n_nonfinite = 0
        self.fault: str | None = None
        self._own = (span.start, span.stop)
        self._silenced: list[list[tuple[int, int]]] = []
        self._blocks = native_blocks(span.source, span.header, self.start, self.stop)
        self._iterator: Iterator[Wave] = iter(self._blocks)

    def advance(self, piece: int) -> bool:
        """Hold what a piece needs; return False where the recording ends before the piece."""
        spans = [_interval(clock, piece)[1:] for clock in self.clocks.values()]
        needed = max(stop for _, stop in spans)
        pending = [self.buffer[max(0, min(start for start, _ in spans) - self.start) :]]
        self.start = self.end - len(pending[0])
        while self.end < needed and self.n_native is None:
            block = next(self._iterator, None)
            if block is None:
                self._finish()
                break
            pending.append(self._select(block))
            self.end += len(block)
        self.buffer = np.concatenate([part for part in pending if len(part)] or pending[:1])
        clock = next(iter(self.clocks.values()))
        length = None if self.n_native is None else clock.length(self.n_native)
        return length is None or piece * PIECE_S * clock.encoder_hz < length

    def get(self, start: int, stop: int) -> Wave:
        """Return native samples [start, stop), fewer where the recording ends."""
        return self.buffer[start - self.start : stop - self.start]

    def holes(self) -> tuple[Holes, ...]:
        """Return what is missing of each channel, of all that was read."""
        found = []
        for runs in self._silenced:
            silenced = merge_holes(runs, MOST_HOLES)
            long = [(low, high) for low, high in silenced if high - low >= LEAST_SILENCED]
            found.append(merge_holes([*self._blocks.holes, *long], MOST_HOLES))
        return tuple(found)

    def _finish(self) -> None:
        self.fault = self._blocks.fault
        if self._blocks.ended:
            self.n_native = self.end

    def _select(self, block: Wave) -> Wave:
        """Return the channels asked for; a value that is not finite becomes zero, and a hole."""
        finite = np.isfinite(block)
        is_sound: npt.NDArray[np.bool_] | None = None
        if not finite.all():
            # A NaN would spread through the resampler and the network over everything near it.
            own_start, own_stop = self._own
            low = max(0, own_start - self.end)
            high = len(block) if own_stop is None else max(0, own_stop - self.end)
            self.n_nonfinite += int((~finite[low:high]).sum())
            block = np.where(finite, block, np.float32(0))
            is_sound = finite
        if self.channels == "first":
            block, is_sound = block[:, :1], None if is_sound is None else is_sound[:, :1]
        if self.channels == "mix" and block.shape[1] > 1:
            # The mean of several is sound while one of them is.
            block = block.mean(axis=1, keepdims=True, dtype=np.float32)
            if is_sound is not None:
                is_sound = np.any(is_sound, axis=1, keepdims=True)
        if not self._silenced:
            self._silenced = [[] for _ in range(block.shape[1])]
        for runs, column in zip(
            self._silenced, [] if is_sound is None else is_sound.T, strict=False
        ):
            # Short ones count only where they may go on in the next block.
            runs += [
                (low, high)
                for low, high in runs_of(~column, self.end)
                if high - low >= LEAST_SILENCED or low == self.end or high == self.end + len(block)
            ]
        return block
