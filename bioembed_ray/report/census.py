"""What an archive's tokens say of their codebook, counted in one pass: use, runs, transitions, origins.

A track is the sequence of one band of one channel of a recording; with one token per time step
there is one band. A run is a stretch of equal tokens of a track. Rows of one recording that follow
each other without a gap are one track, so a run may cross from one row, or one part, to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse

from bioembed_ray.codebooks.sample import track_digest
from bioembed_ray.report.codebook_numbers import (
    Candidates,
    Ends,
    Flags,
    Floats,
    Ints,
    Runs,
    best_places,
    pairs,
    pieces,
    promising,
    runs_of,
)

COLUMNS = ("recording", "channel", "start_s", "hop_s", "per_step", "tokens")
# Pairs of code and recording are counted for about this many recordings, drawn by their names' hashes.
COUNTED_RECORDINGS = 20_000
# Shares in a shorter row than this would say more of its length than of its sound.
LEAST_S = 10.0


@dataclass(frozen=True, slots=True)
class Busiest:
    """The row with most different tokens per second.

    Attributes:
        rate: Different tokens per second.
        recording, channel, start_s: Which row.
    """

    rate: float
    recording: str
    channel: int
    start_s: float


@dataclass(frozen=True, slots=True)
class Census:
    """What one pass over all tokens counted. K codes.

    Attributes:
        counts: (K,) tokens.
        n_gaps: Places without a token.
        n_rows: Rows read.
        bands: Tokens per time step.
        hop_s: Seconds from one time step to the next.
        n_runs: (K,) runs.
        moves: (K, K) sparse: how often a token of a track is followed by another, different one.
        by_recording: (K, R) sparse tokens per recording, of the recordings that were counted.
        by_site: (K, S) sparse tokens per site; of recordings without one nothing.
        n_counted: Recordings in `by_recording`.
        sites: Names of sites.
        names: Recordings by number.
        longest: The longest runs of every token inside a row, of different recordings.
        busiest: None where there are no tokens.
    """

    counts: Ints
    n_gaps: int
    n_rows: int
    bands: int
    hop_s: float
    n_runs: Ints
    moves: sparse.csr_array
    by_recording: sparse.csr_array
    by_site: sparse.csr_array
    n_counted: int
    sites: list[str]
    names: list[str]
    longest: Candidates
    busiest: Busiest | None

    @property
    def run_s(self) -> Floats:
        """Mean duration of a run, (K,) seconds; 0 for a token that never occurs."""
        duration: Floats = self.counts / np.maximum(1, self.n_runs) * self.hop_s
        return duration

    @property
    def stay(self) -> Floats:
        """Share of a token's followers in its track that are itself, (K,); NaN without any."""
        same = (self.counts - self.n_runs).astype(np.float64)
        followed = same + np.asarray(self.moves.sum(axis=1)).reshape(-1)
        share: Floats = np.full(len(same), np.nan)
        np.divide(same, followed, out=share, where=followed > 0)
        return share


def take_census(
    batches: Iterable[pa.RecordBatch],
    n_codes: int,
    sites: Mapping[str, str],
    n_recordings: int,
    per_token: int = 6,
) -> Census:
    """Return what a pass over token rows counts.

    Memory grows with codes, with sites, with rows (their two ends) and with at most about
    `COUNTED_RECORDINGS` recordings, never with tokens.

    Args:
        batches: Rows of tokens/, in any order, with `COLUMNS`; all of one version.
        n_codes: K.
        sites: Recording -> site, of those that have one.
        n_recordings: How many recordings there are, to draw those counted one by one.
        per_token: Places kept per token.
    """
    counting = _Counting(n_codes, dict(sites), n_recordings, per_token)
    for piece in pieces(batches):
        counting.add(piece)
    return counting.finish()


