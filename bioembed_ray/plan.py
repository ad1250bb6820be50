"""Wanted minus standing: what the input holds, what the output has, what is left to do.

Nothing here writes. Reading headers is handed in as a function, since it runs on the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bioembed_ray import parts, storage
from bioembed_ray.carry import Carry, find_carries
from bioembed_ray.config import Job
from bioembed_ray.datasets import Dataset, PlannedEncoder
from bioembed_ray.errors import ConfigError, InputError, NoBucketError, NotFoundError
from bioembed_ray.inputs.left_out import Kind
from bioembed_ray.inputs.listing import Listing, list_input
from bioembed_ray.inventory import (
    Changes,
    Members,
    Probe,
    compare,
    forget_missing,
    list_recordings,
    probe_new,
    read_outcomes,
    recover,
)
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.segments import (
    Cutting,
    Shard,
    Span,
    cut_gaps,
    encoder_seconds,
    form_shards,
    segment_bounds,
    shard_seconds,
)
from bioembed_ray.versions import READER_VERSION, plan_encoder

# As many of a kind are warned of by name.
N_NAMED = 3
# Folders of Parquet below the output.
TABLES = ("embeddings", "frames", "fit_frames", "tokens", "recordings", "failures")


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


@dataclass(slots=True)
class Plan:
    """What a run would do.

    Attributes:
        job: The job.
        encoders: Settled encoders.
        ledger: What is known, the new shards entered.
        shards: Every shard wanted.
        todo: Shards with missing parts that have to be encoded, longest first.
        carries: Missing parts whose rows stand in parts of shards that are wanted no more.
        superseded: Parts of shards that are wanted no more.
        listing: What the input holds.
        changes: New, changed and removed recordings, against the ledger.
        notes: Warnings, one line each.
        goal: Partitions that this run is about, None for all.
        listed: What `standing` found; whoever puts parts takes their partition out.
    """

    job: Job
    encoders: tuple[PlannedEncoder, ...]
    ledger: Ledger
    listing: Listing
    shards: Mapping[str, Shard] = field(default_factory=dict)
    todo: list[Work] = field(default_factory=list)
    carries: list[Carry] = field(default_factory=list)
    superseded: dict[Dataset, list[storage.ObjectInfo]] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    notes: list[str] = field(default_factory=list)
    goal: tuple[Dataset, ...] | None = None
    listed: dict[Dataset, dict[str, storage.ObjectInfo]] = field(default_factory=dict)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All partitions wanted."""
        return tuple(dataset for encoder in self.encoders for dataset in encoder.datasets)

    @property
    def fit_frames(self) -> tuple[Dataset, ...]:
        """Partitions of frames that stand while codebooks are fitted on them, and not beyond."""
        found = (output.fit_frames for encoder in self.encoders for output in encoder.outputs)
        return tuple(dataset for dataset in found if dataset is not None)

    def standing(self, dataset: Dataset) -> dict[str, storage.ObjectInfo]:
        """Return shard id -> part of a partition, listed once while nothing is put."""
        if dataset not in self.listed:
            self.listed[dataset] = parts.list_parts(self.job.output, dataset)
        return self.listed[dataset]

    def carries_into(self, datasets: Iterable[Dataset]) -> list[Carry]:
        """Return which missing parts of partitions can be made of rows that stand."""
        return [
            carry
            for dataset in datasets
            for carry in find_carries(
                self.ledger, dataset, self.standing(dataset), self.shards, READER_VERSION
            )
        ]


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
    try:
        listing = list_input(job.input)
    except (NotFoundError, NoBucketError) as error:
        raise InputError(f"input: {error}") from error
    listing = _without_output(listing, job.output)
    found = ledger_file.load(job.output)
    plan = Plan(job, encoders, found or Ledger(), listing)
    plan.ledger.want(plan.datasets)
    standing = _standing(plan)
    recordings = list_recordings(listing, plan.ledger, members)
    plan.ledger.set_unreadable(listing.unreadable)
    plan.changes = compare(job, plan.ledger, recordings)
    probe_new(plan.ledger, recordings, probe)
    forget_missing(plan.ledger, standing)
    read = read_outcomes(plan.ledger, standing, everything=found is None)
    if found is None:
        recover(plan.ledger, read)
    _form_new_shards(plan)
    plan.shards = plan.ledger.shards()
    for outcome, _ in read:
        if outcome.shard in plan.shards:
            plan.ledger.absorb(outcome)
    _list_work(plan, standing)
    plan.notes += _notes(plan)
    return plan


