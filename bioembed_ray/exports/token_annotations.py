"""Runs of equal tokens as selections of Raven and labels of Audacity, one file per recording."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import storage
from bioembed_ray.errors import InputError
from bioembed_ray.exports.annotations import (
    AUDACITY_SUFFIX,
    RAVEN_SUFFIX,
    Annotation,
    audacity_lines,
    label_keys,
    raven_lines,
)
from bioembed_ray.exports.text_file import text_file
from bioembed_ray.exports.tokens import sorted_tokens
from bioembed_ray.results import open_output
from bioembed_ray.rows import Rows
from bioembed_ray.run_lengths import run_lengths

# Positions are exact multiples of samples; what is added up here differs in the last bits only.
SAME_TIME_S = 1e-6
# What has to be known of a recording.
KNOWN = ("uri", "duration_s", "rate_hz")


def export_annotations(output: str, codebook: str, kind: str, folder: str) -> Iterator[str]:
    """Write the runs of a codebook's current tokens to `<folder>/<codebook>_<kind>`; yield a summary.

    Files keep the folders of their recordings, so equal names at different sites stay apart.

    Args:
        output: The output.
        codebook: Name of the codebook.
        kind: `raven` or `audacity`.
        folder: Where.

    Raises:
        InputError: no such codebook, or it has several tokens per time step.
        StorageError: reading or writing failed.
    """
    tokens = open_output(output).tokens(codebook)
    most, several = _look(tokens)
    if most > 1:
        raise InputError(
            f"{codebook}: {most} tokens per time step have no order in time, so no runs to select; "
            f"use --format runs or text"
        )
    place = storage.join(folder, f"{codebook}_{kind}")
    n_files = n_runs = 0
    rows = (
        row
        for batch in sorted_tokens(tokens, folder)
        for row in tokens.with_recordings(batch, KNOWN).to_pylist()
    )
    for recording, own in itertools.groupby(rows, key=itemgetter("recording")):
        for key, lines in _files(recording, _annotations(own), kind, recording in several):
            # The header of a selection table is no run.
            n_runs += _write(storage.join(place, key), lines) - (kind == "raven")
            n_files += 1
    yield f"{place}  {n_files} files, {n_runs} runs"


def _look(tokens: Rows) -> tuple[int, set[str]]:
    """Return the most tokens per time step, and the recordings with several channels."""
    most, several = 0, set()
    for batch in tokens.batches(columns=["recording", "channel", "per_step"]):
        most = max(most, pc.max(batch.column("per_step")).as_py())
        second = pc.greater(batch.column("channel"), pa.scalar(0, pa.int16()))
        several |= set(pc.unique(batch.column("recording").filter(second)).to_pylist())
    return most, several


def _annotations(rows: Iterator[dict[str, Any]]) -> Iterator[Annotation]:
    """Yield the runs of a recording; what is known of it stands in each of its rows.

    Raises:
        InputError: nothing is known of it.
    """
    first = next(rows)
    if first["uri"] is None:
        raise InputError(
            f"{first['recording']}: recordings/ does not know it yet; let `bioembed run` end first"
        )
    for channel, start_s, end_s, unit in token_runs(itertools.chain([first], rows)):
        yield Annotation(
            first["recording"],
            first["uri"],
            channel,
            start_s,
            end_s,
            first["duration_s"],
            first["rate_hz"] / 2,
            f"u{unit}",
        )


def token_runs(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, float, float, int]]:
    """Yield runs of equal tokens of one recording: channel, start and end in seconds, unit.

    A run goes on from one row to the next where they follow each other; gaps are left out.

    Args:
        rows: Rows of tokens/ with one token per time step, by channel and start.

    >>> row = {"channel": 0, "start_s": 0.0, "hop_s": 0.5, "tokens": [4, 4, None, 7]}
    >>> list(token_runs([row, row | {"start_s": 2.0, "tokens": [7, 7]}]))
    [(0, 0.0, 1.0, 4), (0, 1.5, 3.0, 7)]
    """
    last: tuple[int, float, float, int] | None = None
    for row in rows:
        units, durations = run_lengths(row["tokens"])
        begins = itertools.accumulate(durations, initial=0)
        for unit, n, begin in zip(units, durations, begins, strict=False):
            if unit is None:
                continue
            start = row["start_s"] + begin * row["hop_s"]
            end = row["start_s"] + (begin + n) * row["hop_s"]
            if last is not None:
                goes_on = (last[0], last[3]) == (row["channel"], unit)
                if goes_on and abs(last[2] - start) < SAME_TIME_S:
                    last = (last[0], last[1], end, unit)
                    continue
                yield last
            last = (row["channel"], start, end, unit)
    if last is not None:
        yield last


def _write(uri: str, lines: Iterable[str]) -> int:
    """Put lines as a file; return how many they were."""
    n_lines = 0
    with text_file(uri) as file:
        for line in lines:
            file.write(line)
            n_lines += 1
    return n_lines


def _files(
    recording: str, runs: Iterator[Annotation], kind: str, has_channels: bool
) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield keys and lines; Audacity's labels know no channels, so each has a file of its own."""
    if kind == "raven":
        yield label_keys([recording], RAVEN_SUFFIX)[recording], raven_lines(runs, {recording: 0.0})
        return
    for channel, own in itertools.groupby(runs, key=attrgetter("channel")):
        suffix = f".channel_{channel}{AUDACITY_SUFFIX}" if has_channels else AUDACITY_SUFFIX
        yield label_keys([recording], suffix)[recording], audacity_lines(own)
