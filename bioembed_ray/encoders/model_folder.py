"""A transformers model: what its JSON files say, and its weights pinned; no transformers needed.

A model folder, local or on the hub, holds `config.json` (the network), `preprocessor_config.json`
(what is done to a waveform first) and the weights.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bioembed_ray.config import EncoderConfig, LocalWeights, RandomWeights
from bioembed_ray.encoders.known_models import KNOWN
from bioembed_ray.encoders.weights import (
    Checkpoint,
    fetch,
    hub_checkpoint,
    local_checkpoint,
    random_checkpoint,
)
from bioembed_ray.errors import ConfigError, WeightsError

T = TypeVar("T", int, float, bool, str)

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm", "whisper", "audio-spectrogram-transformer")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CONFIG = "config.json"
# transformers 5 saves a whole processor into processor_config.json, older ones only the other.
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
SETTINGS = (CONFIG, "p*processor_config.json")
SAFETENSORS = ("model.safetensors*", "model-*-of-*.safetensors")
TORCH = ("pytorch_model.bin*", "pytorch_model-*-of-*.bin")
# What says where a config.json comes from, or names classes: no vector depends on it.
PROVENANCE = {
    "_name_or_path", "architectures", "dtype", "feature_extractor_type", "id2label", "label2id",
    "mel_filters", "processor_class", "torch_dtype", "transformers_version",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What `config.json` and `preprocessor_config.json` say.

    Attributes:
        where: The folder or repository, for messages.
        config: The network.
        preprocessor: What is done to a waveform first.
    """

    where: str
    config: Mapping[str, object]
    preprocessor: Mapping[str, object]

    @property
    def model_type(self) -> str:
        """Return the family that `config.json` names."""
        return str(self.config.get("model_type"))

    def network(self, name: str, default: T) -> T:
        """Return a value of `config.json` of the default's type."""
        return self._value(self.config, name, default)

    def preprocessing(self, name: str, default: T) -> T:
        """Return a value of `preprocessor_config.json` of the default's type."""
        return self._value(self.preprocessor, name, default)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return a list of whole numbers of `config.json`."""
        value = self.config.get(name, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, int) for v in value):
            raise WeightsError(f"{self.where}: {name} is {value!r}, not a list of whole numbers")
        return tuple(value)

    def _value(self, table: Mapping[str, object], name: str, default: T) -> T:
        value = table.get(name, default)
        kind = type(default)
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            return kind(value)
        if type(value) is not kind:
            raise WeightsError(f"{self.where}: {name} is {value!r}, not {kind.__name__}")
        return value


def model_type(config: EncoderConfig) -> str | None:
    """Return the family of a model, or None where `model` is neither a folder nor a hub name.

    Raises:
        ConfigError, WeightsError: see `settings`.
    """
    is_folder = Path(config.model).expanduser().is_dir()
    if not is_folder and not HUB_NAME.fullmatch(config.model):
        return None
    return settings(config).model_type


def settings(config: EncoderConfig, checkpoint: Checkpoint | None = None) -> ModelSettings:
    """Return a model's settings; of pinned weights exactly those that lie beside them.

    Raises:
        ConfigError: `model` is neither a folder nor a hub name, or of a family not known here.
        WeightsError: the settings cannot be read, or are not those of a planned run.
    """
    known = KNOWN.get(config.model)
    if checkpoint is not None and checkpoint.kind != "random":
        names = [name for name in checkpoint.files if name in (CONFIG, *PREPROCESSORS)]
        found = _read_folder(fetch(checkpoint, only=names, model=config.model), _where(config))
    elif known is not None and isinstance(config.weights, RandomWeights):
        found = ModelSettings(config.model, *known)
    elif (folder := _folder(config)) is not None:
        found = _read_folder(folder, str(folder))
    else:
        minute = int(time.monotonic() // 60)
        endpoint = os.environ.get("HF_ENDPOINT")
        found = _hub_settings(_hub_name(config), config.revision, endpoint, minute)
    if checkpoint is not None and checkpoint.seed is not None:
        planned = random_checkpoint(checkpoint.seed, _text(found))
        if planned.digest != checkpoint.digest:
            raise WeightsError(
                f"{found.where}: its settings changed since this run was planned; plan it again"
            )
    if found.model_type not in MODEL_TYPES:
        raise ConfigError(
            f"model: {found.where} has model_type {found.model_type!r}; use one of {', '.join(MODEL_TYPES)}, or module:factory"
        )
    return found


@functools.lru_cache(maxsize=64)
def _hub_settings(
    repo: str, revision: str | None, _endpoint: str | None, _minute: int
) -> ModelSettings:
    """Read the hub's settings once a minute, as every family looks whether a model is its own."""
    pinned = hub_checkpoint(repo, revision, SETTINGS)
    return _read_folder(fetch(pinned), repo)


