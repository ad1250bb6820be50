"""Some rows of some parts, by their numbers, without reading the others more than need be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import parts, storage
from bioembed_ray.errors import BrokenOutput
from bioembed_ray.rows import BATCH_ROWS, Rows
from bioembed_ray.store.errors import translated

READ_THREADS = 4


def read_places(rows: Rows, places: pa.Table, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows at some places, part by part.

    Args:
        rows: Their partition.
        places: Columns `shard` and `row`, the number of a row in its part.
        columns: Columns to read.

    Raises:
        BrokenOutput: a part is damaged.
        StorageError: a part cannot be read.
    """
    by_shard: dict[str, list[int]] = {}
    shards = places.column("shard").to_pylist()
    for shard, row in zip(shards, places.column("row").to_pylist(), strict=True):
        by_shard.setdefault(shard, []).append(row)

    def read(shard: str) -> list[pa.RecordBatch]:
        with _open_part(rows, shard) as part:
            return list(_rows_of(part, np.array(sorted(by_shard[shard])), columns))

    # A bucket makes one wait; a few parts at once hide that, and are held at once.
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for batches in pool.map(read, by_shard):
            yield from batches


def _rows_of(
    part: pq.ParquetFile, wanted: npt.NDArray[np.int64], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield some rows of a part; row groups without any are not read."""
    first = 0
    for number in range(part.num_row_groups):
        n_rows = part.metadata.row_group(number).num_rows
        inside = wanted[(wanted >= first) & (wanted < first + n_rows)] - first
        if len(inside):
            group = part.read_row_group(number, columns=list(columns))
            yield from group.take(pa.array(inside)).combine_chunks().to_batches()
        first += n_rows


def part_batches(
    rows: Rows, shard: str, columns: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number of its first row, batch) of a part.

    Raises:
        BrokenOutput, StorageError: see `read_places`.
    """
    first = 0
    with _open_part(rows, shard) as part:
        for batch in part.iter_batches(BATCH_ROWS, columns=list(columns)):
            yield first, batch
            first += batch.num_rows


@contextlib.contextmanager
def _open_part(rows: Rows, shard: str) -> Iterator[pq.ParquetFile]:
    uri = parts.part_uri(rows.output, rows.partition, shard)
    filesystem, (path,) = storage.arrow_paths([uri])
    with translated(uri), filesystem.open_input_file(path) as source:
        try:
            part = pq.ParquetFile(source)
        except pa.ArrowInvalid:
            raise BrokenOutput(
                f"{uri}: not a whole Parquet file; delete it and run again"
            ) from None
        yield part
