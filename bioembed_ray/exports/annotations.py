"""Stretches of recordings as tables of Raven and labels of Audacity.

Raven opens several files as one long sound: in its tables `Begin Time (s)` counts from the start of
the first file, `File Offset (s)` from the start of the file that `Begin Path` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

# Read by file managers, and by Raven's own file dialogue.
RAVEN_SUFFIX = ".selections.txt"
AUDACITY_SUFFIX = ".labels.txt"
RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "File Offset (s)",
    "Begin Path",
    "Annotation",
    "Score",
)


@dataclass(frozen=True, slots=True)
class Annotation:
    """A stretch of one channel of a recording, and what is said of it.

    Attributes:
        recording: Name of the recording.
        path: Where its sound is: what Raven shall open.
        channel: Counted from 0.
        start_s: Seconds from the recording's start.
        end_s: Seconds from the recording's start; beyond `duration_s` where a window was padded.
        duration_s: Length of the recording; None where nobody knows, which takes the last `end_s`.
        high_hz: Upper edge of the selection.
        label: What is said.
        low_hz: Lower edge of the selection.
        score: How sure or how near; None where there is no such thing.
    """

    recording: str
    path: str
    channel: int
    start_s: float
    end_s: float
    duration_s: float | None
    high_hz: float
    label: str
    low_hz: float = 0.0
    score: float | None = None


def raven_table(rows: Sequence[Annotation]) -> str:
    """Return a selection table for Raven, of one file or of many opened in the order they first appear.

    Args:
        rows: In the order in which they shall be numbered.

    Returns:
        Tab-separated text with a header; `Score` is a column where a row has one.
    """
    has_scores = any(row.score is not None for row in rows)
    return "".join(raven_lines(rows, _file_begins(rows), has_scores))


def raven_lines(
    rows: Iterable[Annotation], begins: Mapping[str, float], has_scores: bool = False
) -> Iterator[str]:
    """Yield the lines of a selection table, the header first.

    Columns are Raven's own, then `Annotation`, and `Score`. Channels count from 1, as Raven's do; a
    selection ends where its recording does. Numbers have a decimal point, so that readers that tell
    integers from floats take them.

    Args:
        rows: In the order in which they shall be numbered.
        begins: Recording -> where it begins when all are opened one after the other, in seconds.
        has_scores: Whether there is a column `Score`.
    """
    yield _tabbed(RAVEN_COLUMNS if has_scores else RAVEN_COLUMNS[:-1])
    for number, row in enumerate(rows, 1):
        cells = [
            str(number),
            "Spectrogram 1",
            str(row.channel + 1),
            _number(begins[row.recording] + row.start_s),
            _number(begins[row.recording] + _end(row)),
            _number(row.low_hz),
            _number(row.high_hz),
            _number(row.start_s),
            _line(row.path),
            _line(row.label),
        ]
        if has_scores:
            cells.append("" if row.score is None else _number(row.score))
        yield _tabbed(cells)


def audacity_labels(rows: Iterable[Annotation]) -> str:
    """Return the label track of one recording: start, end and label, by time; a score follows the label.

    Returns:
        Tab-separated text without a header, which is how Audacity reads and writes labels.
    """
    return "".join(audacity_lines(sorted(rows, key=lambda row: (row.start_s, row.end_s))))


def audacity_lines(rows: Iterable[Annotation]) -> Iterator[str]:
    """Yield the lines of a label track, of rows in the order of time."""
    for row in rows:
        label = row.label if row.score is None else f"{row.label} {row.score:.3f}".strip()
        yield _tabbed([_number(row.start_s), _number(_end(row)), _line(label)])


def by_recording(rows: Iterable[Annotation]) -> dict[str, list[Annotation]]:
    """Return the rows of every recording, recordings in the order they first appear."""
    found: dict[str, list[Annotation]] = {}
    for row in rows:
        found.setdefault(row.recording, []).append(row)
    return found


def label_keys(recordings: Iterable[str], suffix: str) -> dict[str, str]:
    """Return where the labels of every recording go, below a folder.

    They keep the recording's folders and its whole name: recorders give the same file names at
    every site, and one site may hold `a.wav` and `a.flac`.

    >>> label_keys(["site_1/a.wav", "site_2/a.wav"], ".labels.txt")["site_2/a.wav"]
    'site_2/a.wav.labels.txt'
    """
    return {name: f"{name.lstrip('/')}{suffix}" for name in recordings}


def _file_begins(rows: Sequence[Annotation]) -> dict[str, float]:
    """Return where every recording begins when they are opened one after the other, in seconds."""
    begins: dict[str, float] = {}
    passed = 0.0
    for name, own in by_recording(rows).items():
        begins[name] = passed
        known = own[0].duration_s
        passed += max(row.end_s for row in own) if known is None else known
    return begins


def _end(row: Annotation) -> float:
    return row.end_s if row.duration_s is None else min(row.end_s, row.duration_s)


def _number(value: float) -> str:
    """Return a number to the microsecond with a decimal point and no padding.

    >>> _number(24000), _number(0.1 + 0.2)
    ('24000.0', '0.3')
    """
    text = f"{value:.6f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def _line(text: str) -> str:
    """Return text that cannot break a line or a column."""
    return re.sub(r"[\t\r\n]+", " ", text)


def _tabbed(cells: Sequence[str]) -> str:
    """Return a tab-separated line; neither program knows quotes."""
    return "\t".join(cells) + "\n"
