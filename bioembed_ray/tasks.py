"""Functions called on the cluster: many small ones, and what their answers are. Uses Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bioembed_ray import cluster
from bioembed_ray.errors import BioembedError

# One pass over the data; a worker that is silent for so long will stay so.
PASS_S = 4 * 3600
IN_FLIGHT_PER_CPU = 2


def spread(function: Any, entries: Sequence[Any], size: int) -> Iterator[Any]:
    """Call a function on batches of entries on the cluster; yield the answers one by one, in any order.

    What kills its worker is found by splitting the batch, and is left out.
    """
    import ray

    cluster.connect()
    # A batch that dies is split at once; one alone may have had bad luck.
    remote = ray.remote(function)
    several, alone = (remote.options(num_cpus=0.5, max_retries=retries) for retries in (0, 2))
    batches = [entries[i : i + size] for i in range(0, len(entries), size)]
    batches.reverse()
    pending: dict[Any, Sequence[Any]] = {}
    in_flight = max(16, int(cluster.cluster_resources().get("CPU", 1)) * 4)
    while batches or pending:
        while batches and len(pending) < in_flight:
            batch = batches.pop()
            task = several if len(batch) > 1 else alone
            pending[task.remote(batch)] = batch
        ready, _ = ray.wait(list(pending), num_returns=1)
        batch = pending.pop(ready[0])
        try:
            yield from ray.get(ready[0])
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError,
        ):
            if len(batch) > 1:
                half = len(batch) // 2
                batches += [batch[:half], batch[half:]]


def call_each(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function with each tuple of arguments on the cluster; yield the answers in order."""
    import ray

    task = ray.remote(function).options(num_cpus=1, max_retries=3)
    in_flight = max(2, int(cluster.cluster_resources().get("CPU", 1.0))) * IN_FLIGHT_PER_CPU
    pending: list[Any] = []
    for call in calls:
        pending.append(task.remote(*call))
        if len(pending) >= in_flight:
            yield answers([pending.pop(0)])[0]
    for reference in pending:
        yield answers([reference])[0]


def answers(references: Sequence[Any], timeout_s: float = PASS_S) -> list[Any]:
    """Return what tasks answered; what they raised is raised as if it had happened here."""
    import ray

    try:
        found: list[Any] = ray.get(list(references), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise BioembedError(
            f"workers gave no answer for {timeout_s:.0f} s; run again to go on"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BioembedError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:300]
        raise BioembedError(f"the Ray cluster failed ({text}); run again to go on") from error
    return found
