"""Tables put where a test wants them."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import schema, storage


def put_table(uri: str, table: pa.Table, **options: object) -> None:
    """Write a Parquet file, its folder made."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    storage.put(uri, sink.getvalue())


def window_rows(
    tracks: Iterable[tuple[str, int, int]],
    dim: int,
    *,
    seed: int = 0,
    dtype: str = "float32",
    last_valid_s: float = 1.0,
) -> pa.Table:
    """Return windows of a second every half second, their vectors random, in order.

    Args:
        tracks: (recording, channel, how many windows).
        dim: Numbers of a vector.
        seed: Of the vectors.
        dtype: Type of the vectors.
        last_valid_s: How much of a track's last window is sound.
    """
    rng = np.random.default_rng(seed)
    rows = [
        {
            "recording": name,
            "channel": channel,
            "start_s": k / 2,
            "end_s": k / 2 + 1,
            "valid_s": 1.0 if k < n - 1 else last_valid_s,
            "embedding": rng.standard_normal(dim).astype(dtype),
        }
        for name, channel, n in tracks
        for k in range(n)
    ]
    return pa.Table.from_pylist(rows, schema=schema.embeddings(dim, dtype))


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    """Return the rows in random order."""
    return table.take(np.random.default_rng(seed).permutation(len(table)))
