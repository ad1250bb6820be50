"""The course of a VQ-VAE's training on one worker of Ray Train, or in the process that called it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np

from bioembed_ray.threads import one_thread


def train_loop(settings: dict[str, Any]) -> None:
    """Train on one worker of Ray Train; see `course.run_course`."""
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed

    from bioembed_ray.vqvae.course import Place, run_course

    context = ray.train.get_context()
    n_workers, rank = context.get_world_size(), context.get_world_rank()
    device = ray.train.torch.get_device()

    def add(values: Any) -> Any:
        if n_workers == 1:
            return values
        total = torch.from_numpy(np.asarray(values, np.float64)).to(device)
        torch.distributed.all_reduce(total)
        return total.cpu().numpy()

    def wrap(model: Any) -> Any:
        if n_workers == 1:
            return model
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def tell(entry: dict[str, float]) -> None:
        # Not through Ray Train's report, which waits until its controller looks, every 2 s.
        if rank == 0:
            settings["post"](entry)

    with one_thread() if device.type == "cpu" else nullcontext():
        run_course(
            settings["training"],
            settings["material"],
            Place(rank, n_workers, str(device), add),
            settings["state"],
            wrap,
            tell,
        )
