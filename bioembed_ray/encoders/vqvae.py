"""The VQ-VAE as an encoder: patches of log-mel to latents, which its own codes name.

Every patch is encoded on its own, as it was in training: so what a code is depends on nothing but
its patch. One time step is 4 mel frames; it has F/4 latents, one per band of 4 mels. The last patch
of a recording is as long as the sound that is left; of a step with less than 4 mel frames the last
frame is repeated.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from bioembed_ray.config import EncoderConfig, LocalWeights, Pretrained
from bioembed_ray.encoders import mel_patches
from bioembed_ray.encoders.base import Encoder, Facts, FrameGrid
from bioembed_ray.encoders.options import check_options
from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.encoders.state import fill
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError, WeightsError
from bioembed_ray.vqvae.mel import STEP, MelRule, filter_bank, log_mel
from bioembed_ray.vqvae.model_file import About, read_about, read_body, read_tensors

if TYPE_CHECKING:
    import torch

    from bioembed_ray.vqvae.network import PatchEncoder

MODEL = "vqvae"


def matches(config: EncoderConfig) -> bool:
    """Return True for the model that is trained here."""
    return config.model == MODEL


def describe(config: EncoderConfig) -> Facts:
    """Return what the settings, or a trained model, say of the encoder.

    Raises:
        ConfigError: a setting that does not fit.
        WeightsError: no model where weights points.
    """
    if isinstance(config.weights, LocalWeights):
        if config.training is not None:
            raise ConfigError(
                "training: weights name a model that is trained already; leave one of the two out"
            )
        about = read_about(read_body(config.weights.path), config.weights.path)
        rule, patch_s, dim = about.mel, about.patch_s, about.dim
    elif isinstance(config.weights, Pretrained):
        training, rule = mel_patches.settings(config)
        patch_s, dim = training.patch_s, training.dim
    else:
        raise ConfigError(
            "weights: got random; a VQ-VAE is trained on the archive, leave weights out"
        )
    facts = Facts("vqvae", rule.rate_hz, 1.0, 0.5, _grid(rule, patch_s), embeds=False, dim=dim)
    for name in ("block_s", "context_s"):
        if getattr(config, name) is not None:
            raise ConfigError(f"{name}: {MODEL} goes patch by patch; set training.patch_s instead")
    return check_options(config, facts, n_layers=None, is_on_hub=False, is_trained=True)


def _grid(rule: MelRule, patch_s: int) -> FrameGrid:
    # A step is there as soon as one of its mel frames is.
    return FrameGrid(
        block_s=patch_s,
        context_s=0,
        joins_tail=False,
        stride=STEP * rule.hop,
        receptive=rule.hop,
        per_step=rule.n_mels // STEP,
    )


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return the trained model by the digest of its files, or that it is still to be trained.

    Raises:
        WeightsError: no model where weights points.
    """
    if isinstance(config.weights, LocalWeights):
        folder = config.weights.path
        digest = hashlib.sha256(read_body(folder)).hexdigest()
        return Checkpoint("local", digest, path=folder)
    training, _ = mel_patches.settings(config)
    content = json.dumps([config.rate_hz, training.model_dump()], sort_keys=True)
    return Checkpoint("untrained", hashlib.sha256(content.encode()).hexdigest())


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return nothing: size and front end stand in the model's file."""
    return ""


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> Encoder:
    """Return the encoder on its device.

    Raises:
        WeightsError: not trained yet, damaged, or another than the plan's.
    """
    from bioembed_ray.vqvae.network import PatchEncoder, Size

    folder = checkpoint.path
    if folder is None:
        raise WeightsError("not trained yet; `bioembed run` trains it, or `bioembed train-vqvae`")
    body = read_body(folder)
    if hashlib.sha256(body).hexdigest() != checkpoint.digest:
        raise WeightsError(f"{folder}: not the model this run was planned with; plan it again")
    about = read_about(body, folder)
    network = PatchEncoder(Size(about.hidden, about.dim))
    tensors = {
        name.removeprefix("encoder."): tensor
        for name, tensor in read_tensors(body, folder).items()
        if name.startswith("encoder.")
    }
    fill(network, tensors, allow="$^", where=folder)
    config = config.model_copy(update={"weights": LocalWeights(path=folder)})
    return VqVaeEncoder(network, about, config, describe(config), device)


class VqVaeEncoder:
    """A trained patch encoder on its device; see `base.Encoder`."""

    def __init__(
        self, network: PatchEncoder, about: About, config: EncoderConfig, facts: Facts, device: str
    ) -> None:
        import torch

        self.facts = facts
        self.dim = about.dim
        self.batch_size = config.batch_size or (8 if device == "cpu" else 128)
        self._about = about
        self._precision = config.precision
        self._device = torch.device(device)
        self._network = network.eval().to(device)
        self._bank = filter_bank(about.mel).to(device)

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Raise: a window's vector is the mean of its latents, as `facts` says."""
        raise NotImplementedError("the VQ-VAE gives latents, not windows")

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Return the latents before they are named, time-major; see `base.Encoder.frames`.

        (B, T · F/4, D) with T steps of 4 mel frames.
        """
        with network_precision(self._device, "float32"):
            patches = log_mel(waves, self._about.mel, self._bank)
            patches = (patches - self._about.mean) / self._about.std
        with network_precision(self._device, self._precision):
            latents = self._network(patches)  # (B, T, F/4, D)
        return [latents.flatten(1, 2)]
