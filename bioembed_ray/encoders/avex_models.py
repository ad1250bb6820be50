"""The models of the avex package: read from its YAML files, built, filled and verified.

avex takes ten seconds to import, so only `build` does; what a model is stands in YAML files that
are read without it. Its own loaders are not used: they fill the gaps of a wrong file with random
numbers, ignore the checkpoint_path of a YAML that is not one of avex's, download ImageNet weights
for every EfficientNet, and leave the model in training mode.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, assert_never

from bioembed_ray.config import EncoderConfig, LocalWeights, Pretrained, RandomWeights
from bioembed_ray.encoders.avex_registry import AvexModel, read_model
from bioembed_ray.encoders.base import Facts
from bioembed_ray.encoders.options import check_options
from bioembed_ray.encoders.state import few, fill, read_state, seeded
from bioembed_ray.encoders.weights import (
    Checkpoint,
    fetch,
    hub_checkpoint,
    local_checkpoint,
    random_checkpoint,
)
from bioembed_ray.errors import ConfigError, WeightsError

WEIGHT_FILES = ("*.safetensors", "*.pt", "*.pth", "*.bin")
HUB_URI = re.compile(r"hf://(?P<repo>[^/]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")


def model_of(config: EncoderConfig) -> AvexModel:
    """Return the avex model of a config that is known to name one."""
    model = read_model(config.model)
    if model is None:
        raise ConfigError(f"model: {config.model!r} is neither an avex model nor an avex YAML file")
    return model


def check(
    config: EncoderConfig, model: AvexModel, facts: Facts, *, n_shortest: int, n_layers: int | None
) -> Facts:
    """Return `facts`, after refusing settings that an avex model has no use for.

    Args:
        config: The encoder's settings.
        model: Its model.
        facts: What is known of it.
        n_shortest: Fewest samples the network takes.
        n_layers: Blocks of the network; None where it has no layers to choose from.

    Raises:
        ConfigError: naming the key, the value got and what is accepted.
    """
    if config.window_s is not None and round(config.window_s * model.rate_hz) < n_shortest:
        raise ConfigError(
            f"window_s: got {config.window_s}; {model.name} needs {n_shortest / model.rate_hz:g} s or more"
        )
    return check_options(
        config, facts, n_layers=n_layers, is_on_hub=_revision_counts(config, model)
    )


def shortest_spectrogram(model: AvexModel) -> int:
    """Return the fewest samples that avex's spectrogram takes.

    Its centred frames are padded by reflection, which needs more than half a frame of samples.

    Raises:
        ConfigError: the front end is not a spectrogram.
    """
    kind = model.audio.get("representation", "mel_spectrogram")
    if kind == "raw" or not model.audio:
        raise ConfigError(
            f"model: {model.name} needs an audio_config with a spectrogram, got {kind!r}"
        )
    n_fft = int(model.audio.get("n_fft", 2048))
    return n_fft // 2 + 1 if model.audio.get("center", True) else n_fft


def _revision_counts(config: EncoderConfig, model: AvexModel) -> bool:
    # A dry run with random weights may keep the revision that the real run will use.
    if isinstance(config.weights, RandomWeights):
        return True
    from_hub = (model.checkpoint_path or "").startswith("hf://")
    return isinstance(config.weights, Pretrained) and from_hub


def resolve_checkpoint(config: EncoderConfig, model: AvexModel) -> Checkpoint:
    """Return the pinned weights of an avex model.

    Raises:
        WeightsError: nothing there, or it cannot be reached.
    """
    match config.weights:
        case RandomWeights(seed=seed):
            return random_checkpoint(seed, model.architecture)
        case LocalWeights(path=path):
            return local_checkpoint(path, WEIGHT_FILES)
        case Pretrained():
            return _published(config, model)
        case _:
            assert_never(config.weights)


def _published(config: EncoderConfig, model: AvexModel) -> Checkpoint:
    uri = model.checkpoint_path
    if uri is None:
        raise WeightsError(
            f"{model.name}: names no checkpoint_path; add one, or set weights: /path/to/model or random"
        )
    if hub := HUB_URI.fullmatch(uri):
        revision = config.revision or hub["revision"]
        return hub_checkpoint(hub["repo"], revision, [hub["file"]], model=model.name)
    if "://" in uri:
        raise WeightsError(
            f"{model.name}: checkpoint_path {uri} is neither hf:// nor a path; download it and set weights: /path/to/model"
        )
    return local_checkpoint(str(model.folder / Path(uri).expanduser()), WEIGHT_FILES)


def build(model: AvexModel, checkpoint: Checkpoint, *, allow: str) -> Any:
    """Return avex's network with verified weights, on the CPU, in eval mode.

    Args:
        model: What to build.
        checkpoint: Its weights.
        allow: Regex of tensors that may be missing or foreign (`state.verify_state`).

    Raises:
        ConfigError: avex does not take the model_spec.
        WeightsError: the weights are damaged, or belong to another network.
    """
    # Any seed does where weights follow; a fixed one leaves the caller's random numbers alone.
    with seeded(checkpoint.seed or 0):
        network = _build_untrained(model)
    if checkpoint.kind != "random":
        path = _weights_file(checkpoint, model)
        state = _avex_names(read_state(path), network, path)
        _keep_exact_tables(state, network)
        fill(network, state, allow=allow, where=str(path))
    return network.eval()


def _keep_exact_tables(state: dict[str, Any], network: Any) -> None:
    """Put the computed filter bank in the place of a rounded copy in a half-precision file.

    Rounded to float16 it alone moves vectors of tonal sounds by 4 %.
    """
    for name, exact in network.named_buffers():
        stored = state.get(name)
        if ".fbank." in name and stored is not None and stored.dtype != exact.dtype:
            is_rounded = stored.shape == exact.shape and stored.to(exact).allclose(exact, atol=5e-3)
            state[name] = exact.clone() if is_rounded else stored


def _build_untrained(model: AvexModel) -> Any:
    from avex.configs import ModelSpec
    from avex.models.utils.factory import build_model_from_spec
    from avex.models.utils.registry import get_model_class
    from pydantic import ValidationError

    try:
        # A spec of its own: building through the registry changes what the registry holds.
        spec = ModelSpec(**{**model.spec, "device": "cpu", "pretrained": False})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"model: {model.name}: model_spec.{key}: {first['msg']}") from None
    if get_model_class(model.kind) is None:
        # avex skips every module below a directory called utils, probes or beats, even where that
        # is a directory above the environment it is installed in.
        raise ConfigError(
            f"model: avex has no class {model.kind!r}; if its install path holds a folder named utils, probes or beats, move the environment"
        )
    return build_model_from_spec(spec, "cpu", pretrained=False, return_features_only=True)


def _weights_file(checkpoint: Checkpoint, model: AvexModel) -> Path:
    place = fetch(checkpoint, model=model.name)
    if place.is_file():
        return place
    suffixes = [pattern.removeprefix("*") for pattern in WEIGHT_FILES]
    for suffix in suffixes:
        names = [name for name in checkpoint.files if name.endswith(suffix)]
        if len(names) == 1:
            return place / names[0]
        if names:
            raise WeightsError(f"{place}: holds {few(names)}; set weights to one file")
    raise WeightsError(f"{place}: holds no weights; set weights to a file ({' '.join(suffixes)})")


def _avex_names(content: dict[str, object], network: Any, path: Path) -> dict[str, Any]:
    """Return the tensors of a file under the network's names, by avex's own rules.

    These accept a plain state dict or one under `model_state_dict` or `model`, with or without the
    prefixes `module.`, `model.` and `backbone.`, and drop classifiers.
    """
    import torch
    from avex.utils.utils import _process_state_dict

    names = network.state_dict().keys()
    # Copies, since avex takes the classifiers out of what it is given.
    copied = {key: dict(v) if isinstance(v, dict) else v for key, v in content.items()}
    inner = copied.get("model_state_dict", copied)
    if not isinstance(inner, dict) or not all(isinstance(key, str) for key in (*copied, *inner)):
        raise WeightsError(f"{path}: holds no names and tensors; save a plain state dict")
    has_model_prefix = any(name.startswith("model.") for name in names)
    state = _process_state_dict(copied, drop_model_prefix=not has_model_prefix)
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        raise WeightsError(
            f"{path}: holds {few(others)} instead of tensors; save a plain state dict, or one under model or model_state_dict"
        )
    needs = any(name.startswith("backbone.") for name in names)
    if needs and not any(name.startswith("backbone.") for name in state):
        state = {f"backbone.{name}": value for name, value in state.items()}
    return {_new_weight_norm(name): value for name, value in state.items()}


def _new_weight_norm(name: str) -> str:
    """Return torch's present name of a weight-normed tensor; older files say weight_g, weight_v."""
    stem, _, last = name.rpartition(".")
    new = {"weight_g": "original0", "weight_v": "original1"}.get(last)
    return f"{stem}.parametrizations.weight.{new}" if new else name
