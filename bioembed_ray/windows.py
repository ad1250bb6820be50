"""Where windows and blocks lie: integer positions, tail rules, real seconds.

Two clocks meet here. *Native* samples count at the recording's own rate, *encoder* samples at the
rate the encoder hears. With time expansion N, a recording at rate r is heard at r / N. Everything
is integers and fractions until a column or a message wants seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from bioembed_ray.audio.holes import Holes, overlap
from bioembed_ray.encoders.base import FrameGrid

Tail = Literal["pad", "drop", "shift"]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clock:
    """How the samples of one recording and of one encoder relate.

    Attributes:
        native_hz: Rate of the recording.
        encoder_hz: Rate the encoder hears.
        time_expansion: The recording is treated as native_hz / time_expansion.
    """

    native_hz: int
    encoder_hz: int
    time_expansion: int = 1

    @property
    def ratio(self) -> Fraction:
        """Encoder samples per native sample, exact."""
        return Fraction(self.encoder_hz * self.time_expansion, self.native_hz)

    def length(self, n_native: int) -> int:
        """Return the encoder samples that n native samples become: the ceiling, so none is lost."""
        return _ceil(n_native * self.ratio)

    def native(self, encoder_sample: int) -> int:
        """Return the first native sample at or after an encoder sample."""
        return _ceil(encoder_sample / self.ratio)

    def seconds(self, encoder_samples: int | Fraction) -> float:
        """Return seconds of the original recording, rounded once.

        >>> Clock(384_000, 16_000, 10).seconds(16_000)
        0.1
        """
        return float(Fraction(encoder_samples) / (self.encoder_hz * self.time_expansion))


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Window length and hop in encoder samples, and what happens at the end."""

    window: int
    hop: int
    tail: Tail = "pad"


def _ceil(value: Fraction | int) -> int:
    value = Fraction(value)
    return -(-value.numerator // value.denominator)


def _floor(value: Fraction | int) -> int:
    value = Fraction(value)
    return value.numerator // value.denominator


def window_starts(
    clock: Clock, rule: WindowRule, start: int, stop: int | None, n_native: int | None
) -> Positions:
    """Return the windows that start inside a span.

    The recording's windows start at 0, hop, 2 hop, … while start < duration. `drop` keeps those
    that end inside the recording. `shift` keeps those too and, where sound is left over, adds one
    that ends at the end (or starts at 0 in a recording shorter than a window, padded).

    Args:
        clock: Rates of recording and encoder.
        rule: Window, hop and tail.
        start: First native sample of the span.
        stop: One past its last native sample; None runs to the end.
        n_native: Native samples in the recording; None where its end lies at least a window
            beyond `stop`.

    Returns:
        (W,) int64 encoder samples from the start of the recording, ascending.

    Raises:
        ValueError: neither `stop` nor `n_native` bounds the span.

    >>> window_starts(Clock(16000, 16000), WindowRule(16000, 8000), 0, None, 48000).tolist()
    [0, 8000, 16000, 24000, 32000, 40000]
    """
    bounds = [bound for bound in (stop, n_native) if bound is not None]
    if not bounds:
        raise ValueError("a span needs a stop or the recording's length")
    ratio = clock.ratio
    first = _ceil(start * ratio / rule.hop)
    beyond = _ceil(min(bounds) * ratio / rule.hop)
    if rule.tail == "pad" or n_native is None:
        return np.arange(first, max(first, beyond), dtype=np.int64) * rule.hop
    n_full = max(0, _floor((n_native * ratio - rule.window) / rule.hop) + 1)
    starts = np.arange(first, max(first, min(beyond, n_full)), dtype=np.int64) * rule.hop
    if rule.tail == "drop":
        return starts
    end = clock.length(n_native)
    last_end = (n_full - 1) * rule.hop + rule.window if n_full else 0
    shifted = max(0, end - rule.window)
    is_inside = start <= shifted / ratio and (stop is None or shifted / ratio < stop)
    if last_end < end and n_native > 0 and is_inside:
        starts = np.append(starts, np.int64(shifted))
    return starts


def valid_samples(
    clock: Clock, rule: WindowRule, starts: Positions, n_native: int | None, holes: Holes = ()
) -> list[Fraction]:
    """Return how much of each window is real sound, in encoder samples, exact.

    Args:
        clock: Rates of recording and encoder.
        rule: Window, hop and tail.
        starts: Encoder samples.
        n_native: Native samples in the recording; None where its end is far.
        holes: What cannot be decoded, native samples; it counts as padding does.
    """
    valid = [Fraction(rule.window)] * len(starts)
    if n_native is not None:
        length = n_native * clock.ratio
        valid = [min(Fraction(rule.window), length - int(start)) for start in starts]
    for index in np.flatnonzero(touches(clock, starts, starts + rule.window, holes)).tolist():
        low, high = int(starts[index]), starts[index].item() + valid[index]
        for first, last in holes:
            begin, end = max(Fraction(low), first * clock.ratio), min(high, last * clock.ratio)
            valid[index] -= max(Fraction(0), end - begin)
    return valid


def touches(
    clock: Clock, starts: Positions, stops: Positions, holes: Holes
) -> npt.NDArray[np.bool_]:
    """Return whether each interval [start, stop) of encoder samples has a part in a hole."""
    a, b = clock.ratio.numerator, clock.ratio.denominator
    # Outwards to whole native samples: one that is partly inside was heard, too.
    found: npt.NDArray[np.bool_] = overlap(holes, starts * b // a, -(-stops * b // a)) > 0
    return found


@dataclass(frozen=True, slots=True)
class Block:
    """One stretch a frame encoder reads, in encoder samples.

    Attributes:
        start: First sample it owns.
        stop: One past the last sample it owns.
        read_start: First sample read.
        read_stop: One past the last sample read.
    """

    start: int
    stop: int
    read_start: int
    read_stop: int


def blocks(grid: FrameGrid, rate_hz: int, start: int, stop: int, length: int | None) -> list[Block]:
    """Return the blocks of the recording's fixed grid that meet encoder samples [start, stop).

    Args:
        grid: Block, context, stride and tail rule.
        rate_hz: Encoder rate.
        start: First encoder sample wanted.
        stop: One past the last wanted.
        length: Encoder samples in the recording; None where the end lies more than a block and a
            half beyond `stop`.

    Frame j of wav2vec 2.0 sees samples [320 j, 320 j + 400), so a block reads 80 samples beyond
    its context: without them one frame per block would be lost.
    """
    if length is not None:
        stop = min(stop, length)
    if stop <= start:
        return []
    if grid.block_s is None:
        if length is None:
            raise ValueError("reading a recording whole needs its length")
        return [Block(0, length, 0, length)]
    size, context = grid.block_s * rate_hz, grid.context_s * rate_hz
    extra = grid.receptive - grid.stride if grid.joins_tail else 0
    n_blocks = None if length is None else -(-length // size)
    if (
        n_blocks is not None
        and length is not None
        and grid.joins_tail
        and n_blocks > 1
        and (length - (n_blocks - 1) * size) * 2 < size
    ):
        n_blocks -= 1
    found = []
    first = start // size
    if n_blocks is not None:
        first = min(first, n_blocks - 1)
    for k in range(first, -(-stop // size)):
        if n_blocks is not None and k >= n_blocks:
            break
        is_last = n_blocks is not None and k == n_blocks - 1
        own_stop = length if is_last and length is not None else (k + 1) * size
        read_stop = own_stop + context + extra
        found.append(
            Block(
                k * size,
                own_stop,
                max(0, k * size - context),
                read_stop if length is None else min(length, read_stop),
            )
        )
    return found
