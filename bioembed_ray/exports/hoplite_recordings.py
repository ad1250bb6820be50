"""Recordings and sites as a perch-hoplite database has them, one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bioembed_ray.exports.hoplite_tables import Column, Deployment, Recording

# Columns of the database that are no further columns.
TAKEN = {"id", "filename", "datetime", "deployment_id", "recording", "deployment"}
TAKEN |= {"latitude", "longitude"}
# Two of them stand elsewhere: the site is the deployment, the time is `datetime`.
ELSEWHERE = {"site", "latitude", "longitude", "recorded_at"}
BATCH_ROWS = 1024


@dataclass(frozen=True)
class Archive:
    """What the database says besides windows.

    Attributes:
        project: Name of the dataset.
        known: recordings/, sorted by recording: row k is recording k + 1 of the database.
        deployments: Sites by name.
        columns: Further columns of recordings.
        labels: Column of recordings/ with what a person said of them; None for none.
    """

    project: str
    known: pa.Table
    deployments: dict[str, Deployment]
    columns: tuple[Column, ...]
    labels: str | None

    def recordings(self) -> Iterator[Recording]:
        """Yield the recordings."""
        for number, row in enumerate(_rows(self.known), 1):
            yield Recording(
                number,
                row["recording"],
                row.get("recorded_at"),
                self.deployments[_site(row, self.project)].id,
                row.get("duration_s"),
                tuple(_plain(row[column.source]) for column in self.columns),
                _labels(row[self.labels]) if self.labels else (),
            )


def archive_of(
    known: pa.Table, base: str, describing: Sequence[str], labels: str | None
) -> Archive:
    """Return what is said of recordings.

    Args:
        known: recordings/.
        base: Folder or prefix that names are relative to.
        describing: Its columns that describe recordings.
        labels: Its column with labels.
    """
    names = [name for name in describing if name not in ELSEWHERE]
    needed = {"recording", "duration_s", *names, *ELSEWHERE, *([labels] if labels else [])}
    known = known.select([n for n in known.column_names if n in needed]).sort_by("recording")
    project = re.split(r"[/\\]", base.rstrip("/"))[-1] or "archive"
    columns = tuple(_columns(known.schema, names))
    return Archive(project, known, _deployments(known, project), columns, labels)


def base_path(recordings: pa.Table) -> str:
    """Return the folder or prefix that names are relative to, empty where they have no common one.

    Args:
        recordings: Columns `uri` and `recording`.
    """
    found = set()
    for row in _rows(recordings.select(["uri", "recording"])):
        uri, name = row["uri"], row["recording"]
        found.add(uri.removesuffix(name).rstrip("/") if uri.endswith(f"/{name}") else "")
    return found.pop() if len(found) == 1 else ""


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from batch.to_pylist()


def _site(row: dict[str, Any], project: str) -> str:
    """Return a recording's site; where none is known by hoplite's own rule: the first folder, or the dataset."""
    name: str = row["recording"]
    return row.get("site") or (name.split("/")[0] if "/" in name else project)


def _deployments(known: pa.Table, project: str) -> dict[str, Deployment]:
    names = [n for n in ("recording", "site", "latitude", "longitude") if n in known.column_names]
    found: dict[str, Deployment] = {}
    for row in _rows(known.select(names)):
        site = _site(row, project)
        place = (row.get("latitude"), row.get("longitude"))
        before = found.setdefault(site, Deployment(len(found) + 1, site, *place))
        if before.latitude is None and place[0] is not None:
            found[site] = Deployment(before.id, site, *place)
    return found


def _columns(known: pa.Schema, names: list[str]) -> Iterator[Column]:
    """Yield further columns with names that are plain identifiers, each once."""
    taken = set(TAKEN)
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        plain = plain if re.match("[A-Za-z_]", plain) else f"_{plain}"
        # SQLite does not tell capitals apart.
        while plain.lower() in taken:
            plain = f"{plain}_"
        taken.add(plain.lower())
        kind = known.field(name).type
        is_int = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        word = "int" if is_int else "float" if pa.types.is_floating(kind) else "str"
        yield Column(name, plain, word)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _labels(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(one) for one in values if one not in (None, ""))
