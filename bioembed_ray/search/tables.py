"""Hits of a search as lines, CSV, Parquet, and for Raven and Audacity."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from bioembed_ray import storage
from bioembed_ray.errors import ConfigError
from bioembed_ray.exports.annotations import (
    AUDACITY_SUFFIX,
    Annotation,
    audacity_labels,
    by_recording,
    label_keys,
    raven_table,
)
from bioembed_ray.rows import Rows
from bioembed_ray.search.exact import SCHEMA

Format = Literal["table", "csv", "parquet", "raven", "audacity", "html"]
BY_EXTENSION: dict[str, Format] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "raven",
    ".html": "html",
}
ON_STDOUT: tuple[Format, ...] = ("table", "csv", "raven")
# What people ask first of a hit, where anybody knows it.
USUAL = ("site", "recorded_at")


def format_of(target: str | None, named: str | None) -> Format:
    """Return the format that hits are written in: the one named, or what the file's name says.

    Raises:
        ConfigError: neither says, or the format needs a file.
    """
    kinds: tuple[Format, ...] = get_args(Format)
    if named is not None:
        kind = next(one for one in kinds if one == named)
        if target is None and kind not in ON_STDOUT:
            where = "a folder" if kind == "audacity" else "a file"
            raise ConfigError(f"--format {kind}: give {where} with --to")
        return kind
    if target is None:
        return "table"
    for extension, kind in BY_EXTENSION.items():
        if target.lower().endswith(extension):
            return kind
    known = ", ".join(BY_EXTENSION)
    raise ConfigError(f"--to {target}: use a name that ends in {known}, or give --format")


def lines(hits: pa.Table) -> Iterator[str]:
    """Yield a header and one line per hit, in columns; columns without any value are left out."""
    names = [
        n for n in hits.column_names if n in SCHEMA.names or hits.column(n).null_count < len(hits)
    ]
    columns = {name: [_shown(name, one) for one in hits.column(name).to_pylist()] for name in names}
    widths = {name: max(map(len, [name, *cells])) for name, cells in columns.items()}
    is_number = {
        name: pa.types.is_integer(kind) or pa.types.is_floating(kind)
        for name in names
        for kind in (hits.schema.field(name).type,)
    }
    for cells in ([*names], *(list(row) for row in zip(*columns.values(), strict=True))):
        placed = (
            cell.rjust(widths[name]) if is_number[name] else cell.ljust(widths[name])
            for name, cell in zip(names, cells, strict=True)
        )
        yield "  ".join(placed).rstrip()


def text_of(rows: Rows, hits: pa.Table, kind: Format) -> Iterator[str]:
    """Yield the lines of a format that goes to the terminal."""
    if kind == "csv":
        yield from _csv(hits).decode().splitlines()
    elif kind == "raven":
        yield from raven_table(annotations_of(rows, hits)).splitlines()
    else:
        yield from lines(hits)


def write(rows: Rows, hits: pa.Table, kind: Format, target: str) -> list[str]:
    """Put hits in a file, or for Audacity one per recording into a folder; return what was put.

    Raises:
        StorageError: writing failed.
    """
    if kind == "audacity":
        own = by_recording(annotations_of(rows, hits))
        bodies = {
            storage.join(target, *key.split("/")): audacity_labels(own[name]).encode()
            for name, key in label_keys(own, AUDACITY_SUFFIX).items()
        }
    elif kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(hits, sink)
        bodies = {target: sink.getvalue()}
    else:
        body = _csv(hits) if kind == "csv" else _lines_of(text_of(rows, hits, kind))
        bodies = {target: body}
    for uri, body in bodies.items():
        storage.put(uri, body)
    return list(bodies)


def annotations_of(rows: Rows, hits: pa.Table) -> list[Annotation]:
    """Return hits for Raven and Audacity, with the band that the encoder heard."""
    table = rows.recordings()
    names = pc.unique(hits.column("recording"))
    known = {
        row["recording"]: row
        for row in table.filter(pc.field("recording").isin(names))
        .select(["recording", "uri", "offset", "row", "rate_hz", "duration_s"])
        .to_pylist()
    }
    placement = rows.placement
    heard_hz = placement["rate_hz"] * placement["time_expansion"]
    found = []
    for hit in hits.select(SCHEMA.names).to_pylist():
        name, about = hit["recording"], known.get(hit["recording"], {})
        # Raven opens files; what lies inside a tar or a table has only its name.
        is_file = about and not about["offset"] and about["row"] is None
        rate_hz = about.get("rate_hz") or heard_hz
        found.append(
            Annotation(
                recording=name,
                path=about["uri"] if is_file else name,
                channel=hit["channel"],
                start_s=hit["start_s"],
                end_s=hit["end_s"],
                duration_s=about.get("duration_s"),
                high_hz=min(rate_hz, heard_hz) / 2,
                label=f"hit {hit['rank']}",
                score=hit["score"],
            )
        )
    return found


def _shown(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if name == "score" else f"{value:.10g}"
    return str(value)


def _csv(hits: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(hits, sink, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return bytes(sink.getvalue())


def _lines_of(texts: Iterable[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()
