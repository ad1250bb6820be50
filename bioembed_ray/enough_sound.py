"""Which windows hold enough sound to be compared with others: the one rule of search, probe and report.

A window that reaches past the end of its recording is padded with zeros, and a vector of hardly any
sound says more of the zeros: such windows are all like each other. So windows with less than half of
their length of sound are left out unless another least is given. Half is where more of the input is
sound than is not; BirdNET-Analyzer asks for a third (`minlen`, 1 s of 3 s), perch-hoplite for a fifth
(`min_audio_len_s`, 1 s of 5 s). A recording that is itself shorter than the least is not lost: its
first window, which holds all of it, stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

SHARE = 0.5
# As a share of the least: `valid_s` of earlier outputs is float32, off by 6e-8, and `end_s - start_s`
# by an ulp of `end_s`.
SLACK = 1e-6
COLUMNS = ("recording", "start_s", "end_s", "valid_s")


@dataclass(frozen=True, slots=True)
class EnoughSound:
    """What a window must hold.

    Attributes:
        least_s: Seconds of the recording, at most a whole window.
        short: Recordings that are shorter than that.
    """

    least_s: float
    short: pa.Array

    @property
    def condition(self) -> pc.Expression:
        """The condition on the columns of embeddings/."""
        found = pc.field("valid_s") >= self.least_s * (1 - SLACK)
        if not len(self.short):
            return found
        return found | ((pc.field("start_s") == 0) & pc.field("recording").isin(self.short))


def enough_sound(windows: pa.Table, recordings: pa.Table, min_valid_s: float | None) -> EnoughSound:
    """Return what a window must hold to be compared.

    Args:
        windows: Columns `start_s` and `end_s`; the first row tells how long all windows are.
        recordings: Columns `recording` and `duration_s`; without these none is known to be short.
        min_valid_s: Least seconds of sound; None for half a window. A window that is all sound
            passes whatever is asked.
    """
    first = windows.slice(0, 1)
    window_s = pc.sum(pc.subtract(first.column("end_s"), first.column("start_s"))).as_py() or 0.0
    least_s = SHARE * window_s if min_valid_s is None else min(min_valid_s, window_s)
    if "duration_s" not in recordings.column_names:
        return EnoughSound(least_s, pa.array([], pa.string()))
    is_short = pc.less(recordings.column("duration_s"), least_s * (1 - SLACK))
    return EnoughSound(least_s, recordings.column("recording").filter(is_short).combine_chunks())
