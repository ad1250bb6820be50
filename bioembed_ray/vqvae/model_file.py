"""A trained VQ-VAE on storage.

models/<encoder>/version=<v>/model.safetensors      both networks, and who they are
models/<encoder>/version=<v>/codebook.safetensors   codes (K, D), as every codebook's
models/<encoder>/version=<v>/card.json              how it was trained, how good it is
models/<encoder>/version=<v>/reconstructions.png    held-out patches and what codes keep of them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import safetensors

from bioembed_ray import storage
from bioembed_ray.errors import BioembedError, NotFoundError, WeightsError
from bioembed_ray.vqvae.mel import MelRule

if TYPE_CHECKING:
    import torch

MODEL_KEY, PICTURE_KEY = "model.safetensors", "reconstructions.png"
ABOUT = "bioembed.vqvae"


@dataclass(frozen=True, slots=True)
class About:
    """What a model has to know of itself.

    Attributes:
        mel: The front end.
        patch_s: Seconds of a patch.
        mean, std: Of the training sample's decibels: patches are standardised by them.
        hidden, dim: Size of the networks.
        codes: K.
    """

    mel: MelRule
    patch_s: int
    mean: float
    std: float
    hidden: int
    dim: int
    codes: int


def model_bytes(about: About, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the file of a model; the same model gives the same bytes."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    body = save(plain, {ABOUT: json.dumps(asdict(about), sort_keys=True)})
    return bytes(body)


def read_body(folder: str) -> bytes:
    """Return the file of the model in a folder.

    Raises:
        WeightsError: there is none, or it cannot be read.
    """
    uri = storage.join(folder, MODEL_KEY)
    try:
        return storage.read(uri)
    except NotFoundError:
        raise WeightsError(
            f"{uri}: no such file; set weights to a folder below models/ that `bioembed train-vqvae` made"
        ) from None
    except BioembedError as error:
        raise WeightsError(f"{uri}: cannot be read ({error})") from error


def read_about(body: bytes, folder: str) -> About:
    """Return what a model says of itself.

    Raises:
        WeightsError: not a model of ours.
    """
    try:
        length = int.from_bytes(body[:8], "little")
        raw = json.loads(json.loads(body[8 : 8 + length])["__metadata__"][ABOUT])
        return About(**{**raw, "mel": MelRule(**raw["mel"])})
    except (KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:100]
        raise WeightsError(f"{folder}: {MODEL_KEY} is not a VQ-VAE of ours ({text})") from None


def read_tensors(body: bytes, folder: str) -> dict[str, torch.Tensor]:
    """Return a model's weights by name.

    Raises:
        WeightsError: the file is damaged.
    """
    from safetensors.torch import load

    try:
        found: dict[str, torch.Tensor] = load(body)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{folder}: {MODEL_KEY} is damaged ({error})") from None
    return found
