"""What became of a shard under one encoder: sums, and why the rest is missing; as JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bioembed_ray.audio.holes import Holes
from bioembed_ray.coverage import Coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason
from bioembed_ray.versions import READER_VERSION

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Failure:
    """Input that was not embedded, and why.

    Attributes:
        recording: Name.
        reason: From the closed list.
        detail: One line for people.
        encoder: The encoder it concerns; None for all.
        version: The encoder's version; None for all.
        channel: None for all.
        start_s: Start in the recording, seconds; None where it never opened.
        end_s: End, seconds.
        n_samples: Native samples lost; None where nobody knows.
        shard: The shard it happened in; None before planning.
        reader_version: Which reader said so.
    """

    recording: str
    reason: Reason
    detail: str
    encoder: str | None = None
    version: str | None = None
    channel: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    n_samples: int | None = None
    shard: str | None = None
    reader_version: int = READER_VERSION

    @property
    def line(self) -> str:
        """What is said of it to people."""
        return f"{self.recording}: {self.reason.value}: {self.detail}"


@dataclass(frozen=True, slots=True)
class SpanOutcome:
    """What became of one span; samples of all channels encoded.

    Attributes:
        recording: Name.
        n_decoded: Native samples per channel that came; of several channels the most.
        n_extent: Those and the holes between: up to the span's stop or the end of the sound.
        n_nonfinite: NaN or infinite values set to zero.
        n_rows: Rows in the part: windows, frames, or rows of tokens.
        coverage: Embedded, padded, failed (holes, and samples the header declares but the data
            lack) and skipped.
        holes: For each channel encoded, native samples of the recording that are no sound; one
            entry where all channels have the same, none without holes.
    """

    recording: str
    n_decoded: int
    n_extent: int
    n_nonfinite: int
    n_rows: int
    coverage: Coverage
    holes: tuple[Holes, ...] = ()


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """All of one shard in one dataset; stands in the part's own metadata.

    Attributes:
        dataset: Where the part is.
        shard: Shard id.
        spans: One outcome per span, in order.
        failures: What is missing and why.
        n_checked: Windows of different sound whose vectors were compared.
        n_distinct: Different vectors among them.
    """

    dataset: Dataset
    shard: str
    spans: tuple[SpanOutcome, ...]
    failures: tuple[Failure, ...]
    n_checked: int = 0
    n_distinct: int = 0


def outcome_to_json(outcome: PartOutcome) -> dict[str, Any]:
    """Return a part's outcome as plain values."""
    return asdict(outcome)


def outcome_from_json(raw: dict[str, Any]) -> PartOutcome:
    """Return a part's outcome from plain values."""
    return PartOutcome(
        dataset=Dataset(**raw["dataset"]),
        shard=raw["shard"],
        spans=tuple(
            SpanOutcome(
                **{
                    **span,
                    "coverage": Coverage(**span["coverage"]),
                    "holes": tuple(tuple(map(tuple, own)) for own in span["holes"]),
                }
            )
            for span in raw["spans"]
        ),
        failures=tuple(failure_from_json(failure) for failure in raw["failures"]),
        n_checked=raw["n_checked"],
        n_distinct=raw["n_distinct"],
    )


def failure_from_json(raw: dict[str, Any]) -> Failure:
    """Return a failure from plain values."""
    return Failure(**{**raw, "reason": Reason(raw["reason"])})
