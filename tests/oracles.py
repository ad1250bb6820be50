"""Slow, plain references, and what stands in an output as other programs read it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def window_starts(n_samples: int, window: int, hop: int, tail: str = "pad") -> list[int]:
    """Return window starts by trying every multiple of the hop."""
    starts = list(range(0, n_samples, hop))
    if tail != "pad":
        starts = [start for start in starts if start + window <= n_samples]
    end = starts[-1] + window if starts else 0
    if tail == "shift" and end < n_samples:
        starts.append(max(0, n_samples - window))
    return starts


def covered(n_samples: int, window: int, hop: int, tail: str) -> dict[str, int]:
    """Return how many samples are embedded, padded and skipped, by painting every sample."""
    paint = np.zeros(n_samples, np.int8)
    starts = window_starts(n_samples, window, hop, tail)
    for start in starts:
        if start + window > n_samples:
            paint[start:] = np.maximum(paint[start:], 1)
    for start in starts:
        if start + window <= n_samples:
            paint[start : start + window] = 2
    return {
        "embedded": int((paint == 2).sum()),
        "padded": int((paint == 1).sum()),
        "skipped": int((paint == 0).sum()),
    }


def cut(samples: np.ndarray, start: int, window: int) -> np.ndarray:
    """Return one window, zero-padded."""
    piece = samples[start : start + window]
    return np.pad(piece, (0, window - len(piece)))


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return how far two vectors are apart, relative to the length of the wanted one."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


Rows = dict[tuple[str, int, float], np.ndarray]


def windows(output: Path, encoder: str, version: str = "*") -> Rows:
    """Return every window's vector by (recording, channel, start), read by DuckDB; each stands once."""
    pattern = f"{output}/embeddings/encoder={encoder}/version={version}/*.parquet"
    return _rows(pattern, "start_s", "version")


def frames(output: Path, encoder: str) -> Rows:
    """Return every frame by (recording, channel, sample), read by DuckDB; each stands once."""
    return _rows(
        f"{output}/frames/encoder={encoder}/version=*/*.parquet", "sample", "patch, version"
    )


def _rows(pattern: str, position: str, more: str) -> Rows:
    with duckdb.connect() as database:
        source = f"read_parquet('{pattern}', hive_partitioning = true)"
        [(n_rows,)] = database.execute(f"SELECT count(*) FROM {source}").fetchall()
        [(n_distinct,)] = database.execute(
            f"SELECT count(*) FROM (SELECT DISTINCT recording, channel, {position}, {more} FROM {source})"
        ).fetchall()
        assert n_rows == n_distinct, f"{n_rows} rows, only {n_distinct} different ones"
        table = database.execute(
            f"SELECT recording, channel, {position}, embedding FROM {source}"
        ).fetchall()
    return {(name, channel, at): np.array(vector) for name, channel, at, vector in table}


def assert_same(got: Rows, wanted: Rows, within: float = 0.0) -> None:
    """Check for the same rows with the same vectors, bit for bit unless a distance is allowed."""
    assert got.keys() == wanted.keys()
    for key, vector in wanted.items():
        if within:
            assert relative(got[key], vector) <= within, key
        else:
            assert got[key].tobytes() == vector.tobytes(), key


Standing = dict[str, tuple[int, int]]


def parts(output: Path) -> Standing:
    """Return every part with its inode and time: a part that was put again has others."""
    return {
        path.relative_to(output).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for table in ("embeddings", "frames")
        for path in (output / table).rglob("*.parquet")
        if not path.name.startswith(".")
    }


def failures(output: Path) -> list[dict[str, Any]]:
    """Return the rows of failures/."""
    rows: list[dict[str, Any]] = pq.read_table(output / "failures/failures.parquet").to_pylist()
    return rows


def recordings(output: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of recordings/ by name."""
    table: pa.Table = pq.read_table(output / "recordings/recordings.parquet")
    return {row["recording"]: row for row in table.to_pylist()}


def run_records(output: Path) -> list[dict[str, Any]]:
    """Return the records of all runs that came to their end, oldest first."""
    paths = sorted((output / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def coverage(output: Path, encoder: str) -> dict[str, dict[str, int]]:
    """Return samples embedded, padded, failed and skipped per recording, from recordings/."""
    kinds = ("embedded", "padded", "failed", "skipped")
    found = {}
    for name, row in recordings(output).items():
        own = [one for one in row["outcomes"] or [] if one["encoder"] == encoder]
        found[name] = {kind: sum(one[kind] for one in own) for kind in kinds}
    return found


def seconds(n_samples: int, rate_hz: int) -> float:
    """Return a position in seconds, rounded once."""
    return float(Fraction(n_samples, rate_hz))
