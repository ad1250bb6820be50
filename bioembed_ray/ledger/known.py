"""One recording in the ledger: header, metadata, where its pieces are, what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.audio.probe import Header
from bioembed_ray.datasets import Dataset
from bioembed_ray.inputs.listing import Recording
from bioembed_ray.outcomes import Failure, SpanOutcome


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
        most = self._most("n_decoded")
        return sum(most[piece.shard] for piece in self.pieces) if self._is_read(most) else None

    @property
    def n_extent(self) -> int | None:
        """Native samples from the start to the end of the sound, None while some piece is untouched."""
        most = self._most("n_extent")
        if not self._is_read(most):
            return None
        ends = [piece.start + most[piece.shard] for piece in self.pieces if most[piece.shard]]
        return max(ends, default=0)

    @property
    def n_nonfinite(self) -> int:
        """NaN and infinite samples that were set to zero."""
        return sum(self._most("n_nonfinite").values())

    def _most(self, key: str) -> dict[str, int]:
        """Return shard -> the largest that any outcome says of a count."""
        most: dict[str, int] = {}
        for (_, shard), outcome in self.outcomes.items():
            most[shard] = max(most.get(shard, 0), getattr(outcome, key))
        return most

    def _is_read(self, most: dict[str, int]) -> bool:
        return bool(self.pieces) and all(piece.shard in most for piece in self.pieces)
