"""What is exported of an encoder: windows as they stand, or one vector per recording and channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from bioembed_ray import schema
from bioembed_ray.errors import InputError
from bioembed_ray.exports.in_order import in_order
from bioembed_ray.exports.pooling import Pool, pooled, tracks_of
from bioembed_ray.rows import BOOKKEEPING, Rows

Level = Literal["window", "recording"]

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
        min_valid_s: Least seconds of sound in a window; 0 takes all.
        folder: Where they go; what is sorted waits on its disk.
    """

    name: str
    rows: Rows
    level: Level = "window"
    pool: Pool = "mean"
    min_valid_s: float = 0.0
    folder: str = "."

    @property
    def title(self) -> str:
        """What files of these vectors are called, e.g. `beats_recording_mean`."""
        return f"{self.name}_{self.level}" + (f"_{self.pool}" if self.level == "recording" else "")

    @property
    def facts(self) -> dict[str, str]:
        """What is said of the vectors wherever they go."""
        pooled_by = {"pool": self.pool} if self.level == "recording" else {}
        least = {"min_valid_s": f"{self.min_valid_s:g}"} if self.min_valid_s else {}
        return {
            "encoder": self.name,
            "version": self.rows.version,
            "weights": self.rows.weights,
            "level": self.level,
            **pooled_by,
            **least,
        }

    def describing(self) -> list[str]:
        """Return the columns of recordings/ that describe recordings, the manifest's last."""
        names = self.rows.recordings().column_names
        own = [name for name in names if name in DESCRIBING]
        known = {*schema.RECORDINGS.names, *BOOKKEEPING}
        return own + [name for name in names if name not in known]

    def count(self) -> int:
        """Return the number of rows."""
        if self.level == "window":
            return self.rows.count(min_valid_s=self.min_valid_s)
        return len(tracks_of(self._windows("recording", "channel")))

    def batches(self, *, is_described: bool) -> Iterator[pa.RecordBatch]:
        """Yield rows, the vector last: windows in the order of parts, recordings in their own.

        Args:
            is_described: Whether columns of recordings/ ride along.

        Raises:
            InputError: no windows, or no recordings/; `concat` over unequal recordings.
            StorageError: a part cannot be read.
        """
        join = self.describing() if is_described else []
        if self.level == "window":
            found = self.rows.batches(join=join, min_valid_s=self.min_valid_s)
        else:
            found = (self.rows.with_recordings(batch, join) for batch in self._pooled())
        is_empty = True
        for batch in found:
            is_empty = False
            names = [name for name in batch.schema.names if name != "embedding"]
            yield batch.select([*names, "embedding"])
        if is_empty:
            raise InputError(f"{self.name}: not one window stands; `bioembed status` says why")

    def sorted_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield rows sorted by recording, channel and time; see `batches`."""
        batches = self.batches(is_described=False)
        return batches if self.level == "recording" else in_order(batches, "embedding", self.folder)

    def _pooled(self) -> Iterator[pa.RecordBatch]:
        if self.pool == "concat":
            counts = tracks_of(self._windows("recording", "channel")).values()
            if len(set(counts)) > 1:
                raise InputError(
                    f"--pool concat: recordings have {min(counts)} to {max(counts)} windows; "
                    f"use mean or max, or --level window"
                )
        windows = self._windows("recording", "channel", "start_s", "embedding")
        return pooled(windows, self.pool, self.folder)

    def _windows(self, *columns: str) -> Iterator[pa.RecordBatch]:
        return self.rows.batches(columns=columns, min_valid_s=self.min_valid_s)
