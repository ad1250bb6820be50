"""Wanted minus standing: what the input holds, what the output has, what is left to do.

Nothing here writes. Reading headers is handed in as a function, since it runs on the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from bioembed_ray import ledger as ledgers
from bioembed_ray import parts, storage
from bioembed_ray.config import Job
from bioembed_ray.errors import ConfigError, Reason
from bioembed_ray.inputs import Container, Listing, Recording, list_input
from bioembed_ray.ledger import Known, Ledger
from bioembed_ray.metadata import Metadata
from bioembed_ray.outcomes import Failure, PartOutcome
from bioembed_ray.probe import Header
from bioembed_ray.segments import (
    Cutting,
    Shard,
    Span,
    cut_gaps,
    encoder_seconds,
    form_shards,
    segment_bounds,
    shard_id,
    shard_seconds,
    span_stamp,
)
from bioembed_ray.versions import READER_VERSION, Dataset, PlannedEncoder, plan_encoder

FOOTER_THREADS = 32


@dataclass(frozen=True, slots=True)
class Probed:
    """What reading one header gave: a header and metadata, or why not."""

    name: str
    header: Header | None = None
    metadata: Metadata | None = None
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """One shard and the datasets that lack its part.

    Attributes:
        shard: What to read.
        datasets: Which parts to put.
        crashed: Spans that killed their worker, alone and repeatedly; they are not touched again.
    """

    shard: Shard
    datasets: tuple[Dataset, ...]
    crashed: tuple[int, ...] = ()


Probe = Callable[[list[Recording]], Iterable[Probed]]
Members = Callable[[list[Container]], Iterable[Recording]]


@dataclass(slots=True)
class Plan:
    """What a run would do.

    Attributes:
        job: The job.
        encoders: Settled encoders.
        ledger: What is known, the new shards entered.
        shards: Every shard wanted.
        todo: Shards with missing parts, longest first.
        superseded: Parts of shards that are wanted no more.
        listing: What the input holds.
        n_new, n_changed, n_removed: Recordings, against the ledger.
        notes: Warnings, one line each.
    """

    job: Job
    encoders: tuple[PlannedEncoder, ...]
    ledger: Ledger
    listing: Listing
    shards: dict[str, Shard] = field(default_factory=dict)
    todo: list[Work] = field(default_factory=list)
    superseded: dict[Dataset, list[storage.ObjectInfo]] = field(default_factory=dict)
    n_new: int = 0
    n_changed: int = 0
    n_removed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All partitions wanted."""
        return tuple(dataset for encoder in self.encoders for dataset in encoder.datasets)


def make_plan(job: Job, probe: Probe, members: Members) -> Plan:
    """Compare input and output.

    Args:
        job: What is wanted.
        probe: Reads headers, in any order.
        members: Lists what is inside tar and Parquet objects.

    Raises:
        ConfigError, InputError, WeightsError: the caller can put it right.
        StorageError: listing failed.
    """
    encoders = tuple(plan_encoder(name, job) for name in job.encoders)
    listing = list_input(job.input)
    found = ledgers.load(job.output)
    standing = {
        dataset: parts.list_parts(job.output, dataset)
        for encoder in encoders
        for dataset in encoder.datasets
    }
    plan = Plan(job, encoders, found or Ledger(), listing)
    recordings = _recordings(plan, members)
    _compare(plan, recordings)
    _probe_new(plan, recordings, probe)
    _forget_missing(plan.ledger, standing)
    read = _read_outcomes(plan, standing, everything=found is None)
    if found is None:
        _recover(plan.ledger, read)
    _form_new_shards(plan)
    plan.shards = plan.ledger.shards()
    for outcome, _ in read:
        if outcome.shard in plan.shards:
            plan.ledger.absorb(outcome)
    _list_work(plan, standing)
    plan.notes += _notes(plan)
    return plan


