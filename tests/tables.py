"""Tables put where a test wants them."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import storage


def put_table(uri: str, table: pa.Table) -> None:
    """Write a Parquet file, its folder made."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.put(uri, sink.getvalue())
