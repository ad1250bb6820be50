"""Runs of equal tokens as selections of Raven and labels of Audacity, one file per recording."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from bioembed_ray import storage
from bioembed_ray.errors import InputError
from bioembed_ray.exports.annotations import (
    AUDACITY_SUFFIX,
    RAVEN_SUFFIX,
    Annotation,
    audacity_labels,
    label_keys,
    raven_table,
)
from bioembed_ray.results import open_output
from bioembed_ray.run_lengths import run_lengths

# Positions are exact multiples of samples; what is added up here differs in the last bits only.
SAME_TIME_S = 1e-6


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
    results = open_output(output)
    table = results.tokens(codebook).table()
    most = max(table.column("per_step").to_pylist(), default=1)
    if most > 1:
        raise InputError(
            f"{codebook}: {most} tokens per time step have no order in time, so no runs to select; "
            f"use --format runs or text"
        )
    known = {row["recording"]: row for row in results.recordings().to_pylist()}
    place = storage.join(folder, f"{codebook}_{kind}")
    n_files = n_runs = 0
    for recording, rows in itertools.groupby(table.to_pylist(), key=lambda row: row["recording"]):
        found = [
            Annotation(
                recording,
                known[recording]["uri"],
                channel,
                start_s,
                end_s,
                known[recording]["duration_s"],
                known[recording]["rate_hz"] / 2,
                f"u{unit}",
            )
            for channel, start_s, end_s, unit in token_runs(list(rows))
        ]
        for key, text in _files(recording, found, kind):
            storage.put(storage.join(place, key), text.encode())
            n_files += 1
        n_runs += len(found)
    yield f"{place}  {n_files} files, {n_runs} runs"


def token_runs(rows: list[dict[str, Any]]) -> Iterator[tuple[int, float, float, int]]:
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


def _files(recording: str, found: list[Annotation], kind: str) -> Iterator[tuple[str, str]]:
    """Yield keys and texts; Audacity's labels know no channels, so each has a file of its own."""
    if kind == "raven":
        yield label_keys([recording], RAVEN_SUFFIX)[recording], raven_table(found)
        return
    channels = sorted({one.channel for one in found})
    for channel in channels:
        suffix = AUDACITY_SUFFIX if len(channels) == 1 else f".channel_{channel}{AUDACITY_SUFFIX}"
        own = [one for one in found if one.channel == channel]
        yield label_keys([recording], suffix)[recording], audacity_labels(own)
