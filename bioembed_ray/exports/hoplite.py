"""One encoder's windows as a perch-hoplite database, to search and label with Perch's agile tools.

The folder holds `hoplite.sqlite` and `usearch.index`, and the CSV files that hoplite reads from the
root of a dataset. Vectors are float16 and compared by inner product, which is hoplite's default.
The index is a graph, some 200 bytes per window in memory, of vectors that lie in a file and are mapped:
two bytes per number, which are resident while there is room and the system's to take back.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from bioembed_ray import schema, storage
from bioembed_ray.errors import InputError
from bioembed_ray.exports import hoplite_tables as tables
from bioembed_ray.exports.hoplite_recordings import Archive, archive_of, base_path
from bioembed_ray.exports.in_order import scratch_file
from bioembed_ray.exports.rows import Chosen
from bioembed_ray.exports.text_file import text_file
from bioembed_ray.rows import vectors_of

# Left by a reader that was killed; SQLite would apply them to the new database.
SIDE_FILES = ("-wal", "-shm", "-journal")
ADDED_ROWS = 8192


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
    known = chosen.rows.recordings()
    if labels is not None and labels not in known.column_names:
        extra = [n for n in known.column_names if n not in schema.RECORDINGS.names]
        raise InputError(
            f"--labels: recordings/ has no column {labels!r}; the manifest's are "
            f"{', '.join(extra) or 'none'}"
        )
    base = base_path(known)
    archive = archive_of(known, base, chosen.describing(), labels)
    database_uri = storage.join(place, tables.DATABASE)
    index_uri = storage.join(place, tables.INDEX)
    dim = chosen.rows.arrow.schema.field("embedding").type.list_size
    metadata = {
        tables.USEARCH_KEY: _usearch_config(dim),
        "audio_sources": {"audio_globs": [_audio_source(archive.project, base)]},
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
        database = tables.create_database(
            path,
            archive.project,
            archive.deployments.values(),
            archive.recordings,
            archive.columns,
            metadata,
            f"manifest column {labels}",
        )
        with scratch_file(place) as vectors:
            n_rows = _add_windows(chosen, archive, database, vectors)
            tables.finish(database)
            _save_index(vectors, (n_rows, dim), index_path)
        for ending in SIDE_FILES:
            storage.delete(f"{database_uri}{ending}")
    yield f"{database_uri}  {n_rows} windows"
    yield index_uri
    for name, header, rows in _side_files(archive):
        uri = storage.join(place, name)
        with text_file(uri) as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        yield uri


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


def _save_index(vectors: BinaryIO, shape: tuple[int, int], path: Path) -> None:
    """Write the index of float16 vectors that stand in a file; row k has the key k + 1."""
    from usearch.index import Index, MetricKind, ScalarKind

    index = Index(
        ndim=shape[1],
        metric=MetricKind.IP,
        dtype=ScalarKind.F16,
        expansion_add=tables.EXPANSION_ADD,
        expansion_search=tables.EXPANSION_SEARCH,
    )
    # Lent, not copied: the index points to them until it is saved.
    lent = np.memmap(vectors, np.float16, "r", shape=shape)
    for first in range(0, shape[0], ADDED_ROWS):
        some = lent[first : first + ADDED_ROWS]
        index.add(np.arange(first + 1, first + 1 + len(some)), some, copy=False)
    index.save(str(path))


def _add_windows(chosen: Chosen, archive: Archive, database: Connection, vectors: BinaryIO) -> int:
    """Insert windows, and write their vectors one after the other; return how many there are."""
    names = archive.known.column("recording").combine_chunks()
    n_rows = 0
    for batch in chosen.batches(is_described=False):
        vectors.write(_half(vectors_of(batch.column("embedding")), chosen.name).data)
        places = pc.index_in(batch.column("recording"), names)
        if places.null_count:
            unknown = batch.column("recording").filter(places.is_null())
            raise InputError(
                f"{pc.min(unknown)}: recordings/ does not know it yet; let `bioembed run` end first"
            )
        ids = pc.add(places, 1).to_pylist()
        columns = ("start_s", "end_s", "channel", "valid_s")
        rows = zip(ids, *(batch.column(name).to_pylist() for name in columns), strict=True)
        keys = np.arange(n_rows + 1, n_rows + 1 + len(batch))
        tables.insert_windows(
            database,
            (
                (key, recording, tables.offsets(start, end), channel, valid)
                for key, (recording, start, end, channel, valid) in zip(
                    keys.tolist(), rows, strict=True
                )
            ),
        )
        n_rows += len(batch)
    vectors.flush()
    return n_rows


def _half(vectors: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        found = vectors.astype(np.float16)
    if not np.isfinite(found).all():
        raise InputError(
            f"{name}: a number of {np.abs(vectors).max():g} is beyond float16, which hoplite stores; "
            f"use --format datasets"
        )
    return found


def _side_files(archive: Archive) -> Iterator[tuple[str, list[str], Iterable[Sequence[Any]]]]:
    """Yield name, header and rows of the CSV files that hoplite reads from a dataset's root."""
    # Hoplite keys them by field name, so a name stands for one level only.
    described = [
        ("deployment", "deployment", "str", "site, or first folder"),
        ("latitude", "deployment", "float", "degrees"),
        ("longitude", "deployment", "float", "degrees"),
        ("recording", "recording", "str", "path below the base path"),
        *((one.name, "recording", one.kind, one.source) for one in archive.columns),
    ]
    yield (
        "hoplite_metadata_description.csv",
        ["field_name", "metadata_level", "type", "description"],
        described,
    )
    yield (
        "hoplite_deployments_metadata.csv",
        ["deployment", "latitude", "longitude"],
        ((one.name, one.latitude, one.longitude) for one in archive.deployments.values()),
    )
    yield (
        "hoplite_recordings_metadata.csv",
        ["recording", *(one.name for one in archive.columns)],
        ((one.filename, *one.more) for one in archive.recordings()),
    )
    if archive.labels is not None:
        yield (
            "hoplite_annotations.csv",
            ["recording", "start_offset_s", "end_offset_s", "label", "label_type"],
            (
                (one.filename, 0.0, one.duration_s, label, "positive")
                for one in archive.recordings()
                if one.duration_s is not None
                for label in one.labels
            ),
        )
