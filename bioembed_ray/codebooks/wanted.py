"""Which codebooks a job wants, which of them stand, and which shards a fit draws on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from bioembed_ray import storage
from bioembed_ray.codebooks.card import CODEBOOK_KEY
from bioembed_ray.codebooks.fit_steps import FIT_VERSION, Fit
from bioembed_ray.codebooks.lloyd import LloydRule
from bioembed_ray.codebooks.sample import SampleRule
from bioembed_ray.config import Job
from bioembed_ray.errors import ConfigError, NotFoundError
from bioembed_ray.ledger import Ledger
from bioembed_ray.plan import Plan, Work
from bioembed_ray.summary import read_current
from bioembed_ray.versions import Dataset, Output, PlannedEncoder, Tokens, digest

# A fit draws on whole shards; twice the frames it takes leaves it a choice between them.
SURPLUS = 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """A codebook of the job.

    Attributes:
        fit: What decides it, and where it goes.
        encoder: The encoder.
        source: Whose parts are fitted on: all frames of some shards, or window vectors.
    """

    fit: Fit
    encoder: PlannedEncoder
    source: Dataset


def wanted_codebooks(job: Job, encoders: tuple[PlannedEncoder, ...]) -> list[Wanted]:
    """Return the job's codebooks with versions settled."""
    if not job.codebooks:
        return []
    current = read_current(job.output).get("codebooks", {})
    outputs = {output.name: (encoder, output) for encoder in encoders for output in encoder.outputs}
    found = []
    for name, config in job.codebooks.items():
        encoder, output = outputs[config.encoder]
        source = output.embeddings if output.fit_frames is None else output.fit_frames
        content = {**config.model_dump(), "source": source.version, "fit": FIT_VERSION}
        version = digest(content)
        last = current.get(name, {}).get("codebook")
        fit = Fit(
            name=name,
            version=version,
            encoder=output.name,
            encoder_version=source.version,
            layer=output.layer,
            folder=folder_of(job.output, name, version),
            rule=LloydRule(
                config.clusters, config.metric, config.seed, config.tolerance, config.max_iterations
            ),
            sample=SampleRule(config.fit_frames, config.held_out, balance=config.balance),
            previous=None if last in {None, version} else folder_of(job.output, name, last),
        )
        found.append(Wanted(fit, encoder, source))
    return found


def folder_of(output: str, name: str, version: str) -> str:
    """Return where a codebook stands."""
    return storage.join(output, "codebooks", name, f"version={version}")


def token_dataset(wanted: Wanted) -> Dataset | None:
    """Return where a codebook's tokens go, None where the codebook does not stand.

    The version covers the centroids' bytes: tokens of two fits never mix.
    """
    try:
        body = storage.read(storage.join(wanted.fit.folder, CODEBOOK_KEY))
    except NotFoundError:
        return None
    content = {"codebook": wanted.fit.version, "centroids": hashlib.sha256(body).hexdigest()}
    return Dataset("tokens", wanted.fit.name, digest(content))


def with_tokens(
    encoders: tuple[PlannedEncoder, ...], codebooks: list[Wanted]
) -> tuple[tuple[PlannedEncoder, ...], list[Wanted]]:
    """Return the encoders with every standing codebook applied, and the codebooks that are missing."""
    applied: dict[str, list[Tokens]] = {}
    missing = []
    for wanted in codebooks:
        dataset = token_dataset(wanted)
        if dataset is None:
            missing.append(wanted)
            continue
        tokens = Tokens(wanted.fit.name, wanted.fit.folder, dataset)
        applied.setdefault(wanted.fit.encoder, []).append(tokens)

    def fill(output: Output) -> Output:
        return replace(output, tokens=tuple(applied.get(output.name, ())))

    filled = (replace(e, outputs=tuple(fill(output) for output in e.outputs)) for e in encoders)
    return tuple(filled), missing


def groups_of(ledger: Ledger, wanted: Wanted) -> dict[str, str] | None:
    """Return recording -> value of the column to balance by, None where none is asked for.

    Raises:
        ConfigError: the manifest has no such column.
    """
    column = wanted.fit.sample.balance
    if column is None:
        return None
    labels = {name: entry.recording.labels for name, entry in ledger.known.items()}
    if not any(column in found for found in labels.values()):
        known = sorted({key for found in labels.values() for key in found})
        raise ConfigError(
            f"codebooks.{wanted.fit.name}.balance: got {column!r}; the manifest has "
            f"{', '.join(known) or 'no columns'}"
        )
    return {name: str(found.get(column)) for name, found in labels.items()}


def fit_work(plan: Plan, missing: list[Wanted]) -> list[Work]:
    """Return what must be encoded before the missing codebooks can be fitted.

    All that the shards of a fit owe is done on the way.
    """
    owed = {work.shard.id: list(work.datasets) for work in plan.todo}
    added: dict[str, list[Dataset]] = {}
    for wanted in missing:
        for shard in drawn_shards(plan, wanted):
            if shard not in plan.standing(wanted.source):
                added.setdefault(shard, []).append(wanted.source)
    return [
        Work(plan.shards[shard], tuple(dict.fromkeys([*sources, *owed.get(shard, [])])))
        for shard, sources in added.items()
    ]


def drawn_shards(plan: Plan, wanted: Wanted) -> list[str]:
    """Return the ids of the shards that a fit draws on, ascending.

    They are taken in that order until they hold `SURPLUS` times the frames of the fit, and every
    group its share. Ids are digests, so the order is none of place or time.
    """
    grid = wanted.encoder.facts.grid
    rule, rate_hz = wanted.encoder.rule, wanted.encoder.facts.rate_hz
    step = rule.hop if grid is None else grid.stride / grid.per_step
    per_second = rate_hz * plan.job.input.time_expansion / step
    groups = groups_of(plan.ledger, wanted)
    goal = wanted.fit.sample.frames * SURPLUS / (1 - wanted.fit.sample.held_out)
    names: set[str | None] = {None} if groups is None else set(groups.values())
    shares = dict.fromkeys(names, goal / len(names))
    drawn = []
    for shard in sorted(plan.shards):
        frames: dict[str | None, float] = {}
        for span in plan.shards[shard].spans:
            group = None if groups is None else groups[span.recording]
            n_channels = span.header.channels if plan.job.input.channels == "each" else 1
            seconds = span.promised / span.header.rate_hz
            frames[group] = frames.get(group, 0.0) + seconds * per_second * n_channels
        if not any(shares[group] > 0 for group in frames):
            continue
        drawn.append(shard)
        for group, count in frames.items():
            shares[group] -= count
    return drawn
