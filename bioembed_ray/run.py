"""One run: lease, plan, stream, account, make current. Killed anywhere, the next run goes on."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from bioembed_ray import cluster, current, lease, probing, signals, storage, stream, summary
from bioembed_ray.carry_over import carry_over
from bioembed_ray.codebooks import wanted
from bioembed_ray.codebooks.archive import describe_codebooks
from bioembed_ray.codebooks.standing import name_parts, namings
from bioembed_ray.config import Job
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.encoders.precision import is_emulated
from bioembed_ray.errors import Reason, StorageError, WeightsError
from bioembed_ray.in_flight import UnderWay
from bioembed_ray.ledger import ledger_file
from bioembed_ray.plan import Plan, Work, audio_seconds, list_again, make_plan, work_seconds
from bioembed_ray.pools import plan_pools
from bioembed_ray.progress import Progress
from bioembed_ray.store import stores
from bioembed_ray.store.watch import StoreWatch
from bioembed_ray.summary import Tally
from bioembed_ray.threads import in_turn
from bioembed_ray.versions import plan_encoder
from bioembed_ray.vqvae.wanted import missing_models
from bioembed_ray.vqvae_training import train_model
from bioembed_ray.work import Receipt

Goal = Literal["all", "embeddings", "models", "codebooks", "tokens"]

DELETE_THREADS = 16
# A store that refuses this many parts in a row is full or closed, not flaky.
MAX_PUT_ERRORS = 3


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Attributes:
        plan: What it set out to do, with the ledger as it now is.
        tally: What it did.
        failed_fraction: Share of the input that failed for good.
        exit_code: 0 done, 1 shards left uncommitted, 3 too many failures.
    """

    plan: Plan
    tally: Tally
    failed_fraction: float
    exit_code: int


def run_job(job: Job, say: Callable[[str], None], goal: Goal = "all") -> Result:
    """Bring the output up to date with the input.

    Args:
        job: What is wanted.
        say: Takes messages, one line each.
        goal: `all`; `embeddings` leaves codebooks aside; `models` trains what is missing and stops, `codebooks` fits what is missing and
            stops; `tokens` leaves embeddings that are missing alone where tokens do not need them.

    Raises:
        LockedError: another run holds the output, or took it over.
        ConfigError, InputError, WeightsError: the caller can put it right.
        StorageError: the output cannot be written.
    """
    stores.announce(job.storage, job.output)
    storage.check_writable(job.output)
    with signals.stopping(), lease.hold(job.output, "bioembed run") as lost:
        plan = make_plan(job, probing.probe_recordings, probing.list_members)
        for note in plan.notes:
            say(f"warning: {note}")
        for name, reason in current.reasons(job.output, plan.encoders):
            say(f"{name}: {reason}; its current version stays until the new one is complete")
        # The shards are entered before any work: a killed run is taken up with the same ones.
        ledger_file.save(job.output, plan.ledger)
        tally = Tally()
        carry_over(plan, plan.carries, tally, lost, say)
        _models(plan, tally, lost, say, goal)
        if job.codebooks and goal not in {"embeddings", "models"}:
            _codebooks(plan, tally, lost, say, goal)
            # What was named from standing vectors is known to nobody else yet.
            ledger_file.save(job.output, plan.ledger)
        _narrow(plan, goal)
        if plan.todo:
            _work(plan, plan.todo, tally, lost, say)
        if plan.todo or tally.n_carried:
            lost.check()
            ledger_file.save(job.output, plan.ledger)
        return _finish(plan, tally, job.codebooks if goal in {"embeddings", "models"} else ())


def _narrow(plan: Plan, goal: Goal) -> None:
    """Leave in the plan what the goal is about."""
    if goal in {"all", "embeddings"}:
        return
    plan.todo = [
        replace(work, datasets=named)
        for work in plan.todo
        if (named := tuple(d for d in work.datasets if d.table == "tokens" and goal == "tokens"))
    ]
    plan.goal = tuple(d for d in plan.datasets if d.table == "tokens" and goal == "tokens")


