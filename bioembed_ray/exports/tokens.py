"""Token sequences for other programs: run lengths in Parquet, text for language models."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import storage
from bioembed_ray.exports.in_order import in_order
from bioembed_ray.exports.text_file import text_file
from bioembed_ray.results import open_output
from bioembed_ray.rows import Rows
from bioembed_ray.run_lengths import as_text, run_lengths

# Of a batch that is looked at as Python's numbers, which are ten times as large.
BATCH_BYTES = 1 << 20
# Rows are read a few at a time, since each may hold all tokens of an hour.
BATCH_ROWS = 32
INDEX = ("recording", "channel", "start_s", "hop_s", "per_step")


def export_tokens(
    output: str, codebooks: tuple[str, ...], formats: tuple[str, ...], folder: str
) -> Iterator[str]:
    """Write the current tokens of some codebooks as `text` or `runs`; yield one line per file.

    `text`: one line per row, `u5x2 u7x1 <gap>x3` (unit, times duration), and a CSV that says which
    row is which. `runs`: Parquet with `units` and `durations` instead of `tokens`. Rows are sorted by
    recording, channel and time.

    Raises:
        InputError: no such codebook.
        StorageError: reading or writing failed.
    """
    results = open_output(output)
    for name in codebooks:
        rows, uri = results.tokens(name), storage.join(folder, f"{name}_tokens")
        written, n_rows = [], 0
        with ExitStack() as stack:
            kinds: list[_Text | _Runs] = []
            if "text" in formats:
                kinds.append(_Text(stack, uri))
                written += [f"{uri}.txt", f"{uri}.csv"]
            if "runs" in formats:
                kinds.append(_Runs(stack, uri, rows.arrow.schema))
                written.append(f"{uri}.parquet")
            for batch in sorted_tokens(rows, folder):
                pairs = [run_lengths(tokens) for tokens in batch.column("tokens").to_pylist()]
                for kind in kinds:
                    kind.write(batch, pairs)
                n_rows += len(batch)
        for one in written:
            yield f"{one}  {n_rows} rows"


def sorted_tokens(rows: Rows, near: str) -> Iterator[pa.RecordBatch]:
    """Yield rows of tokens sorted by recording, channel and time, a few at a time.

    Args:
        rows: A partition of tokens/.
        near: Folder or URI on whose disk they are sorted.
    """
    return in_order(rows.batches(batch_rows=BATCH_ROWS), "tokens", near, BATCH_BYTES)


Pairs = list[tuple[list[int | None], list[int]]]


class _Text:
    """Lines of text, and a CSV of what each line is."""

    def __init__(self, stack: ExitStack, uri: str) -> None:
        self._text = stack.enter_context(text_file(f"{uri}.txt"))
        self._index = csv.writer(stack.enter_context(text_file(f"{uri}.csv")))
        self._index.writerow([*INDEX, "n_tokens"])

    def write(self, batch: pa.RecordBatch, pairs: Pairs) -> None:
        self._text.writelines(f"{as_text(*pair)}\n" for pair in pairs)
        columns: list[list[Any]] = [batch.column(name).to_pylist() for name in INDEX]
        counts = batch.column("tokens").value_lengths().to_pylist()
        self._index.writerows(zip(*columns, counts, strict=True))


class _Runs:
    """A Parquet file with runs in place of tokens."""

    def __init__(self, stack: ExitStack, uri: str, tokens: pa.Schema) -> None:
        path = stack.enter_context(storage.writing(f"{uri}.parquet"))
        place = tokens.get_field_index("tokens")
        item = tokens.field(place).type.value_type
        self._schema = tokens.remove(place).append(pa.field("units", pa.list_(item)))
        self._schema = self._schema.append(pa.field("durations", pa.list_(pa.int32())))
        self._writer = stack.enter_context(pq.ParquetWriter(path, self._schema, compression="zstd"))

    def write(self, batch: pa.RecordBatch, pairs: Pairs) -> None:
        columns = [batch.column(name) for name in self._schema.names[:-2]]
        for field, values in zip(list(self._schema)[-2:], zip(*pairs, strict=True), strict=True):
            columns.append(pa.array(values, field.type))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
