"""The course of training: steps, looks at held-out patches, when to stop; saved at every look.

A worker that dies is followed by another, which goes on from the last look: state and random
numbers are in it, and the batches of a step are a function of its number. No Ray here.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray import storage
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.card import usage
from bioembed_ray.config import TrainingConfig
from bioembed_ray.errors import NotFoundError
from bioembed_ray.vqvae.learning import (
    Look,
    VqVae,
    batch_rows,
    evaluate,
    latents_of,
    make_optimiser,
    rate_at,
    train_step,
)
from bioembed_ray.vqvae.material import Material, Patches, read_share

# The held-out error must fall by this share, or the look counts as one without progress.
PROGRESS = 0.01
EVALUATE_BATCH = 64

Add = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the workers one is.

    Attributes:
        rank: Number among them.
        n_workers: How many.
        device: Torch device.
        add: Sums an array over all workers.
    """

    rank: int = 0
    n_workers: int = 1
    device: str = "cpu"
    add: Add = field(default=lambda values: values)


@dataclass(slots=True)
class State:
    """Where training stands.

    Attributes:
        step: Steps done.
        model: Tensors of the model.
        optimiser: The optimiser's state.
        random: Torch's random state.
        curve: One entry per look.
        best: Tensors of the model at its lowest held-out error.
        ended: Why it ended, None while it goes on.
    """

    step: int
    model: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    random: torch.Tensor
    curve: list[dict[str, float]]
    best: dict[str, torch.Tensor]
    ended: str | None


def state_key(training: TrainingConfig, material: Material) -> str:
    """Return what a state must have been trained with to be gone on from."""
    content = [
        training.model_dump(exclude={"workers"}),
        asdict(material.info),
        [material.mean, material.std],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def put_state(uri: str, state: State, key: str) -> None:
    """Put a state in one step.

    Raises:
        StorageError: writing failed.
    """
    body = io.BytesIO()
    torch.save({"key": key, **{name: getattr(state, name) for name in State.__slots__}}, body)
    storage.put(uri, body.getvalue())


def read_state(uri: str, key: str) -> State | None:
    """Return the state of the same training, None where there is none or it is of another.

    Raises:
        StorageError: reading failed.
    """
    try:
        body = storage.read(uri)
    except NotFoundError:
        return None
    try:
        found = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        return State(**found) if found.pop("key") == key else None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError):
        # Not a state of ours: training begins anew and overwrites it.
        return None


def run_course(
    training: TrainingConfig,
    material: Material,
    place: Place,
    state_uri: str,
    wrap: Callable[[VqVae], torch.nn.Module],
    tell: Callable[[dict[str, float]], None],
) -> None:
    """Train until it ends; the last state stands where `state_uri` says.

    Args:
        training: How.
        material: On what.
        place: Which worker this is.
        state_uri: Where states are put and looked for.
        wrap: Makes the model one of several processes'.
        tell: Hears every look and the patches trained on per second since the last, on every
            worker.
    """
    info = material.info
    names = [blocks.group_name(group) for group in range(info.n_groups)]
    mine = read_share(material, names, place.rank, place.n_workers)
    held = read_share(material, [blocks.HELD_OUT], place.rank, place.n_workers)
    batch = max(1, min(training.batch_size, info.n_rows) // place.n_workers)
    torch.manual_seed(training.seed)
    latents = latents_of(material.n_frames, material.n_mels) * batch * place.n_workers
    model = VqVae(training, latents, is_shared=place.n_workers > 1).to(place.device)
    key = state_key(training, material)
    state = read_state(state_uri, key)
    if state is not None:
        model.load_state_dict(state.model)
    wrapped = wrap(model)
    optimiser = make_optimiser(model, training)
    curve: list[dict[str, float]] = []
    step, best, ended = 0, dict(model.state_dict()), None
    if state is not None:
        optimiser.load_state_dict(state.optimiser)
        torch.set_rng_state(state.random)
        step, curve, best, ended = state.step, state.curve, state.best, state.ended
    errors: list[float] = []
    since = time.monotonic()
    while ended is None:
        rows = batch_rows(len(mine), batch, step, training.seed + place.rank)
        patches = torch.from_numpy(mine[rows]).to(place.device).float()
        learning_rate = rate_at(step, training)
        error, _ = train_step(wrapped, optimiser, patches, learning_rate, training.precision)
        errors.append(error)
        step += 1
        if step % training.evaluate_steps and step < training.max_steps:
            continue
        look = _look(model, held, training.codes, place)
        curve.append(_entry(step, errors, look))
        rate = len(errors) * batch * place.n_workers / (time.monotonic() - since)
        errors, since = [], time.monotonic()
        if look.error <= min(entry["held_out_error"] for entry in curve):
            best = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        ended = _ending(curve, step, training)
        if place.rank == 0:
            state = State(
                step,
                model.state_dict(),
                optimiser.state_dict(),
                torch.get_rng_state(),
                curve,
                best,
                ended,
            )
            put_state(state_uri, state, key)
        tell({**curve[-1], "patches_per_s": rate})


def _look(model: VqVae, held: Patches, n_codes: int, place: Place) -> Look:
    def batches() -> Iterator[torch.Tensor]:
        for first in range(0, len(held), EVALUATE_BATCH):
            yield torch.from_numpy(held[first : first + EVALUATE_BATCH]).to(place.device).float()

    mine = evaluate(model, batches(), n_codes)
    sums = place.add(np.array([mine.squares, mine.n_values, *mine.counts], np.float64))
    return Look(float(sums[0]), int(sums[1]), sums[2:].astype(np.int64))


def _entry(step: int, errors: list[float], look: Look) -> dict[str, float]:
    figures = usage(look.counts)
    return {
        "step": step,
        "error": float(np.mean(errors)),
        "held_out_error": look.error,
        "codes_used": figures["used"],
        "perplexity": figures["perplexity"],
    }


def _ending(curve: list[dict[str, float]], step: int, training: TrainingConfig) -> str | None:
    """Return why training ends here, None where it goes on."""
    least, since = float("inf"), 0
    for entry in curve:
        if entry["held_out_error"] < least * (1 - PROGRESS):
            least, since = entry["held_out_error"], 0
        else:
            since += 1
    if since >= training.patience:
        return f"held-out error fell by less than {PROGRESS:.0%} in {since} looks"
    return "max_steps" if step >= training.max_steps else None
