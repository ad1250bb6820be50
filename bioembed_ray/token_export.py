"""Token sequences for other programs: run lengths in Parquet, text for language models."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import parts, storage
from bioembed_ray.current import read_current
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.export import list_datasets
from bioembed_ray.run_lengths import as_text, run_lengths


def find_tokens(output: str, codebook: str) -> Dataset:
    """Return the current tokens of a codebook.

    Raises:
        InputError: no such codebook, or its tokens are not complete yet; names what there is.
    """
    names = sorted({dataset.encoder for dataset in list_datasets(output, "tokens")})
    if codebook not in names:
        known = ", ".join(names) or "none"
        raise InputError(f"{output}: no tokens of codebook {codebook!r}; there is {known}")
    current = read_current(output).get("codebooks", {}).get(codebook)
    if current is None:
        raise InputError(f"{codebook}: its tokens are not complete yet; run `bioembed run` again")
    return Dataset("tokens", codebook, current["tokens"])


def read_tokens(output: str, dataset: Dataset) -> pa.Table:
    """Return all rows of tokens, by recording, channel and start."""
    tables = [
        parts.read_table(entry).replace_schema_metadata(None)
        for _, entry in sorted(parts.list_parts(output, dataset).items())
    ]
    return pa.concat_tables(tables).sort_by(
        [("recording", "ascending"), ("channel", "ascending"), ("start_s", "ascending")]
    )


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
    for name in codebooks:
        table = read_tokens(output, find_tokens(output, name))
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
