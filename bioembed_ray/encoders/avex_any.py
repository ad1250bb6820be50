"""The other model classes of avex: ResNet-18 runs here, and each of the rest says why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders.avex_models import (
    build,
    check,
    model_of,
    resolve_checkpoint,
    shortest_spectrogram,
)
from bioembed_ray.encoders.avex_registry import AvexModel, read_model
from bioembed_ray.encoders.base import Encoder, Facts
from bioembed_ray.encoders.options import batch_of_windows
from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch

ALLOW = r"classifier\.|backbone\.fc\.|.*\.num_batches_tracked$"
# Channels of the last map of ResNet-18 (He et al. 2015, arXiv:1512.03385, table 1).
DIM = 512
# What avex 1.4.0 knows and cannot run here, and the way out.
REFUSED = {
    "eat_hf": "its backbone is remote code that fails with transformers 5, which this package needs; use a BEATs model",
    "aves_bio": "avex always downloads its backbone; use the wav2vec 2.0 or HuBERT checkpoint itself as model",
    "birdmae": "its backbone and front end are remote code; use a BEATs model",
    "birdnet": "it is an ONNX file; use that file as model, with rate_hz: 48000 and window_s: 3",
    "perch2": "it is an ONNX file; use that file as model, with rate_hz: 32000 and window_s: 5",
    "perch": "it needs TensorFlow; use Perch 2 as an ONNX file",
    "surfperch": "it needs TensorFlow; use Perch 2 as an ONNX file",
    "clip": "it is a pair of an audio and a text network; use its audio network by itself",
    "resnet50": "avex builds a ResNet-18 under this name; use resnet18",
    "resnet152": "avex builds a ResNet-18 under this name; use resnet18",
}


def matches(config: EncoderConfig) -> bool:
    """Return True for every avex registry name and avex YAML file."""
    return read_model(config.model) is not None


def _runnable(config: EncoderConfig) -> AvexModel:
    model = model_of(config)
    if model.kind in REFUSED:
        raise ConfigError(f"model: {model.name} (avex {model.kind}): {REFUSED[model.kind]}")
    if model.kind != "resnet18":
        raise ConfigError(
            f"model: {model.name}: unknown avex class {model.kind!r}; use beats, efficientnet or resnet18"
        )
    return model


def describe(config: EncoderConfig) -> Facts:
    """Return what is known of a ResNet without its weights.

    Raises:
        ConfigError: a class that cannot run here, or a setting that it does not take.
    """
    model = _runnable(config)
    facts = Facts("avex-resnet18", model.rate_hz, 1.0, 0.5, None, embeds=True, dim=DIM)
    return check(config, model, facts, n_shortest=shortest_spectrogram(model), n_layers=None)


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return the pinned weights.

    Raises:
        ConfigError: a class that cannot run here.
        WeightsError: nothing there, or it cannot be reached.
    """
    return resolve_checkpoint(config, _runnable(config))


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return everything architectural that moves numbers, as stable JSON."""
    return _runnable(config).architecture


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> Encoder:
    """Return the loaded encoder.

    Raises:
        WeightsError: the weights are damaged, or belong to another network.
    """
    network = build(_runnable(config), checkpoint, allow=ALLOW)
    return FeatureMap(network, config, describe(config), device)


class FeatureMap:
    """An avex network whose output is a map (B, D, H, W); see `base.Encoder`."""

    def __init__(self, network: Any, config: EncoderConfig, facts: Facts, device: str) -> None:
        import torch

        self.facts = facts
        self._device = torch.device(device)
        self.batch_size = batch_of_windows(config, device)
        self._precision = config.precision
        self._network = network.to(self._device)
        self._front_end = network.process_audio
        # The network calls its front end itself, inside autocast; ours runs before, in float32.
        network.process_audio = _unchanged
        self.dim = DIM

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Return the mean of the map over height and width, (B, D); see `base.Encoder.embed`."""
        with network_precision(self._device, "float32"):
            images = self._front_end(windows)  # (B, 3, mels, frames)
        with network_precision(self._device, self._precision):
            return [self._network(images).float().mean((2, 3))]

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Raise: the map has no frames, as `facts.grid` says."""
        raise NotImplementedError("a ResNet has no frames")


def _unchanged(images: torch.Tensor) -> torch.Tensor:
    return images
