"""What is known of every recording: header, metadata, where its pieces are, what became of them.

`recordings/recordings.parquet` and `failures/failures.parquet` are each put in one step. Both are
caches: the parts' own metadata, with the listing of the input, say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bioembed_ray.datasets import Dataset
from bioembed_ray.inputs import Recording
from bioembed_ray.metadata import Metadata
from bioembed_ray.outcomes import Failure, PartOutcome, SpanOutcome
from bioembed_ray.probe import Header
from bioembed_ray.segments import Shard, Span
from bioembed_ray.windows import Coverage


@dataclass(frozen=True, slots=True)
class Piece:
    """A span's place: which shard, and native samples [start, stop), stop None to the end."""

    shard: str
    start: int
    stop: int | None


@dataclass(slots=True)
class Known:
    """One recording in the ledger.

    Attributes:
        recording: Name, source, labels.
        header: None where probing failed.
        metadata: None where probing failed.
        failure: Why probing failed.
        pieces: Its spans, by start.
        outcomes: What became of each piece in each dataset.
    """

    recording: Recording
    header: Header | None = None
    metadata: Metadata | None = None
    failure: Failure | None = None
    pieces: list[Piece] = field(default_factory=list)
    outcomes: dict[tuple[Dataset, str], SpanOutcome] = field(default_factory=dict)

    @property
    def n_decoded(self) -> int | None:
        """Native samples that came, None while some piece is untouched."""
        best: dict[str, int] = {}
        for (_, shard), outcome in self.outcomes.items():
            best[shard] = max(best.get(shard, 0), outcome.n_decoded)
        if not self.pieces or any(piece.shard not in best for piece in self.pieces):
            return None
        return sum(best[piece.shard] for piece in self.pieces)

    @property
    def n_nonfinite(self) -> int:
        """NaN and infinite samples that were set to zero."""
        worst: dict[str, int] = {}
        for (_, shard), outcome in self.outcomes.items():
            worst[shard] = max(worst.get(shard, 0), outcome.n_nonfinite)
        return sum(worst.values())

    @property
    def status(self) -> str:
        """Return embedded, partial, failed or pending."""
        if self.failure is not None:
            return "pending" if self.failure.reason.is_transient else "failed"
        if self.n_decoded is None:
            return "pending"
        total = sum((outcome.coverage for outcome in self.outcomes.values()), Coverage())
        if not total.failed and total.total:
            return "embedded"
        return "partial" if total.embedded + total.padded else "failed"


@dataclass(slots=True)
class Ledger:
    """All recordings and failures of an output."""

    known: dict[str, Known] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def shards(self) -> dict[str, Shard]:
        """Rebuild every shard from the pieces of its recordings, in name order."""
        spans: dict[str, list[Span]] = {}
        for name in sorted(self.known):
            entry = self.known[name]
            if entry.header is None:
                continue
            for piece in entry.pieces:
                span = Span(name, entry.recording.source, entry.header, piece.start, piece.stop)
                spans.setdefault(piece.shard, []).append(span)
        return {shard: Shard(tuple(found)) for shard, found in spans.items()}

    def assign(self, shard: Shard) -> None:
        """Enter a new shard's spans as pieces of their recordings."""
        name = shard.id
        for span in shard.spans:
            pieces = self.known[span.recording].pieces
            pieces.append(Piece(name, span.start, span.stop))
            pieces.sort(key=lambda piece: piece.start)

    def dissolve(self, shards: set[str]) -> None:
        """Forget shards: their pieces, outcomes and failures."""
        for entry in self.known.values():
            if any(piece.shard in shards for piece in entry.pieces):
                entry.pieces = [piece for piece in entry.pieces if piece.shard not in shards]
                entry.outcomes = {
                    key: outcome for key, outcome in entry.outcomes.items() if key[1] not in shards
                }
        self.failures = [failure for failure in self.failures if failure.shard not in shards]

    def absorb(self, outcome: PartOutcome) -> None:
        """Enter what became of a shard in one dataset, in place of what was there."""
        key = (outcome.dataset, outcome.shard)
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

    def accounted(self) -> set[tuple[Dataset, str]]:
        """Return the parts whose outcome is entered."""
        return {key for entry in self.known.values() for key in entry.outcomes}

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

    def all_failures(self) -> Iterator[Failure]:
        """Yield failures of recordings that never opened, then those of shards."""
        for name in sorted(self.known):
            failure = self.known[name].failure
            if failure is not None:
                yield failure
        yield from self.failures


def _scopes(dataset: Dataset) -> set[tuple[str | None, str | None]]:
    """Return which failures a part speaks for: its own, and those of all encoders."""
    return {(None, None), (dataset.encoder, dataset.version)}
