"""`plan` for people: what a run would do, why, how long it would take; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bioembed_ray.codebooks.wanted import Wanted, codebook_reasons, shards_of
from bioembed_ray.current import reasons
from bioembed_ray.datasets import Dataset, Output, PlannedEncoder, Tokens
from bioembed_ray.parts import weights_stamp
from bioembed_ray.plan import Plan, Work, audio_seconds, work_seconds
from bioembed_ray.progress import duration, hours
from bioembed_ray.summary import last_record
from bioembed_ray.vqvae.wanted import missing_models

# Ids up to here are stored in two bytes.
MOST_SHORT_IDS = np.iinfo(np.int16).max


def describe_plan(
    plan: Plan, missing: Sequence[Wanted] = (), codebooks: Sequence[Wanted] = ()
) -> Iterator[str]:
    """Yield what a run would do, line by line.

    Args:
        plan: The plan, with tokens of the codebooks that stand.
        missing: Codebooks that it would fit first.
        codebooks: All codebooks of the job.
    """
    job, changes = plan.job, plan.changes
    n_samples, rate_hz = plan.ledger.lengths()
    n_known, total = len(plan.ledger.known), float((n_samples / rate_hz).sum())
    yield f"input      {n_known} recordings, {hours(total)} of audio, {n_known - len(rate_hz)} unreadable"
    yield f"           {changes.n_new} new, {changes.n_changed} changed, {changes.n_removed} removed"
    if plan.listing.left_out:
        yield f"left out   {plan.listing.left_out}"
    todo_s = sum(audio_seconds(work) for work in plan.todo)
    yield f"to do      {len(plan.todo)} of {len(plan.shards)} shards, {hours(todo_s)} of audio"
    if plan.carries:
        shards = {carry.shard for carry in plan.carries}
        names = {span.recording for shard in shards for span in plan.shards[shard].spans}
        yield (
            f"carry over rows of {len(names)} recordings, neighbours of what changed or was removed, into "
            f"{len(plan.carries)} new parts; nothing of them is encoded"
        )
    record = last_record(job.output) if plan.todo else None
    for encoder in plan.encoders:
        yield from _describe_encoder(plan, encoder, record or {})
    for name, reason in reasons(job.output, plan.encoders):
        yield f"{name:<10} anew: {reason}"
    for name, reason in codebook_reasons(job.output, codebooks, plan.encoders):
        yield f"{name:<10} anew: {reason}"
    for model in missing_models(plan):
        yield (
            f"{model.training.name:<10} VQ-VAE to train: {model.training.config.codes} codes, on up to "
            f"{model.training.config.patches:,} patches of {len(model.shards)} shards; then codes of all"
        )
    for wanted in missing:
        n_drawn = len(shards_of(plan, wanted))
        yield (
            f"{wanted.fit.name:<10} codebook to fit: {wanted.fit.rule.clusters} clusters of {wanted.fit.encoder}, "
            f"on up to {wanted.fit.sample.frames:,} frames of {n_drawn} shards; then tokens of all, about "
            f"{_token_bytes(plan, wanted.encoder, wanted.fit.name, plan.shards) / 1e6:.3g} MB"
        )
    for encoder in plan.encoders:
        for tokens in (tokens for output in encoder.outputs for tokens in output.tokens):
            yield from _describe_tokens(plan, encoder, tokens)
    n_superseded = sum(len(entries) for entries in plan.superseded.values())
    if n_superseded:
        yield f"to delete  {n_superseded} parts of shards that are wanted no more, once the new ones stand"
    estimate = _estimate(plan, record or {})
    if estimate is not None:
        yield f"estimate   {estimate}"
    elif plan.todo:
        yield "estimate   none yet: no run on this output has been measured"
    for note in plan.notes:
        yield f"warning    {note}"
    yield f"output     {job.output}"


def _owing(plan: Plan, datasets: Sequence[Dataset]) -> list[Work]:
    return [work for work in plan.todo if set(work.datasets) & set(datasets)]


def _recordings(plan: Plan, owing: Sequence[Work]) -> str:
    """Return how many recordings lie in shards, and how many of these are new or changed."""
    names = {span.recording for work in owing for span in work.shard.spans}
    n_new, n_changed = len(names & plan.changes.new), len(names & plan.changes.changed)
    n_again = len(names) - n_new - n_changed
    seconds = sum(audio_seconds(work) for work in owing)
    return (
        f"{len(names)} recordings ({n_new} new, {n_changed} changed, {n_again} that stood), "
        f"{hours(seconds)} of audio"
    )


def _describe_encoder(plan: Plan, encoder: PlannedEncoder, record: dict[str, Any]) -> Iterator[str]:
    job = plan.job
    spans = plan.ledger.spans()
    heard = spans.planned * encoder.facts.rate_hz * job.input.time_expansion / spans.rate_hz
    counts = np.ceil(heard / encoder.rule.hop).astype(np.int64)
    if job.input.channels == "each":
        counts *= spans.channels
    for output in encoder.outputs:
        owing = _owing(plan, [one for one in (output.frames, output.embeddings) if one])
        missing = {work.shard.id for work in owing}
        n_windows, n_missing = int(counts.sum()), int(counts[spans.is_in(missing)].sum())
        n_bytes = _vector_bytes(plan, encoder, output, owing, n_missing)
        size = "" if n_bytes is None else f", about {n_bytes / 1e6:.3g} MB to write"
        yield (
            f"{output.name:<10} version {output.embeddings.version}: {n_windows} windows, {n_missing} to compute"
            f"{size} ({weights_stamp(encoder)})"
        )
        if owing:
            worker_s = _worker_seconds(plan, encoder, owing, record)
            cost = "" if worker_s is None else f", {_cost(worker_s, encoder, record)}"
            yield f"{'':<10} {_recordings(plan, owing)}{cost}"


def _vector_bytes(
    plan: Plan, encoder: PlannedEncoder, output: Output, owing: Sequence[Work], n_windows: int
) -> int | None:
    """Return the bytes of vectors before compression, None where nobody knows their dimension."""
    job, dim = plan.job, encoder.facts.dim
    if dim is None:
        return None
    n_bytes = n_windows * dim * (2 if job.embedding_dtype == "float16" else 4)
    if output.frames is not None:
        seconds = sum(work_seconds(work, job) for work in owing)
        n_frames = int(seconds * _per_second(encoder))
        n_bytes += n_frames * dim * (2 if job.frame_dtype == "float16" else 4)
    return n_bytes


def _per_second(encoder: PlannedEncoder) -> float:
    """Return the frames in a second of what the encoder hears, or its windows where it has no frames."""
    grid = encoder.facts.grid
    if grid is None:
        return encoder.facts.rate_hz / encoder.rule.hop
    return encoder.facts.rate_hz / grid.stride * grid.per_step


def _describe_tokens(plan: Plan, encoder: PlannedEncoder, tokens: Tokens) -> Iterator[str]:
    owing = _owing(plan, [tokens.dataset])
    size = _token_bytes(plan, encoder, tokens.name, {work.shard.id for work in owing})
    about = f", about {size / 1e6:.3g} MB to write" if owing else ""
    yield f"{tokens.name:<10} tokens {tokens.dataset.version}: {len(owing)} shards to name{about}"
    if owing:
        yield f"{'':<10} {_recordings(plan, owing)}"


def _token_bytes(plan: Plan, encoder: PlannedEncoder, name: str, shards: Iterable[str]) -> float:
    """Return the bytes of a codebook's tokens in some shards, before compression."""
    spans = plan.ledger.spans()
    chosen = spans.is_in(shards)
    seconds = spans.planned[chosen] * plan.job.input.time_expansion / spans.rate_hz[chosen]
    if plan.job.input.channels == "each":
        seconds = seconds * spans.channels[chosen]
    codebook = plan.job.codebooks.get(name)
    width = 4 if codebook is not None and codebook.clusters > MOST_SHORT_IDS else 2
    return float(seconds.sum()) * _per_second(encoder) * width