class _Counting:
    """The sums of a pass."""

    def __init__(
        self, n_codes: int, sites: dict[str, str], n_recordings: int, per_token: int
    ) -> None:
        self._k, self._per_token = n_codes, per_token
        self._sites = sorted(set(sites.values()))
        number = {site: index for index, site in enumerate(self._sites)}
        self._site_of = {name: number[site] for name, site in sites.items()}
        self._limit = 2.0**64 * COUNTED_RECORDINGS / max(1, n_recordings)
        self._numbers: dict[str, int] = {}
        self._n_counted = 0
        self._counts = np.zeros(n_codes, np.int64)
        self._n_runs = np.zeros(n_codes, np.int64)
        self._n_gaps = self._n_rows = 0
        self._moves = pairs(*(np.zeros(0, np.int64),) * 2, (n_codes, n_codes))
        self._by_site = pairs(*(np.zeros(0, np.int64),) * 2, (n_codes, max(1, len(self._sites))))
        self._by_recording: list[sparse.coo_array] = []
        self._bands, self._hop_s = 1, 0.0
        self._ends = Ends()
        self._longest = best_places([], per_token)
        self._busiest: Busiest | None = None

    def add(self, rows: pa.RecordBatch) -> None:
        """Count some rows."""
        bands = int(rows.column("per_step")[0].as_py())
        hop_s = float(rows.column("hop_s")[0].as_py())
        self._bands, self._hop_s = bands, hop_s
        self._n_rows += len(rows)
        recording, is_counted, site = self._numbered(rows.column("recording"))
        channel = rows.column("channel").to_numpy(zero_copy_only=False).astype(np.int64)
        start_s = rows.column("start_s").to_numpy(zero_copy_only=False)
        runs = runs_of(rows.column("tokens"), bands)
        self._note_moves(runs)
        self._ends.add(runs, (recording * (1 << 16) + channel) * bands, start_s, hop_s)
        self._n_gaps += int(runs.length[runs.token < 0].sum())
        real = runs.take(runs.token >= 0)
        self._counts += _totals(real.token, real.length, self._k)
        inner = ~(real.is_head | real.is_tail)
        self._n_runs += np.bincount(real.token[inner], minlength=self._k)
        self._note_origins(real, recording, is_counted > 0, site)
        first_s = start_s[real.row] + real.first * hop_s
        places = Candidates(
            real.token,
            -real.length.astype(np.float64),
            recording[real.row],
            channel[real.row],
            real.band,
            first_s,
            first_s + real.length * hop_s,
        )
        places = promising(self._longest, places, self._per_token, self._k)
        self._longest = best_places([self._longest, places], self._per_token)
        self._note_busiest(rows, real)

    def _numbered(self, column: pa.Array) -> tuple[Ints, Ints, Ints]:
        """Return per row: the number of its recording, whether it is counted, its site or -1."""
        encoded = column.dictionary_encode()
        known = []
        for name in encoded.dictionary.to_pylist():
            is_new = name not in self._numbers
            number = self._numbers.setdefault(name, len(self._numbers))
            is_counted = track_digest(name, 0) < self._limit
            self._n_counted += is_new and is_counted
            known.append((number, is_counted, self._site_of.get(name, -1)))
        table = np.array(known, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
        return table[:, 0], table[:, 1], table[:, 2]

    def _note_moves(self, runs: Runs) -> None:
        # Runs of one row and band stand one after the other, none of them its row's first but one.
        leads = np.flatnonzero(~runs.is_head[1:]) + 1
        before, after = runs.token[leads - 1], runs.token[leads]
        is_real = (before >= 0) & (after >= 0)
        self._moves = self._moves + pairs(before[is_real], after[is_real], (self._k, self._k))

    def _note_origins(self, runs: Runs, recording: Ints, is_counted: Flags, site: Ints) -> None:
        counted = runs.take(is_counted[runs.row])
        shape = (self._k, len(self._numbers))
        found = pairs(counted.token, recording[counted.row], shape, counted.length)
        self._by_recording.append(found.tocoo())
        placed = runs.take(site[runs.row] >= 0)
        shape = self._by_site.shape
        self._by_site = self._by_site + pairs(placed.token, site[placed.row], shape, placed.length)

    def _note_busiest(self, rows: pa.RecordBatch, runs: Runs) -> None:
        pairs = np.unique(runs.row * self._k + runs.token)
        different = np.bincount(pairs // self._k, minlength=len(rows))
        lengths = rows.column("tokens").value_lengths().to_numpy(zero_copy_only=False)
        rate = different / np.maximum(LEAST_S, lengths / self._bands * self._hop_s)
        best = int(rate.argmax())
        if different[best] and (self._busiest is None or rate[best] > self._busiest.rate):
            name, channel, start_s = (
                rows.column(key)[best].as_py() for key in ("recording", "channel", "start_s")
            )
            self._busiest = Busiest(float(rate[best]), name, channel, start_s)

    def finish(self) -> Census:
        """Return all sums."""
        if self._ends.track:
            n_runs, moves = self._ends.joined(self._hop_s, self._k)
            self._n_runs += n_runs
            self._moves = self._moves + moves
        return Census(
            self._counts,
            self._n_gaps,
            self._n_rows,
            self._bands,
            self._hop_s,
            self._n_runs,
            self._moves,
            self._summed(),
            self._by_site,
            self._n_counted,
            self._sites,
            list(self._numbers),
            self._longest,
            self._busiest,
        )

    def _summed(self) -> sparse.csr_array:
        """Return (K, R) of all pieces; those met early knew fewer recordings."""
        shape = (self._k, max(1, len(self._numbers)))
        none = np.zeros(0, np.int64)
        row = np.concatenate([none, *(one.coords[0] for one in self._by_recording)])
        column = np.concatenate([none, *(one.coords[1] for one in self._by_recording)])
        count = np.concatenate([none, *(one.data for one in self._by_recording)])
        return pairs(row, column, shape, count)


def _totals(token: Ints, weight: Ints, n_codes: int) -> Ints:
    return np.bincount(token, weights=weight, minlength=n_codes).astype(np.int64)