def _recordings(plan: Plan, members: Members) -> dict[str, Recording]:
    """Return all recordings by name; members of unchanged containers come from the ledger."""
    inside: dict[tuple[str, str], list[Recording]] = {}
    for entry in plan.ledger.known.values():
        source = entry.recording.source
        inside.setdefault((source.uri, source.stamp), []).append(entry.recording)
    recordings = list(plan.listing.recordings)
    closed = []
    for container in plan.listing.containers:
        known = inside.get((container.uri, container.stamp))
        if known is None:
            closed.append(container)
        else:
            recordings += known
    recordings += members(closed) if closed else []
    return {recording.name: recording for recording in sorted(recordings, key=lambda r: r.name)}


def _compare(plan: Plan, recordings: dict[str, Recording]) -> None:
    """Drop changed and removed recordings from the ledger, and dissolve their shards."""
    known = plan.ledger.known
    removed = [name for name in known if name not in recordings]
    changed = [
        name
        for name, entry in known.items()
        if name in recordings
        and span_stamp(recordings[name].source) != span_stamp(entry.recording.source)
    ]
    allowed = plan.job.max_removed_fraction
    if known and len(removed) > allowed * len(known):
        raise ConfigError(
            f"{len(removed)} of {len(known)} recordings known to {plan.job.output} are not in this input "
            f"(first: {min(removed)}), and their rows would go; use another output, or set "
            f"max_removed_fraction: 1"
        )
    gone = {piece.shard for name in removed + changed for piece in known[name].pieces}
    plan.ledger.dissolve(gone)
    for name in removed + changed:
        del known[name]
    for name, recording in recordings.items():
        # Labels and URIs may change without the sound.
        if name in known:
            known[name].recording = recording
    plan.n_removed, plan.n_changed = len(removed), len(changed)
    plan.n_new = sum(name not in known for name in recordings) - len(changed)


def _probe_new(plan: Plan, recordings: dict[str, Recording], probe: Probe) -> None:
    """Read the header of every recording that has none, or that an older reader refused."""
    known = plan.ledger.known
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
    plan.ledger.known = {name: known[name] for name in recordings}


def _is_worth_another_look(failure: Failure | None) -> bool:
    return failure is not None and (
        failure.reason.is_transient or failure.reader_version != READER_VERSION
    )


def _forget_missing(ledger: Ledger, standing: dict[Dataset, dict[str, storage.ObjectInfo]]) -> None:
    """Drop outcomes of parts that somebody deleted: the listing is the truth."""
    for entry in ledger.known.values():
        gone = [
            (dataset, shard)
            for dataset, shard in entry.outcomes
            if dataset in standing and shard not in standing[dataset]
        ]
        for key in gone:
            del entry.outcomes[key]


def _read_outcomes(
    plan: Plan, standing: dict[Dataset, dict[str, storage.ObjectInfo]], everything: bool
) -> list[tuple[PartOutcome, list[dict[str, Any]]]]:
    """Read what parts say of themselves where the ledger does not know it yet."""
    accounted = plan.ledger.accounted()
    wanted = {piece.shard for entry in plan.ledger.known.values() for piece in entry.pieces}
    entries = [
        entry
        for dataset, found in standing.items()
        for shard, entry in found.items()
        if everything or (shard in wanted and (dataset, shard) not in accounted)
    ]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(parts.read_outcome, entries))


def _recover(ledger: Ledger, read: list[tuple[PartOutcome, list[dict[str, Any]]]]) -> None:
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
            pieces.append(ledgers.Piece(shard, span["start"], span["stop"]))
            pieces.sort(key=lambda piece: piece.start)


def _fits(ledger: Ledger, span: dict[str, Any]) -> bool:
    entry = ledger.known.get(span["recording"])
    if entry is None or entry.header is None or span_stamp(entry.recording.source) != span["stamp"]:
        return False
    wanted = [(span["start"], span["stop"])]
    return cut_gaps(wanted, [(piece.start, piece.stop) for piece in entry.pieces]) == wanted


