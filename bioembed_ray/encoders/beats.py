"""BEATs (avex): raw waveform to patch tokens, and their mean per window.

The front end is a kaldi filter bank of 25 ms frames every 10 ms (400 and 160 samples whatever the
rate), cut into patches of 16 frames by 16 bands: 8 frequency patches per 160 ms time step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders.avex_models import build, check, model_of, resolve_checkpoint
from bioembed_ray.encoders.avex_registry import AvexModel, read_model
from bioembed_ray.encoders.base import Encoder, Facts, FrameGrid
from bioembed_ray.encoders.options import batch_of_windows
from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch

# The predictor and classifier heads are never run. The filter bank's tables are computed from the
# YAML; files made before avex kept them as buffers lack them.
ALLOW = r"classifier\.|backbone\.(predictor|fbank)\."
# Lowest cosine to float32 of any token in 16 real windows of birds, frogs, insects, whales and
# soundscapes, on a CPU and with untrained full-size weights; window means keep more.
KEEPS = {"bfloat16": 0.9998, "float16": 0.99999}


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the YAML's init_config says of the geometry, with avex's defaults.

    Attributes:
        n_layers: Transformer blocks.
        dim: D.
        stride: Samples per time step.
        receptive: Samples that one time step sees.
        n_bands: F, frequency patches per time step.
    """

    n_layers: int
    dim: int
    stride: int
    receptive: int
    n_bands: int


def _shape(model: AvexModel) -> _Shape:
    network = model.spec.get("init_config") or {}
    patch = int(network.get("input_patch_size", 16))
    # Not the input rate: sed_birdcode hears 32 kHz through a filter bank laid out for 16 kHz.
    per_ms = float(network.get("sample_frequency", 16_000.0)) / 1000
    length = int(per_ms * float(network.get("frame_length", 25.0)))
    shift = int(per_ms * float(network.get("frame_shift", 10.0)))
    return _Shape(
        n_layers=int(network.get("encoder_layers", 12)),
        dim=int(network.get("encoder_embed_dim", 768)),
        stride=patch * shift,
        receptive=length + (patch - 1) * shift,
        n_bands=int(network.get("num_mel_bins", 128)) // patch,
    )


def matches(config: EncoderConfig) -> bool:
    """Return True for avex's BEATs models and YAML files."""
    model = read_model(config.model)
    return model is not None and model.kind == "beats"


def describe(config: EncoderConfig) -> Facts:
    """Return what is known of a BEATs model without its weights.

    Raises:
        ConfigError: a setting that this model does not take.
    """
    model = model_of(config)
    shape = _shape(model)
    grid = _grid(config, model, shape)
    facts = Facts(
        "beats", model.rate_hz, 1.0, 0.5, grid, embeds=True, keeps=dict(KEEPS), dim=shape.dim
    )
    # Only BEATs has patches, so the common check knows one unit.
    common = config.model_copy(update={"frame_unit": "step"})
    return check(common, model, facts, n_shortest=shape.receptive, n_layers=shape.n_layers)


def _grid(config: EncoderConfig, model: AvexModel, shape: _Shape) -> FrameGrid:
    """Return blocks as long as the windows it was trained on, each on its own, unless asked."""
    trained_s = int(model.audio.get("target_length_seconds") or 10)
    block_s = trained_s if config.block_s is None else config.block_s
    context_s = config.context_s or 0
    if context_s and (
        block_s == "whole"
        or block_s * model.rate_hz % shape.stride
        or context_s * model.rate_hz % shape.stride
    ):
        raise ConfigError(
            f"context_s: got {context_s} with block_s: {block_s}; {model.name} takes context only where both are multiples of {shape.stride / model.rate_hz:g} s, its time step"
        )
    return FrameGrid(
        block_s=None if block_s == "whole" else block_s,
        context_s=context_s,
        joins_tail=False,
        stride=shape.stride,
        receptive=shape.receptive,
        per_step=shape.n_bands if config.frame_unit == "patch" else 1,
    )


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return the pinned weights.

    Raises:
        WeightsError: nothing there, or it cannot be reached.
    """
    return resolve_checkpoint(config, model_of(config))


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return everything architectural that moves numbers, as stable JSON."""
    return model_of(config).architecture


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> Encoder:
    """Return the loaded encoder.

    Raises:
        WeightsError: the weights are damaged, or belong to another network.
    """
    model = model_of(config)
    network = build(model, checkpoint, allow=ALLOW)
    return Beats(network, config, describe(config), _shape(model), device)


class Beats:
    """A BEATs network on its device; see `base.Encoder`.

    Layer k is the output of block k, 0 what enters block 1, None avex's own output. avex's
    `extract_embeddings` is not used: it hooks a linear layer inside each block rather than the
    block, and mixes windows where their number equals the number of tokens.
    """

    def __init__(
        self, network: Any, config: EncoderConfig, facts: Facts, shape: _Shape, device: str
    ) -> None:
        import torch

        self.facts = facts
        self.dim = shape.dim
        self._device = torch.device(device)
        self.batch_size = batch_of_windows(config, device)
        self._layers = config.layers
        self._precision = config.precision
        self._n_bands = shape.n_bands
        self._by_patch = config.frame_unit == "patch"
        self._seen: dict[int, torch.Tensor] = {}
        # Draws no random numbers: layers are dropped in training only, but the dice roll anyway.
        network.disable_layerdrop = True
        self._hook(network.backbone.encoder)
        self._network = network.to(self._device)

    def _hook(self, encoder: Any) -> None:
        """Watch the layers asked for, and leave out the blocks above them."""

        def watch_input(_block: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._seen[0] = args[0]

        def watch_output(layer: int) -> Any:
            def watch(
                _block: torch.nn.Module, _args: Any, output: tuple[torch.Tensor, ...]
            ) -> None:
                self._seen[layer] = output[0]

            return watch

        numbers = [layer for layer in self._layers if layer is not None]
        if len(numbers) == len(self._layers):
            encoder.layers = encoder.layers[: max(1, *numbers)]
        for number in numbers:
            if number == 0:
                encoder.layers[0].register_forward_pre_hook(watch_input)
            else:
                encoder.layers[number - 1].register_forward_hook(watch_output(number))

    def _tokens(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Return (B, T · F, D) float32 per layer, time-major, from one forward pass."""
        with network_precision(self._device, self._precision):
            output = self._network(waves)  # (B, T · F, D)
            # Blocks run on (T · F, B, D).
            layers = [
                output if layer is None else self._seen[layer].transpose(0, 1)
                for layer in self._layers
            ]
            self._seen.clear()
            return [layer.float() for layer in layers]

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Return the mean over all tokens, (B, D) per layer; see `base.Encoder.embed`."""
        return [tokens.mean(1) for tokens in self._tokens(windows)]

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Return one frame per time step or per patch; see `base.Encoder.frames`."""
        tokens = self._tokens(waves)
        if self._by_patch:
            return tokens
        return [
            layer.reshape(layer.shape[0], -1, self._n_bands, layer.shape[2]).mean(2)  # (B, T, D)
            for layer in tokens
        ]
