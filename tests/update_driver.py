"""A driver that does all work of a run in its own process, so that a kill hits any step of it.

`multiprocessing`'s fork server imports this module once, and then forks a driver in no time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils  # noqa: F401  (seconds, which a forked driver does not pay again)

from bioembed_ray import tasks
from bioembed_ray.codebooks import fit as codebook_fit
from bioembed_ray.job_file import parse_job
from bioembed_ray.run import Result, run_job
from tests.commands import without_ray
from tests.hub import point_at
from tests.unit.kmeans_fixtures import LocalPool


class Here(LocalPool):
    """The workers of a fit, in the driver's own process."""

    def __init__(self, fit: Any, info: Any, plan: Any) -> None:
        super().__init__(fit, info, plan.n_workers)

    def stop(self) -> None:
        """Nothing to end."""


def spread(function: Any, entries: Sequence[Any], size: int) -> Iterator[Any]:
    """Call a function on batches of entries, here; a task of Ray's would start a cluster by itself."""
    for first in range(0, len(entries), size):
        yield from function(entries[first : first + size])


def without_clusters(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Take Ray out of runs in this process, fits of codebooks included; see `without_ray`."""
    counts = without_ray(patch)
    patch.setattr(tasks, "spread", spread)
    patch.setattr(codebook_fit, "connect", lambda: None)
    patch.setattr(codebook_fit, "call_each", itertools.starmap)
    patch.setattr(codebook_fit, "cluster_resources", lambda: {"CPU": 1.0})
    patch.setattr(codebook_fit, "ActorPool", Here)
    return counts


def drive(raw: dict[str, Any], hub_url: str, cache: Path) -> Result:
    """Run a job here, with weights from a hub."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, hub_url, cache)
        without_clusters(patch)
        return run_job(parse_job(raw, "test"), lambda text: None)
