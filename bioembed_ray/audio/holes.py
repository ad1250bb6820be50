"""Holes: stretches of a recording that hold no sound, as half-open intervals of native samples."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

# Ascending, apart from each other.
Holes = tuple[tuple[int, int], ...]


def runs_of(is_in: npt.NDArray[np.bool_], offset: int) -> list[tuple[int, int]]:
    """Return the runs of true values of an array that begins at a position.

    >>> runs_of(np.array([True, True, False, True]), 100)
    [(100, 102), (103, 104)]
    """
    edges = np.flatnonzero(np.diff(is_in, prepend=False, append=False)) + offset
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def merge_holes(runs: Iterable[tuple[int, int]], most: int) -> Holes:
    """Return intervals in order, those that touch as one; of more than `most`, the nearest joined.

    >>> merge_holes([(5, 8), (0, 5), (20, 21)], 10)
    ((0, 8), (20, 21))
    >>> merge_holes([(0, 1), (3, 4), (50, 51)], 2)
    ((0, 4), (50, 51))
    """
    found = np.array(sorted(runs), np.int64).reshape(-1, 2)
    if not len(found):
        return ()
    reach = np.maximum.accumulate(found[:, 1])
    gaps = found[1:, 0] - reach[:-1]
    is_apart = gaps > 0
    if int(is_apart.sum()) >= most:
        # The widest gaps stay; of equal ones the first.
        widest = np.argsort(-gaps, kind="stable")[: most - 1]
        is_apart = np.zeros(len(gaps), bool)
        is_apart[widest] = True
    first = np.concatenate([[True], is_apart])
    last = np.concatenate([is_apart, [True]])
    return tuple(zip(found[first, 0].tolist(), reach[last].tolist(), strict=True))


def clip_holes(holes: Holes, start: int, stop: int) -> Holes:
    """Return what of some holes lies in [start, stop)."""
    return tuple(
        (max(low, start), min(high, stop)) for low, high in holes if low < stop and high > start
    )


def hole_samples(holes: Holes) -> int:
    """Return how many samples are missing."""
    return sum(high - low for low, high in holes)


def overlap(
    holes: Holes, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return (W,) how many samples of each interval [start, stop) lie in holes."""
    if not holes:
        return np.zeros(len(starts), np.int64)
    low, high = np.array(holes, np.int64).T
    before = np.concatenate([[0], np.cumsum(high - low)])

    def missing_until(position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        index = np.searchsorted(low, position, side="right") - 1
        inside = np.minimum(position, high[np.maximum(index, 0)]) - low[np.maximum(index, 0)]
        return np.where(index < 0, 0, before[np.maximum(index, 0)] + inside)

    found: npt.NDArray[np.int64] = missing_until(stops) - missing_until(starts)
    return found