def is_on_hub(config: EncoderConfig) -> bool:
    """Return whether a hub revision is read for this model."""
    is_built_in = config.model in KNOWN and isinstance(config.weights, RandomWeights)
    return not is_built_in and _folder(config) is None


def _where(config: EncoderConfig) -> str:
    return str(_folder(config) or config.model)


def _folder(config: EncoderConfig) -> Path | None:
    """Return the local folder that holds the model, or None where it is on the hub."""
    if isinstance(config.weights, LocalWeights):
        folder = Path(config.weights.path)
        if not folder.is_dir():
            raise WeightsError(
                f"weights: {folder} is no folder; name the one that holds config.json and model.safetensors"
            )
        return folder
    folder = Path(config.model).expanduser()
    return folder if folder.is_dir() else None


def _hub_name(config: EncoderConfig) -> str:
    if not HUB_NAME.fullmatch(config.model):
        raise ConfigError(
            f"model: got {config.model!r}; use an avex name, a Hugging Face name (owner/name), a folder that exists, a .pt or .onnx file, or module:factory"
        )
    return config.model


def _read_folder(folder: Path, where: str) -> ModelSettings:
    network = _read_json(folder / CONFIG, where)
    for name in PREPROCESSORS:
        if (folder / name).is_file():
            found = _read_json(folder / name, where)
            nested = found.get("feature_extractor")
            preprocessor = nested if isinstance(nested, dict) else found
            if "sampling_rate" in preprocessor:
                return ModelSettings(where, network, preprocessor)
    raise WeightsError(
        f"{where}: no preprocessor_config.json that gives a sampling_rate, so what the model was trained to hear is unknown; add the original's"
    )


def _read_json(path: Path, where: str) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{where}: the folder has no {path.name}; save the model with save_pretrained"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{where}: {path.name} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: {path.name} holds no keys")
    return value


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return the pinned weights: settings and safetensors, or a torch file where there are none.

    Raises:
        WeightsError: missing, unreachable, or of another family than `model` says.
    """
    if isinstance(config.weights, RandomWeights):
        return random_checkpoint(config.weights.seed, _text(settings(config)))
    folder = _folder(config)
    if folder is None:
        repo = _hub_name(config)
        found = hub_checkpoint(repo, config.revision, (*SETTINGS, *SAFETENSORS, *TORCH))
        kept = (*SETTINGS, *_preferred(found.files, config.model))
        return hub_checkpoint(repo, found.commit, kept)
    found = local_checkpoint(str(folder), (*SETTINGS, *SAFETENSORS, *TORCH))
    _check_family(config, folder)
    kept = (*SETTINGS, *_preferred(found.files, str(folder)))
    return local_checkpoint(str(folder), kept)


def _preferred(files: tuple[str, ...], where: str) -> tuple[str, ...]:
    if any(name.endswith(".safetensors") for name in files):
        return SAFETENSORS
    if any(name.startswith("pytorch_model") for name in files):
        return TORCH
    raise WeightsError(f"{where}: has neither model.safetensors nor pytorch_model.bin")


def _check_family(config: EncoderConfig, folder: Path) -> None:
    """Refuse a folder of one family in the place of another that `model` names."""
    if config.model in KNOWN:
        expected = str(KNOWN[config.model][0]["model_type"])
    elif Path(config.model).expanduser().is_dir():
        expected = _read_folder(Path(config.model).expanduser(), config.model).model_type
    else:
        return
    found = _read_folder(folder, str(folder)).model_type
    if found != expected:
        raise WeightsError(
            f"weights: {folder} holds a {found} model, {config.model} is {expected}; set model to match"
        )


def architecture(config: EncoderConfig, checkpoint: Checkpoint) -> str:
    """Return the settings as stable JSON, without where they come from."""
    return _text(settings(config, checkpoint))


def _text(found: ModelSettings) -> str:
    tables = (found.config, found.preprocessor)
    kept = [{k: v for k, v in table.items() if k not in PROVENANCE} for table in tables]
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))
