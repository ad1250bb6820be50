"""The stream on Ray Data: shards -> decode -> encoder pools -> parts, and receipts to the driver.

One row is one shard, so that Ray's retries and back-pressure act on what is committed. An actor
puts its own parts; vectors never cross the object store. Errors of one recording are values, never
exceptions, because a raising row would abort the run or drop a block.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from bioembed_ray.config import Job
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.encoders.base import Encoder
from bioembed_ray.errors import BioembedError
from bioembed_ray.plan import Work
from bioembed_ray.pools import DECODE_CPUS, PoolPlan
from bioembed_ray.shard_audio import decode_shard, transient
from bioembed_ray.transport import flatten, unflatten
from bioembed_ray.work import Receipt, encode_shard

# glibc gives large blocks back to the system and asks for them again, so that the activations of every
# batch are made of new pages: a seventh of HuBERT's time on a CPU. Kept, they hold the process at its
# peak. Read by malloc when a process starts.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
# A shard whose worker died this often is taken apart.
MAX_ATTEMPTS = 3


def run_stream(job: Job, pools: Sequence[PoolPlan], todo: Sequence[Work]) -> Iterator[Receipt]:
    """Stream shards through decode and the pools; yields one receipt per shard, as they come.

    Shards whose worker keeps dying are taken apart at the end: their spans run alone, those that
    kill again are named `crashed`, and the rest of the shard is done without them.
    """
    poisoned: list[Work] = []
    by_shard = {work.shard.id: work for work in todo}
    for receipt in _stream(job, pools, todo, MAX_ATTEMPTS):
        if receipt.is_poisoned:
            poisoned.append(by_shard[receipt.shard])
        else:
            yield receipt
    if poisoned:
        crashed = _find_killers(job, pools, poisoned)
        spared = [replace(work, crashed=crashed[work.shard.id]) for work in poisoned]
        yield from _stream(job, pools, spared, MAX_ATTEMPTS)


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
    attempts = (
        ray.remote(Attempts)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(max_attempts)
    )
    encoders = tuple(encoder for pool in pools for encoder in pool.encoders)
    rows = [{"work": pickle.dumps(work)} for work in todo]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_row,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1.0 if any(pool.gpus for pool in pools) else DECODE_CPUS,
        fn_kwargs={"encoders": encoders, "job": job, "attempts": attempts},
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
                "attempts": attempts,
                "is_last": number == len(pools) - 1,
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


class Attempts:
    """Counts how often each shard was begun, so that one that kills its worker is given up."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun: dict[tuple[str, str], int] = {}

    def begin(self, stage: str, shard: str) -> bool:
        """Count one attempt; return False where there were enough."""
        count = self._begun.get((stage, shard), 0) + 1
        self._begun[stage, shard] = count
        return count <= self._limit


def decode_row(
    batch: pa.Table, encoders: tuple[PlannedEncoder, ...], job: Job, attempts: Any
) -> pa.Table:
    """Decode the shard of a row: work in; work, waveforms, index and an open receipt out."""
    import time

    import ray

    body = batch.column("work")[0].as_py()
    work: Work = pickle.loads(body)
    receipt = Receipt(work.shard.id)
    if not ray.get(attempts.begin.remote("decode", work.shard.id)):
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


def load_codes(encoders: Sequence[PlannedEncoder], device: str) -> dict[str, Any]:
    """Return the centroids of every codebook applied to some encoders, by name."""
    from bioembed_ray.codebooks.card import read_codebook
    from bioembed_ray.codebooks.nearest import make_codes

    codes = {}
    for tokens in (t for e in encoders for output in e.outputs for t in output.tokens):
        codebook = read_codebook(tokens.folder)
        codes[tokens.name] = make_codes(codebook.centroids, codebook.metric, device)
    return codes


class EncodeActor:
    """Holds the encoders of a pool; takes decoded shards, puts their parts, passes receipts on."""

    def __init__(
        self, pool: PoolPlan, job: Job, attempts: Any, is_last: bool, is_trial: bool
    ) -> None:
        import torch

        from bioembed_ray.encoders import registry

        torch.set_num_threads(pool.threads)
        self._device = "cuda" if pool.gpus else "cpu"
        self._pool, self._job, self._attempts = pool, job, attempts
        self._is_last, self._is_trial = is_last, is_trial
        self._busy = threading.Lock()
        self._encoders: list[tuple[PlannedEncoder, Encoder]] = []
        self._load_error: str | None = None
        for planned in pool.encoders:
            try:
                encoder = registry.load(
                    planned.name, planned.config, planned.checkpoint, self._device
                )
            # Whatever it is, the driver says it in one line: a constructor that raises reaches it
            # as pages of Ray's traceback.
            except Exception as error:  # noqa: BLE001
                text = " ".join(str(error).split())[:500]
                kind = "" if isinstance(error, BioembedError) else f"{type(error).__name__}: "
                self._load_error = f"{planned.name} cannot be loaded on a worker: {kind}{text}"
                break
            self._encoders.append((planned, encoder))
        self._codes = load_codes(pool.encoders, self._device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode the shard of a row."""
        import ray

        work: Work = pickle.loads(batch.column("work")[0].as_py())
        receipt: Receipt = pickle.loads(batch.column("receipt")[0].as_py())
        receipt.node = ray.get_runtime_context().get_node_id()
        if self._load_error is not None:
            receipt.load_error = self._load_error
        elif not (receipt.is_poisoned or receipt.failures or receipt.put_error):
            with self._busy:
                # Counted when it starts for real: a shard that only waits here is innocent.
                allowed = ray.get(self._attempts.begin.remote(self._pool.name, work.shard.id))
            if allowed:
                self._encode(batch, work, receipt)
            else:
                receipt.is_poisoned = True
        done = pa.array([pickle.dumps(receipt)], pa.binary())
        if self._is_last:
            return pa.table({"receipt": done})
        return batch.set_column(batch.schema.get_field_index("receipt"), "receipt", done)

    def _encode(self, batch: pa.Table, work: Work, receipt: Receipt) -> None:
        flat = batch.column("waves").chunk(0).values.to_numpy(zero_copy_only=True)
        audios = unflatten(batch.column("index")[0].as_py(), flat)
        for planned, encoder in self._encoders:
            encode_shard(
                work,
                audios,
                planned,
                encoder,
                self._device,
                self._job,
                receipt,
                self._busy,
                self._is_trial,
                self._codes,
            )
            if receipt.failures or receipt.put_error:
                return
