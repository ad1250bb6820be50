"""What the input holds against what the ledger knows: new, changed and removed recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bioembed_ray import parts, storage
from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.audio.probe import Header
from bioembed_ray.config import Job
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import ConfigError, InputError, Reason, RecordingError
from bioembed_ray.inputs.inside import Opened, as_known
from bioembed_ray.inputs.left_out import Kind, LeftOut
from bioembed_ray.inputs.listing import Container, Listing, Recording, unique, unknown
from bioembed_ray.ledger.ledger import Known, Ledger, Piece
from bioembed_ray.outcomes import Failure, PartOutcome
from bioembed_ray.segments import cut_gaps, id_of_json, span_stamp
from bioembed_ray.storage import ABSENT
from bioembed_ray.store.watch import StoreWatch
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


Members = Callable[[list[Container]], Iterable[Opened]]


@dataclass(frozen=True, slots=True)
class Changes:
    """How many recordings are new, changed or removed against the ledger, and which."""

    n_new: int = 0
    n_changed: int = 0
    n_removed: int = 0
    new: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    changed: frozenset[str] = field(default=frozenset(), compare=False, repr=False)


def list_recordings(listing: Listing, ledger: Ledger, members: Members) -> dict[str, Recording]:
    """Return all recordings by name, in name order; members of unchanged containers come from the ledger.

    What containers leave out, and those that cannot be opened, are added to the listing.

    Raises:
        InputError: there is not one.
        StorageError: the store of the containers is out of reach.
    """
    recordings = list(listing.recordings)
    for opened in sorted(_opened(listing, ledger, members), key=lambda one: one.name):
        recordings += opened.recordings
        listing.left_out.merge(opened.left_out)
        if opened.refusal is not None:
            listing.unreadable[opened.name] = opened.refusal
            listing.left_out.add(Kind.UNREADABLE, opened.name)
    if listing.unreadable:
        # What cannot be looked at is not gone.
        recordings += filter(partial(_is_out_of_reach, listing), ledger.known.recordings())
    if not recordings:
        raise InputError(
            f"no audio under {listing.root}: {len(listing.containers)} tar or Parquet objects hold "
            f"none; left out: {listing.left_out or 'nothing'}"
        )
    return {recording.name: recording for recording in unique(recordings)}


def _opened(listing: Listing, ledger: Ledger, members: Members) -> Iterator[Opened]:
    inside: dict[tuple[str, str], list[Recording]] = {}
    places = {(container.uri, container.stamp) for container in listing.containers}
    for recording in ledger.known.recordings() if places else ():
        place = (recording.source.uri, recording.source.stamp)
        if place in places:
            inside.setdefault(place, []).append(recording)
    closed = {}
    for container in listing.containers:
        members_known = inside.get((container.uri, container.stamp))
        known = None if members_known is None else as_known(container, members_known)
        if known is None:
            closed[container.name] = container
        else:
            yield known
    watch = StoreWatch()
    for opened in members(list(closed.values())) if closed else ():
        container = closed.pop(opened.name)
        watch.note(None if opened.refusal is None else container.uri)
        yield opened if opened.refusal is None else _refused(container, opened.refusal)
    crash = RecordingError(Reason.CRASHED, "listing what it holds killed the worker")
    yield from (_refused(container, crash) for container in closed.values())


def _refused(container: Container, why: RecordingError) -> Opened:
    error = unknown(why.reason, why.detail, container.below)
    return Opened(container.name, [], LeftOut(), error)


def _is_out_of_reach(listing: Listing, recording: Recording) -> bool:
    """Return whether a recording is, or lies in, what cannot be read."""
    name = recording.name
    slashes = [place for place, letter in enumerate(name) if letter == "/"]
    above = {name, *(name[:end] for end in slashes), *(name[: end + 1] for end in slashes)}
    return not above.isdisjoint(listing.unreadable)


def compare(job: Job, ledger: Ledger, recordings: dict[str, Recording]) -> Changes:
    """Drop changed and removed recordings from the ledger; their shards go on without them.

    Raises:
        ConfigError: so many are gone that the input is probably another one.
    """
    known = ledger.known
    n_known = len(known)
    removed, changed = [], []
    for name, stamp in known.stamps():
        recording = recordings.get(name)
        if recording is None:
            removed.append(name)
        elif span_stamp(recording.source) != stamp:
            changed.append(name)
    # A manifest's names stay when the bucket behind them is gone.
    lost = removed + [name for name in changed if recordings[name].source.stamp == ABSENT]
    if len(lost) > job.max_removed_fraction * n_known:
        raise ConfigError(
            f"{len(lost)} of {n_known} recordings known to {job.output} are not in this input "
            f"(first: {min(lost)}), and their rows would go; use another output, or set "
            f"max_removed_fraction: 1"
        )
    ledger.leave(removed + changed)
    known.follow(recordings)
    new = frozenset(known.absent(list(recordings))).difference(changed)
    return Changes(len(new), len(changed), len(removed), new, frozenset(changed))


def probe_new(ledger: Ledger, recordings: dict[str, Recording], probe: Probe) -> None:
    """Read the header of every recording that has none, or that an older reader refused.

    Raises:
        StorageError: the store of the recordings is out of reach.
    """
    watch = StoreWatch()
    known = ledger.known
    again = {f.recording for f in ledger.unopened() if _is_worth_another_look(f)}
    names = sorted(again.union(known.absent(list(recordings))))
    todo = [recordings[name] for name in names]
    answered = set()
    for result in probe(todo) if todo else []:
        failure = None
        is_unread = result.reason is Reason.STORAGE
        watch.note(recordings[result.name].source.uri if is_unread else None)
        if result.reason is not None:
            failure = Failure(result.name, result.reason, result.detail)
        known[result.name] = Known(recordings[result.name], result.header, result.metadata, failure)
        answered.add(result.name)
    for name in names:
        if name not in answered and name not in again:
            failure = Failure(name, Reason.CRASHED, "reading its header killed the worker")
            known[name] = Known(recordings[name], failure=failure)


def _is_worth_another_look(failure: Failure) -> bool:
    return failure.reason.is_transient or failure.reader_version != READER_VERSION


def forget_missing(ledger: Ledger, standing: dict[Dataset, dict[str, storage.ObjectInfo]]) -> None:
    """Drop outcomes of parts that somebody deleted: the listing is the truth."""
    ledger.forget(
        {
            (dataset, shard)
            for dataset, shard in ledger.accounted()
            if dataset in standing and shard not in standing[dataset]
        }
    )


def read_outcomes(
    ledger: Ledger, standing: dict[Dataset, dict[str, storage.ObjectInfo]], everything: bool
) -> list[tuple[PartOutcome, list[dict[str, Any]]]]:
    """Read what parts say of themselves where the ledger does not know it yet."""
    accounted = ledger.accounted()
    wanted = ledger.shards()
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

    Of a shard those recordings are taken that are still what they were and that nobody else has:
    some may have changed or gone since, and parts of a shard that recordings left may stand beside
    those of its successor. What is taken of a part can be carried over from it.
    """
    shards = {outcome.shard: spans for outcome, spans in read}
    # Whole ones first, so that a successor stands as it is.
    whole = {shard for shard, spans in shards.items() if all(_fits(ledger, span) for span in spans)}
    for shard in sorted(shards, key=lambda shard: (shard not in whole, shard)):
        spans = shards[shard]
        if shard != id_of_json(spans):
            continue
        gone = {span["recording"] for span in spans if not _fits(ledger, span)}
        kept = [span for span in spans if span["recording"] not in gone]
        name = id_of_json(kept)
        for span in kept:
            pieces = ledger.known[span["recording"]].pieces
            pieces.append(Piece(name, span["start"], span["stop"]))
            pieces.sort(key=lambda piece: piece.start)


def _fits(ledger: Ledger, span: dict[str, Any]) -> bool:
    entry = ledger.known.get(span["recording"])
    if entry is None or entry.header is None or span_stamp(entry.recording.source) != span["stamp"]:
        return False
    wanted = [(span["start"], span["stop"])]
    return cut_gaps(wanted, [(piece.start, piece.stop) for piece in entry.pieces]) == wanted
