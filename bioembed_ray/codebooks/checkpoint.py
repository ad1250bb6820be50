"""Where a fit stands, as one object put after every iteration, and back."""

from __future__ import annotations

import json

import numpy as np
import safetensors
import safetensors.numpy

from bioembed_ray import storage
from bioembed_ray.codebooks.lloyd import State
from bioembed_ray.errors import NotFoundError


def put_state(uri: str, state: State, fit: str) -> None:
    """Put a state in one step.

    Args:
        uri: Where to.
        state: After an iteration.
        fit: What is fitted on what, to know it again.

    Raises:
        StorageError: writing failed.
    """
    about = {
        "fit": fit,
        "digest": state.digest,
        "inertia": state.inertia,
        "shift": state.shift,
        "n_empty": state.n_empty,
        "ended": state.ended,
    }
    body = safetensors.numpy.save(
        {"centroids": np.ascontiguousarray(state.centroids)}, {"bioembed.fit": json.dumps(about)}
    )
    storage.put(uri, bytes(body))


def read_state(uri: str, fit: str) -> State | None:
    """Return the state of the same fit, None where there is none or it is of another fit.

    Raises:
        StorageError: reading failed.
    """
    try:
        body = storage.read(uri)
    except NotFoundError:
        return None
    try:
        length = int.from_bytes(body[:8], "little")
        about = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["bioembed.fit"])
        if about["fit"] != fit:
            return None
        return State(
            safetensors.numpy.load(body)["centroids"],
            about["digest"],
            tuple(about["inertia"]),
            tuple(about["shift"]),
            tuple(about["n_empty"]),
            about["ended"],
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
        # Not a state of ours: the fit begins anew and overwrites it.
        return None
