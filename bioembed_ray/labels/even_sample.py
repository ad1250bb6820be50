"""A sample of rows that gives every recording an equal share, the same whatever order rows come in.

Recordings are asked for as many rows as `quotas` says, and give those with the smallest hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from bioembed_ray.codebooks.sample import Hashes, quotas
from bioembed_ray.labels.task import Ints

LARGEST = np.iinfo(np.uint64).max
# Rows held before those that are too many are dropped.
BUFFER_ROWS = 500_000


def shares(counts: Ints, n: int) -> Ints:
    """Return how many rows each recording gives: equal shares, what small ones leave to the others.

    >>> shares(np.array([900, 40, 60]), 300).tolist()
    [200, 40, 60]
    """
    given = quotas({f"{place:09d}": int(count) for place, count in enumerate(counts)}, n)
    return np.array(list(given.values()), np.int64)


def limits(rows: Callable[[], Iterable[tuple[Ints, Hashes]]], counts: Ints, n: int) -> Hashes:
    """Return the largest hash with which a row of each recording is in the sample: (R,) uint64.

    Args:
        rows: Gives (recording (m,), hash (m,)) of all rows, batch by batch; not asked where all fit.
        counts: (R,) rows of each recording.
        n: Most rows in all.
    """
    if counts.sum() <= n:
        return np.full(len(counts), LARGEST)
    quota = shares(counts, n)
    kept_recording, kept_hash = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for recording, hashes in rows():
        kept_recording = np.concatenate([kept_recording, recording])
        kept_hash = np.concatenate([kept_hash, hashes])
        if len(kept_hash) > BUFFER_ROWS + 2 * n:
            kept_recording, kept_hash = _smallest(kept_recording, kept_hash, quota)
    kept_recording, kept_hash = _smallest(kept_recording, kept_hash, quota)
    # A hash of 0 is one in 2^64: a recording that gives nothing has no row at or below it.
    found = np.zeros(len(counts), np.uint64)
    np.maximum.at(found, kept_recording, kept_hash)
    return found


def _smallest(recording: Ints, hashes: Hashes, quota: Ints) -> tuple[Ints, Hashes]:
    """Return of every recording the rows with its smallest hashes."""
    order = np.lexsort((hashes, recording))
    recording, hashes = recording[order], hashes[order]
    counts = np.bincount(recording, minlength=len(quota))
    first = np.cumsum(counts) - counts
    rank = np.arange(len(recording)) - first[recording]
    kept = rank < quota[recording]
    return recording[kept], hashes[kept]
