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
import pyarrow.compute as pc

from bioembed_ray import parts, storage
from bioembed_ray.current import read_current
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError, NotFoundError

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


def find_dataset(output: str, encoder: str, version: str | None) -> Dataset:
    """Return the partition of window vectors to read: the current version, or the one named.

    Raises:
        InputError: no such encoder or version; names what there is.
    """
    standing = list_datasets(output, "embeddings")
    names = sorted({dataset.encoder for dataset in standing})
    if not names:
        raise InputError(f"{output}: no embeddings; run `bioembed run` first")
    if encoder not in names:
        raise InputError(f"{output}: no encoder {encoder!r}; there is {', '.join(names)}")
    versions = sorted(d.version for d in standing if d.encoder == encoder)
    if version is None:
        current = read_current(output).get("encoders", {}).get(encoder, {}).get("embeddings")
        if current is None and len(versions) > 1:
            raise InputError(
                f"{encoder}: no version is current yet; give --version, one of {', '.join(versions)}"
            )
        version = current or versions[0]
    if version not in versions:
        raise InputError(f"{encoder}: no version {version!r}; there is {', '.join(versions)}")
    return Dataset("embeddings", encoder, version)


def list_datasets(output: str, table: str) -> list[Dataset]:
    """Return every partition of a table that holds a part."""
    found = set()
    try:
        for entry in storage.list_objects(storage.join(output, table)):
            folders = entry.key.split("/")
            if len(folders) == 3 and folders[2].endswith(".parquet"):
                values = [folder.partition("=")[2] for folder in folders[:2]]
                found.add(Dataset(table, values[0], values[1]))
    except NotFoundError:
        return []
    return sorted(found)


def read_windows(output: str, dataset: Dataset) -> pa.Table:
    """Return all window rows of a dataset, by recording, channel and start.

    Raises:
        StorageError, BrokenOutput: a part cannot be read.
    """
    tables = [
        parts.read_table(entry).replace_schema_metadata(None)
        for _, entry in sorted(parts.list_parts(output, dataset).items())
    ]
    table = pa.concat_tables(tables)
    order = [("recording", "ascending"), ("channel", "ascending"), ("start_s", "ascending")]
    return table.take(pc.sort_indices(table, sort_keys=order))


def export(table: pa.Table, level: Level, pool: Pool) -> Exported:
    """Return vectors per window, or pooled per recording and channel.

    Args:
        table: What `read_windows` gave.
        level: `window` or `recording`.
        pool: Over a recording's windows: `mean`, `max`, or `concat` for all of them in a row.

    Raises:
        InputError: `concat` over recordings with different numbers of windows.
    """
    column = table.column("embedding").combine_chunks()
    dim = column.type.list_size
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float32)
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
    names = encoders or tuple(sorted({d.encoder for d in list_datasets(output, "embeddings")}))
    if not names:
        find_dataset(output, "", None)
    for name in names:
        found = export(read_windows(output, find_dataset(output, name, version)), level, pool)
        title = f"{name}_{level}" + (f"_{pool}" if level == "recording" else "")
        for uri in write(found, storage.join(folder, title), formats):
            yield uri if uri.endswith(".csv") else f"{uri}  {tuple(found.vectors.shape)}"
