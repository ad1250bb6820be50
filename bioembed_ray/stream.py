"""The stream on Ray Data: shards -> decode -> encoder pools -> parts, and receipts to the driver.

One row is one shard, so that Ray's retries and back-pressure act on what is committed. An actor
puts its own parts; vectors never cross the object store. Errors of one recording are values, never
exceptions, because a raising row would abort the run or drop a block.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from bioembed_ray.config import Job
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.encode_actor import EncodeActor
from bioembed_ray.errors import BioembedError
from bioembed_ray.in_flight import Ask, InFlight
from bioembed_ray.plan import Work
from bioembed_ray.pools import DECODE_CPUS, PoolPlan
from bioembed_ray.shard_audio import decode_shard, transient
from bioembed_ray.transport import flatten
from bioembed_ray.work import Receipt

# glibc gives large blocks back to the system and asks for them again, so that the activations of every
# batch are made of new pages: a seventh of HuBERT's time on a CPU. Kept, they hold the process at its
# peak. Read by malloc when a process starts. (Before 2.35 a threshold for large blocks would be ignored
# above 32 MB; that there are none is understood by all.)
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
# A shard whose worker died this often is taken apart.
MAX_ATTEMPTS = 3
# How long the progress line waits to hear how far the shards under way are.
ASK_S = 2.0


def run_stream(
    job: Job,
    pools: Sequence[PoolPlan],
    todo: Sequence[Work],
    watch: Callable[[Ask], None],
) -> Iterator[Receipt]:
    """Stream shards through decode and the pools; yields one receipt per shard, as they come.

    `watch` is given what can be asked how far the shards under way are.

    Shards whose worker keeps dying are taken apart at the end: their spans run alone, those that
    kill again are named `crashed`, and the rest of the shard is done without them.
    """
    poisoned: list[Work] = []
    by_shard = {work.shard.id: work for work in todo}
    for receipt in _stream(job, pools, todo, MAX_ATTEMPTS, watch):
        if receipt.is_poisoned:
            poisoned.append(by_shard[receipt.shard])
        else:
            yield receipt
    if poisoned:
        crashed = _find_killers(job, pools, poisoned)
        spared = [replace(work, crashed=crashed[work.shard.id]) for work in poisoned]
        yield from _stream(job, pools, spared, MAX_ATTEMPTS, watch)


def _find_killers(
    job: Job, pools: Sequence[PoolPlan], poisoned: Sequence[Work]
) -> dict[str, tuple[int, ...]]:
    """Return, by shard, the spans that kill a worker on their own."""
    places: dict[str, tuple[str, int]] = {}
    alone = []
    for work in poisoned:
        for number, span in enumerate(work.shard.spans):
            trial = replace(work, shard=replace(work.shard, spans=(span,)))
            places[trial.shard.id] = work.shard.id, number
            alone.append(trial)
    small = [replace(pool, n_actors=1, most_actors=1) for pool in pools]
    killers: dict[str, list[int]] = {work.shard.id: [] for work in poisoned}
    # Twice: once may have been bad luck, such as a machine that went away.
    for receipt in _stream(job, small, alone, 2, is_trial=True):
        if receipt.is_poisoned:
            shard, number = places[receipt.shard]
            killers[shard].append(number)
    return {shard: tuple(sorted(numbers)) for shard, numbers in killers.items()}


def _stream(
    job: Job,
    pools: Sequence[PoolPlan],
    todo: Sequence[Work],
    max_attempts: int,
    watch: Callable[[Ask], None] = lambda _ask: None,
    is_trial: bool = False,
) -> Iterator[Receipt]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Decoding starts while the actors load their models. That all of them fit was checked before;
    # while they wait for another job's GPUs the progress line says that nothing is encoded yet.
    context.wait_for_min_actors_s = -1
    # A shard may take hours on a CPU; the attempts below and our own progress line watch instead.
    context.execution_no_progress_timeout_s = -1
    # Tasks in flight per running call: 1 in a busy pool on CPU, 1.5 on GPU. Ray's own 1.75 would never
    # be reached, so that no pool would ever grow.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # On the driver's own machine: a count must not be lost with some other one.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    in_flight = (
        ray.remote(InFlight)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(max_attempts)
    )
    watch(lambda done: _shares(in_flight, done))
    encoders = tuple(encoder for pool in pools for encoder in pool.encoders)
    rows = [{"work": pickle.dumps(work)} for work in todo]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_row,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1.0 if any(pool.gpus for pool in pools) else DECODE_CPUS,
        fn_kwargs={"encoders": encoders, "job": job, "in_flight": in_flight},
    )
    for number, pool in enumerate(pools):
        # On a GPU one shard is encoded while the one before is written and the next one waits. On a
        # CPU that saves nothing, and a shard that waits for a busy actor cannot go to a free one. In
        # a trial one at a time, so that nobody dies beside the killer.
        n_calls, n_waiting = (2, 1) if pool.gpus and not is_trial else (1, 0)
        stream = stream.map_batches(
            EncodeActor,
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            memory=pool.memory or None,
            runtime_env=None if pool.gpus else {"env_vars": KEEP_MEMORY},
            compute=ActorPoolStrategy(
                min_size=pool.n_actors,
                max_size=pool.most_actors,
                max_concurrent_calls_per_actor=n_calls,
                enable_true_multi_threading=True,
                max_tasks_in_flight_per_actor=n_calls + n_waiting,
            ),
            fn_constructor_kwargs={
                "pool": pool,
                "job": job,
                "in_flight": in_flight,
                "part": (number, len(pools)),
                "is_trial": is_trial,
            },
        )
    try:
        for batch in stream.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for body in batch.column("receipt").to_pylist():
                yield pickle.loads(body)
    except ray.exceptions.RayTaskError:
        raise  # an error of ours, which needs its traceback
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:300]
        raise BioembedError(f"the Ray cluster failed ({text}); run again to go on") from error
    finally:
        # However it ends: whoever may still ask keeps it alive, a process per stream of a run.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(in_flight)


def _shares(in_flight: Any, done: Sequence[str]) -> dict[str, float] | None:
    """Return how far the shards under way are; None where the cluster has no time to say."""
    import ray

    try:
        shares: dict[str, float] = ray.get(in_flight.shares.remote(list(done)), timeout=ASK_S)
    except ray.exceptions.RayError:
        return None
    return shares


def decode_row(
    batch: pa.Table, encoders: tuple[PlannedEncoder, ...], job: Job, in_flight: Any
) -> pa.Table:
    """Decode the shard of a row: work in; work, waveforms, index and an open receipt out."""
    import ray

    body = batch.column("work")[0].as_py()
    work: Work = pickle.loads(body)
    receipt = Receipt(work.shard.id)
    if not ray.get(in_flight.begin.remote("decode", work.shard.id)):
        receipt.is_poisoned = True
        return _row(body, receipt, [])
    started = time.perf_counter()
    audios = decode_shard(work, encoders, job)
    receipt.seconds["decode"] = time.perf_counter() - started
    receipt.failures = transient(work, audios)
    # Nothing of this shard will be committed now, so nothing needs to be encoded.
    return _row(body, receipt, [] if receipt.failures else audios)


def _row(work: bytes, receipt: Receipt, audios: Any) -> pa.Table:
    index, flat = flatten(audios)
    offsets = pa.array([0, len(flat)], pa.int64())
    return pa.table(
        {
            "work": pa.array([work], pa.binary()),
            "receipt": pa.array([pickle.dumps(receipt)], pa.binary()),
            "index": pa.array([index], pa.binary()),
            # A large list of one row crosses the object store without a copy.
            "waves": pa.LargeListArray.from_arrays(offsets, pa.array(flat)),
        }
    )
