"""What is known of every recording: header, metadata, where its pieces are, what became of them.

`recordings/recordings.parquet` and `failures/failures.parquet` are each put in one step. Both are
caches: the parts' own metadata, with the listing of the input, say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import RecordingError
from bioembed_ray.ledger.columns import Ints
from bioembed_ray.ledger.entries import Entries, Shards
from bioembed_ray.ledger.known import Known, Piece
from bioembed_ray.ledger.states import STATES, state_of, states_of
from bioembed_ray.outcomes import Failure, PartOutcome
from bioembed_ray.segments import Shard, Span, shard_id, span_stamp

__all__ = ["Known", "Ledger", "Piece", "SpanColumns"]


@dataclass(frozen=True, slots=True)
class SpanColumns:
    """Every piece of every recording, in no order.

    Attributes:
        shards: Ids.
        shard: (P,) index into `shards`.
        planned: (P,) native samples that are expected.
        rate_hz: (P,) of the recording.
        channels: (P,) of the recording.
    """

    shards: list[str]
    shard: Ints
    planned: Ints
    rate_hz: Ints
    channels: Ints

    def is_in(self, shards: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return (P,) whether a piece lies in one of these shards."""
        asked = set(shards)
        return np.array([shard in asked for shard in self.shards], bool)[self.shard]


