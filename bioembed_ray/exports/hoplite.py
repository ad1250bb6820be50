"""One encoder's windows as a perch-hoplite database, to search and label with Perch's agile tools.

The folder holds `hoplite.sqlite` and `usearch.index`, and the CSV files that hoplite reads from the
root of a dataset. Vectors are float16 and compared by inner product, which is hoplite's default.
The index is built in memory: two bytes per number and some 300 bytes per window.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from bioembed_ray import schema, storage
from bioembed_ray.errors import InputError
from bioembed_ray.exports import hoplite_tables as tables
from bioembed_ray.exports.hoplite_tables import Column, Deployment, Recording
from bioembed_ray.exports.rows import Chosen
from bioembed_ray.rows import vectors_of

# Columns of the database that are no further columns.
TAKEN = {"id", "filename", "datetime", "deployment_id", "recording", "deployment"}
TAKEN |= {"latitude", "longitude"}
# Two of them stand elsewhere: the site is the deployment, the time is `datetime`.
ELSEWHERE = {"site", "latitude", "longitude", "recorded_at"}
# Left by a reader that was killed; SQLite would apply them to the new database.
SIDE_FILES = ("-wal", "-shm", "-journal")


def export_hoplite(chosen: Chosen, folder: str, labels: str | None) -> Iterator[str]:
    """Write the database of one encoder to `<folder>/<encoder>_hoplite`; yield a line per file.

    Args:
        chosen: Windows of an encoder.
        folder: Where.
        labels: Column of recordings/ with a label, or a list of them, that hold for a recording.

    Raises:
        InputError: no such column; a number beyond float16.
        StorageError: reading or writing failed.
    """
    place = storage.join(folder, f"{chosen.name}_hoplite")
    known = chosen.rows.recordings().sort_by("recording")
    if labels is not None and labels not in known.column_names:
        extra = [n for n in known.column_names if n not in schema.RECORDINGS.names]
        raise InputError(
            f"--labels: recordings/ has no column {labels!r}; the manifest's are "
            f"{', '.join(extra) or 'none'}"
        )
    base = base_path(known)
    project = re.split(r"[/\\]", base.rstrip("/"))[-1] or "archive"
    deployments, recordings, columns = _describe(chosen, known, project, labels)
    database_uri = storage.join(place, tables.DATABASE)
    index_uri = storage.join(place, tables.INDEX)
    dim = chosen.rows.arrow.schema.field("embedding").type.list_size
    metadata = {
        tables.USEARCH_KEY: _usearch_config(dim),
        "audio_sources": {"audio_globs": [_audio_source(project, base)]},
        "model_config": {
            # Hoplite cannot run these encoders: it searches and labels what is here.
            "model_key": f"bioembed_ray_{chosen.name}",
            "embedding_dim": dim,
            "model_config": chosen.facts,
            "logits_key": None,
            "logits_idxes": None,
        },
    }
    with storage.writing(index_uri) as index_path, storage.writing(database_uri) as path:
        provenance = f"manifest column {labels}"
        database = tables.create_database(
            path, project, deployments, recordings, columns, metadata, provenance
        )
        ids = {one.filename: one.id for one in recordings}
        index = _index(dim)
        n_rows = _add_windows(chosen, ids, database, index)
        tables.finish(database)
        index.save(str(index_path))
        for ending in SIDE_FILES:
            storage.delete(f"{database_uri}{ending}")
    yield f"{database_uri}  {n_rows} windows"
    yield index_uri
    for name, body in _side_files(deployments, recordings, columns, labels):
        uri = storage.join(place, name)
        storage.put(uri, body)
        yield uri


def base_path(recordings: pa.Table) -> str:
    """Return the folder or prefix that names are relative to, empty where they have no common one.

    Args:
        recordings: Columns `uri` and `recording`.
    """
    found = set()
    for uri, name in zip(
        recordings.column("uri").to_pylist(),
        recordings.column("recording").to_pylist(),
        strict=True,
    ):
        found.add(uri.removesuffix(name).rstrip("/") if uri.endswith(f"/{name}") else "")
    return found.pop() if len(found) == 1 else ""


def _describe(
    chosen: Chosen, known: pa.Table, project: str, labels: str | None
) -> tuple[list[Deployment], list[Recording], list[Column]]:
    names = [name for name in chosen.describing() if name not in ELSEWHERE]
    columns = _columns(known, names)
    deployments: dict[str, Deployment] = {}
    recordings: list[Recording] = []
    for row in known.to_pylist():
        filename = row["recording"]
        # Hoplite's own rule where no site is known: the first folder, else the dataset.
        folder = filename.split("/")[0] if "/" in filename else project
        site = row.get("site") or folder
        new = Deployment(len(deployments) + 1, site, row.get("latitude"), row.get("longitude"))
        place = deployments.setdefault(site, new)
        if place.latitude is None and new.latitude is not None:
            deployments[site] = Deployment(place.id, site, new.latitude, new.longitude)
        recordings.append(
            Recording(
                len(recordings) + 1,
                filename,
                row.get("recorded_at"),
                place.id,
                row.get("duration_s"),
                tuple(_plain(row[column.source]) for column in columns),
                _labels(row[labels]) if labels else (),
            )
        )
    return list(deployments.values()), recordings, columns


def _columns(known: pa.Table, names: list[str]) -> list[Column]:
    """Return further columns with names that are plain identifiers, each once."""
    taken = set(TAKEN)
    columns = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        plain = plain if re.match("[A-Za-z_]", plain) else f"_{plain}"
        # SQLite does not tell capitals apart.
        while plain.lower() in taken:
            plain = f"{plain}_"
        taken.add(plain.lower())
        kind = known.schema.field(name).type
        is_int = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        word = "int" if is_int else "float" if pa.types.is_floating(kind) else "str"
        columns.append(Column(name, plain, word))
    return columns


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _labels(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(one) for one in values if one not in (None, ""))


def _usearch_config(dim: int) -> dict[str, Any]:
    return {
        "embedding_dim": dim,
        "dtype": "float16",
        "metric_name": tables.METRIC,
        "expansion_add": tables.EXPANSION_ADD,
        "expansion_search": tables.EXPANSION_SEARCH,
    }


def _audio_source(project: str, base: str) -> dict[str, Any]:
    return {
        "dataset_name": project,
        "base_path": base,
        "file_glob": "**/*",
        "min_audio_len_s": 0.0,
        # Hoplite's words for "the model's rate" and "whole files".
        "target_sample_rate_hz": -2,
        "shard_len_s": None,
        "max_shards_per_file": None,
    }


def _index(dim: int) -> Any:
    from usearch.index import Index, MetricKind, ScalarKind

    return Index(
        ndim=dim,
        metric=MetricKind.IP,
        dtype=ScalarKind.F16,
        expansion_add=tables.EXPANSION_ADD,
        expansion_search=tables.EXPANSION_SEARCH,
    )


def _add_windows(chosen: Chosen, ids: dict[str, int], database: Any, index: Any) -> int:
    n_rows = 0
    for batch in chosen.batches(is_described=False):
        vectors = _half(vectors_of(batch.column("embedding")), chosen.name)
        unknown = set(batch.column("recording").to_pylist()) - ids.keys()
        if unknown:
            raise InputError(
                f"{min(unknown)}: recordings/ does not know it yet; let `bioembed run` end first"
            )
        columns = ("recording", "start_s", "end_s", "channel", "valid_s")
        rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
        keys = np.arange(n_rows + 1, n_rows + 1 + len(batch))
        tables.insert_windows(
            database,
            (
                (int(key), ids[name], tables.offsets(start, end), channel, valid)
                for key, (name, start, end, channel, valid) in zip(keys, rows, strict=True)
            ),
        )
        index.add(keys, vectors)
        n_rows += len(batch)
    return n_rows


def _half(vectors: Any, name: str) -> Any:
    with np.errstate(over="ignore"):
        found = vectors.astype(np.float16)
    if not np.isfinite(found).all():
        raise InputError(
            f"{name}: a number of {np.abs(vectors).max():g} is beyond float16, which hoplite stores; "
            f"use --format datasets"
        )
    return found


def _side_files(
    deployments: list[Deployment],
    recordings: list[Recording],
    columns: list[Column],
    labels: str | None,
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the CSV files that hoplite reads from a dataset's root."""
    # Hoplite keys them by field name, so a name stands for one level only.
    described = [
        ("deployment", "deployment", "str", "site, or first folder"),
        ("latitude", "deployment", "float", "degrees"),
        ("longitude", "deployment", "float", "degrees"),
        ("recording", "recording", "str", "path below the base path"),
        *((one.name, "recording", one.kind, one.source) for one in columns),
    ]
    yield (
        "hoplite_metadata_description.csv",
        _csv(["field_name", "metadata_level", "type", "description"], described),
    )
    yield (
        "hoplite_deployments_metadata.csv",
        _csv(
            ["deployment", "latitude", "longitude"],
            [(one.name, one.latitude, one.longitude) for one in deployments],
        ),
    )
    yield (
        "hoplite_recordings_metadata.csv",
        _csv(
            ["recording", *(one.name for one in columns)],
            [(one.filename, *one.more) for one in recordings],
        ),
    )
    if labels is not None:
        rows = [
            (one.filename, 0.0, one.duration_s, label, "positive")
            for one in recordings
            if one.duration_s is not None
            for label in one.labels
        ]
        header = ["recording", "start_offset_s", "end_offset_s", "label", "label_type"]
        yield "hoplite_annotations.csv", _csv(header, rows)


def _csv(header: list[str], rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