def _form_new_shards(plan: Plan) -> None:
    """Place every segment that is in no shard yet."""
    job = plan.job
    is_whole = any(
        encoder.facts.grid is not None
        and encoder.facts.grid.block_s is None
        and not encoder.facts.embeds
        for encoder in plan.encoders
    )
    split = [name for name, entry in plan.ledger.known.items() if len(entry.pieces) > 1]
    if is_whole and split:
        raise ConfigError(
            f"block_s: got 'whole', but {len(split)} recordings already stand in pieces (first: {split[0]}); "
            f"use another output"
        )
    segment_s = None if is_whole else job.segment_s
    cutting = Cutting(segment_s, 0.0, job.input.time_expansion, job.input.channels)
    loose = []
    for name, entry in plan.ledger.known.items():
        if entry.header is None:
            continue
        bounds = segment_bounds(entry.header.n_samples, entry.header.rate_hz, cutting)
        gaps = cut_gaps(bounds, [(piece.start, piece.stop) for piece in entry.pieces])
        if gaps:
            loose.append((name, entry.recording.source, entry.header, gaps))
    total_s = sum(
        encoder_seconds(Span(name, source, header, *gap), cutting)
        for name, source, header, gaps in loose
        for gap in gaps
    )
    cutting = replace(cutting, shard_s=shard_seconds(total_s, job.shard_minutes))
    for shard in form_shards(loose, cutting):
        plan.ledger.assign(shard)


def _list_work(plan: Plan, standing: dict[Dataset, dict[str, storage.ObjectInfo]]) -> None:
    """Find the missing parts, and those that stand for shards nobody wants any more."""
    outdated = plan.ledger.outdated(READER_VERSION)
    for shard_name, shard in plan.shards.items():
        missing = tuple(
            dataset
            for dataset in plan.datasets
            if shard_name not in standing[dataset] or shard_name in outdated
        )
        if missing:
            plan.todo.append(Work(shard, missing))
    # The longest first, so that actors end together.
    plan.todo.sort(key=lambda work: (-work_seconds(work, plan.job), work.shard.id))
    for dataset in plan.datasets:
        plan.superseded[dataset] = [
            entry for shard, entry in standing[dataset].items() if shard not in plan.shards
        ]


def work_seconds(work: Work, job: Job) -> float:
    """Return the encoder seconds of a shard, channels counted."""
    cutting = Cutting(None, 0.0, job.input.time_expansion, job.input.channels)
    return sum(encoder_seconds(span, cutting) for span in work.shard.spans)


def _notes(plan: Plan) -> list[str]:
    """Return warnings about what an encoder cannot hear, and what a precision does not keep."""
    notes = []
    expansion = plan.job.input.time_expansion
    rates = [e.header.rate_hz for e in plan.ledger.known.values() if e.header is not None]
    for rate_hz in sorted({encoder.facts.rate_hz for encoder in plan.encoders}):
        names = ", ".join(e.name for e in plan.encoders if e.facts.rate_hz == rate_hz)
        hears = rate_hz / 2 * expansion
        deaf = [rate for rate in rates if rate / 2 > 2 * hears]
        if deaf:
            notes.append(
                f"{names}: up to {hears / 1000:g} kHz is heard, {len(deaf)} recordings hold up to "
                f"{max(deaf) / 2000:g} kHz; set input.time_expansion: {-(-max(deaf) // rate_hz)} to keep "
                f"all of it"
            )
    untrained = ", ".join(encoder.name for encoder in plan.encoders if encoder.is_random)
    if untrained:
        notes.append(f"{untrained}: RANDOM weights, the vectors mean nothing")
    for encoder in plan.encoders:
        kept = encoder.facts.keeps.get(encoder.config.precision)
        if kept is not None and kept < 0.999:
            notes.append(
                f"{encoder.name} keeps a cosine of only {kept:g} to float32 in {encoder.config.precision}; "
                f"use float32"
            )
    return notes
