"""Encoders from outside: a TorchScript file, an ONNX file, or a user's own `module:factory`.

Each becomes a function from windows to vectors. What a file cannot say (rate, window) comes from
the job file; what can be checked (one vector per window, the same alone as in a batch) is checked
once, on noise, when it is loaded.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bioembed_ray.config import EncoderConfig, Pretrained, exact
from bioembed_ray.encoders import external_factory
from bioembed_ray.encoders.base import Facts
from bioembed_ray.encoders.external_factory import FACTORY
from bioembed_ray.encoders.external_files import load_onnx, load_torchscript, tensors_beside
from bioembed_ray.encoders.options import check_options
from bioembed_ray.encoders.weights import Checkpoint, fetch, local_checkpoint
from bioembed_ray.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

TORCHSCRIPT = (".pt", ".ts", ".torchscript")
ONNX = (".onnx",)
# Largest difference between a window alone and in a batch, relative to the vector's largest value.
TOLERANCE = 1e-5


def matches(config: EncoderConfig) -> bool:
    """Return whether `model` is a file of these kinds or looks like `package.module:factory`."""
    return _suffix(config) in (*TORCHSCRIPT, *ONNX) or _is_factory(config)


def _suffix(config: EncoderConfig) -> str:
    return Path(config.model).suffix.lower()


def _is_factory(config: EncoderConfig) -> bool:
    return FACTORY.fullmatch(config.model) is not None


def describe(config: EncoderConfig) -> Facts:
    """Return what the job file, or the factory's own attributes, say of the encoder.

    Raises:
        ConfigError: rate or window are said nowhere, or an option does not fit.
    """
    rate_hz, window_s = config.rate_hz, config.window_s
    also = ""
    if _is_factory(config):
        factory = external_factory.find(config)
        rate_hz = rate_hz or external_factory.whole_number(factory, "rate_hz", config.model)
        window_s = window_s or external_factory.number(factory, "window_s", config.model)
        also = ", or give the factory that attribute"
    if rate_hz is None:
        raise ConfigError(f"rate_hz: is missing; {config.model} does not say it, set it{also}")
    if window_s is None:
        raise ConfigError(f"window_s: is missing; {config.model} does not say it, set it{also}")
    facts = Facts(
        family="external",
        rate_hz=rate_hz,
        window_s=window_s,
        hop_s=window_s,
        grid=None,
        embeds=True,
    )
    if _is_factory(config):
        # Which layers it has, a factory knows best.
        config = config.model_copy(update={"layer": None})
    else:
        _check_file_options(config)
    return check_options(config, facts, n_layers=None, is_on_hub=False)


def _check_file_options(config: EncoderConfig) -> None:
    if not isinstance(config.weights, Pretrained):
        raise ConfigError(f"weights: {config.model} holds its own; leave weights out")
    if _suffix(config) in ONNX and config.precision != "float32":
        raise ConfigError(
            f"precision: got {config.precision!r}; an ONNX file runs at the precision it was saved with"
        )


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return what names the encoder in a version.

    A file is named by its content, an ONNX file with the tensors saved beside it. A factory is
    named by the source it stands in, its `version` attribute if it has one, and its weights.

    Raises:
        ConfigError: no such factory.
        WeightsError: no such file.
    """
    if _is_factory(config):
        return external_factory.checkpoint(config)
    path = Path(config.model).expanduser().absolute()
    beside = tensors_beside(path) if _suffix(config) in ONNX else []
    if beside:
        return local_checkpoint(str(path.parent), (path.name, *(file.name for file in beside)))
    return local_checkpoint(str(path))


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return what kind of encoder it is; the network itself is in the checkpoint's digest."""
    if _is_factory(config):
        return json.dumps({"factory": config.model})
    return json.dumps({"format": "onnx" if _suffix(config) in ONNX else "torchscript"})


def load(config: EncoderConfig, checkpoint: Checkpoint, device: str) -> External:
    """Return the encoder on its device, after trying it on noise.

    Raises:
        ConfigError: it does not fit the job file, or breaks what a factory promises.
        WeightsError: the file is damaged or of another kind, changed since the run was planned, or
            does not give one vector per window.
    """
    facts = describe(config)
    if _is_factory(config):
        call = external_factory.load(config, facts, checkpoint, device)
    elif _suffix(config) in ONNX:
        call = load_onnx(_checked_file(config, checkpoint), _window_samples(facts), device)
    else:
        call = load_torchscript(_checked_file(config, checkpoint), config.precision, device)
    return External(config, facts, call, device)


def _checked_file(config: EncoderConfig, checkpoint: Checkpoint) -> Path:
    """Return the file, after comparing its content with what the run was planned with."""
    fetch(checkpoint)
    return Path(config.model).expanduser()


def _window_samples(facts: Facts) -> int:
    return round(exact(facts.window_s) * facts.rate_hz)


class External:
    """A loaded encoder from outside; see `encoders.base.Encoder`."""

    def __init__(
        self,
        config: EncoderConfig,
        facts: Facts,
        call: Callable[[torch.Tensor], list[torch.Tensor]],
        device: str,
    ) -> None:
        import torch

        self.facts = facts
        self._call = call
        self._model = config.model
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(2, _window_samples(facts), generator=draw).to(device)
        first, second = self.embed(noise[:1]), self.embed(noise[1:])
        self.dim = first[0].shape[1]
        if _largest_difference(first, self.embed(noise[:1])) > TOLERANCE:
            raise WeightsError(
                f"{config.model}: gives the same window another vector each time; save it in eval mode, without dropout"
            )
        # Small networks, the usual case, gain from batches on a CPU too.
        self.batch_size = config.batch_size or (8 if device == "cpu" else 16)
        if self.batch_size > 1 and not self._is_batch_proof(noise, first, second):
            warnings.warn(
                f"{config.model}: a window's vector depends on its batch, so windows are encoded one by one",
                stacklevel=2,
            )
            self.batch_size = 1

    def _is_batch_proof(
        self, noise: torch.Tensor, first: list[torch.Tensor], second: list[torch.Tensor]
    ) -> bool:
        import torch

        try:
            together = self.embed(noise)
        except (RuntimeError, ValueError, WeightsError):
            return False  # e.g. traced with a batch of one
        alone = [torch.cat(pair) for pair in zip(first, second, strict=True)]
        return _largest_difference(alone, together) <= TOLERANCE

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Return one vector per window and layer.

        Args:
            windows: (B, N) float32 at `rate_hz`, N the window.

        Returns:
            One (B, D) float32 tensor per layer asked for.

        Raises:
            WeightsError: not one vector per window.
        """
        import torch

        with torch.inference_mode():
            vectors = self._call(windows)
        for layer in vectors:
            if layer.shape[0] != windows.shape[0]:
                raise WeightsError(
                    f"{self._model}: gives {layer.shape[0]} vectors for {windows.shape[0]} windows"
                )
        return vectors

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Refuse: an encoder from outside gives vectors of windows."""
        raise NotImplementedError(f"{self._model} gives one vector per window and no frames")


def _largest_difference(wanted: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest value of each vector; NaN is infinite."""
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        scale = a.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
        difference = float(((a - b).abs() / scale).max())
        worst = max(worst, difference) if difference == difference else float("inf")
    return worst
