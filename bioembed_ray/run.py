"""One run: lease, plan, stream, account, make current. Killed anywhere, the next run goes on."""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from bioembed_ray import cluster, lease, ledger_file, storage, stream, summary
from bioembed_ray.config import Job
from bioembed_ray.errors import LockedError, StorageError, WeightsError
from bioembed_ray.plan import Plan, Work, make_plan, work_seconds
from bioembed_ray.progress import Progress
from bioembed_ray.summary import Tally
from bioembed_ray.work import Receipt

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


def run_job(job: Job, say: Callable[[str], None]) -> Result:
    """Bring the output up to date with the input.

    Args:
        job: What is wanted.
        say: Takes messages, one line each.

    Raises:
        LockedError: another run holds the output, or took it over.
        ConfigError, InputError, WeightsError: the caller can put it right.
        StorageError: the output cannot be written.
    """
    storage.check_writable(job.output)
    with lease.hold(job.output, "bioembed run") as lost:
        plan = make_plan(job, cluster.probe_recordings, cluster.list_members)
        for note in plan.notes:
            say(f"warning: {note}")
        # The shards are entered before any work: a killed run is taken up with the same ones.
        ledger_file.save(job.output, plan.ledger)
        tally = Tally()
        if plan.todo:
            _work(plan, tally, lost, say)
            _check_lease(job, lost)
            ledger_file.save(job.output, plan.ledger)
        return _finish(plan, tally)


def _work(plan: Plan, tally: Tally, lost: threading.Event, say: Callable[[str], None]) -> None:
    job = plan.job
    cluster.connect()
    _stop_on_sigterm()
    resources = cluster.cluster_resources()
    pools = cluster.plan_pools(job, plan.encoders, resources, len(plan.todo))
    for pool in pools:
        where = f"{pool.gpus:g} GPU" if pool.gpus else f"CPU, {pool.threads} thread(s)"
        names = ", ".join(encoder.name for encoder in pool.encoders)
        say(f"pool {pool.name}: {pool.n_actors} actor(s) on {where} with {names}")
    todo = {work.shard.id: work for work in plan.todo}
    n_put_errors = 0
    started = time.monotonic()
    total_s = sum(_audio_seconds(work) for work in plan.todo)
    with Progress(total_s, len(plan.todo)) as progress:
        for receipt in stream.run_stream(job, pools, plan.todo):
            _check_lease(job, lost)
            if receipt.load_error is not None:
                raise WeightsError(receipt.load_error)
            work = todo[receipt.shard]
            _account(plan, tally, work, receipt)
            n_failures = len(
                {(f.recording, f.reason) for o in receipt.outcomes for f in o.failures}
            )
            progress.add(_audio_seconds(work), n_failures + len(receipt.failures))
            n_put_errors = n_put_errors + 1 if receipt.put_error else 0
            if receipt.put_error and n_put_errors >= MAX_PUT_ERRORS:
                is_saved = _try_save(plan)
                hint = "" if is_saved else "; the ledger could not be saved either"
                raise StorageError(f"{receipt.put_error}; what was put stays, run again{hint}")
    tally.wall_s = time.monotonic() - started


def _check_lease(job: Job, lost: threading.Event) -> None:
    if lost.is_set():
        raise LockedError(f"{job.output}: another run took the output over; stopping")


def _try_save(plan: Plan) -> bool:
    try:
        ledger_file.save(plan.job.output, plan.ledger)
    except StorageError:
        return False
    return True


def _account(plan: Plan, tally: Tally, work: Work, receipt: Receipt) -> None:
    for outcome in receipt.outcomes:
        plan.ledger.absorb(outcome)
        if outcome.dataset.table == "embeddings":
            tally.n_checked[outcome.dataset.encoder] += outcome.n_checked
            tally.n_distinct[outcome.dataset.encoder] += outcome.n_distinct
    tally.n_parts += len(receipt.outcomes)
    tally.n_bytes += receipt.n_bytes
    tally.n_shards += 1
    tally.audio_s += _audio_seconds(work)
    for stage, seconds in receipt.seconds.items():
        tally.seconds[stage] = tally.seconds.get(stage, 0.0) + seconds
        if stage not in {"decode", "write"}:
            heard_s = tally.encoder_s.get(stage, 0.0)
            tally.encoder_s[stage] = heard_s + work_seconds(work, plan.job)
    if {outcome.dataset for outcome in receipt.outcomes} != set(work.datasets):
        tally.uncommitted.add(receipt.shard)
        tally.transient += [
            f"{f.recording}: {f.reason.value}: {f.detail}" for f in receipt.failures
        ]
        if receipt.put_error:
            tally.transient.append(receipt.put_error)
        if receipt.is_poisoned:
            names = ", ".join(sorted({span.recording for span in work.shard.spans})[:3])
            tally.transient.append(f"workers kept dying on the shard with {names}")


def _audio_seconds(work: Work) -> float:
    return sum(span.promised / span.header.rate_hz for span in work.shard.spans)


def _finish(plan: Plan, tally: Tally) -> Result:
    """Delete what was superseded, move `current.json`, write the run's record."""
    accounted = plan.ledger.accounted()
    complete = {
        dataset
        for dataset in plan.datasets
        if all((dataset, shard) in accounted for shard in plan.shards)
    }
    for dataset in complete:
        for entry in plan.superseded.get(dataset, []):
            storage.delete(entry.uri)
    finished = [encoder for encoder in plan.encoders if set(encoder.datasets) <= complete]
    if plan.shards:
        summary.move_current(plan.job.output, finished)
    fraction = summary.failed_fraction(plan.ledger, plan.datasets, plan.job.input.channels)
    waiting = [
        entry.failure
        for entry in plan.ledger.known.values()
        if entry.failure is not None and entry.failure.reason.is_transient
    ]
    tally.transient += [f"{f.recording}: {f.reason.value}: {f.detail}" for f in waiting]
    if len(complete) < len(plan.datasets) or waiting:
        exit_code = 1
    else:
        exit_code = 3 if fraction > plan.job.max_failed_fraction else 0
    run_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(3)
    summary.write_record(plan, tally, run_id, exit_code)
    return Result(plan, tally, fraction, exit_code)


def _stop_on_sigterm() -> None:
    """End on SIGTERM as on Ctrl-C, so that the lease is given back; Ray put its own handler."""
    if threading.current_thread() is not threading.main_thread():
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