def _worker_seconds(
    plan: Plan, encoder: PlannedEncoder, owing: Sequence[Work], record: dict[str, Any]
) -> float | None:
    """Return the seconds of one actor, at the rate of a run that was measured; None without one."""
    rate = record.get("audio_s_per_worker_s", {}).get(encoder.name)
    return sum(work_seconds(work, plan.job) for work in owing) / rate if rate else None


def _cost(worker_s: float, encoder: PlannedEncoder, record: dict[str, Any]) -> str:
    """Return what the seconds of one actor are, in the device that it computed on."""
    gpus = record.get("gpus_per_worker", {}).get(encoder.name)
    if gpus is None:
        return f"about {duration(worker_s)} of one actor"
    device = "GPU" if gpus else "CPU"
    return f"about {worker_s * (gpus or 1) / 3600:.3g} {device}-hours"


def _estimate(plan: Plan, record: dict[str, Any]) -> str | None:
    """Return the time a run would take, from rates measured on this output."""
    worker_s = 0.0
    for encoder in plan.encoders:
        seconds = _worker_seconds(plan, encoder, _owing(plan, encoder.datasets), record)
        if seconds is None:
            return None
        worker_s += seconds
    if not plan.todo:
        return None
    return f"{duration(worker_s)} of one actor, at the rates of run {record['run']}"
