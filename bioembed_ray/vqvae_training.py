"""Training a VQ-VAE with Ray Train, on patches that the stream made.

Patches come from the archive's deterministic sample, put in order by tasks on the cluster; every
worker reads its own share, so a step's batch is a function of its number and training on one
worker is repeatable. States go through our own storage: a driver or worker that dies is followed
by one that goes on from the last look, on any store.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TextIO

from bioembed_ray import storage
from bioembed_ray.cluster import cluster_resources, connect
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.card import CARD_KEY, CODEBOOK_KEY, card_bytes, read_card
from bioembed_ray.codebooks.gather import gather_sample
from bioembed_ray.errors import BioembedError, ConfigError, InputError
from bioembed_ray.tasks import call_each
from bioembed_ray.vqvae.material import Material, group_sums, statistics
from bioembed_ray.vqvae.model_file import MODEL_KEY, PICTURE_KEY
from bioembed_ray.vqvae.wanted import Training
from bioembed_ray.vqvae_loop import train_loop

# Deaths of workers that a training survives; a fault of ours ends it after as many tries.
MAX_FAILURES = 5
POLL_S = 1.0
MOST_CPU_WORKERS = 4


def train_model(
    wanted: Training,
    parts: Sequence[storage.ObjectInfo],
    groups: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Train a model and put it with its card, unless it stands; return the card.

    Args:
        wanted: What is wanted.
        parts: Parts of its front end's patches, in any order.
        groups: Recording -> value of the column to balance by.
        stream: Where progress is told, stderr by default.

    Raises:
        ConfigError: more workers than the cluster has room for.
        InputError: too few patches, or nothing but silence.
        StorageError: reading or writing failed.
        BioembedError: the cluster failed.
    """
    if storage.exists(storage.join(wanted.folder, MODEL_KEY)):
        return read_card(wanted.folder)
    connect()
    n_workers, gpus = plan_workers(wanted, cluster_resources())
    is_here = not n_workers
    material = _gather(wanted, parts, groups)
    n_workers = min(n_workers, material.info.n_rows)
    settings = {"training": wanted.config, "material": material, "state": _state_uri(wanted)}
    out, info = stream or sys.stderr, material.info
    where = (
        "in this process" if is_here else f"with {n_workers} {'GPU' if gpus else 'CPU'} worker(s)"
    )
    out.write(
        f"{wanted.name}: training on {info.n_rows} patches, {info.n_held} held out, {where}\n"
    )
    out.flush()
    started = time.monotonic()
    _fit(wanted, settings, n_workers, gpus, out)
    how = {
        "workers_used": n_workers,
        "device": _own_device() if is_here else "cuda" if gpus else "cpu",
        "seconds": time.monotonic() - started,
    }
    return _finish(wanted, material, how)


def _state_uri(wanted: Training) -> str:
    return storage.join(wanted.folder, "training.pt")


def plan_workers(wanted: Training, resources: Mapping[str, float]) -> tuple[int, float]:
    """Return how many workers train, 0 for this process, and GPUs for each.

    Raises:
        ConfigError: they need more than there is.
    """
    n_gpus, n_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    asked = wanted.config.workers
    if asked == "auto":
        return (n_gpus, 1.0) if n_gpus else (max(1, min(n_cpus, MOST_CPU_WORKERS)), 0.0)
    if asked == 0:
        return 0, 0.0
    kind, have = ("GPUs", n_gpus) if n_gpus else ("CPUs", n_cpus)
    if asked > have:
        raise ConfigError(
            f"encoders.{wanted.name}.training.workers: got {asked}; the cluster has {have} {kind}"
        )
    return asked, 1.0 if n_gpus else 0.0


