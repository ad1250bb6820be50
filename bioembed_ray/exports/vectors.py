"""Window rows become arrays that other programs read: one row per window or per recording."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from bioembed_ray import storage
from bioembed_ray.exports.rows import Chosen
from bioembed_ray.rows import vectors_of


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


def as_arrays(table: pa.Table) -> Exported:
    """Return the vectors of a table, and its other columns as their index."""
    columns = tuple(name for name in table.column_names if name != "embedding")
    index = list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
    # A copy, since Arrow's memory is not for writing and torch complains.
    return Exported(np.array(vectors_of(table.column("embedding"))), index, columns)


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
        with storage.writing(f"{uri}.{kind}") as path, open(path, "wb") as file:
            if kind == "npy":
                np.save(file, exported.vectors, allow_pickle=False)
            else:
                import torch

                torch.save(torch.from_numpy(exported.vectors), file)
        written.append(f"{uri}.{kind}")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(exported.columns)
    writer.writerows(exported.index)
    storage.put(f"{uri}.csv", text.getvalue().encode())
    return [*written, f"{uri}.csv"]


def export_arrays(chosen: Chosen, formats: tuple[str, ...], folder: str) -> Iterator[str]:
    """Write vectors as `npy` and `pt`; yield one line per file.

    Raises:
        InputError, StorageError: see `Chosen.table`.
    """
    found = as_arrays(chosen.table())
    for uri in write(found, storage.join(folder, chosen.title), formats):
        yield uri if uri.endswith(".csv") else f"{uri}  {tuple(found.vectors.shape)}"


def export_csv(chosen: Chosen, folder: str) -> Iterator[str]:
    """Write one CSV with what a row is and its vector as columns e0 … e<D-1>; yield its line.

    Numbers have as many digits as it takes to read them back to the last bit. Rows come in the order
    of parts, and are never held all at once.

    Raises:
        InputError, StorageError: see `Chosen.batches`.
    """
    uri = storage.join(folder, f"{chosen.title}_vectors.csv")
    n_rows = 0
    with storage.writing(uri) as path, open(path, "wb") as file:
        writer = None
        for batch in chosen.batches(is_described=False):
            wide = _wide(batch)
            writer = writer or pacsv.CSVWriter(file, wide.schema)
            writer.write_batch(wide)
            n_rows += len(wide)
        if writer is not None:
            writer.close()
    yield f"{uri}  {n_rows} rows"


def _wide(batch: pa.RecordBatch) -> pa.RecordBatch:
    vectors = vectors_of(batch.column("embedding"))
    columns = {n: batch.column(n) for n in batch.schema.names if n != "embedding"}
    columns |= {f"e{d}": pa.array(vectors[:, d]) for d in range(vectors.shape[1])}
    return pa.RecordBatch.from_pydict(columns)
