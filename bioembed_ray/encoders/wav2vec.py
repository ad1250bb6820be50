"""wav2vec 2.0, HuBERT and WavLM through transformers: frames of any layer, positioned by sample.

Every frame depends on the whole stretch it is read with (group norm over time, attention), so a
recording is read on a fixed grid of blocks and nothing is ever padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import model_folder
from bioembed_ray.encoders.base import Facts
from bioembed_ray.encoders.model_folder import ModelSettings
from bioembed_ray.encoders.model_weights import build
from bioembed_ray.encoders.options import (
    batch_of_stretches,
    check_options,
    frame_grid,
    highest_layer,
)
from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError, Reason, RecordingError

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm")
# Baevski et al. 2020 (arXiv:2006.11477), section 4.2: stride 320, receptive field 400.
KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
# Lowest cosine to float32 of any frame of layers 6 and 12, rounded down; the same for all three at
# base size. Measured on 4 s of a turtle dove and of a frog with untrained weights and CPU autocast,
# so trained weights have yet to be measured. Means of frames keep 0.99998 in bfloat16.
KEEPS = {"bfloat16": 0.9998, "float16": 0.99999}


def matches(config: EncoderConfig) -> bool:
    """Return whether the model's `config.json` names one of these families."""
    return model_folder.model_type(config) in MODEL_TYPES


def describe(config: EncoderConfig) -> Facts:
    """Return what is known from the settings alone.

    Raises:
        ConfigError: an option that does not fit the model.
        WeightsError: the settings cannot be read.
    """
    return _facts(config, model_folder.settings(config))


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return the pinned weights; see `model_folder.checkpoint`."""
    return model_folder.checkpoint(config)


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return the settings as stable JSON."""
    return model_folder.architecture(config, checkpoint)


def frame_geometry(kernels: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Return stride and receptive field of stacked convolutions, in samples.

    >>> frame_geometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    (320, 400)
    """
    receptive, stride = 1, 1
    for kernel, step in zip(kernels, strides, strict=True):
        receptive += (kernel - 1) * stride
        stride *= step
    return stride, receptive


def _facts(config: EncoderConfig, found: ModelSettings) -> Facts:
    rate_hz = found.preprocessing("sampling_rate", 16_000)
    kernels = found.integers("conv_kernel", KERNELS)
    stride, receptive = frame_geometry(kernels, found.integers("conv_stride", STRIDES))
    grid = frame_grid(config, rate_hz=rate_hz, stride=stride, receptive=receptive)
    if found.network("add_adapter", False) and None in config.layers:
        raise ConfigError(
            f"layer: {config.model} ends in an adapter with a frame rate of its own; set layer: 0 or higher"
        )
    facts = Facts(
        family=found.model_type,
        rate_hz=rate_hz,
        window_s=1.0,
        hop_s=0.5,
        grid=grid,
        embeds=False,
        keeps=KEEPS,
        dim=found.network("hidden_size", 768),
    )
    n_layers = found.network("num_hidden_layers", 12)
    is_on_hub = model_folder.is_on_hub(config)
    return check_options(config, facts, n_layers=n_layers, is_on_hub=is_on_hub)


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> SpeechFrames:
    """Return the encoder on its device.

    Raises:
        ConfigError: an option that does not fit the model.
        WeightsError: missing, foreign or half a checkpoint.
    """
    import transformers

    found = model_folder.settings(config, checkpoint)
    facts = _facts(config, found)
    network = build(
        {
            "wav2vec2": transformers.Wav2Vec2Model,
            "hubert": transformers.HubertModel,
            "wavlm": transformers.WavLMModel,
        }[found.model_type],
        found,
        checkpoint,
        # WavLM's gated position bias has one kernel only.
        attention="eager" if found.model_type == "wavlm" else "sdpa",
        encoder=r"(\w+\.)?(encoder|feature_extractor\.conv_layers|feature_projection)\.",
        # The embedding of masked frames is used in training only.
        may_miss=r"masked_spec_embed$",
    )
    return SpeechFrames(config, facts, network, found, device)


class SpeechFrames:
    """A loaded wav2vec 2.0, HuBERT or WavLM; see `encoders.base.Encoder`."""

    def __init__(
        self, config: EncoderConfig, facts: Facts, network: Any, found: ModelSettings, device: str
    ) -> None:
        import torch

        self.facts = facts
        self.dim = found.network("hidden_size", 768)
        self.batch_size = batch_of_stretches(config, device)
        self._layers = config.layers
        self._precision = config.precision
        self._normalises = found.preprocessing("do_normalize", True)
        self._device = torch.device(device)
        highest = highest_layer(config.layers)
        if highest is not None:
            # Without its last blocks a network gives the same hidden states (bitwise) for less.
            # One block stays for layer 0, since a hidden state is seen where a block takes it in.
            network.encoder.layers = network.encoder.layers[: max(1, highest)]
            network.adapter = None
        self._network = network.to(device)

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Refuse: a window's vector is the mean of its frames."""
        raise NotImplementedError(f"{self.facts.family} gives frames; windows are their means")

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Return the frames of equally long stretches.

        Layer 0 is what the first block takes in, layer k what block k gives; None is the network's
        own output (in networks with stable layer norm that is layer n after a last norm).

        Args:
            waves: (B, N) float32 at `rate_hz`.

        Returns:
            One (B, T, D) float32 tensor per layer; frame t sees samples
            [t · stride, t · stride + receptive), T = (N - receptive) // stride + 1.

        Raises:
            RecordingError: fewer samples than one frame sees.
        """
        grid = self.facts.grid
        if grid is None or waves.shape[-1] < grid.receptive:
            raise RecordingError(
                Reason.TOO_SHORT, f"{waves.shape[-1]} samples hold no frame of {self.facts.family}"
            )
        inputs = standardise(waves) if self._normalises else waves
        with network_precision(self._device, self._precision):
            output = self._network(inputs, output_hidden_states=self._layers != (None,))
        return [
            (output.last_hidden_state if layer is None else output.hidden_states[layer]).float()
            for layer in self._layers
        ]


def standardise(waves: torch.Tensor) -> torch.Tensor:
    """Return every row with mean 0 and variance 1, as transformers' Wav2Vec2FeatureExtractor does.

    Mean and variance are summed in float64, so that a row comes out the same in any batch.

    Args:
        waves: (B, N) float32.

    Returns:
        (B, N) float32; a constant row becomes zeros.
    """
    wide = waves.double()
    mean = wide.mean(dim=-1, keepdim=True)
    variance = wide.var(dim=-1, correction=0, keepdim=True)
    return (waves - mean.float()) / (variance + 1e-7).sqrt().float()
