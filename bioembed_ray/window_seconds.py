"""A window in seconds of its recording, as its row says them."""

from __future__ import annotations

import math
from fractions import Fraction

from bioembed_ray.windows import Clock


def window_seconds(
    clock: Clock, start: int, window: int, valid: Fraction
) -> tuple[float, float, float]:
    """Return `start_s`, `end_s` and `valid_s` of a window.

    Start and end are rounded once each, so their difference may miss the window's length by an
    ulp of the end: at 24 h by 1.5e-11 s. `valid_s` of a window full of sound is therefore defined
    as that difference, `end_s - start_s` as doubles subtract it, and a window with less sound has
    its own seconds, rounded once, or the largest double below the difference. So
    `valid_s >= end_s - start_s` holds for every full window and for no other one, at any rate and
    position.

    Args:
        clock: Rates of recording and encoder.
        start: First encoder sample of the window.
        window: Encoder samples.
        valid: How many of them are sound, exact.

    >>> window_seconds(Clock(44_100, 16_000), 24 * 3600 * 16_000 + 1600, 16_000, Fraction(16_000))
    (86400.1, 86401.1, 1.0)
    >>> window_seconds(Clock(44_100, 16_000), 0, 163_840, Fraction(8_000))
    (0.0, 10.24, 0.5)
    """
    start_s, end_s = clock.seconds(start), clock.seconds(start + window)
    whole_s = end_s - start_s
    if valid >= window:
        return start_s, end_s, whole_s
    return start_s, end_s, min(clock.seconds(valid), math.nextafter(whole_s, 0.0))
