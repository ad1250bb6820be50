"""From a job file's encoder to its family: what it is, its weights, the loaded network.

Each family is a module with the same five functions; the first that knows the model answers.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator
from typing import Protocol, cast

from bioembed_ray.config import DEFAULT_MODELS, EncoderConfig
from bioembed_ray.encoders.avex_registry import registry_names
from bioembed_ray.encoders.base import Encoder, Facts
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError, WeightsError

# Files are recognised by name alone, so they come before families that may ask the hub.
FAMILIES = (
    "beats",
    "efficientnet",
    "vqvae",
    "mel_patches",
    "avex_any",
    "external",
    "wav2vec",
    "ast_audio",
    "whisper",
)


class Family(Protocol):
    """The functions of a family module."""

    def matches(self, config: EncoderConfig) -> bool:
        """Return whether the model is of this family."""
        ...

    def describe(self, config: EncoderConfig) -> Facts:
        """Return what is known without weights."""
        ...

    def checkpoint(self, config: EncoderConfig) -> Checkpoint:
        """Return the pinned weights."""
        ...

    def architecture(self, config: EncoderConfig, checkpoint: Checkpoint) -> str:
        """Return everything architectural that moves numbers."""
        ...

    def load(self, config: EncoderConfig, checkpoint: Checkpoint, device: str) -> Encoder:
        """Return the loaded encoder."""
        ...


def describe(name: str, config: EncoderConfig) -> Facts:
    """Return what is known about an encoder before its weights are loaded.

    Args:
        name: The encoder's name in the job file, for messages.
        config: Its settings.

    Raises:
        ConfigError: a setting that this model does not take, or no such model.
        WeightsError: the model's own settings cannot be read.
    """
    with _named(name):
        return _family(config).describe(config)


def checkpoint(name: str, config: EncoderConfig) -> Checkpoint:
    """Return the weights, pinned: a hub commit, a content digest or a seed.

    Raises:
        ConfigError: no such model.
        WeightsError: missing, unreachable or closed.
    """
    with _named(name):
        return _family(config).checkpoint(config)


def architecture(name: str, config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return everything architectural that moves numbers, as stable text for the version.

    Raises:
        ConfigError, WeightsError: see `describe`.
    """
    with _named(name):
        return _family(config).architecture(config, checkpoint)


def load(name: str, config: EncoderConfig, checkpoint: Checkpoint, device: str) -> Encoder:
    """Return the network on its device, in eval mode, with verified weights.

    Args:
        name: The encoder's name in the job file, for messages.
        config: Its settings.
        checkpoint: What `checkpoint` returned on the driver.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: a setting that this model does not take.
        WeightsError: gone, changed, damaged, or of another network.
    """
    with _named(name):
        return _family(config).load(config, checkpoint, device)


def _family(config: EncoderConfig) -> Family:
    for name in FAMILIES:
        family = cast(Family, importlib.import_module(f"bioembed_ray.encoders.{name}"))
        if family.matches(config):
            return family
    known = [*registry_names(), *DEFAULT_MODELS.values()]
    near = difflib.get_close_matches(config.model, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "see `bioembed init` for examples"
    raise ConfigError(f"model: got {config.model!r}, which is no model, file or module; {hint}")


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the encoder's name before a message; families say the key or the model only."""
    try:
        yield
    except ConfigError as error:
        key, colon, _ = str(error).partition(":")
        joint = "." if colon and key in EncoderConfig.model_fields else ": "
        raise ConfigError(f"encoders.{name}{joint}{error}") from error.__cause__
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error.__cause__
