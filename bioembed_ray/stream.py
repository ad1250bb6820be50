"""The stream on Ray Data: shards -> decode -> encoder pools -> parts, and receipts to the driver.

One row is one shard, so that Ray's retries and back-pressure act on what is committed. An actor
puts its own parts; vectors never cross the object store. Errors of one recording are values, never
exceptions, because a raising row would abort the run or drop a block.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from bioembed_ray.config import Job, PoolConfig
from bioembed_ray.containers import members
from bioembed_ray.errors import BioembedError, ConfigError, Reason, RecordingError, StorageError
from bioembed_ray.inputs import Container, Recording
from bioembed_ray.plan import Probed, Work
from bioembed_ray.probe import probe
from bioembed_ray.versions import PlannedEncoder
from bioembed_ray.work import (
    Receipt,
    decode_shard,
    encode_shard,
    flatten,
    transient,
    unflatten,
)

# A shard whose worker died this often is taken apart.
MAX_ATTEMPTS = 3
PROBE_BATCH = 32
# A decoding task waits for the disk more than it computes; so several share a core on small machines.
DECODE_CPUS = 0.2
# Loading all weights from a cold hub cache may take this long.
ACTORS_START_S = 1800


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local one.

    Raises:
        ConfigError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        # Without an address Ray would join whatever a stale file in /tmp names.
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"RAY_ADDRESS={address}: cannot join the cluster ({text})") from error


def disconnect() -> None:
    """Leave the cluster; a local one ends with it."""
    import ray

    ray.shutdown()


def probe_recordings(recordings: list[Recording]) -> Iterator[Probed]:
    """Read headers in parallel on the cluster; yields in any order.

    A file that kills its worker is found by splitting the batch, and is left out of the answer.
    """
    yield from _spread(_probe_batch, recordings, PROBE_BATCH)


def list_members(containers: list[Container]) -> Iterator[Recording]:
    """List what is inside tar and Parquet objects, in parallel on the cluster."""
    for found in _spread(_list_batch, containers, 1):
        if isinstance(found, Exception):
            raise found
        yield from found


def _spread(function: Any, entries: Sequence[Any], size: int) -> Iterator[Any]:
    import ray

    connect()
    task = ray.remote(function).options(num_cpus=0.5, max_retries=2)
    batches = [entries[i : i + size] for i in range(0, len(entries), size)]
    batches.reverse()
    pending: dict[Any, Sequence[Any]] = {}
    in_flight = max(4, int(ray.cluster_resources().get("CPU", 1)) * 4)
    while batches or pending:
        while batches and len(pending) < in_flight:
            batch = batches.pop()
            pending[task.remote(batch)] = batch
        ready, _ = ray.wait(list(pending), num_returns=1)
        batch = pending.pop(ready[0])
        try:
            yield from ray.get(ready[0])
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            if len(batch) > 1:
                half = len(batch) // 2
                batches += [batch[:half], batch[half:]]


def _probe_batch(recordings: Sequence[Recording]) -> list[Probed]:
    return [_probe_one(recording) for recording in recordings]


def _probe_one(recording: Recording) -> Probed:
    try:
        header, metadata = probe(recording.source)
    except RecordingError as error:
        return Probed(recording.name, reason=error.reason, detail=error.detail)
    except StorageError as error:
        return Probed(recording.name, reason=Reason.STORAGE, detail=str(error))
    # Foreign decoders on damaged headers; one recording must not stop the run.
    except Exception as error:  # noqa: BLE001
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Probed(recording.name, reason=Reason.DAMAGED, detail=detail)
    return Probed(recording.name, header, metadata)


def _list_batch(containers: Sequence[Container]) -> list[Any]:
    found: list[Any] = []
    for container in containers:
        try:
            found.append(list(members(container)))
        except BioembedError as error:
            found.append(error)
    return found


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool with everything settled.

    Attributes:
        name: Name in the job file.
        encoders: What its actors hold.
        n_actors: How many actors.
        gpus: GPUs per actor.
        cpus: CPU cores per actor.
        threads: Compute threads per actor.
    """

    name: str
    encoders: tuple[PlannedEncoder, ...]
    n_actors: int
    gpus: float
    cpus: float
    threads: int


