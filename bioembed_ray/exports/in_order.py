"""Rows in the order of their recordings, whatever order their parts come in, in bounded memory.

What a row is, some 40 bytes, is held and sorted; its vector or its tokens wait on the local disk, in a
file without a name, and are read again in order, a stretch at a time.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import storage

Positions = npt.NDArray[np.int64]
BATCH_BYTES = 8 << 20
# What stands for a null among tokens, which count from 0.
GAP = -1


def scratch_file(near: str) -> BinaryIO:
    """Open a file without a name on the disk that `near` is on; among temporary files for a store."""
    folder = None
    if storage.is_local(near):
        folder = storage.absolute(near)
        Path(folder).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def in_order(
    batches: Iterable[pa.RecordBatch], column: str, near: str, batch_bytes: int = BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield rows sorted by recording, channel and start.

    Args:
        batches: Rows with the columns `recording`, `channel` and `start_s`, in any order.
        column: The lists of numbers that are not held, of a fixed size, or tokens with nulls.
        near: Folder or URI on whose disk they wait.
        batch_bytes: Most bytes of lists in a batch; a single row may have more.
    """
    with scratch_file(near) as file:
        index: list[pa.RecordBatch] = []
        lengths: list[Positions] = []
        schema = None
        for batch in batches:
            schema = batch.schema
            lists = batch.column(column)
            file.write(_numbers(lists).data)
            lengths.append(_lengths(lists))
            index.append(_coded(batch.drop_columns([column])))
        if schema is None:
            return
        file.flush()
        table = pa.Table.from_batches(index).unify_dictionaries().combine_chunks()
        del index
        waiting = _Waiting(file, schema.field(column).type, np.concatenate(lengths))
        for rows in waiting.stretches(_order(table), batch_bytes):
            own = table.take(pa.array(rows))
            columns = {name: own.column(name).combine_chunks() for name in own.column_names}
            columns["recording"] = columns["recording"].cast(pa.string())
            columns[column] = waiting.read(rows)
            arrays = [columns[name] for name in schema.names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class _Waiting:
    """Lists of numbers on the disk, one after the other.

    Attributes:
        file: Holds them.
        kind: Arrow type of a list.
        lengths: (n,) numbers of every list.
    """

    file: BinaryIO
    kind: pa.DataType
    lengths: Positions

    @functools.cached_property
    def _dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self.kind.value_type.to_pandas_dtype())
        return found

    @functools.cached_property
    def _starts(self) -> Positions:
        starts: Positions = np.cumsum(self.lengths) - self.lengths
        return starts

    def stretches(self, order: Positions, batch_bytes: int) -> Iterator[Positions]:
        """Yield rows of an order, as many at once as have so many bytes."""
        most = max(1, batch_bytes // self._dtype.itemsize)
        ends = np.cumsum(self.lengths[order])
        first = 0
        while first < len(order):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
            yield order[first:last]
            first = last

    def read(self, rows: Positions) -> pa.Array:
        """Return the lists of some rows; rows that lie one after the other are read at once."""
        edges = np.flatnonzero(np.diff(rows) != 1) + 1
        pieces = []
        for run in np.split(rows, edges):
            n_bytes = int(self.lengths[run].sum()) * self._dtype.itemsize
            at = int(self._starts[run[0]]) * self._dtype.itemsize
            pieces.append(os.pread(self.file.fileno(), n_bytes, at))
        values = np.frombuffer(b"".join(pieces), self._dtype)
        if pa.types.is_fixed_size_list(self.kind):
            return pa.FixedSizeListArray.from_arrays(pa.array(values), self.kind.list_size)
        offsets = np.append(0, np.cumsum(self.lengths[rows])).astype(np.int32)
        items = pa.array(values, self.kind.value_type, mask=values == GAP)
        return pa.ListArray.from_arrays(pa.array(offsets), items)


def _numbers(lists: pa.Array) -> npt.NDArray[Any]:
    flat = lists.flatten()
    if flat.null_count:
        flat = pc.fill_null(flat, GAP)
    found: npt.NDArray[Any] = np.ascontiguousarray(flat.to_numpy(zero_copy_only=False))
    return found


def _lengths(lists: pa.Array) -> Positions:
    if pa.types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size, np.int64)
    found: Positions = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _coded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows with a number in place of the recording's name."""
    place = batch.schema.get_field_index("recording")
    return batch.set_column(place, "recording", batch.column("recording").dictionary_encode())


def _order(table: pa.Table) -> Positions:
    """Return the rows in order, as Arrow orders names: byte by byte."""
    coded = table.column("recording").combine_chunks()
    rank = np.empty(len(coded.dictionary), np.int32)
    rank[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(rank), dtype=np.int32)
    keys = [table.column(name).to_numpy() for name in ("start_s", "channel")]
    order: Positions = np.lexsort((*keys, rank[coded.indices.to_numpy()]))
    return order
