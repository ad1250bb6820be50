"""What became of every native sample of a span under one encoder: sums that add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bioembed_ray.audio.holes import Holes, clip_holes, hole_samples
from bioembed_ray.windows import Clock, Positions, WindowRule, touches, window_starts


@dataclass(frozen=True, slots=True)
class Coverage:
    """What became of native samples; the sums add up to the samples asked about.

    Attributes:
        embedded: Inside at least one window full of sound.
        padded: Only inside windows that were padded, or have a hole.
        failed: In a hole, or only inside windows whose vector failed.
        skipped: Inside no window: dropped tail, between windows when hop > window, or a tail too
            short for one frame.
    """

    embedded: int = 0
    padded: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.embedded + other.embedded,
            self.padded + other.padded,
            self.failed + other.failed,
            self.skipped + other.skipped,
        )

    @property
    def total(self) -> int:
        """All samples."""
        return self.embedded + self.padded + self.failed + self.skipped


def coverage(
    clock: Clock,
    rule: WindowRule,
    start: int,
    stop: int,
    n_native: int | None,
    failed: Positions,
    absent: Positions,
    holes: Holes = (),
) -> Coverage:
    """Return what became of native samples [start, stop), counted to the sample.

    Windows that start before the span reach into it; they count as their own span made them.

    Args:
        clock: Rates of recording and encoder.
        rule: Window, hop and tail.
        start: First native sample.
        stop: One past the last, at most the recording's length.
        n_native: Native samples in the recording, None where its end is far.
        failed: Starts of windows whose vector failed, encoder samples.
        absent: Starts of windows that hold no frame, or no sound, and so have no row.
        holes: What cannot be decoded, native samples: failed, whatever windows cover it.
    """
    if stop <= start:
        return Coverage()
    reach = clock.native(rule.window) + 1
    starts = window_starts(clock, rule, max(0, start - reach), stop, n_native)
    starts = starts[~np.isin(starts, absent)]
    if n_native is not None:
        # A shifted window ends at the end: full but for the rounding of the last sample.
        is_shift = rule.tail == "shift"
        end = clock.length(n_native) if is_shift else int(n_native * clock.ratio)
        full_until = end - rule.window
    else:
        full_until = int(starts[-1]) if len(starts) else 0
    bad = np.isin(starts, failed)
    is_full = (starts <= full_until) & ~touches(clock, starts, starts + rule.window, holes)
    groups = [starts[~bad & is_full], starts[~bad], starts]
    holes = clip_holes(holes, start, stop)
    sound = _between(holes, start, stop)
    covered = [
        sum(_union(clock, rule.window, group, low, high) for low, high in sound) for group in groups
    ]
    lost = hole_samples(holes)
    return Coverage(
        embedded=covered[0],
        padded=covered[1] - covered[0],
        failed=covered[2] - covered[1] + lost,
        skipped=stop - start - lost - covered[2],
    )


def _between(holes: Holes, start: int, stop: int) -> list[tuple[int, int]]:
    """Return what of [start, stop) lies in no hole."""
    edges = [start, *(edge for hole in holes for edge in hole), stop]
    return [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if low < high]


def _union(clock: Clock, window: int, starts: Positions, start: int, stop: int) -> int:
    """Count native samples of [start, stop) inside any of the windows; starts ascend."""
    if not len(starts):
        return 0
    a, b = clock.ratio.numerator, clock.ratio.denominator
    first = np.clip(-(-starts * b // a), start, stop)
    last = np.clip(-(-(starts + window) * b // a), start, stop)
    seen = np.maximum.accumulate(np.concatenate([[start], last[:-1]]))
    return int(np.maximum(0, last - np.maximum(first, seen)).sum())
