"""Windows become one vector per recording and channel, in one pass and bounded memory.

A part's windows of a recording are pooled first; what they give waits on the disk until all parts have
been read, and is pooled again in the order of time. So the result does not depend on how recordings lie
in parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bioembed_ray.exports.in_order import BATCH_BYTES, in_order
from bioembed_ray.rows import vectors_of

Pool = Literal["mean", "max", "concat"]
Track = tuple[str, int]
Vectors = npt.NDArray[Any]


def tracks_of(batches: Iterable[pa.RecordBatch]) -> dict[Track, int]:
    """Return how many rows every recording and channel has."""
    found: dict[Track, int] = {}
    for batch in batches:
        edges, tracks = _stretches(batch)
        for track, n in zip(tracks, np.diff([*edges, len(batch)]).tolist(), strict=True):
            found[track] = found.get(track, 0) + n
    return found


def pooled(batches: Iterable[pa.RecordBatch], pool: Pool, near: str) -> Iterator[pa.RecordBatch]:
    """Yield one row per recording and channel, sorted: its number of windows, its vector.

    What is held is a batch of vectors, or of one recording for `concat`.

    Args:
        batches: Windows in any order.
        pool: `mean`, `max`, or `concat` for all windows in a row, in the order of time.
        near: Folder or URI on whose disk rows wait.
    """
    done: list[_Pooled] = []
    last: _Pooled | None = None
    n_bytes = 0
    for batch in in_order(_of_parts(batches, pool), "embedding", near):
        edges, tracks = _stretches(batch)
        groups = np.split(_matrix(batch), edges[1:])
        counts = np.add.reduceat(batch.column("n_windows").to_numpy(), edges).tolist()
        for track, group, n in zip(tracks, groups, counts, strict=True):
            if last is None or last.track != track:
                if last is not None:
                    done.append(last)
                    n_bytes += last.n_bytes
                if n_bytes > BATCH_BYTES:
                    yield _rows(done, pool)
                    done, n_bytes = [], 0
                last = _Pooled(track)
            last.add(group, n, pool)
    if last is not None:
        yield _rows([*done, last], pool)


@dataclass(slots=True)
class _Pooled:
    """The windows of one recording and channel so far: their sum, their largest, or all of them."""

    track: Track
    n_windows: int = 0
    vectors: list[Vectors] = field(default_factory=list)

    def add(self, group: Vectors, n_windows: int, pool: Pool) -> None:
        self.n_windows += n_windows
        if pool == "concat":
            # A copy, so that the rest of the batch is let go.
            self.vectors.append(group.reshape(-1).copy())
        else:
            self.vectors = [_pool(np.concatenate([*(v[None] for v in self.vectors), group]), pool)]

    @property
    def n_bytes(self) -> int:
        return sum(vector.nbytes for vector in self.vectors)


def _of_parts(batches: Iterable[pa.RecordBatch], pool: Pool) -> Iterator[pa.RecordBatch]:
    """Yield a row per stretch of one recording and channel; every window for `concat`."""
    for batch in batches:
        if pool == "concat":
            n_windows = pa.array(np.ones(len(batch), np.int64))
            yield batch.append_column("n_windows", n_windows)
            continue
        edges, _ = _stretches(batch)
        # A day has 172,800 windows: summed in float32 their mean is off by 1e-5.
        exact = vectors_of(batch.column("embedding")).astype(np.float64)
        groups = np.split(exact, edges[1:])
        vectors = np.stack([_pool(group, pool) for group in groups])
        rows = batch.select(["recording", "channel", "start_s"]).take(pa.array(edges))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), exact.shape[1])
        n_windows = pa.array(np.diff([*edges, len(batch)]))
        yield rows.append_column("n_windows", n_windows).append_column("embedding", lists)


def _pool(group: Vectors, pool: Pool) -> Vectors:
    found: Vectors = group.max(axis=0) if pool == "max" else group.sum(axis=0)
    return found


def _rows(done: list[_Pooled], pool: Pool) -> pa.RecordBatch:
    counts = np.array([one.n_windows for one in done], np.int64)
    vectors = np.stack([np.concatenate(one.vectors) for one in done])  # (n, D)
    if pool == "mean":
        vectors = vectors / counts[:, None]
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    return pa.RecordBatch.from_pydict(
        {
            "recording": pa.array([one.track[0] for one in done], pa.string()),
            "channel": pa.array([one.track[1] for one in done], pa.int16()),
            "n_windows": pa.array(counts),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )


def _matrix(batch: pa.RecordBatch) -> Vectors:
    lists = batch.column("embedding")
    found: Vectors = lists.flatten().to_numpy(zero_copy_only=False)
    return found.reshape(len(batch), lists.type.list_size)


def _stretches(batch: pa.RecordBatch) -> tuple[list[int], list[Track]]:
    """Return where stretches of one recording and channel begin, and whose they are."""
    coded = batch.column("recording").dictionary_encode()
    codes = coded.indices.to_numpy()
    channels = batch.column("channel").to_numpy()
    is_new = np.ones(len(batch), bool)
    is_new[1:] = (codes[1:] != codes[:-1]) | (channels[1:] != channels[:-1])
    edges = np.flatnonzero(is_new)
    names = coded.dictionary.to_pylist()
    return edges.tolist(), [(names[codes[k]], int(channels[k])) for k in edges.tolist()]
