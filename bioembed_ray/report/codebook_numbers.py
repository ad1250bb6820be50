"""Runs of the tokens of many rows at once, and the places that show a token best."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
# Rows whose ends are this near each other, in time steps, have nothing between them.
ADJACENT = 0.01
# Tokens looked at at once: a few copies of them as 64-bit numbers.
PIECE_TOKENS = 2_000_000


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of some rows, cut at the rows' ends.

    Attributes:
        row: (R,) index of the row.
        band: (R,) which of the tokens of a time step.
        token: (R,) id, -1 for a gap.
        first: (R,) time step in the row.
        length: (R,) time steps.
        is_head: (R,) bool: the first of its row and band.
        is_tail: (R,) bool: the last of them.
    """

    row: Ints
    band: Ints
    token: Ints
    first: Ints
    length: Ints
    is_head: Flags
    is_tail: Flags

    def take(self, rows: Flags | Ints) -> Runs:
        """Return some of the runs."""
        return Runs(*(getattr(self, name)[rows] for name in self.__slots__))


def runs_of(tokens: pa.ListArray, bands: int) -> Runs:
    """Return the runs of every row and band, by band, row and time.

    Args:
        tokens: Rows; a row's length is a multiple of `bands`, time-major, null in gaps.
        bands: Tokens per time step.
    """
    steps = tokens.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64) // bands
    flat = pc.fill_null(tokens.flatten().cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    table = np.ascontiguousarray(flat.reshape(-1, bands).T)  # (bands, S)
    n_steps = table.shape[1]
    row_of = np.repeat(np.arange(len(steps)), steps)
    is_first = np.ones(table.shape, bool)
    is_first[:, 1:] = (table[:, 1:] != table[:, :-1]) | (row_of[1:] != row_of[:-1])
    at = np.flatnonzero(is_first)
    length = np.diff(np.append(at, table.size))
    row = row_of[at % n_steps] if n_steps else np.zeros(0, np.int64)
    offset = np.cumsum(steps) - steps
    first = at % max(1, n_steps) - offset[row]
    return Runs(
        row,
        at // max(1, n_steps),
        table.reshape(-1)[at],
        first,
        length,
        first == 0,
        first + length == steps[row],
    )


@dataclass(slots=True)
class Ends:
    """First and last runs of rows, to be joined with those of the rows beside them."""

    track: list[Ints] = field(default_factory=list)
    start_s: list[Floats] = field(default_factory=list)
    stop_s: list[Floats] = field(default_factory=list)
    token: list[Ints] = field(default_factory=list)
    is_head: list[Flags] = field(default_factory=list)
    is_tail: list[Flags] = field(default_factory=list)

    def add(self, runs: Runs, track: Ints, start_s: Floats, hop_s: float) -> None:
        """Keep the ends of some rows.

        Args:
            runs: Runs of the rows.
            track: (n,) number of each row's recording and channel, times its bands.
            start_s: (n,) where each row begins.
            hop_s: Seconds from one time step to the next.
        """
        ends = runs.take(runs.is_head | runs.is_tail)
        first_s = start_s[ends.row] + ends.first * hop_s
        self.track.append(track[ends.row] + ends.band)
        self.start_s.append(first_s)
        self.stop_s.append(first_s + ends.length * hop_s)
        self.token.append(ends.token)
        self.is_head.append(ends.is_head)
        self.is_tail.append(ends.is_tail)

    def joined(self, hop_s: float, n_codes: int) -> tuple[Ints, sparse.csr_array]:
        """Return (K,) how many runs they are, and (K, K) how often one leads to another."""
        columns = [np.concatenate(getattr(self, one.name)) for one in dataclasses.fields(self)]
        order = np.lexsort((columns[1], columns[0]))
        track, start_s, stop_s, token, is_head, is_tail = (column[order] for column in columns)
        meets = np.zeros(len(track), bool)
        meets[1:] = (
            (track[1:] == track[:-1])
            & is_tail[:-1]
            & is_head[1:]
            & (np.abs(start_s[1:] - stop_s[:-1]) < ADJACENT * hop_s)
        )
        before = np.roll(token, 1)
        begins = (token >= 0) & ~(meets & (token == before))
        n_runs = np.bincount(token[begins], minlength=n_codes)
        leads = meets & (token != before) & (token >= 0) & (before >= 0)
        return n_runs, pairs(before[leads], token[leads], (n_codes, n_codes))


def pairs(
    row: Ints, column: Ints, shape: tuple[int, int], weight: Ints | None = None
) -> sparse.csr_array:
    """Return how often each pair occurs; scipy adds up what stands twice."""
    count = np.ones(len(row), np.int64) if weight is None else weight
    return sparse.coo_array((count, (row, column)), shape=shape).tocsr()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Places that may show what a token sounds like; the lowest scores are the best.

    Attributes:
        token: (N,) id.
        score: (N,) what is least.
        origin: (N,) index of the recording.
        channel: (N,) channel.
        band: (N,) frequency patch.
        start_s: (N,) seconds of the recording.
        stop_s: (N,) seconds of the recording.
    """

    token: Ints
    score: Floats
    origin: Ints
    channel: Ints
    band: Ints
    start_s: Floats
    stop_s: Floats

    def take(self, rows: Flags | Ints) -> Candidates:
        """Return some of the places."""
        return Candidates(*(getattr(self, name)[rows] for name in self.__slots__))


def promising(kept: Candidates, found: Candidates, per_token: int, n_codes: int) -> Candidates:
    """Return the places that could still be among their token's best; most are none and go unsorted.

    Args:
        kept: The best of what came before.
        found: New places.
        per_token: Places kept per token.
        n_codes: K.
    """
    limit = np.full(n_codes, np.inf)
    worst = np.full(n_codes, -np.inf)
    np.maximum.at(worst, kept.token, kept.score)
    is_full = np.bincount(kept.token, minlength=n_codes) >= per_token
    limit[is_full] = worst[is_full]
    return found.take(np.flatnonzero(found.score < limit[found.token]))


def best_places(found: Iterable[Candidates], per_token: int) -> Candidates:
    """Return each token's best places, the best of a recording only, by token and score.

    Taking the best of some places and then the best of those and more gives the best of all, so a
    pass over any number of places holds few of them.
    """
    parts = [part for part in found if len(part.token)]
    if not parts:
        whole, real = np.zeros(0, np.int64), np.zeros(0)
        return Candidates(whole, real, whole, whole, whole, real, real)
    joined = Candidates(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in Candidates.__slots__)
    )
    order = np.lexsort(
        (joined.band, joined.start_s, joined.channel, joined.origin, joined.score, joined.token)
    )
    joined = joined.take(order)
    pair = joined.token * (int(joined.origin.max()) + 1) + joined.origin
    _, first = np.unique(pair, return_index=True)
    joined = joined.take(np.sort(first))
    _, begins, counts = np.unique(joined.token, return_index=True, return_counts=True)
    rank = np.arange(len(joined.token)) - np.repeat(begins, counts)
    return joined.take(rank < per_token)


def pieces(batches: Iterable[pa.RecordBatch], most: int = PIECE_TOKENS) -> Iterator[pa.RecordBatch]:
    """Yield batches cut into ones of few tokens; a row is never cut."""
    for batch in batches:
        lengths = batch.column("tokens").value_lengths().to_numpy(zero_copy_only=False)
        at = 0
        while at < len(batch):
            sums = np.cumsum(lengths[at:].astype(np.int64))
            n = max(1, int(np.searchsorted(sums, most, side="right")))
            yield batch.slice(at, n)
            at += n