def _gather(
    wanted: Training, parts: Sequence[storage.ObjectInfo], groups: Mapping[str, str] | None
) -> Material:
    """Put the sample in order, and learn how it is standardised."""
    config, folder = wanted.config, storage.join(wanted.folder, "sample")
    if not parts:
        raise InputError(_too_few(wanted, 0))
    balance = groups if config.balance is not None else None
    try:
        info = gather_sample(folder, parts, wanted.sample, balance, call_each)
    except InputError as error:
        raise InputError(f"{_too_few(wanted, 0)} ({error})") from None
    if not info.n_held:
        raise InputError(_too_few(wanted, info.n_rows))
    groups_of_rows = [(folder, group) for group in range(info.n_groups)]
    mean, std = statistics(list(call_each(group_sums, groups_of_rows)))
    n_mels = wanted.mel.n_mels
    return Material(folder, info, mean, std, info.dim // n_mels, n_mels)


def _too_few(wanted: Training, n_rows: int) -> str:
    return (
        f"{wanted.name}: {n_rows} patches of {wanted.config.patch_s} s to train on and none to judge by; "
        f"add recordings, lower training.patch_s or raise training.held_out"
    )


def _own_device() -> str:
    """Return what Ray Train's local mode computes on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Board:
    """Hears the looks of a training, for the driver to tell."""

    def __init__(self) -> None:
        self._entries: list[dict[str, float]] = []

    def post(self, entry: dict[str, float]) -> None:
        """Take one look."""
        self._entries.append(entry)

    def read(self, first: int) -> list[dict[str, float]]:
        """Return the looks from a number on."""
        return self._entries[first:]


def _fit(
    wanted: Training, settings: dict[str, Any], n_workers: int, gpus: float, stream: TextIO
) -> None:
    """Run Ray Train to its end, telling every look."""
    # Paths of a job mean the same on a worker as on the driver.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # States are put at every look: nobody here listens for a node's warning, one process less.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    own, actor = Board(), None
    post, read = own.post, own.read
    if n_workers:
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        actor = ray.remote(Board).options(**options).remote()
        post, read = partial(_ask, actor, "post"), partial(_ask, actor, "read")
    with tempfile.TemporaryDirectory(prefix="bioembed-train-") as folder:
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={**settings, "post": post},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=n_workers,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
            ),
            # Ray keeps nothing: states are ours, so a new name never finds an old one's.
            run_config=RunConfig(
                name=f"{wanted.name}-{wanted.version}",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        failure: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            # Told by the thread that waits for this one.
            except BaseException as error:  # noqa: BLE001
                failure.append(error)

        # Beside the main thread, which tells progress and hears signals.
        runner = threading.Thread(target=fit, daemon=True)
        runner.start()
        try:
            _tell(wanted, read, runner, stream)
        finally:
            # Stopped by the user, workers that nobody hears any more end as well.
            if actor is not None:
                ray.kill(actor)
    if failure:
        raise _as_ours(failure[0])


def _ask(actor: Any, method: str, *arguments: Any) -> Any:
    """Call an actor's method and wait for its answer."""
    import ray

    return ray.get(getattr(actor, method).remote(*arguments))


def _tell(
    wanted: Training,
    read: Callable[[int], list[dict[str, float]]],
    runner: threading.Thread,
    stream: TextIO,
) -> None:
    from bioembed_ray.vqvae.card import curve_line

    n_told = 0
    is_alive = True
    while is_alive:
        runner.join(POLL_S)
        is_alive = runner.is_alive()
        for entry in read(n_told):
            stream.write(curve_line(wanted.name, entry, wanted.config) + "\n")
            stream.flush()
            n_told += 1


def _as_ours(error: BaseException) -> BaseException:
    """Return what a worker raised, which stands at the end, or what became of Ray's own, in one line."""
    of_workers: list[BaseException] = list(getattr(error, "worker_failures", {}).values())
    text = " ".join(str((of_workers or [error])[0]).split())
    text = text[-300:] if of_workers else text[:300]
    return BioembedError(f"training failed ({text}); run again to go on")


def _finish(wanted: Training, material: Material, how: Mapping[str, Any]) -> dict[str, Any]:
    """Put what the last state holds: card, picture, codes, and the model last of all."""
    from bioembed_ray.codebooks.card import Codebook, codebook_bytes
    from bioembed_ray.vqvae.card import make_card, restore
    from bioembed_ray.vqvae.course import read_state, state_key
    from bioembed_ray.vqvae.model_file import About, model_bytes

    config = wanted.config
    state = read_state(_state_uri(wanted), state_key(config, material))
    if state is None:
        raise BioembedError(f"{wanted.name}: training left no state; run again")
    about = About(
        wanted.mel,
        config.patch_s,
        material.mean,
        material.std,
        config.hidden,
        config.dim,
        config.codes,
    )
    centroids = state.best["quantiser._codebook.embed"][0].float().numpy()
    codebook = Codebook(
        wanted.name, wanted.version, wanted.name, wanted.version, "euclidean", centroids
    )
    trained = restore(about, state.best, codebook)
    card, picture = make_card(trained, material, config, state, how)
    for key, body in (
        (CARD_KEY, card_bytes(card)),
        (PICTURE_KEY, picture),
        (CODEBOOK_KEY, codebook_bytes(codebook)),
        # Last, since where it stands all is done.
        (MODEL_KEY, model_bytes(about, trained.tensors())),
    ):
        storage.put(storage.join(wanted.folder, key), body)
    blocks.drop_sample(material.folder)
    storage.delete(_state_uri(wanted))
    return card
