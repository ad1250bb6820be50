"""Where the rows of missing parts stand already: in parts of shards that some recordings left.

A recording that was changed or removed leaves its shard, and what stays is a shard of its own. The old
part still holds its rows, and says in its metadata whose they are. So the listing tells what can be
carried over and from where, and neither a kill nor a lost ledger makes that forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bioembed_ray import parts, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import BrokenOutput
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.outcomes import PartOutcome
from bioembed_ray.segments import id_of_json
from bioembed_ray.threads import in_turn

FOOTER_THREADS = 32


@dataclass(frozen=True, slots=True)
class Carry:
    """A part that is missing, and the one that holds its rows.

    Attributes:
        dataset: The partition of both.
        shard: Id of the shard whose part is missing.
        source: The part of a shard that nobody wants any more.
    """

    dataset: Dataset
    shard: str
    source: storage.ObjectInfo


def find_carries(
    ledger: Ledger,
    dataset: Dataset,
    standing: Mapping[str, storage.ObjectInfo],
    shards: Collection[str],
    reader_version: int,
) -> list[Carry]:
    """Return which missing parts of a partition can be made from parts that nobody wants any more.

    What an older reader failed on is not carried over: this one may read more.

    Args:
        ledger: Knows which shard every recording lies in.
        dataset: The partition.
        standing: Shard id -> part.
        shards: Ids of all shards wanted.
        reader_version: The reader of today.

    Raises:
        StorageError: reading failed.
    """
    missing = {shard for shard in shards if shard not in standing}
    spare = [standing[shard] for shard in sorted(standing) if shard not in shards]
    found: dict[str, Carry] = {}
    if not missing:
        return []
    told = in_turn(_read_outcome, ((entry,) for entry in spare), FOOTER_THREADS)
    for entry, (outcome, spans) in zip(spare, told, strict=True):
        for shard, names in _successors(ledger, spans, missing):
            is_outdated = any(
                failure.recording in names and failure.reader_version != reader_version
                for failure in outcome.failures
            )
            if not is_outdated:
                found.setdefault(shard, Carry(dataset, shard, entry))
    return list(found.values())


def _read_outcome(
    entry: storage.ObjectInfo,
) -> tuple[PartOutcome | None, list[dict[str, Any]]]:
    """Return what a part says of itself; nothing where it is torn: its recordings are encoded again."""
    try:
        return parts.read_outcome(entry)
    except BrokenOutput:
        return None, []


def _successors(
    ledger: Ledger, spans: Sequence[dict[str, Any]], missing: Collection[str]
) -> Iterator[tuple[str, set[str]]]:
    """Yield the missing shards whose spans are all that a part has of some recordings, and these."""
    ledger.known.wake({span["recording"] for span in spans})
    held: dict[str, set[str]] = {}
    for span in spans:
        entry = ledger.known.get(span["recording"])
        for piece in () if entry is None else entry.pieces:
            if piece.shard in missing:
                held.setdefault(piece.shard, set()).add(span["recording"])
    for shard, names in held.items():
        # The id is a digest of names, stamps and bounds.
        if id_of_json(span for span in spans if span["recording"] in names) == shard:
            yield shard, names
