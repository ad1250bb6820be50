"""EfficientNet (avex): log-mel image to feature map, and its mean per window."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders.avex_models import (
    build,
    check,
    model_of,
    resolve_checkpoint,
    shortest_spectrogram,
)
from bioembed_ray.encoders.avex_registry import read_model
from bioembed_ray.encoders.base import Encoder, Facts
from bioembed_ray.encoders.options import batch_of_windows
from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.encoders.weights import Checkpoint, seeded

if TYPE_CHECKING:
    import torch

# The ImageNet classifier is built, never filled and never run; the counters steer training only.
ALLOW = r"(model\.)?classifier\.|.*\.num_batches_tracked$"
# Channels of the last map of B0 and B1 (Tan and Le 2019, arXiv:1905.11946, table 1).
DIM = 1280
# Lowest cosine to float32 in 16 real windows of birds, frogs, insects, whales and soundscapes, on a
# CPU and with untrained weights whose batch norms had settled on such sound.
KEEPS = {"bfloat16": 0.983, "float16": 0.9996}
# With fused convolutions the fastest on one core: 3.06 times one window at a time, 16 gives 2.93.
FUSED_BATCH = 8
N_WARM_UP = 3


def matches(config: EncoderConfig) -> bool:
    """Return True for avex's EfficientNet models and YAML files."""
    model = read_model(config.model)
    return model is not None and model.kind == "efficientnet"


def describe(config: EncoderConfig) -> Facts:
    """Return what is known of an EfficientNet without its weights.

    Raises:
        ConfigError: a setting that this model does not take; it has no frames and no layers.
    """
    model = model_of(config)
    facts = Facts(
        "efficientnet", model.rate_hz, 1.0, 0.5, None, embeds=True, keeps=dict(KEEPS), dim=DIM
    )
    return check(config, model, facts, n_shortest=shortest_spectrogram(model), n_layers=None)


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
    if checkpoint.seed is not None:
        _settle(network, model.rate_hz, checkpoint.seed)
    return EfficientNet(network, config, describe(config), device)


def _settle(network: Any, rate_hz: int, seed: int) -> None:
    """Give the batch norms of untrained weights the statistics of varied made-up sounds.

    With the statistics a fresh network starts from, every layer shrinks what it gets and all
    windows answer 1e-13: a dry run would look broken. The sounds must be varied, or a channel that
    was quiet here blows up other sounds, and rounding errors with them (to 4e-5 relative).
    """
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain mean over what follows
    n_sounds = 32
    with seeded(seed), torch.no_grad():
        time = torch.arange(rate_hz) / rate_hz
        pitch = rate_hz / 2 * torch.rand(n_sounds, 1) ** 2
        wobble = torch.sin(2 * torch.pi * 8 * torch.rand(n_sounds, 1) * time)
        sweeps = torch.sin(2 * torch.pi * pitch * (time + 0.1 * torch.rand(n_sounds, 1) * wobble))
        bursts = (torch.rand(n_sounds, 16) ** 4).repeat_interleave(-(-rate_hz // 16), 1)
        is_steady = torch.arange(n_sounds)[:, None] % 2 == 0
        envelope = torch.where(is_steady, torch.ones(1), bursts[:, :rate_hz])
        noise = 10 ** (-4 * torch.rand(n_sounds, 1)) * torch.randn(n_sounds, rate_hz)
        network(envelope * sweeps + noise)
    network.eval()


class EfficientNet:
    """An EfficientNet on its device; see `base.Encoder`.

    Batch norms are folded into their convolutions, images are laid out channels last, and on a CPU
    in float32 oneDNN fuses activations into convolutions: 3 times one window at a time on a core,
    and as near to the exact result as avex is itself (both 1e-5 relative from float64 at most).
    """

    def __init__(self, network: Any, config: EncoderConfig, facts: Facts, device: str) -> None:
        import torch

        self.facts = facts
        self._device = torch.device(device)
        self._is_fused = self._device.type == "cpu" and config.precision == "float32"
        self.batch_size = batch_of_windows(config, device, on_cpu=FUSED_BATCH)
        self._precision = config.precision
        fold_batch_norms(network.model.features)
        self._network = network.to(self._device)
        self._features = network.model.features.to(memory_format=torch.channels_last)
        self._fused: dict[tuple[int, ...], Any] = {}
        self.dim = DIM

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Return the mean of the map over height and width, (B, D); see `base.Encoder.embed`."""
        import torch

        with network_precision(self._device, "float32"):
            # Outside autocast: in bfloat16 the mel alone would be off by 0.9 % of its range.
            images = self._network.process_audio(windows)  # (B, 3, mels, frames)
        with network_precision(self._device, self._precision):
            images = images.contiguous(memory_format=torch.channels_last)
            run = self._fused_features if self._is_fused else self._features
            features = run(images)  # (B, D, H, W)
            return [features.float().mean((2, 3))]

    def _fused_features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map by a graph that oneDNN has fused for batches of this very shape.

        A smaller batch is filled up: the graph of another shape would round otherwise.
        """
        import torch

        n = len(images)
        if n < self.batch_size:
            images = torch.cat([images, images[:1].expand(self.batch_size - n, -1, -1, -1)])
            images = images.contiguous(memory_format=torch.channels_last)
        shape = tuple(images.shape)
        if shape not in self._fused:
            self._fused[shape] = fuse(self._features, images)
        features: torch.Tensor = self._fused[shape](images)
        return features[:n]

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Raise: an EfficientNet has no frames, as its `facts.grid` says."""
        raise NotImplementedError("EfficientNet has no frames")


def fuse(network: torch.nn.Module, images: torch.Tensor) -> Any:
    """Return a network as a graph with activations fused into convolutions, for one input shape."""
    import torch

    jit: Any = torch.jit
    before = jit.onednn_fusion_enabled()
    # Off again afterwards: it would also move the last bits of a caller's own TorchScript files.
    jit.enable_onednn_fusion(True)
    try:
        with warnings.catch_warnings():
            # To be replaced by torch.compile, which needs 40 s and gives 2.4 times.
            warnings.simplefilter("ignore", DeprecationWarning)
            graph = jit.freeze(jit.trace(network, images))
        # The first calls measure and compile, and round otherwise than those after them.
        for _ in range(N_WARM_UP):
            graph(images)
    finally:
        jit.enable_onednn_fusion(before)
    return graph


def fold_batch_norms(network: torch.nn.Module) -> None:
    """Fold every batch norm that follows a convolution in a Sequential into it, in place.

    In eval mode a batch norm is a scale and an offset per channel, which the convolution can carry
    itself.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in network.modules():
        if not isinstance(module, torch.nn.Sequential):
            continue
        for place in range(len(module) - 1):
            conv, norm = module[place], module[place + 1]
            if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                # In float64, so that only the result is rounded.
                module[place] = fuse_conv_bn_eval(conv.double(), norm.double()).float()
                module[place + 1] = torch.nn.Identity().eval()
