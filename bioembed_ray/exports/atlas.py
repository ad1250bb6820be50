"""A table for Embedding Atlas: a point on a map for every row, and what is known of it.

    embedding-atlas beats_window_atlas.parquet --x x --y y --neighbors neighbors

The map is UMAP's, learned from at most 20,000 rows that are drawn with a fixed seed; the other rows are
placed on it. Nearest neighbours are exact, and there where all rows took part in the fit: beyond that
they would cost more than the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import storage
from bioembed_ray.exports.rows import Chosen
from bioembed_ray.rows import vectors_of
from bioembed_ray.umap_maps import FittedMap, fit_map
from bioembed_ray.unit_rows import unit_rows

N_FIT = 20_000
N_NEIGHBORS = 15
BLOCK_ROWS = 1024
# Columns that Embedding Atlas is told of, whatever the manifest calls its own.
POINT = ("x", "y", "neighbors")

Vectors = npt.NDArray[np.float32]


def export_atlas(chosen: Chosen, folder: str, keep_vectors: bool) -> Iterator[str]:
    """Write one Parquet file with rows, their recordings' columns and coordinates; yield its line.

    Rows are read twice, once for the sample; what is held is the sample.

    Args:
        chosen: Vectors of an encoder.
        folder: Where.
        keep_vectors: Whether the vectors are written too.

    Raises:
        InputError, StorageError: see `Chosen.batches`.
    """
    uri = storage.join(folder, f"{chosen.title}_atlas.parquet")
    n_rows = chosen.count()
    drawn = np.arange(n_rows)
    if n_rows > N_FIT:
        drawn = np.sort(np.random.default_rng(0).permutation(n_rows)[:N_FIT])
    sample = _sample(chosen, drawn)
    fitted = fit_map(sample)
    neighbors = _neighbors(sample) if n_rows <= N_FIT else None
    del sample
    low = 0
    with storage.writing(uri) as path:
        writer = None
        for batch in chosen.batches(is_described=True):
            inside = slice(*np.searchsorted(drawn, (low, low + len(batch))))
            points = _coordinates(batch, fitted, inside, drawn[inside] - low)
            columns = {_title(n): batch.column(n) for n in batch.schema.names if n != "embedding"}
            columns |= {"x": pa.array(points[:, 0]), "y": pa.array(points[:, 1])}
            if neighbors is not None:
                columns["neighbors"] = neighbors.slice(low, len(batch))
            if keep_vectors:
                columns["embedding"] = batch.column("embedding")
            table = pa.table(columns).replace_schema_metadata(chosen.facts)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            low += len(batch)
        if writer is not None:
            writer.close()
    also = "with neighbours" if neighbors is not None else f"map learned from {N_FIT} rows"
    yield f"{uri}  {n_rows} rows, {also}"


def _sample(chosen: Chosen, drawn: npt.NDArray[np.int64]) -> Vectors:
    """Return the vectors at the places drawn, ascending: (n, D)."""
    found = []
    low = 0
    for batch in chosen.batches(is_described=False):
        first, last = np.searchsorted(drawn, (low, low + len(batch)))
        found.append(vectors_of(batch.column("embedding"))[drawn[first:last] - low])
        low += len(batch)
    return np.concatenate(found)


def _coordinates(
    batch: pa.RecordBatch, fitted: FittedMap, inside: slice, places: npt.NDArray[np.int64]
) -> Vectors:
    """Return (n, 2): of the sample's rows as they were laid out, of the others as they are placed."""
    points = np.empty((len(batch), 2), np.float32)
    points[places] = fitted.coordinates[inside]
    rest = np.setdiff1d(np.arange(len(batch)), places)
    if len(rest):
        points[rest] = fitted.place(vectors_of(batch.column("embedding"))[rest])
    return points


def _neighbors(vectors: Vectors) -> pa.StructArray:
    """Return ids (zero-based rows) and cosine distances of each row's nearest others, nearest first."""
    n_near = min(N_NEIGHBORS, len(vectors) - 1)
    unit = unit_rows(vectors, np.float32)
    ids = np.empty((len(unit), n_near), np.int64)
    distances = np.empty((len(unit), n_near), np.float32)
    for low in range(0, len(unit), BLOCK_ROWS):
        block = 1 - unit[low : low + BLOCK_ROWS] @ unit.T  # (B, n)
        rows = np.arange(len(block))
        block[rows, low + rows] = np.inf
        near = np.argpartition(block, max(n_near - 1, 0), axis=1)[:, :n_near]
        near = np.take_along_axis(near, np.take_along_axis(block, near, 1).argsort(1), 1)
        ids[low : low + len(block)] = near
        distances[low : low + len(block)] = np.maximum(np.take_along_axis(block, near, 1), 0)
    offsets = pa.array(np.arange(len(unit) + 1) * n_near, pa.int32())
    lists: list[Any] = [
        pa.ListArray.from_arrays(offsets, pa.array(column.reshape(-1)))
        for column in (ids, distances)
    ]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])


def _title(name: str) -> str:
    return f"recording_{name}" if name in {*POINT, "embedding"} else name