def _models(
    plan: Plan, tally: Tally, lost: lease.Lost, say: Callable[[str], None], goal: Goal
) -> None:
    """Train the VQ-VAEs that are missing on patches of some shards; then plan the rest with them."""
    job = plan.job
    missing = missing_models(plan)
    if not missing:
        return
    fitted_on = {codebook.encoder for codebook in job.codebooks.values()}
    for one in missing:
        name = one.training.name
        if goal == "codebooks" and name not in fitted_on:
            continue
        carry_over(plan, plan.carries_into([one.source]), tally, lost, say)
        standing = plan.standing(one.source)
        todo = [Work(plan.shards[s], (one.source,)) for s in one.shards if s not in standing]
        if todo:
            say(f"{name}: making patches of {len(todo)} shards to train on")
            _work(plan, todo, tally, lost, say, (one.patches,))
            ledger_file.save(job.output, plan.ledger)
        lost.check()
        found = plan.standing(one.source)
        sources = [found[shard] for shard in one.shards if shard in found]
        card = train_model(one.training, sources, one.groups)
        say(f"{name}: {card['verdict']}")
        _delete(found.values())
        plan.listed.pop(one.source, None)
    encoders = (plan_encoder(name, job) for name in job.encoders)
    list_again(plan, tuple(encoder for encoder in encoders if not encoder.is_untrained))
    carry_over(plan, plan.carries, tally, lost, say)


def _codebooks(
    plan: Plan,
    tally: Tally,
    lost: lease.Lost,
    say: Callable[[str], None],
    goal: Goal,
) -> None:
    """Fit the codebooks that are missing on some shards, and name what stands; then plan the rest."""
    job = plan.job
    codebooks = wanted.wanted_codebooks(job, plan.encoders)
    for name, reason in wanted.codebook_reasons(job.output, codebooks, plan.encoders):
        say(f"{name}: {reason}; its current tokens stay until the new ones are complete")
    encoders, missing = wanted.with_tokens(plan.encoders, codebooks)
    carry_over(plan, plan.carries_into(plan.fit_frames), tally, lost, say)
    if missing:
        # Only here torch is needed: a driver that fits nothing starts in half the time without.
        from bioembed_ray.codebooks.fit import fit_codebook

        todo = wanted.fit_work(plan, missing)
        if todo:
            names = ", ".join(w.fit.name for w in missing)
            say(f"codebooks {names}: encoding {len(todo)} shards to fit on")
            _work(plan, todo, tally, lost, say)
            ledger_file.save(job.output, plan.ledger)
        for one in missing:
            lost.check()
            found = plan.standing(one.source)
            sources = [found[shard] for shard in wanted.shards_of(plan, one) if shard in found]
            card = fit_codebook(one.fit, sources, one.groups(plan.ledger))
            say(f"codebook {one.fit.name}: {card['verdict']}")
        encoders, _ = wanted.with_tokens(plan.encoders, codebooks)
    list_again(plan, encoders)
    carry_over(plan, plan.carries, tally, lost, say)
    if goal == "codebooks":
        return
    todo_names = namings(plan)
    if todo_names:
        cluster.connect()
        say(f"tokens: naming {len(todo_names)} parts of standing vectors")
        for outcome in name_parts(job, todo_names):
            plan.ledger.absorb(outcome)
            plan.listed.pop(outcome.dataset, None)
            tally.n_parts += 1
        list_again(plan, encoders)


