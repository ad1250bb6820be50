"""Models of avex as its packaged YAML files describe them, read without importing avex."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bioembed_ray.errors import ConfigError

# Fields of a model_spec that say where and how to load, not what the network computes.
NOT_ARCHITECTURE = ("device", "pretrained")


@dataclass(frozen=True, slots=True)
class AvexModel:
    """One YAML file in avex's format.

    Attributes:
        name: As the job file says it: registry name or path.
        kind: avex's model class, e.g. "beats".
        spec: The file's model_spec.
        checkpoint_path: The file's checkpoint_path: hf:// URI or path; None where it has none.
        folder: Where the file is; relative checkpoint paths start there.
    """

    name: str
    kind: str
    spec: Mapping[str, Any]
    checkpoint_path: str | None
    folder: Path

    @property
    def audio(self) -> Mapping[str, Any]:
        """The audio_config: rate and front end."""
        return self.spec.get("audio_config") or {}

    @property
    def rate_hz(self) -> int:
        """Input rate; 16 kHz is avex's own default."""
        return int(self.audio.get("sample_rate", 16_000))

    @property
    def architecture(self) -> str:
        """Everything in the file that moves numbers, as stable JSON."""
        kept = {key: value for key, value in self.spec.items() if key not in NOT_ARCHITECTURE}
        return json.dumps(kept, sort_keys=True)


def registry_folder() -> Path:
    """Return the folder of avex's registered models, found without importing avex."""
    found = importlib.util.find_spec("avex")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("the avex package is not installed; `uv pip install avex==1.4.0`")
    return Path(found.submodule_search_locations[0]) / "api" / "configs" / "official_models"


def registry_names() -> list[str]:
    """Return the names of avex's registered models."""
    return sorted(path.stem for path in registry_folder().glob("*.yml"))


def read_model(name: str) -> AvexModel | None:
    """Return the avex model of a registry name or YAML file; None where `name` is neither.

    Raises:
        ConfigError: a YAML file that is missing, or not in avex's format.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yml", ".yaml"):
        if "/" in name or ":" in name:
            return None
        path = registry_folder() / f"{name}.yml"
        if not path.is_file():
            return None
    content = _read_yaml(path)
    spec = content.get("model_spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ConfigError(f"model: {path} has no model_spec with a name, so it is no avex model")
    checkpoint_path = content.get("checkpoint_path")
    return AvexModel(
        name, spec["name"], spec, str(checkpoint_path) if checkpoint_path else None, path.parent
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"model: no such file {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"model: {path} cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"model: {path} holds no keys, so it is no avex model")
    return content
