"""A transformers network with exactly the weights of its checkpoint.

transformers fills whatever a checkpoint lacks with random numbers and prints a table; here a gap is
an error.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bioembed_ray.encoders.model_folder import ModelSettings
from bioembed_ray.encoders.weights import Checkpoint, fetch, seeded
from bioembed_ray.errors import WeightsError


def build(
    model_class: Any,
    found: ModelSettings,
    checkpoint: Checkpoint,
    *,
    attention: str,
    encoder: str,
    may_miss: str = "$^",
) -> Any:
    """Return a network with these weights on the CPU, float32, in eval mode.

    Args:
        model_class: The transformers class.
        found: Its settings.
        checkpoint: Its weights.
        attention: transformers' name of the attention kernel.
        encoder: Regex of names in a file that belong to the encoder; one that is left over is an
            error, heads may be.
        may_miss: Regex of names that the file need not have, since they are never run.

    Raises:
        WeightsError: no whole set of weights of this network.
    """
    if checkpoint.kind == "random" and checkpoint.seed is not None:
        wanted = model_class.config_class.from_dict(
            dict(found.config), attn_implementation=attention
        )
        with seeded(checkpoint.seed):
            network = model_class(wanted)
    else:
        network = _load(model_class, found.where, fetch(checkpoint), attention, encoder, may_miss)
    return network.eval().requires_grad_(False)


def _load(
    model_class: Any, where: str, folder: Path, attention: str, encoder: str, may_miss: str
) -> Any:
    import torch
    from safetensors import SafetensorError

    try:
        with _quiet():
            network, report = model_class.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=torch.float32,
                local_files_only=True,
                weights_only=True,
                ignore_mismatched_sizes=True,
                attn_implementation=attention,
            )
    except (OSError, RuntimeError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise WeightsError(
            f"{where}: not weights of this {model_class.__name__} ({_line(error)})"
        ) from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{where}: pytorch_model.bin holds more than plain tensors (weights_only); save the model as safetensors"
        ) from None
    missing = [name for name in report["missing_keys"] if not re.match(may_miss, name)]
    foreign = [name for name in report["unexpected_keys"] if re.match(encoder, name)]
    mismatched = [name for name, *_shapes in report["mismatched_keys"]]
    for names, what in (
        (missing, f"lacks {len(missing)} tensors of {model_class.__name__}"),
        (foreign, f"holds {len(foreign)} encoder tensors that config.json has no place for"),
        (mismatched, "holds tensors of other shapes than config.json says"),
    ):
        if names:
            raise WeightsError(f"{where}: {what}, such as {min(names)}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in network.parameters()):
        raise WeightsError(f"{where}: the weights hold NaN or infinity")
    return network


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the loading table and bars; what they say is checked here instead."""
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
