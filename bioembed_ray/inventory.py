"""What the input holds against what the ledger knows: new, changed and removed recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bioembed_ray import parts, storage
from bioembed_ray.config import Job
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import ConfigError, InputError, Reason
from bioembed_ray.inputs import Container, Listing, Recording, unique
from bioembed_ray.ledger import Known, Ledger, Piece
from bioembed_ray.metadata import Metadata
from bioembed_ray.outcomes import Failure, PartOutcome
from bioembed_ray.probe import Header
from bioembed_ray.segments import (
    cut_gaps,
    shard_id,
    span_stamp,
)
from bioembed_ray.versions import READER_VERSION

FOOTER_THREADS = 32


@dataclass(frozen=True, slots=True)
class Probed:
    """What reading one header gave: a header and metadata, or why not."""

    name: str
    header: Header | None = None
    metadata: Metadata | None = None
    reason: Reason | None = None
    detail: str = ""


Probe = Callable[[list[Recording]], Iterable[Probed]]


Members = Callable[[list[Container]], Iterable[Recording]]


@dataclass(frozen=True, slots=True)
class Changes:
    """How many recordings are new, changed or removed against the ledger."""

    n_new: int = 0
    n_changed: int = 0
    n_removed: int = 0


def list_recordings(listing: Listing, ledger: Ledger, members: Members) -> dict[str, Recording]:
    """Return all recordings by name, in name order; members of unchanged containers come from the ledger."""
    inside: dict[tuple[str, str], list[Recording]] = {}
    for entry in ledger.known.values():
        source = entry.recording.source
        inside.setdefault((source.uri, source.stamp), []).append(entry.recording)
    recordings = list(listing.recordings)
    closed = []
    for container in listing.containers:
        known = inside.get((container.uri, container.stamp))
        if known is None:
            closed.append(container)
        else:
            recordings += known
    recordings += members(closed) if closed else []
    if not recordings:
        raise InputError(
            f"no audio under {listing.root}: {len(listing.containers)} tar or Parquet objects hold none"
        )
    return {recording.name: recording for recording in unique(recordings)}


def compare(job: Job, ledger: Ledger, recordings: dict[str, Recording]) -> Changes:
    """Drop changed and removed recordings from the ledger, and dissolve their shards.

    Raises:
        ConfigError: so many are gone that the input is probably another one.
    """
    known = ledger.known
    removed = [name for name in known if name not in recordings]
    changed = [
        name
        for name, entry in known.items()
        if name in recordings
        and span_stamp(recordings[name].source) != span_stamp(entry.recording.source)
    ]
    allowed = job.max_removed_fraction
    if known and len(removed) > allowed * len(known):
        raise ConfigError(
            f"{len(removed)} of {len(known)} recordings known to {job.output} are not in this input "
            f"(first: {min(removed)}), and their rows would go; use another output, or set "
            f"max_removed_fraction: 1"
        )
    gone = {piece.shard for name in removed + changed for piece in known[name].pieces}
    ledger.dissolve(gone)
    for name in removed + changed:
        del known[name]
    for name, recording in recordings.items():
        # Labels and URIs may change without the sound.
        if name in known:
            known[name].recording = recording
    n_new = sum(name not in known for name in recordings) - len(changed)
    return Changes(n_new, len(changed), len(removed))


def probe_new(ledger: Ledger, recordings: dict[str, Recording], probe: Probe) -> None:
    """Read the header of every recording that has none, or that an older reader refused."""
    known = ledger.known
    todo = [
        recording
        for name, recording in recordings.items()
        if name not in known or _is_worth_another_look(known[name].failure)
    ]
    for result in probe(todo) if todo else []:
        failure = None
        if result.reason is not None:
            failure = Failure(result.name, result.reason, result.detail)
        known[result.name] = Known(recordings[result.name], result.header, result.metadata, failure)
    missing = [recording.name for recording in todo if recording.name not in known]
    for name in missing:
        failure = Failure(name, Reason.CRASHED, "reading its header killed the worker")
        known[name] = Known(recordings[name], failure=failure)
    # Name order, whatever order the cluster answered in.
    ledger.known = {name: known[name] for name in recordings}


def _is_worth_another_look(failure: Failure | None) -> bool:
    return failure is not None and (
        failure.reason.is_transient or failure.reader_version != READER_VERSION
    )


def forget_missing(ledger: Ledger, standing: dict[Dataset, dict[str, storage.ObjectInfo]]) -> None:
    """Drop outcomes of parts that somebody deleted: the listing is the truth."""
    for entry in ledger.known.values():
        gone = [
            (dataset, shard)
            for dataset, shard in entry.outcomes
            if dataset in standing and shard not in standing[dataset]
        ]
        for key in gone:
            del entry.outcomes[key]


def read_outcomes(
    ledger: Ledger, standing: dict[Dataset, dict[str, storage.ObjectInfo]], everything: bool
) -> list[tuple[PartOutcome, list[dict[str, Any]]]]:
    """Read what parts say of themselves where the ledger does not know it yet."""
    accounted = ledger.accounted()
    wanted = {piece.shard for entry in ledger.known.values() for piece in entry.pieces}
    entries = [
        entry
        for dataset, found in standing.items()
        for shard, entry in found.items()
        if everything or (shard in wanted and (dataset, shard) not in accounted)
    ]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(parts.read_outcome, entries))


def recover(ledger: Ledger, read: list[tuple[PartOutcome, list[dict[str, Any]]]]) -> None:
    """Enter the shards of standing parts in a ledger that was lost.

    A shard is taken where its recordings are still what they were and nobody else has them:
    parts of a dissolved shard may stand beside those of its successor.
    """
    shards = {outcome.shard: spans for outcome, spans in read}
    for shard in sorted(shards):
        spans = shards[shard]
        if not all(_fits(ledger, span) for span in spans):
            continue
        if shard != shard_id((s["recording"], s["stamp"], s["start"], s["stop"]) for s in spans):
            continue
        for span in spans:
            pieces = ledger.known[span["recording"]].pieces
            pieces.append(Piece(shard, span["start"], span["stop"]))
            pieces.sort(key=lambda piece: piece.start)


def _fits(ledger: Ledger, span: dict[str, Any]) -> bool:
    entry = ledger.known.get(span["recording"])
    if entry is None or entry.header is None or span_stamp(entry.recording.source) != span["stamp"]:
        return False
    wanted = [(span["start"], span["stop"])]
    return cut_gaps(wanted, [(piece.start, piece.stop) for piece in entry.pieces]) == wanted