def _without_output(listing: Listing, output: str) -> Listing:
    """Leave out the tables of earlier runs, where the output lies inside the input."""
    own = tuple(f"{storage.join(output, table)}/" for table in TABLES)
    kept = [one for one in listing.containers if not one.uri.startswith(own)]
    for one in listing.containers:
        if one.uri.startswith(own):
            listing.left_out.add(Kind.NOT_AUDIO, one.name)
    return replace(listing, containers=kept)


def _standing(plan: Plan) -> dict[Dataset, dict[str, storage.ObjectInfo]]:
    return {dataset: plan.standing(dataset) for dataset in plan.datasets}


def list_again(plan: Plan, encoders: tuple[PlannedEncoder, ...]) -> None:
    """Take the encoders as they now are, with codebooks fitted since, and list what is left to do."""
    plan.encoders = encoders
    plan.ledger.want(plan.datasets)
    plan.todo.clear()
    standing = _standing(plan)
    forget_missing(plan.ledger, standing)
    for outcome, _ in read_outcomes(plan.ledger, standing, everything=False):
        plan.ledger.absorb(outcome)
    _list_work(plan, standing)


def _form_new_shards(plan: Plan) -> None:
    """Place every segment that is in no shard yet."""
    job = plan.job
    is_whole = any(
        encoder.facts.grid is not None
        and encoder.facts.grid.block_s is None
        and not encoder.facts.embeds
        for encoder in plan.encoders
    )
    split = plan.ledger.in_pieces() if is_whole else []
    if split:
        raise ConfigError(
            f"block_s: got 'whole', but {len(split)} recordings already stand in pieces (first: {split[0]}); "
            f"use another output"
        )
    segment_s = None if is_whole else job.segment_s
    cutting = Cutting(segment_s, 0.0, job.input.time_expansion, job.input.channels)
    loose = []
    for entry in plan.ledger.unplaced():
        if entry.header is None:
            continue
        bounds = segment_bounds(entry.header.n_samples, entry.header.rate_hz, cutting)
        gaps = cut_gaps(bounds, [(piece.start, piece.stop) for piece in entry.pieces])
        if gaps:
            recording = entry.recording
            loose.append((recording.name, recording.source, entry.header, gaps))
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
    outdated = plan.ledger.outdated(READER_VERSION, plan.datasets)
    found = plan.carries_into(plan.datasets)
    plan.carries = [carry for carry in found if carry.shard not in outdated]
    carried = {(carry.dataset, carry.shard) for carry in plan.carries}
    for shard_name in plan.shards:
        missing = tuple(
            dataset
            for dataset in plan.datasets
            if shard_name in outdated
            or not (shard_name in standing[dataset] or (dataset, shard_name) in carried)
        )
        if missing:
            plan.todo.append(Work(plan.shards[shard_name], missing))
    # The longest first, so that actors end together.
    plan.todo.sort(key=lambda work: (-work_seconds(work, plan.job), work.shard.id))
    for dataset in plan.datasets:
        plan.superseded[dataset] = [
            entry for shard, entry in standing[dataset].items() if shard not in plan.shards
        ]


def audio_seconds(work: Work) -> float:
    """Return the seconds of audio that are expected of a shard."""
    return sum(span.planned / span.header.rate_hz for span in work.shard.spans)


def work_seconds(work: Work, job: Job) -> float:
    """Return the encoder seconds of a shard, channels counted."""
    cutting = Cutting(None, 0.0, job.input.time_expansion, job.input.channels)
    return sum(encoder_seconds(span, cutting) for span in work.shard.spans)


def _notes(plan: Plan) -> list[str]:
    """Return warnings: what cannot be read, what an encoder cannot hear, what a precision does not keep."""
    unreadable = plan.listing.unreadable
    notes = [f"{name}: {unreadable[name].detail}" for name in sorted(unreadable)[:N_NAMED]]
    if len(unreadable) > N_NAMED:
        notes.append(f"{len(unreadable) - N_NAMED:,} more cannot be read, see failures/")
    expansion = plan.job.input.time_expansion
    rates = plan.ledger.lengths()[1]
    for rate_hz in sorted({encoder.facts.rate_hz for encoder in plan.encoders}):
        names = ", ".join(e.name for e in plan.encoders if e.facts.rate_hz == rate_hz)
        hears = rate_hz / 2 * expansion
        deaf = rates[rates / 2 > 2 * hears]
        if len(deaf):
            fastest = int(deaf.max())
            notes.append(
                f"{names}: up to {hears / 1000:g} kHz is heard, {len(deaf)} recordings hold up to "
                f"{fastest / 2000:g} kHz; set input.time_expansion: {-(-fastest // rate_hz)} to keep "
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