@dataclass(slots=True, init=False)
class Ledger:
    """All recordings and failures of an output.

    Attributes:
        known: The recordings.
        failures: Why something is missing in a shard, or cannot be read at all.
        wanted: Partitions of windows and frames that recordings are judged by, in order.
    """

    known: Entries
    failures: list[Failure]
    wanted: tuple[Dataset, ...]

    def __init__(
        self,
        known: Mapping[str, Known] | None = None,
        failures: Iterable[Failure] = (),
        wanted: Iterable[Dataset] = (),
    ) -> None:
        self.known = known if isinstance(known, Entries) else Entries(known)
        self.failures = list(failures)
        self.want(wanted)

    def want(self, datasets: Iterable[Dataset]) -> None:
        """Judge by these partitions; tokens come of the same samples as windows, and are left aside."""
        self.wanted = tuple(sorted(d for d in datasets if d.table in {"embeddings", "frames"}))

    def shards(self) -> Shards:
        """Return every shard as its recordings' pieces have it, in name order."""
        return Shards(self.known)

    def assign(self, shard: Shard) -> None:
        """Enter a new shard's spans as pieces of their recordings."""
        name = shard.id
        for span in shard.spans:
            pieces = self.known[span.recording].pieces
            pieces.append(Piece(name, span.start, span.stop))
            pieces.sort(key=lambda piece: piece.start)

    def leave(self, gone: Collection[str]) -> None:
        """Drop recordings; what else lies in their shards forms shards of its own, not accounted for yet."""
        self.known.wake(gone)
        left = {piece.shard for name in gone for piece in self.known[name].pieces}
        self.known.wake_shards(left)
        for name in gone:
            del self.known[name]
        stay = [
            (name, entry)
            for name, entry in sorted(self.known.active.items())
            if any(piece.shard in left for piece in entry.pieces)
        ]
        spans: dict[str, list[tuple[str, str, int, int | None]]] = {}
        for name, entry in stay:
            stamp = span_stamp(entry.recording.source)
            for piece in entry.pieces:
                if piece.shard in left:
                    spans.setdefault(piece.shard, []).append((name, stamp, piece.start, piece.stop))
        ids = {shard: shard_id(found) for shard, found in spans.items()}
        for _, entry in stay:
            entry.pieces = [replace(p, shard=ids.get(p.shard, p.shard)) for p in entry.pieces]
            entry.outcomes = {
                key: outcome for key, outcome in entry.outcomes.items() if key[1] not in left
            }
        self.failures = [failure for failure in self.failures if failure.shard not in left]

    def absorb(self, outcome: PartOutcome) -> None:
        """Enter what became of a shard in one dataset, in place of what was there."""
        key = (outcome.dataset, outcome.shard)
        self.known.wake_shards([outcome.shard])
        for span in outcome.spans:
            if span.recording in self.known:
                self.known[span.recording].outcomes[key] = span
        new = set(outcome.failures)
        self.failures = [
            failure
            for failure in self.failures
            if failure not in new
            and (
                failure.shard != outcome.shard
                or (failure.encoder, failure.version) not in _scopes(outcome.dataset)
            )
        ]
        self.failures += sorted(new, key=lambda failure: (failure.recording, failure.start_s or 0))

    def forget(self, gone: set[tuple[Dataset, str]]) -> None:
        """Drop what became of shards in datasets."""
        if gone:
            self.known.wake_shards({shard for _, shard in gone})
        for entry in self.known.active.values() if gone else ():
            for key in gone & entry.outcomes.keys():
                del entry.outcomes[key]

    def accounted(self) -> set[tuple[Dataset, str]]:
        """Return the parts whose outcome is entered."""
        known = self.known
        found = {key for entry in known.active.values() for key in entry.outcomes}
        return found if known.rows is None else found.union(known.rows.accounted(known.rests))

    def unplaced(self) -> Iterator[Known]:
        """Yield, in name order, every recording whose pieces may not lie from its start to its end."""
        known = self.known
        if known.rows is not None:
            rows = known.rows.unplaced()
            known.wake(known.rows.names.take(rows).to_pylist())
        for name in sorted(known.active):
            yield known.active[name]

    def in_pieces(self) -> list[str]:
        """Return the names of recordings that more than one piece lies in, ascending."""
        known = self.known
        names = [name for name, entry in known.active.items() if len(entry.pieces) > 1]
        if known.rows is not None:
            counts = np.bincount(known.rows.pieces.row, minlength=len(known.rows))
            names += known.rows.names.filter((counts > 1) & known.rests).to_pylist()
        return sorted(names)

    def spans(self) -> SpanColumns:
        """Return every piece of every recording with a header, as columns."""
        known = self.known
        index: dict[str, int] = {}
        found = [
            (
                index.setdefault(piece.shard, len(index)),
                Span(name, entry.recording.source, entry.header, piece.start, piece.stop).planned,
                entry.header.rate_hz,
                entry.header.channels,
            )
            for name, entry in known.active.items()
            if entry.header is not None
            for piece in entry.pieces
        ]
        columns = np.array(found, np.int64).reshape(-1, 4).T
        if known.rows is not None:
            at = known.rows.pieces
            rests = known.rests[at.row] & (known.rows.rate_hz[at.row] > 0)
            row = at.row[rests]
            resting = [
                at.shard[rests] + len(index),
                known.rows.planned()[rests],
                known.rows.rate_hz[row],
                known.rows.channels[row],
            ]
            columns = np.concatenate([columns, np.stack(resting)], axis=1)
        shards = [*index, *([] if known.rows is None else known.rows.shards)]
        return SpanColumns(shards, *columns)

    def lengths(self) -> tuple[Ints, Ints]:
        """Return (native samples, 0 where no header says; rate) of all recordings with a header."""
        headers = [e.header for e in self.known.active.values() if e.header is not None]
        found = [(header.n_samples or 0, header.rate_hz) for header in headers]
        n_samples, rate_hz = np.array(found, np.int64).reshape(-1, 2).T
        rows = self.known.rows
        if rows is not None:
            rests = self.known.rests & (rows.rate_hz > 0)
            n_samples = np.concatenate([n_samples, np.maximum(0, rows.n_samples[rests])])
            rate_hz = np.concatenate([rate_hz, rows.rate_hz[rests]])
        return n_samples, rate_hz

    def states(self) -> Counter[str]:
        """Return how many recordings are embedded, partial, failed or pending in what is wanted."""
        counts = Counter(state_of(entry, self.wanted) for entry in self.known.active.values())
        if self.known.rows is not None:
            resting = np.bincount(states_of(self.known.rows, self.wanted)[self.known.rests])
            counts.update({STATES[i]: int(n) for i, n in enumerate(resting) if n})
        return counts

    def set_unreadable(self, errors: Mapping[str, RecordingError]) -> None:
        """Enter what of the input cannot be read and is no recording, in place of what was entered."""
        failures = [Failure(name, one.reason, one.detail) for name, one in sorted(errors.items())]
        self.failures = [f for f in self.failures if f.shard is not None] + failures

    def waiting(self) -> list[Failure]:
        """Return why a later run has to look again: recordings that did not open, and what is unreadable.

        How much sound is missing in a folder or tar that nobody can read is not known, so that it is
        waited for whatever the reason.
        """
        unopened = [failure for failure in self.unopened() if failure.reason.is_transient]
        return unopened + [failure for failure in self.failures if failure.shard is None]

    def outdated(self, reader_version: int, datasets: Iterable[Dataset]) -> set[str]:
        """Return shards with a permanent failure that an older reader reported.

        Args:
            reader_version: The reader of today.
            datasets: What is wanted; another encoder's failures would never get a new report.
        """
        scopes = {scope for dataset in datasets for scope in _scopes(dataset)}
        return {
            failure.shard
            for failure in self.failures
            if failure.shard is not None
            and failure.reader_version != reader_version
            and (failure.encoder, failure.version) in scopes
        }

    def unopened(self) -> Iterator[Failure]:
        """Yield why recordings never opened, in name order; these are objects since loading."""
        active = self.known.active
        yield from (f for name in sorted(active) if (f := active[name].failure) is not None)

    def wanted_failures(self) -> Iterator[Failure]:
        """Yield failures of recordings that never opened, then those of shards in what is wanted."""
        yield from self.unopened()
        scopes = {(None, None), *((d.encoder, d.version) for d in self.wanted)}
        yield from (f for f in self.failures if (f.encoder, f.version) in scopes)

    def all_failures(self) -> Iterator[Failure]:
        """Yield failures of recordings that never opened, then those of shards."""
        yield from self.unopened()
        yield from self.failures


def _scopes(dataset: Dataset) -> set[tuple[str | None, str | None]]:
    """Return which failures a part speaks for: its own, and those of all encoders."""
    return {(None, None), (dataset.encoder, dataset.version)}