def _work(
    plan: Plan,
    todo_list: list[Work],
    tally: Tally,
    lost: lease.Lost,
    say: Callable[[str], None],
    encoders: tuple[PlannedEncoder, ...] | None = None,
) -> None:
    job = plan.job
    cluster.connect()
    signals.stop_here()
    plan.listed.clear()
    resources = cluster.cluster_resources()
    owed = {dataset for work in todo_list for dataset in work.datasets}
    # A model with nothing to do is not loaded.
    needed = [e for e in encoders or plan.encoders if owed & set(e.all_datasets)]
    pools = plan_pools(job, needed, resources, len(todo_list))
    for pool in pools:
        where = f"{pool.gpus:g} GPU" if pool.gpus else f"CPU, {pool.threads} thread(s)"
        names = ", ".join(encoder.name for encoder in pool.encoders)
        tally.gpus |= {encoder.name: pool.gpus for encoder in pool.encoders}
        grows = ", more as the cluster grows" if pool.most_actors > pool.n_actors else ""
        say(f"pool {pool.name}: {pool.n_actors} actor(s){grows} on {where} with {names}")
        for encoder in [] if pool.gpus else pool.encoders:
            if is_emulated(encoder.config.precision):
                say(
                    f"warning: {encoder.name}: this CPU is many times slower in {encoder.config.precision} "
                    f"than in float32, having no instructions for it; set precision: float32"
                )
    todo = {work.shard.id: work for work in todo_list}
    n_put_errors = 0
    started = time.monotonic()
    watch = StoreWatch()
    seconds = {shard: audio_seconds(work) for shard, work in todo.items()}
    under_way = UnderWay(seconds)
    with Progress(sum(seconds.values()), len(seconds), under_way) as progress:
        # Longest first, so that none begins when the others end.
        ordered = sorted(todo_list, key=audio_seconds, reverse=True)
        for receipt in stream.run_stream(job, pools, ordered, under_way.watch):
            lost.check()
            if receipt.load_error is not None:
                raise WeightsError(receipt.load_error)
            work = todo[receipt.shard]
            for outcome in receipt.outcomes:
                plan.ledger.absorb(outcome)
            tally.add(work, receipt, work_seconds(work, job))
            n_failures = len(
                {(f.recording, f.reason) for o in receipt.outcomes for f in o.failures}
            )
            under_way.done(work.shard.id)
            progress.add(audio_seconds(work), n_failures + len(receipt.failures))
            n_put_errors = n_put_errors + 1 if receipt.put_error else 0
            if receipt.put_error and n_put_errors >= MAX_PUT_ERRORS:
                raise _given_up(plan, receipt.put_error)
            try:
                watch.note(_unread(work, receipt))
            except StorageError as error:
                raise _given_up(plan, str(error)) from error
    tally.wall_s += time.monotonic() - started


def _unread(work: Work, receipt: Receipt) -> str | None:
    """Return where the recording is that the store failed on, None where it did not."""
    failed = {f.recording for f in receipt.failures if f.reason is Reason.STORAGE}
    uris = (span.source.uri for span in work.shard.spans if span.recording in failed)
    return next(uris, None)


def _given_up(plan: Plan, why: str) -> StorageError:
    """Return what to say of a store that is full, closed or gone, after saving the ledger if possible."""
    hint = ""
    try:
        ledger_file.save(plan.job.output, plan.ledger)
    except StorageError:
        hint = "; the ledger could not be saved either"
    return StorageError(f"{why}; what was put stays, run again{hint}")


def _finish(plan: Plan, tally: Tally, held_back: Iterable[str]) -> Result:
    """Delete what was superseded, move `current.json`, write the run's record."""
    accounted = plan.ledger.accounted()
    complete = {
        dataset
        for dataset in plan.datasets
        if all((dataset, shard) in accounted for shard in plan.shards)
    }
    _delete(entry for dataset in complete for entry in plan.superseded.get(dataset, ()))
    if len(complete) == len(plan.datasets):
        _delete(entry for dataset in plan.fit_frames for entry in plan.standing(dataset).values())
    describe_codebooks(plan, complete, bool(tally.n_parts))
    finished = [encoder for encoder in plan.encoders if set(encoder.datasets) <= complete]
    if plan.shards:
        current.move_current(plan.job.output, finished, held_back)
    fraction = summary.failed_fraction(plan.ledger, plan.datasets, plan.job.input.channels)
    waiting = plan.ledger.waiting()
    tally.waiting = [failure.line for failure in waiting]
    owed = plan.datasets if plan.goal is None else plan.goal
    if not set(owed) <= complete or tally.uncommitted or waiting:
        exit_code = 1
    else:
        exit_code = 3 if fraction > plan.job.max_failed_fraction else 0
    run_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(3)
    summary.write_record(plan, tally, run_id, exit_code)
    return Result(plan, tally, fraction, exit_code)


def _delete(entries: Iterable[storage.ObjectInfo]) -> None:
    for _ in in_turn(storage.delete, ((entry.uri,) for entry in entries), DELETE_THREADS):
        pass
