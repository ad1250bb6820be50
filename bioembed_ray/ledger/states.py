"""What became of recordings as a whole, by the partitions that are wanted: one, or all at rest at once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from bioembed_ray.coverage import Coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.ledger.at_rest import AtRest
from bioembed_ray.ledger.columns import Ints
from bioembed_ray.ledger.known import Known

# pending: some piece waits for an encoder; partial: samples failed, not all.
STATES = ("pending", "embedded", "partial", "failed")
PENDING, EMBEDDED, PARTIAL, FAILED = range(4)


def state_of(entry: Known, wanted: Collection[Dataset]) -> str:
    """Return the state of a recording: whether each piece stands in each wanted partition of windows.

    Other versions say nothing of it, whatever became of it there. A sample that one of several
    encoders failed on is failed.
    """
    if entry.failure is not None:
        return STATES[PENDING if entry.failure.reason.is_transient else FAILED]
    keys = {(d, piece.shard) for d in windows_of(wanted) for piece in entry.pieces}
    if not keys <= entry.outcomes.keys() or not keys:
        return STATES[PENDING]
    total = sum((entry.outcomes[key].coverage for key in keys), Coverage())
    if not total.failed and total.total:
        return STATES[EMBEDDED]
    return STATES[PARTIAL if total.embedded + total.padded else FAILED]


def windows_of(wanted: Collection[Dataset]) -> list[Dataset]:
    """Return the partitions of windows: frames and tokens come of the same samples."""
    return [dataset for dataset in wanted if dataset.table == "embeddings"]


def states_of(rows: AtRest, wanted: Collection[Dataset]) -> Ints:
    """Return (N,) what `state_of` says of every row, as an index into `STATES`."""
    windows = windows_of(wanted)
    at, found, n_shards = rows.pieces, rows.outcomes, max(1, len(rows.shards))
    is_asked = np.array([dataset in windows for dataset in rows.datasets], bool)
    outcomes = np.flatnonzero(is_asked[found.dataset])
    # A recording and a shard together name a piece, and the outcomes of that piece.
    piece_of = np.unique(at.row.astype(np.int64) * n_shards + at.shard)
    outcome_of = found.row[outcomes].astype(np.int64) * n_shards + found.shard[outcomes]
    outcomes = outcomes[np.isin(outcome_of, piece_of)]
    n_owed = np.bincount(piece_of // n_shards, minlength=len(rows)) * len(windows)
    n_there = np.bincount(found.row[outcomes], minlength=len(rows))
    sums = {
        key: np.bincount(found.row[outcomes], rows.outcome_values(key)[outcomes], len(rows))
        for key in ("embedded", "padded", "failed", "skipped")
    }
    is_good, is_failed = sums["embedded"] + sums["padded"] > 0, sums["failed"] > 0
    is_whole = ~is_failed & (is_good | (sums["skipped"] > 0))
    states = np.where(is_whole, EMBEDDED, np.where(is_good, PARTIAL, FAILED))
    states[(n_owed == 0) | (n_there < n_owed)] = PENDING
    return states