def plan_pools(
    job: Job, encoders: Sequence[PlannedEncoder], resources: dict[str, float], n_shards: int
) -> list[PoolPlan]:
    """Settle how many actors each pool has, from what the cluster has.

    Checked before the stream starts: a pool that does not fit would wait in silence for ever.

    Raises:
        ConfigError: the pools need more than there is.
    """
    used = [name for name in job.pools if any(e.config.pool == name for e in encoders)]
    total_gpus, total_cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    pools = []
    for name in used:
        config = job.pools[name]
        held = tuple(encoder for encoder in encoders if encoder.config.pool == name)
        gpus = config.gpus if config.gpus is not None else (1.0 if total_gpus else 0.0)
        cpus = config.cpus if config.cpus is not None else (1.0 if gpus else 1.0 - DECODE_CPUS)
        if config.actors != "auto":
            n_actors = config.actors
        else:
            n_actors = _auto_actors(held, config, gpus, len(used), resources)
        n_actors = max(1, min(n_actors, n_shards))
        pools.append(PoolPlan(name, held, n_actors, gpus, cpus, config.threads))
    for kind, have in (("gpus", total_gpus), ("cpus", total_cpus)):
        need = sum(getattr(pool, kind) * pool.n_actors for pool in pools)
        spare = DECODE_CPUS if kind == "cpus" else 0.0
        if need + spare > have + 1e-6:
            names = ", ".join(f"{p.name}: {p.n_actors} × {getattr(p, kind):g}" for p in pools)
            raise ConfigError(
                f"pools ({names} {kind}) need {need + spare:g} {kind}, the cluster has {have:g}; lower "
                f"pools.*.actors or pools.*.{kind}, or add nodes"
            )
    return pools


def _auto_actors(
    held: tuple[PlannedEncoder, ...],
    config: PoolConfig,
    gpus: float,
    n_pools: int,
    resources: dict[str, float],
) -> int:
    if gpus:
        return max(1, int(resources.get("GPU", 0.0) / gpus / n_pools))
    by_cores = max(1, int(resources.get("CPU", 1.0) / config.threads / n_pools))
    # Imports take about 1 GB, a base-sized model 0.4 GB, a shard's waveforms 0.5 GB.
    each = (1.5 + 0.4 * len(held)) * 2**30
    by_memory = max(1, int(resources.get("memory", 4 * each) * 0.8 / each / n_pools))
    return min(by_cores, by_memory)


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
    for work in poisoned:
        crashed = _find_killers(job, pools, work)
        for receipt in _stream(job, pools, [replace(work, crashed=crashed)], MAX_ATTEMPTS):
            yield receipt


def _find_killers(job: Job, pools: Sequence[PoolPlan], work: Work) -> tuple[int, ...]:
    """Return the spans that kill a worker on their own."""
    alone = [replace(work, shard=replace(work.shard, spans=(span,))) for span in work.shard.spans]
    numbers = {trial.shard.id: number for number, trial in enumerate(alone)}
    small = [replace(pool, n_actors=1) for pool in pools]
    receipts = _stream(job, small, alone, 1, is_trial=True)
    return tuple(sorted(numbers[receipt.shard] for receipt in receipts if receipt.is_poisoned))


def _stream(
    job: Job,
    pools: Sequence[PoolPlan],
    todo: Sequence[Work],
    max_attempts: int,
    is_trial: bool = False,
) -> Iterator[Receipt]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.wait_for_min_actors_s = ACTORS_START_S
    # A shard may take hours on a CPU; the attempts below and our own progress line watch instead.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    attempts = ray.remote(Attempts).options(num_cpus=0, max_restarts=-1).remote(max_attempts)
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
        stream = stream.map_batches(
            EncodeActor,
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            compute=ActorPoolStrategy(
                size=pool.n_actors,
                # One shard is encoded while the one before is written and the next one waits.
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
                max_tasks_in_flight_per_actor=3,
            ),
            fn_constructor_kwargs={
                "pool": pool,
                "job": job,
                "attempts": attempts,
                "is_last": number == len(pools) - 1,
                "is_trial": is_trial,
            },
        )
    for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for body in batch.column("receipt").to_pylist():
            yield pickle.loads(body)


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
        self._encoders = [
            (planned, registry.load(planned.name, planned.config, planned.checkpoint, self._device))
            for planned in pool.encoders
        ]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode the shard of a row."""
        import ray

        work: Work = pickle.loads(batch.column("work")[0].as_py())
        receipt: Receipt = pickle.loads(batch.column("receipt")[0].as_py())
        if not (receipt.is_poisoned or receipt.failures or receipt.put_error):
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
            )
            if receipt.failures or receipt.put_error:
                return


def cluster_resources() -> dict[str, float]:
    """Return what the cluster has: CPU, GPU, memory in bytes."""
    import ray

    resources: Iterable[tuple[str, float]] = ray.cluster_resources().items()
    return dict(resources)
