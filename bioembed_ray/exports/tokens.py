"""Token sequences for other programs: run lengths in Parquet, text for language models."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import storage
from bioembed_ray.results import open_output
from bioembed_ray.run_lengths import as_text, run_lengths


def write_tokens(table: pa.Table, uri: str, formats: tuple[str, ...]) -> list[str]:
    """Put tokens as `text` or as `runs`; return what was put.

    `text`: one line per row, `u5x2 u7x1 <gap>x3` (unit, times duration), and a CSV that says which
    row is which. `runs`: Parquet with `units` and `durations` instead of `tokens`.

    Raises:
        StorageError: writing failed.
    """
    pairs = [run_lengths(tokens) for tokens in table.column("tokens").to_pylist()]
    written = []
    if "text" in formats:
        lines = [as_text(units, durations) for units, durations in pairs]
        storage.put(f"{uri}.txt", ("\n".join(lines) + "\n").encode())
        storage.put(f"{uri}.csv", _index(table))
        written += [f"{uri}.txt", f"{uri}.csv"]
    if "runs" in formats:
        item = table.schema.field("tokens").type.value_type
        runs = table.drop_columns(["tokens"])
        runs = runs.append_column("units", pa.array([p[0] for p in pairs], pa.list_(item)))
        runs = runs.append_column(
            "durations", pa.array([p[1] for p in pairs], pa.list_(pa.int32()))
        )
        sink = pa.BufferOutputStream()
        pq.write_table(runs, sink, compression="zstd")
        storage.put(f"{uri}.parquet", bytes(sink.getvalue()))
        written.append(f"{uri}.parquet")
    return written


def export_tokens(
    output: str, codebooks: tuple[str, ...], formats: tuple[str, ...], folder: str
) -> Iterator[str]:
    """Write the current tokens of some codebooks; yield one line per file.

    Raises:
        InputError: no such codebook.
    """
    results = open_output(output)
    for name in codebooks:
        table = results.tokens(name).table()
        for uri in write_tokens(table, storage.join(folder, f"{name}_tokens"), formats):
            yield f"{uri}  {table.num_rows} rows"


def _index(table: pa.Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = ["recording", "channel", "start_s", "hop_s", "per_step"]
    writer.writerow([*names, "n_tokens"])
    counts = [len(tokens) for tokens in table.column("tokens").to_pylist()]
    columns = [table.column(name).to_pylist() for name in names]
    writer.writerows(zip(*columns, counts, strict=True))
    return text.getvalue().encode()
