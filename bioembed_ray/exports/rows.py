"""What is exported of an encoder: windows as they stand, or one vector per recording and channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bioembed_ray import schema
from bioembed_ray.errors import InputError
from bioembed_ray.results import Results
from bioembed_ray.rows import BATCH_ROWS, BOOKKEEPING, Rows, vectors_of

Level = Literal["window", "recording"]
Pool = Literal["mean", "max", "concat"]

# Columns of recordings/ that tell what a recording is; how it was stored and read is left out.
DESCRIBING = (
    "duration_s",
    "rate_hz",
    "recorded_at",
    "device",
    "site",
    "latitude",
    "longitude",
    "time_expansion",
)


@dataclass(frozen=True)
class Chosen:
    """The vectors of one encoder at one level.

    Attributes:
        name: The encoder's name.
        rows: Its windows.
        level: `window` or `recording`.
        pool: How a recording's windows become one vector.
    """

    name: str
    rows: Rows
    level: Level
    pool: Pool

    @property
    def title(self) -> str:
        """What files of these vectors are called, e.g. `beats_recording_mean`."""
        return f"{self.name}_{self.level}" + (f"_{self.pool}" if self.level == "recording" else "")

    @property
    def facts(self) -> dict[str, str]:
        """What is said of the vectors wherever they go."""
        pooled = {"pool": self.pool} if self.level == "recording" else {}
        return {
            "encoder": self.name,
            "version": self.rows.version,
            "weights": self.rows.weights,
            "level": self.level,
            **pooled,
        }

    def describing(self) -> list[str]:
        """Return the columns of recordings/ that describe recordings, the manifest's last."""
        names = self.rows.recordings().column_names
        own = [name for name in names if name in DESCRIBING]
        known = {*schema.RECORDINGS.names, *BOOKKEEPING}
        return own + [name for name in names if name not in known]

    def batches(self, *, is_described: bool) -> Iterator[pa.RecordBatch]:
        """Yield rows in the order of parts, the vector last; always the same order.

        Args:
            is_described: Whether columns of recordings/ ride along.

        Raises:
            InputError: no windows, or no recordings/; `concat` over unequal recordings.
            StorageError: a part cannot be read.
        """
        join = self.describing() if is_described else []
        if self.level == "window":
            batches = self.rows.batches(join=join)
        else:
            table = self.rows.with_recordings(self.table(), join)
            batches = iter(table.to_batches(max_chunksize=BATCH_ROWS))
        is_empty = True
        for batch in batches:
            is_empty = False
            names = [name for name in batch.schema.names if name != "embedding"]
            yield batch.select([*names, "embedding"])
        if is_empty:
            raise InputError(f"{self.name}: not one window stands; `bioembed status` says why")

    def table(self) -> pa.Table:
        """Return all rows, sorted by recording, channel and time.

        Raises:
            InputError, StorageError: see `batches`.
        """
        columns = ["recording", "channel", "embedding"]
        if self.level == "window":
            return self.rows.table()
        if self.pool == "concat":
            return pool_windows([self.rows.table(columns=columns)], self.pool)
        return pool_windows(self.rows.batches(columns=columns), self.pool)


def chosen_of(
    results: Results, encoders: tuple[str, ...], version: str | None, level: Level, pool: Pool
) -> list[Chosen]:
    """Return what is exported of some encoders, of all where none is named.

    Raises:
        InputError: no such encoder or version.
    """
    names = encoders or tuple(results.encoders)
    return [Chosen(name, results.windows(name, version), level, pool) for name in names]


def pool_windows(batches: Iterable[pa.RecordBatch | pa.Table], pool: Pool) -> pa.Table:
    """Return one row per recording and channel, sorted: its number of windows, its vector.

    What is held is one vector per recording and channel, and all windows for `concat`.

    Args:
        batches: Windows, at least one batch; for `concat` a single one, sorted.
        pool: `mean`, `max`, or `concat` for all windows in a row.

    Raises:
        InputError: `concat` over recordings with different numbers of windows.
    """
    found: dict[tuple[str, int], tuple[int, npt.NDArray[Any]]] = {}
    dim = 0
    for batch in batches:
        # A day has 172,800 windows: summed in float32 their mean is off by 1e-5.
        vectors = vectors_of(batch.column("embedding")).astype(np.float64)
        dim = vectors.shape[1]
        edges, keys = _stretches(batch)
        groups = np.split(vectors, edges[1:]) if edges else []
        for key, group in zip(keys, groups, strict=True):
            n, before = found.get(key, (0, None))
            found[key] = n + len(group), _pool(before, group, pool)
    keys = sorted(found)
    counts = [found[key][0] for key in keys]
    if pool == "concat" and counts:
        if len(set(counts)) > 1:
            raise InputError(
                f"--pool concat: recordings have {min(counts)} to {max(counts)} windows; "
                f"use mean or max, or --level window"
            )
        dim *= counts[0]
    vectors = np.array([found[key][1] for key in keys], np.float64).reshape(len(keys), dim)
    if pool == "mean":
        vectors /= np.array(counts, np.float64)[:, None]
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    return pa.table(
        {
            "recording": pa.array([name for name, _ in keys], pa.string()),
            "channel": pa.array([channel for _, channel in keys], pa.int16()),
            "n_windows": pa.array(counts, pa.int64()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, dim),
        }
    )


def _pool(
    before: npt.NDArray[Any] | None, group: npt.NDArray[np.float64], pool: Pool
) -> npt.NDArray[Any]:
    """Return what pooled windows are once more windows have joined them; sums for `mean`."""
    if pool == "concat":
        return group.reshape(-1) if before is None else np.concatenate([before, group.reshape(-1)])
    own = group.sum(axis=0) if pool == "mean" else group.max(axis=0)
    if before is None:
        return np.asarray(own)
    return np.asarray(before + own if pool == "mean" else np.maximum(before, own))


def _stretches(
    rows: pa.RecordBatch | pa.Table,
) -> tuple[list[int], list[tuple[str, int]]]:
    """Return where stretches of one recording and channel begin, and whose they are."""
    names = rows.column("recording").to_pylist()
    channels = rows.column("channel").to_pylist()
    keys = list(zip(names, channels, strict=True))
    edges = [i for i in range(len(keys)) if i == 0 or keys[i] != keys[i - 1]]
    return edges, [keys[i] for i in edges]
