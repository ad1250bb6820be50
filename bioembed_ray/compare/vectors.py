"""How window vectors of two versions differ on the same windows: cosines, neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bioembed_ray.codebooks.frame_parts import row_hashes
from bioembed_ray.rows import vectors_of
from bioembed_ray.unit_rows import unit_rows

# Windows whose neighbours are compared: those with the smallest hashes.
NEIGHBOURS, NEIGHBOUR_SAMPLE = 10, 2000
COSINE_BINS = np.linspace(-1.0, 1.0, 201)
MOST_MOVED = 20
KEYS = ("recording", "channel", "start_s")

Vectors = npt.NDArray[np.float32]


def common_rows(
    old: pa.Table, new: pa.Table
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of both tables that are of the same place: (n,) and (n,)."""
    places = {
        key: row
        for row, key in enumerate(zip(*(new.column(k).to_pylist() for k in KEYS), strict=True))
    }
    pairs = [
        (row, places[key])
        for row, key in enumerate(zip(*(old.column(k).to_pylist() for k in KEYS), strict=True))
        if key in places
    ]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


@dataclass(slots=True)
class VectorChange:
    """What became of window vectors, summed over parts.

    Attributes:
        n_both, n_old, n_new: Windows in both, in the old only, in the new only.
        histogram: (200,) windows by cosine, -1 to 1.
        sum_cosine: Sum of cosines; meaningless where lengths differ.
        by_recording: Recording -> windows, sum of cosines.
        hashes: Hashes of the windows kept for neighbours.
        old, new: Their vectors.
    """

    n_both: int = 0
    n_old: int = 0
    n_new: int = 0
    histogram: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(COSINE_BINS) - 1, np.int64)
    )
    sum_cosine: float = 0.0
    by_recording: dict[str, tuple[int, float]] = field(default_factory=dict)
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    old: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    new: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def add(self, old: pa.Table, new: pa.Table) -> None:
        """Enter the rows of a shard."""
        rows_old, rows_new = common_rows(old, new)
        self.n_both += len(rows_old)
        self.n_old += len(old) - len(rows_old)
        self.n_new += len(new) - len(rows_new)
        if not len(rows_old):
            return
        kept = old.select(KEYS).take(pa.array(rows_old))
        names, recording = np.unique(kept.column("recording").to_pylist(), return_inverse=True)
        before, after = (
            vectors_of(old.column("embedding"))[rows_old],
            vectors_of(new.column("embedding"))[rows_new],
        )
        if before.shape[1] == after.shape[1]:
            cosines = _cosines(before, after)
            self.histogram += np.histogram(cosines, COSINE_BINS)[0]
            self.sum_cosine += float(cosines.sum())
            counts, sums = np.bincount(recording), np.bincount(recording, cosines)
            for name, count, total in zip(names.tolist(), counts, sums, strict=True):
                known = self.by_recording.get(name, (0, 0.0))
                self.by_recording[name] = (known[0] + int(count), known[1] + float(total))
        channel = kept.column("channel").to_numpy()
        hashes = row_hashes(names.tolist(), recording, channel, kept.column("start_s").to_numpy())
        self._keep_smallest(hashes, before, after)

    def _keep_smallest(
        self, hashes: npt.NDArray[np.uint64], before: Vectors, after: Vectors
    ) -> None:
        if len(self.hashes):
            hashes = np.concatenate([self.hashes, hashes])
            before = np.concatenate([self.old, before])
            after = np.concatenate([self.new, after])
        chosen = np.sort(np.argsort(hashes, kind="stable")[:NEIGHBOUR_SAMPLE])
        self.hashes, self.old, self.new = hashes[chosen], before[chosen], after[chosen]

    def figures(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        found: dict[str, Any] = {
            "windows": {"both": self.n_both, "old_only": self.n_old, "new_only": self.n_new},
            "neighbour_overlap_at_10": neighbour_overlap(self.old, self.new, NEIGHBOURS),
            "neighbour_sample": len(self.hashes),
        }
        if self.by_recording:
            means = {name: total / count for name, (count, total) in self.by_recording.items()}
            found["cosine"] = {
                "mean": self.sum_cosine / self.n_both,
                "quantiles": _quantiles(self.histogram),
                "histogram": self.histogram.tolist(),
                "bins": [-1.0, 1.0, len(self.histogram)],
            }
            most = sorted(means, key=lambda name: (means[name], name))[:MOST_MOVED]
            found["most_moved"] = {name: means[name] for name in most}
        return found


def _cosines(before: Vectors, after: Vectors) -> npt.NDArray[np.float64]:
    one, other = before.astype(np.float64), after.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    # Two zero vectors are the same; a zero vector beside another is as far as can be told.
    same = (one == other).all(axis=1)
    cosines = (one * other).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    found: npt.NDArray[np.float64] = np.where(same, 1.0, np.clip(cosines, -1.0, 1.0))
    return found


def neighbour_overlap(old: Vectors, new: Vectors, k: int) -> float | None:
    """Return the mean share of a row's k nearest others by cosine that are the same in both.

    Args:
        old: (N, D).
        new: (N, D'), the same rows.
        k: How many; N - 1 where there are fewer.

    >>> points = np.eye(4, dtype=np.float32) + np.arange(4, dtype=np.float32)[:, None] / 9
    >>> neighbour_overlap(points, 3 * points, 2)
    1.0
    """
    k = min(k, len(old) - 1)
    if k < 1:
        return None
    near_old, near_new = _nearest(old, k), _nearest(new, k)
    shared = [len(set(one) & set(other)) for one, other in zip(near_old, near_new, strict=True)]
    return float(np.mean(shared)) / k


def _nearest(vectors: Vectors, k: int) -> list[list[int]]:
    unit = unit_rows(vectors)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    order = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
    found: list[list[int]] = order.tolist()
    return found


def _quantiles(histogram: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return upper edges of the bins that hold 1, 5, 25, 50, 75 % of the windows."""
    total = np.cumsum(histogram)
    return {
        str(share): float(COSINE_BINS[1:][np.searchsorted(total, share * total[-1])])
        for share in (0.01, 0.05, 0.25, 0.5, 0.75)
    }
