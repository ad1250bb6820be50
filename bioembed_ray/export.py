"""Window rows become arrays that other programs read: one row per window or per recording."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bioembed_ray import storage
from bioembed_ray.errors import InputError
from bioembed_ray.results import open_output
from bioembed_ray.rows import vectors_of

Level = Literal["window", "recording"]
Pool = Literal["mean", "max", "concat"]


@dataclass(frozen=True, slots=True)
class Exported:
    """Vectors and what each row is.

    Attributes:
        vectors: (rows, D) float32.
        index: One row of the index per row of `vectors`.
        columns: Names of the index's columns.
    """

    vectors: npt.NDArray[np.float32]
    index: Sequence[tuple[object, ...]]
    columns: tuple[str, ...]


def export(table: pa.Table, level: Level, pool: Pool) -> Exported:
    """Return vectors per window, or pooled per recording and channel.

    Args:
        table: Window rows, by recording, channel and start.
        level: `window` or `recording`.
        pool: Over a recording's windows: `mean`, `max`, or `concat` for all of them in a row.

    Raises:
        InputError: `concat` over recordings with different numbers of windows.
    """
    vectors = vectors_of(table.column("embedding"))
    dim = vectors.shape[1]
    names = table.column("recording").to_pylist()
    channels = table.column("channel").to_pylist()
    if level == "window":
        times = [table.column(name).to_pylist() for name in ("start_s", "end_s", "valid_s")]
        index: list[tuple[object, ...]] = list(zip(names, channels, *times, strict=True))
        return Exported(vectors, index, ("recording", "channel", "start_s", "end_s", "valid_s"))
    keys = list(zip(names, channels, strict=True))
    edges = [0, *(i for i in range(1, len(keys)) if keys[i] != keys[i - 1]), len(keys)]
    groups = [vectors[low:high] for low, high in itertools.pairwise(edges) if high > low]
    if pool == "concat":
        counts = {len(group) for group in groups}
        if len(counts) > 1:
            raise InputError(
                f"--pool concat: recordings have {min(counts)} to {max(counts)} windows; use mean or max, "
                f"or --level window"
            )
        pooled = [group.reshape(-1) for group in groups]
    else:
        # A day has 172,800 windows: summed in float32 their mean is off by 1e-5.
        pooled = [
            group.mean(axis=0, dtype=np.float64) if pool == "mean" else group.max(axis=0)
            for group in groups
        ]
    rows = [(*keys[low], high - low) for low, high in itertools.pairwise(edges) if high > low]
    stacked = np.stack(pooled) if pooled else np.zeros((0, dim), np.float32)
    return Exported(stacked.astype(np.float32), rows, ("recording", "channel", "n_windows"))


def write(exported: Exported, uri: str, formats: tuple[str, ...]) -> list[str]:
    """Put the vectors in each format, and the index as CSV beside them; return what was put.

    Args:
        exported: Vectors and index.
        uri: Where, without an extension.
        formats: Of "npy" and "pt".

    Raises:
        StorageError: writing failed.
    """
    written = []
    for kind in formats:
        sink = io.BytesIO()
        if kind == "npy":
            np.save(sink, exported.vectors, allow_pickle=False)
        else:
            import torch

            torch.save(torch.from_numpy(exported.vectors), sink)
        storage.put(f"{uri}.{kind}", sink.getvalue())
        written.append(f"{uri}.{kind}")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(exported.columns)
    writer.writerows(exported.index)
    storage.put(f"{uri}.csv", text.getvalue().encode())
    return [*written, f"{uri}.csv"]


def export_all(
    output: str,
    encoders: tuple[str, ...],
    version: str | None,
    level: Level,
    pool: Pool,
    formats: tuple[str, ...],
    folder: str,
) -> Iterator[str]:
    """Write the vectors of some encoders, all where none is named; yield one line per file.

    Raises:
        InputError: nothing there.
    """
    results = open_output(output)
    for name in encoders or results.encoders:
        found = export(results.windows(name, version).table(), level, pool)
        title = f"{name}_{level}" + (f"_{pool}" if level == "recording" else "")
        for uri in write(found, storage.join(folder, title), formats):
            yield uri if uri.endswith(".csv") else f"{uri}  {tuple(found.vectors.shape)}"
