"""A manifest: one row per recording, a `uri` column, and labels that ride along."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bioembed_ray import storage
from bioembed_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Label = str | int | float | bool | None
URI_COLUMN = "uri"
# A leading zero makes a site code, not a number; 18 digits fit 64 bits.
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
BOOLEANS = {"true": True, "false": False, "True": True, "False": False}


def read_manifest(uri: str) -> list[tuple[int, str, dict[str, Label]]]:
    """Return (row number, uri as written, labels) for every row.

    CSV (`,`, `;` or tab, UTF-8) or Parquet. Cells of a CSV become numbers or booleans where the
    whole column allows it and no leading zero would be lost; empty ones become None. Times and
    decimals of a Parquet become text, nested columns are left out.

    Row numbers are line numbers in a CSV and count from 1 in a Parquet.

    Raises:
        InputError: not a table, no `uri` column, a row without a uri or with too many cells.
    """
    body = storage.read(uri)
    if uri.lower().endswith(".parquet") or body[:4] == b"PAR1":
        lines, columns = _read_parquet(uri, body)
    else:
        lines, columns = _read_csv(uri, body)
    if URI_COLUMN not in columns:
        raise InputError(
            f"{uri}: no column {URI_COLUMN!r}; its columns are {', '.join(columns) or 'none'}"
        )
    if not lines:
        raise InputError(f"{uri}: no rows")
    uris = columns.pop(URI_COLUMN)
    names = list(columns)
    rows = []
    for line, written, *values in zip(lines, uris, *columns.values(), strict=True):
        if not isinstance(written, str) or not written.strip():
            raise InputError(f"{uri}: row {line} has no uri")
        rows.append((line, written.strip(), dict(zip(names, values, strict=True))))
    return rows


def _read_csv(uri: str, body: bytes) -> tuple[list[int], dict[str, list[Label]]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    header, _, _ = text.partition("\n")
    # Spreadsheets of half of Europe write `;`.
    delimiter = next((d for d in ",;\t" if d in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[int] = []
    rows: list[list[str]] = []
    names: list[str] = []
    for line, cells in _csv_rows(uri, reader):
        if not names:
            names = [name.strip() for name in cells]
            if len(set(names)) != len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{uri}: two columns are called {twice!r}")
            continue
        if len(cells) != len(names):
            raise InputError(f"{uri}: row {line} has {len(cells)} cells, the header {len(names)}")
        lines.append(line)
        rows.append(cells)
    columns = zip(*rows, strict=True) if rows else iter([()] * len(names))
    return lines, {
        name: list(cells) if name == URI_COLUMN else _typed(list(cells))
        for name, cells in zip(names, columns, strict=True)
    }


def _csv_rows(uri: str, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) without blank lines."""
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells  # type: ignore[attr-defined]
    except csv.Error as error:
        raise InputError(f"{uri}: not a CSV table ({error})") from None


def _typed(cells: list[str]) -> list[Label]:
    filled = [cell for cell in cells if cell]
    if all(INTEGER.fullmatch(cell) for cell in filled):
        return [int(cell) if cell else None for cell in cells]
    if all(NUMBER.fullmatch(cell) for cell in filled):
        return [as_label(float(cell)) if cell else None for cell in cells]
    if all(cell in BOOLEANS for cell in filled):
        return [BOOLEANS[cell] if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _read_parquet(uri: str, body: bytes) -> tuple[list[int], dict[str, list[Label]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(body))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri}: not a Parquet table ({str(error).splitlines()[0]})") from None
    columns = {
        field.name: [as_label(value) for value in table.column(place).to_pylist()]
        for place, field in enumerate(table.schema)
        if is_label_type(field.type)
    }
    return list(range(1, table.num_rows + 1)), columns


def is_label_type(kind: pa.DataType) -> bool:
    """Return True for an Arrow type that `as_label` can hold: no nesting, no bytes."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return is_label_type(kind.value_type)
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def as_label(value: object) -> Label:
    """Return a scalar as a label: NaN is None, what is no text, number or boolean becomes text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
