"""A bounded sample of an encoder's windows, drawn in one pass that holds no more than the sample.

The windows with the smallest hashes of recording, channel and start are taken, so the sample is the
same on every machine and in every order of parts, and encoders with the same windows show the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray.codebooks.frame_parts import row_hashes
from bioembed_ray.codebooks.sample import track_digest
from bioembed_ray.rows import Rows, vectors_of

COLUMNS = ("recording", "channel", "start_s", "end_s", "valid_s", "embedding")
# Recordings whose mean vector is kept; 5,000 of 1280 numbers are 51 MB of sums.
MAX_RECORDINGS = 5_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """Windows, or recordings, and their vectors.

    Attributes:
        names: Names of recordings, ascending.
        recording: (N,) index into `names`, ascending.
        channel: (N,); 0 for a whole recording.
        start_s, end_s: (N,) seconds of the recording.
        valid_s: (N,) seconds that are sound.
        vectors: (N, D) float32, finite.
    """

    names: tuple[str, ...]
    recording: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int16]
    start_s: Floats
    end_s: Floats
    valid_s: Floats
    vectors: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.recording)

    def name(self, row: int) -> str:
        """Return the recording of a row."""
        return self.names[int(self.recording[row])]

    def take(self, rows: npt.NDArray[np.bool_]) -> Points:
        """Return some of the rows."""
        return Points(
            self.names,
            self.recording[rows],
            self.channel[rows],
            self.start_s[rows],
            self.end_s[rows],
            self.valid_s[rows],
            self.vectors[rows],
        )


@dataclass(slots=True)
class Sampled:
    """What one pass over an encoder's windows left.

    Attributes:
        encoder: Its name.
        version: Version of the rows.
        weights: What is said of its weights.
        windows: The sample, finite vectors of windows with enough sound only.
        recordings: Mean vectors of recordings, over all such windows and all channels.
        followed: Every window of the recording, or of its end, that is shown in full.
        n_windows: Windows there are.
        n_nonfinite: Windows, of all, whose vector holds NaN or infinity.
        n_constant: Windows, of all, whose vector is one number over and over.
        n_lacking: Windows, of all, that hold too little sound to be in the sample.
    """

    encoder: str
    version: str
    weights: str
    windows: Points
    recordings: Points
    followed: Points
    n_windows: int
    n_nonfinite: int
    n_constant: int
    n_lacking: int


def sample_windows(
    rows: Rows,
    names: Sequence[str],
    max_windows: int,
    followed: tuple[str, float] | None = None,
    max_recordings: int = MAX_RECORDINGS,
    min_valid_s: float | None = 0.0,
) -> Sampled:
    """Read an encoder's windows once.

    Args:
        rows: All windows of one version.
        names: Recordings that are known.
        max_windows: Most windows in the sample.
        followed: A recording, and the second after which every window of it is kept.
        max_recordings: Most recordings with a mean vector.
        min_valid_s: Least seconds of sound of windows in the sample; None for half a window.

    Raises:
        StorageError: a part cannot be read.
    """
    chosen = sorted(sorted(names, key=lambda name: track_digest(name, -1))[:max_recordings])
    means = _Means(chosen)
    kept = _Smallest(max_windows)
    own: list[pa.RecordBatch] = []
    totals = [0, 0, 0, 0]
    condition = None if min_valid_s == 0 else rows.enough(min_valid_s).condition
    width = rows.arrow.schema.field("embedding").type.list_size
    for batch in rows.batches(columns=COLUMNS):
        vectors = vectors_of(batch.column("embedding"))
        is_finite = np.isfinite(vectors).all(axis=1)
        totals[0] += len(batch)
        totals[1] += int((~is_finite).sum())
        totals[2] += int((vectors == vectors[:, :1]).all(axis=1).sum())
        if not is_finite.all():
            batch, vectors = batch.filter(pa.array(is_finite)), vectors[is_finite]
        heard = batch if condition is None else _heard(batch, condition)
        totals[3] += len(batch) - len(heard)
        means.add(heard, vectors_of(heard.column("embedding")))
        kept.add(heard)
        if followed is not None:
            name, from_s = followed
            is_own = pc.and_(
                pc.equal(batch.column("recording"), name),
                pc.greater(batch.column("end_s"), from_s),
            )
            own.append(batch.filter(is_own))
    return Sampled(
        rows.partition.encoder,
        rows.version,
        rows.weights,
        _points(kept.batches(), width),
        means.points(width),
        _points([batch for batch in own if len(batch)], width),
        *totals,
    )


def _heard(batch: pa.RecordBatch, condition: pc.Expression) -> pa.RecordBatch:
    """Return the windows that hold enough sound."""
    table = pa.Table.from_batches([batch]).filter(condition).combine_chunks()
    return table.to_batches()[0] if len(table) else batch.slice(0, 0)


@dataclass(slots=True)
class _Smallest:
    """The rows with the smallest hashes so far."""

    most: int
    hashes: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    rows: list[pa.RecordBatch] = field(default_factory=list)
    limit: np.uint64 = field(default_factory=lambda: np.uint64(2**64 - 1))

    def add(self, batch: pa.RecordBatch) -> None:
        hashes = _hashes(batch)
        is_small = hashes <= self.limit
        if not is_small.any():
            return
        self.hashes.append(hashes[is_small])
        # A filter copies, so the rest of the batch is let go.
        self.rows.append(batch.filter(pa.array(is_small)))
        if sum(map(len, self.hashes)) > self.most + max(1024, self.most // 4):
            self._prune()

    def _prune(self) -> None:
        hashes = np.concatenate(self.hashes)
        if len(hashes) > self.most:
            self.limit = np.partition(hashes, self.most - 1)[self.most - 1]
        table = pa.Table.from_batches(self.rows).filter(pa.array(hashes <= self.limit))
        self.rows = table.combine_chunks().to_batches()
        self.hashes = [hashes[hashes <= self.limit]]

    def batches(self) -> list[pa.RecordBatch]:
        if self.rows:
            self._prune()
        return self.rows


@dataclass(slots=True)
class _Means:
    """Sums of vectors, and when the last window ends, of chosen recordings."""

    names: list[str]
    sums: Floats | None = None
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ends: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, batch: pa.RecordBatch, vectors: npt.NDArray[np.float32]) -> None:
        if self.sums is None:
            self.sums = np.zeros((len(self.names), vectors.shape[1]))
            self.counts = np.zeros(len(self.names), np.int64)
            self.ends = np.zeros(len(self.names))
        places = pc.index_in(batch.column("recording"), pa.array(self.names, pa.string()))
        place = places.fill_null(-1).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(place >= 0)
        if not len(rows):
            return
        rows = rows[np.argsort(place[rows], kind="stable")]
        found, first = np.unique(place[rows], return_index=True)
        self.sums[found] += np.add.reduceat(vectors[rows], first, axis=0, dtype=np.float64)
        self.counts[found] += np.diff([*first, len(rows)])
        stops = batch.column("start_s").to_numpy() + batch.column("valid_s").to_numpy()
        self.ends[found] = np.maximum(self.ends[found], np.maximum.reduceat(stops[rows], first))

    def points(self, width: int) -> Points:
        seen = np.flatnonzero(self.counts)
        zeros = np.zeros(len(seen))
        sums = np.zeros((0, width)) if self.sums is None else self.sums[seen]
        return Points(
            tuple(self.names[index] for index in seen),
            np.arange(len(seen)),
            np.zeros(len(seen), np.int16),
            zeros,
            self.ends[seen] if len(seen) else zeros,
            self.ends[seen] if len(seen) else zeros,
            (sums / np.maximum(self.counts[seen], 1)[:, None]).astype(np.float32),
        )


def _hashes(batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
    coded = batch.column("recording").dictionary_encode()
    return row_hashes(
        coded.dictionary.to_pylist(),
        coded.indices.to_numpy(),
        batch.column("channel").to_numpy(),
        batch.column("start_s").to_numpy(),
    )


def _points(batches: Sequence[pa.RecordBatch], width: int) -> Points:
    if not batches:
        empty = np.zeros(0)
        index = np.zeros(0, np.int64)
        vectors = np.zeros((0, width), np.float32)
        return Points((), index, index.astype(np.int16), empty, empty, empty, vectors)
    table = pa.Table.from_batches(batches)
    order = [(name, "ascending") for name in ("recording", "channel", "start_s")]
    table = table.take(pc.sort_indices(table, order))
    coded = table.column("recording").combine_chunks().dictionary_encode()
    values: dict[str, Any] = {
        name: table.column(name).to_numpy() for name in ("channel", "start_s", "end_s", "valid_s")
    }
    return Points(
        tuple(coded.dictionary.to_pylist()),
        coded.indices.to_numpy().astype(np.int64),
        values["channel"],
        values["start_s"],
        values["end_s"],
        values["valid_s"].astype(np.float64),
        vectors_of(table.column("embedding")),
    )


def tracks(points: Points) -> Iterator[tuple[str, int, npt.NDArray[np.int64]]]:
    """Yield (recording, channel, rows in order of time) of points that are windows."""
    keys = np.stack([points.recording, points.channel.astype(np.int64)], axis=1)
    found, first = np.unique(keys, axis=0, return_index=True)
    bounds = [*first, len(points)]
    for (recording, channel), low, high in zip(found, bounds, bounds[1:], strict=False):
        yield points.names[int(recording)], int(channel), np.arange(low, high)
