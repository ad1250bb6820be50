"""Log-mel patches as an encoder: what a VQ-VAE is trained on goes through the stream like vectors.

A row is a patch, T · F decibels, time-major. It has no weights, and leaves out what is shorter than
a patch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from bioembed_ray.config import EncoderConfig, Pretrained, TrainingConfig
from bioembed_ray.encoders.base import Encoder, Facts
from bioembed_ray.encoders.options import check_options
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError
from bioembed_ray.vqvae.mel import MelRule, filter_bank, log_mel, mel_rule

if TYPE_CHECKING:
    import torch

MODEL = "mel-patches"
RATE_HZ = 48_000
# Raised by hand when the front end moves any number.
MEL_VERSION = 1


def matches(config: EncoderConfig) -> bool:
    """Return True for this front end's own name."""
    return config.model == MODEL


def settings(config: EncoderConfig) -> tuple[TrainingConfig, MelRule]:
    """Return how patches are made, defaults filled in.

    Raises:
        ConfigError: bands or lengths that cannot be.
    """
    training = config.training or TrainingConfig()
    return training, mel_rule(training, config.rate_hz or RATE_HZ)


def describe(config: EncoderConfig) -> Facts:
    """Return what is known of the patches.

    Raises:
        ConfigError: a setting that does not fit.
    """
    training, rule = settings(config)
    if not isinstance(config.weights, Pretrained):
        raise ConfigError(f"weights: {MODEL} has none; leave weights out")
    facts = Facts(
        "mel_patches",
        rule.rate_hz,
        training.patch_s,
        training.patch_s,
        grid=None,
        embeds=True,
        dim=(training.patch_s * rule.rate_hz // rule.hop) * rule.n_mels,
    )
    return check_options(config, facts, n_layers=None, is_on_hub=False, is_trained=True)


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return a digest of the rule in the place of weights."""
    _, rule = settings(config)
    content = json.dumps([MEL_VERSION, asdict(rule)], sort_keys=True)
    return Checkpoint("none", hashlib.sha256(content.encode()).hexdigest())


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return nothing: the rule is in the checkpoint's digest."""
    return ""


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> Encoder:
    """Return the front end on its device.

    Raises:
        ConfigError: bands that no sound would reach.
    """
    return MelPatches(config, describe(config), device)


class MelPatches:
    """The front end on its device; see `base.Encoder`."""

    def __init__(self, config: EncoderConfig, facts: Facts, device: str) -> None:
        _, self._rule = settings(config)
        self._bank = filter_bank(self._rule).to(device)
        self.facts = facts
        self.dim = facts.dim or 0
        self.batch_size = config.batch_size or (16 if device == "cpu" else 256)

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Return (B, T · F) decibels; see `base.Encoder.embed`."""
        return [log_mel(windows, self._rule, self._bank).flatten(1)]

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Raise: a patch is a window, as `facts.grid` says."""
        raise NotImplementedError("mel patches have no frames")
