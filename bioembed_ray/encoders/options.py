"""Which options of the job file an encoder takes, and the grid and batches they ask for.

An option that would be ignored is an error: a job file says what happened.
"""

from __future__ import annotations

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders.base import Facts, FrameGrid
from bioembed_ray.errors import ConfigError


def frame_grid(
    config: EncoderConfig,
    *,
    rate_hz: int,
    stride: int,
    receptive: int,
    block_s: int = 20,
    context_s: int = 2,
) -> FrameGrid:
    """Return the grid of an encoder whose frames depend on all they are read with.

    Args:
        config: May ask for other blocks or context.
        rate_hz: Input rate.
        stride: Samples from one frame to the next.
        receptive: Samples one frame sees.
        block_s: Default seconds per block.
        context_s: Default seconds of context on both sides.

    Raises:
        ConfigError: blocks that do not start on a frame, or context for recordings read whole.
    """
    if config.block_s == "whole":
        if config.context_s:
            raise ConfigError(
                f"context_s: got {config.context_s} with block_s: whole; a recording read whole has no context"
            )
        return FrameGrid(None, 0, joins_tail=True, stride=stride, receptive=receptive)
    block_s = block_s if config.block_s is None else config.block_s
    context_s = context_s if config.context_s is None else config.context_s
    for name, seconds in (("block_s", block_s), ("context_s", context_s)):
        if seconds * rate_hz % stride:
            raise ConfigError(
                f"{name}: got {seconds}; at {rate_hz} Hz it must be a multiple of {stride} samples, the step of {config.model}"
            )
    return FrameGrid(block_s, context_s, joins_tail=True, stride=stride, receptive=receptive)


def check_options(
    config: EncoderConfig,
    facts: Facts,
    *,
    n_layers: int | None,
    is_on_hub: bool,
    is_trained: bool = False,
) -> Facts:
    """Return `facts`, after refusing what this encoder has no use for.

    Args:
        config: The options.
        facts: What is known of the encoder.
        n_layers: Blocks of the network; None where it has no layers to choose from.
        is_on_hub: Whether a revision can be chosen.
        is_trained: Whether it is trained by us.

    Raises:
        ConfigError: an option that does not fit.
    """
    model = config.model
    for layer in config.layers:
        if layer is None:
            continue
        if n_layers is None:
            raise ConfigError(f"layer: got {layer}; {model} gives its own output only")
        if layer > n_layers:
            raise ConfigError(f"layer: got {layer}; {model} has layers 0 to {n_layers}")
    if config.rate_hz is not None and config.rate_hz != facts.rate_hz:
        raise ConfigError(f"rate_hz: got {config.rate_hz}; {model} hears {facts.rate_hz} Hz only")
    if config.training is not None and not is_trained:
        raise ConfigError(f"training: {model} is not trained here; only vqvae is")
    if config.revision is not None and not is_on_hub:
        raise ConfigError(f"revision: got {config.revision!r}; {model} is not read from the hub")
    if config.frame_unit == "patch":
        raise ConfigError(f"frame_unit: got 'patch'; {model} has one frame per time step")
    if facts.grid is None:
        for name, given in (
            ("block_s", config.block_s is not None),
            ("context_s", config.context_s is not None),
            ("frames", config.frames != "none"),
        ):
            if given:
                raise ConfigError(f"{name}: {model} gives one vector per window and no frames")
    longest = facts.max_window_s
    if longest is not None and config.window_s is not None and config.window_s > longest:
        raise ConfigError(
            f"window_s: got {config.window_s}; {model} takes at most {longest} s at once"
        )
    return facts


def highest_layer(layers: tuple[int | None, ...]) -> int | None:
    """Return the highest layer asked for, or None where the whole network must run."""
    numbers = [layer for layer in layers if layer is not None]
    return max(numbers) if len(numbers) == len(layers) else None


def batch_of_windows(config: EncoderConfig, device: str, on_cpu: int = 16) -> int:
    """Return inputs per forward pass for an encoder whose windows are about a second long.

    Args:
        config: May ask for another number.
        device: "cpu", "cuda" or "cuda:N".
        on_cpu: What is fastest on one core. BEATs is so at 8 to 16 windows (1.4 times one at a
            time) and slower again at 32, where activations leave the cache.
    """
    return config.batch_size or (on_cpu if device == "cpu" else 128)


def batch_of_stretches(config: EncoderConfig, device: str) -> int:
    """Return inputs per forward pass for an encoder that reads ten seconds or more at once.

    A batch is no faster than single passes on one CPU thread for these transformers (measured:
    ratio 0.9 to 1.0); a GPU needs several to fill it.
    """
    return config.batch_size or (1 if device == "cpu" else 16)
