"""The tables of a perch-hoplite database, as its own SQLite code creates and fills them.

Names, constraints and indexes are those of `perch_hoplite.db.sqlite_usearch_impl` 1.0, so that its
classes open what is written here and go on writing to it. Two columns are added to `windows`, which
hoplite allows for: it has no channels, and does not know that a window was padded.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATABASE = "hoplite.sqlite"
INDEX = "usearch.index"
# Key and values of hoplite's own default.
USEARCH_KEY = "usearch_config"
METRIC = "IP"
EXPANSION_ADD = 256
EXPANSION_SEARCH = 128
POSITIVE = 1
COLUMN_TYPES = {"str": "TEXT", "float": "REAL", "int": "INTEGER"}

SCHEMA = """
CREATE TABLE hoplite_metadata (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE deployments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    project TEXT NOT NULL,
    latitude REAL,
    longitude REAL,
    UNIQUE (name, project)
);
CREATE TABLE recordings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    filename TEXT NOT NULL,
    datetime TEXT,
    deployment_id INTEGER REFERENCES deployments(id) ON DELETE CASCADE,
    UNIQUE (id, deployment_id),
    UNIQUE (filename, deployment_id)
);
CREATE TABLE windows (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    recording_id INTEGER NOT NULL REFERENCES recordings(id) ON DELETE CASCADE,
    offsets FLOAT_LIST NOT NULL,
    channel INTEGER,
    valid_s REAL,
    UNIQUE (id, recording_id, offsets)
);
CREATE TABLE annotations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    recording_id INTEGER NOT NULL REFERENCES recordings(id) ON DELETE CASCADE,
    offsets FLOAT_LIST NOT NULL,
    label TEXT NOT NULL,
    label_type INTEGER NOT NULL,
    provenance TEXT NOT NULL,
    UNIQUE (id, recording_id, offsets)
);
"""
INDEXES = """
CREATE INDEX idx_annotations
    ON annotations(recording_id, offsets, label, label_type, provenance);
CREATE INDEX idx_labels ON annotations(label, label_type, provenance);
CREATE INDEX idx_recordings_deployment_id ON recordings(deployment_id);
CREATE INDEX idx_windows_recording_id ON windows(recording_id);
"""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One site.

    Attributes:
        id: Counted from 1.
        name: The site, or the folder where no site is known.
        latitude: Degrees, None where unknown.
        longitude: Degrees, None where unknown.
    """

    id: int
    name: str
    latitude: float | None
    longitude: float | None


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording.

    Attributes:
        id: Counted from 1.
        filename: Relative to the base path.
        recorded_at: ISO 8601, None where unknown.
        deployment: Its deployment's id.
        duration_s: Seconds, None where unknown.
        more: Values of further columns, in the order of `Column`s.
        labels: What a person said of it.
    """

    id: int
    filename: str
    recorded_at: str | None
    deployment: int
    duration_s: float | None
    more: tuple[Any, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A further column of recordings.

    Attributes:
        source: Its name in recordings/.
        name: Its name in the database, a plain identifier.
        kind: `str`, `float` or `int`.
    """

    source: str
    name: str
    kind: str


def create_database(
    path: Path,
    project: str,
    deployments: Iterable[Deployment],
    recordings: Callable[[], Iterable[Recording]],
    columns: Sequence[Column],
    metadata: dict[str, Any],
    provenance: str,
) -> sqlite3.Connection:
    """Create a database with everything but windows; the caller adds those, and closes it.

    Args:
        path: A file that does not exist yet.
        project: Of all deployments: the dataset's name.
        deployments: Sites.
        recordings: Gives recordings, whenever they are asked for.
        columns: Further columns of recordings.
        metadata: Values of hoplite_metadata.
        provenance: Where labels come from.
    """
    database = sqlite3.connect(path)
    # Nobody else sees the file before it is whole, so a journal protects nothing.
    database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA)
    for column in columns:
        kind = COLUMN_TYPES[column.kind]
        database.execute(f'ALTER TABLE recordings ADD COLUMN "{column.name}" {kind}')
    database.executemany(
        "INSERT INTO hoplite_metadata VALUES (?, ?)",
        [(key, json.dumps(value)) for key, value in metadata.items()],
    )
    database.executemany(
        "INSERT INTO deployments VALUES (?, ?, ?, ?, ?)",
        [(one.id, one.name, project, one.latitude, one.longitude) for one in deployments],
    )
    marks = ", ".join("?" * (4 + len(columns)))
    database.executemany(
        f"INSERT INTO recordings VALUES ({marks})",
        ((r.id, r.filename, r.recorded_at, r.deployment, *r.more) for r in recordings()),
    )
    database.executemany(
        "INSERT INTO annotations (recording_id, offsets, label, label_type, provenance) "
        "VALUES (?, ?, ?, ?, ?)",
        (
            (r.id, offsets(0.0, r.duration_s), label, POSITIVE, provenance)
            for r in recordings()
            if r.duration_s is not None
            for label in r.labels
        ),
    )
    return database


def insert_windows(
    database: sqlite3.Connection, rows: Iterable[tuple[int, int, bytes, int, float]]
) -> None:
    """Insert windows: id, recording's id, offsets, channel, seconds of sound."""
    database.executemany("INSERT INTO windows VALUES (?, ?, ?, ?, ?)", rows)


def finish(database: sqlite3.Connection) -> None:
    """Build the indexes, commit and close."""
    database.executescript(INDEXES)
    database.commit()
    database.close()


def offsets(start_s: float, end_s: float) -> bytes:
    """Return a FLOAT_LIST: little-endian float64 numbers.

    >>> offsets(0.0, 1.5).hex()
    '0000000000000000000000000000f83f'
    """
    return np.array([start_s, end_s], "<f8").tobytes()
