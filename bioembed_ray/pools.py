"""Pools of actors: how many fit on a cluster, and how far they may grow with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bioembed_ray.config import Job, PoolConfig
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.errors import ConfigError

# A decoding task waits for the disk more than it computes; so several share a core on small machines.
DECODE_CPUS = 0.2
# Of the memory that Ray counts; the rest is for decoding and what is in flight.
MEMORY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool with everything settled.

    Attributes:
        name: Name in the job file.
        encoders: What its actors hold.
        n_actors: How many actors to begin with.
        most_actors: How many there may be once the cluster has grown.
        gpus: GPUs per actor.
        cpus: CPU cores per actor.
        threads: Compute threads per actor.
        memory: Bytes per actor that Ray sets aside, 0 where it does not count them.
    """

    name: str
    encoders: tuple[PlannedEncoder, ...]
    n_actors: int
    most_actors: int
    gpus: float
    cpus: float
    threads: int
    memory: int = 0


def plan_pools(
    job: Job, encoders: Sequence[PlannedEncoder], resources: dict[str, float], n_shards: int
) -> list[PoolPlan]:
    """Settle how many actors each pool has, from what the cluster has.

    A pool with `actors: auto` grows with the cluster, up to one actor per shard: Ray adds actors
    only where nodes that came later have room for them. Each sets aside the memory it takes, so that
    a machine with many cores and little memory is not filled up.

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
        memory = 0
        if config.actors != "auto":
            n_actors = most = max(1, min(config.actors, n_shards))
        else:
            n_actors = _auto_actors(held, config, gpus, len(used), resources)
            n_actors, most = max(1, min(n_actors, n_shards)), max(1, n_shards)
            if not gpus:
                # Never more than there is: an actor that fits nowhere would wait for ever.
                share = MEMORY_SHARE * resources.get("memory", 0.0) / n_actors / len(used)
                memory = int(min(_memory(held), share))
        pools.append(PoolPlan(name, held, n_actors, most, gpus, cpus, config.threads, memory))
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
    each = _memory(held)
    by_memory = max(1, int(resources.get("memory", 4 * each) * MEMORY_SHARE / each / n_pools))
    return min(by_cores, by_memory)


def _memory(held: tuple[PlannedEncoder, ...]) -> float:
    """Return the bytes that an actor takes: imports 1 GB, base-sized models 0.4 GB each, waveforms 0.5 GB."""
    return (1.5 + 0.4 * len(held)) * 2**30
