"""K-means on Ray actors: a codebook from parts of frames, bitwise the same for any number of workers.

The driver holds centroids and sums, never rows. After every iteration its state is one object on
storage; a driver that is killed goes on from there and ends with the same bits. Actors are pure in
what they are asked and restart without end.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import numpy as np

from bioembed_ray import storage
from bioembed_ray.cluster import cluster_resources, connect
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.card import CODEBOOK_KEY, read_card
from bioembed_ray.codebooks.fit_steps import check_request, fit_on, sample_folder
from bioembed_ray.codebooks.fit_worker import Share, Worker
from bioembed_ray.codebooks.gather import gather_sample
from bioembed_ray.codebooks.rule import Fit
from bioembed_ray.errors import ConfigError
from bioembed_ray.tasks import PASS_S, answers, call_each
from bioembed_ray.threads import one_thread

# Ray starts an actor in a second; importing torch on a busy node takes longer.
START_S = 600
# Operations of an iteration up to which a fit needs no workers: some 20 ms of one core.
SMALL_WORK = 1e9
# Share of the cluster's memory that workers may fill.
MEMORY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Workers:
    """Who computes.

    Attributes:
        n_workers: How many; "auto" is one per GPU, or per CPU core where there is none.
        gpus: GPUs per worker; None is 1 where the cluster has any.
        cpus: CPU cores per worker that Ray sets aside.
        memory_bytes: Memory per worker for rows and sums; None is its part of half the cluster's.
    """

    n_workers: int | Literal["auto"] = "auto"
    gpus: float | None = None
    cpus: float = 1.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Workers with everything settled: see `Workers`."""

    n_workers: int
    gpus: float
    cpus: float
    memory_bytes: int


def fit_codebook(
    fit: Fit,
    parts: Sequence[storage.ObjectInfo],
    groups: Mapping[str, str] | None = None,
    workers: Workers | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Fit a codebook and put it with its card, unless it stands; return the card.

    Args:
        fit: What is wanted.
        parts: Parts of frames/ or embeddings/ of the encoder's version, in any order.
        groups: Recording -> value of the column to balance by; needed where `fit.sample.balance`
            is set. Also what the card's figures by group are about.
        workers: Who computes; None is this process for a small sample, else as many as there is room for.
        stream: Where progress is told, stderr by default.

    Raises:
        ConfigError: more workers than the cluster has room for.
        InputError: no frames, unusable ones, or fewer different ones than clusters.
        StorageError: reading or writing failed.
        BioembedError: the cluster failed.
    """
    if storage.exists(storage.join(fit.folder, CODEBOOK_KEY)):
        return read_card(fit.folder)
    check_request(fit, parts, groups)
    connect()
    plan = plan_workers(workers or Workers(), cluster_resources())
    balance = groups if fit.sample.balance is not None else None
    info = gather_sample(sample_folder(fit), parts, fit.sample, balance, call_each)
    work = 2 * info.n_rows * info.dim * fit.rule.clusters
    if workers is None and not plan.gpus and work <= SMALL_WORK:
        with one_thread():
            return fit_on(fit, info, groups, Here(fit, info, plan), stream or sys.stderr)
    pool = ActorPool(fit, info, plan)
    try:
        return fit_on(fit, info, groups, pool, stream or sys.stderr)
    finally:
        pool.stop()


def plan_workers(workers: Workers, resources: Mapping[str, float]) -> WorkerPlan:
    """Settle how many workers there are, from what the cluster has.

    Checked before any starts: an actor without room would wait in silence for ever.

    Raises:
        ConfigError: they need more than there is.
    """
    have_gpus, have_cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    gpus = workers.gpus if workers.gpus is not None else (1.0 if have_gpus else 0.0)
    if workers.n_workers == "auto":
        n = max(1, int(have_gpus / gpus if gpus else have_cpus / workers.cpus))
    else:
        n = workers.n_workers
    for kind, need, have in (("GPUs", gpus * n, have_gpus), ("CPUs", workers.cpus * n, have_cpus)):
        if need > have + 1e-6:
            raise ConfigError(
                f"{n} k-means workers need {need:g} {kind}, the cluster has {have:g}; use fewer workers"
            )
    memory = workers.memory_bytes
    if memory is None:
        memory = int(resources.get("memory", 4 * 2**30) * MEMORY_SHARE / n)
    return WorkerPlan(n, gpus, workers.cpus, memory)


class Here:
    """The one worker of a small sample, in this process: another would start for longer than it works."""

    def __init__(self, fit: Fit, info: SampleInfo, plan: WorkerPlan) -> None:
        share = Share(sample_folder(fit), info, 0, info.n_groups, plan.memory_bytes)
        self._worker = Worker(share, fit.rule, "cpu")
        self.device = self._worker.ping()

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Return the worker's answer, as a list of one."""
        return [self.ask_one(method, *arguments)]

    def ask_one(self, method: str, *arguments: Any) -> Any:
        """Return the worker's answer."""
        return getattr(self._worker, method)(*arguments)


class ActorPool:
    """The actors of a fit, each with a stretch of the sample's groups."""

    def __init__(self, fit: Fit, info: SampleInfo, plan: WorkerPlan) -> None:
        import ray

        n = min(plan.n_workers, info.n_groups)
        edges = np.linspace(0, info.n_groups, n + 1).round().astype(int).tolist()
        device = "cuda" if plan.gpus else "cpu"
        actor = ray.remote(Worker).options(
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        folder = sample_folder(fit)
        self._actors = [
            actor.remote(Share(folder, info, first, stop, plan.memory_bytes), fit.rule, device)
            for first, stop in itertools.pairwise(edges)
        ]
        # Bits are the same on one kind of processor: several are several.
        self.device = "; ".join(sorted(set(self.ask("ping", timeout_s=START_S))))

    def ask(self, method: str, *arguments: Any, timeout_s: float = PASS_S) -> list[Any]:
        """Return every worker's answer, in the order of their groups."""
        import ray

        shared = [ray.put(argument) for argument in arguments]
        calls = [getattr(actor, method).remote(*shared) for actor in self._actors]
        return answers(calls, timeout_s)

    def ask_one(self, method: str, *arguments: Any) -> Any:
        """Return the first worker's answer."""
        return answers([getattr(self._actors[0], method).remote(*arguments)])[0]

    def stop(self) -> None:
        """End the actors; what they held is free again."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
