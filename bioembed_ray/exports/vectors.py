"""Rows of vectors become files that other programs read, a batch at a time."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from bioembed_ray import storage
from bioembed_ray.exports.in_order import scratch_file
from bioembed_ray.exports.rows import Chosen
from bioembed_ray.exports.text_file import text_file
from bioembed_ray.exports.torch_file import write_tensor
from bioembed_ray.rows import vectors_of

COPY_BYTES = 1 << 20


def export_arrays(chosen: Chosen, formats: tuple[str, ...], folder: str) -> Iterator[str]:
    """Write vectors as `npy` and `pt`, (rows, D) float32, and what a row is as CSV beside them.

    Rows are sorted by recording, channel and time. Yields one line per file.

    Raises:
        InputError, StorageError: see `Chosen.batches`.
    """
    uri = storage.join(folder, chosen.title)
    with scratch_file(folder) as numbers:
        n_rows = width = 0
        with text_file(f"{uri}.csv") as text:
            writer = csv.writer(text)
            for batch in chosen.sorted_batches():
                columns = [name for name in batch.schema.names if name != "embedding"]
                if not n_rows:
                    writer.writerow(columns)
                values = (batch.column(name).to_pylist() for name in columns)
                writer.writerows(zip(*values, strict=True))
                vectors = vectors_of(batch.column("embedding"))
                numbers.write(vectors.data)
                n_rows, width = n_rows + len(vectors), vectors.shape[1]
        for kind in formats:
            numbers.seek(0)
            with storage.writing(f"{uri}.{kind}") as path:
                (write_array if kind == "npy" else write_tensor)(path, (n_rows, width), numbers)
            yield f"{uri}.{kind}  {(n_rows, width)}"
    yield f"{uri}.csv"


def write_array(path: Path, shape: tuple[int, int], numbers: BinaryIO) -> None:
    """Write a .npy file of float32 numbers that stand in another file, row after row."""
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(numbers, file, COPY_BYTES)


def export_csv(chosen: Chosen, folder: str) -> Iterator[str]:
    """Write one CSV with what a row is and its vector as columns e0 … e<D-1>; yield its line.

    Numbers have as many digits as it takes to read them back to the last bit. Rows come in the order
    of `Chosen.batches`.

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
