"""A job file and `--set` overrides become one frozen `Job`; a mistake becomes one line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bioembed_ray.config import (
    DEFAULT_MODELS,
    CodebookConfig,
    EncoderConfig,
    InputConfig,
    Job,
    PoolConfig,
    StorageConfig,
    StoreConfig,
)
from bioembed_ray.errors import ConfigError


def load_job(path: str | None, overrides: tuple[str, ...] = (), **direct: Any) -> Job:
    """Return the job of a file, with `key=value` overrides and direct values on top.

    Args:
        path: YAML file, or None to start from nothing.
        overrides: `a.b=value` in the order given; values are read as YAML.
        direct: Whole top-level keys, e.g. from command line options; None is left out.

    Raises:
        ConfigError: one line, naming the key, the value and what is accepted.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = _read_yaml(path)
    for key, value in direct.items():
        if value is not None:
            raw[key] = (
                {**(raw.get(key) or {}), **value}
                if isinstance(value, dict) and key == "input"
                else value
            )
    for override in overrides:
        _apply(raw, override)
    return parse_job(raw, path or "command line")


def parse_job(raw: dict[str, Any], where: str) -> Job:
    """Return a checked job from plain values.

    Raises:
        ConfigError: see `load_job`.
    """
    _check_keys(raw, where)
    try:
        return Job.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error, raw)}") from None


def _check_keys(node: object, where: str, above: str = "") -> None:
    """Refuse keys that YAML reads as something else than text: 5, yes, 2024-05-01."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: {above}{key}: keys are text; put this one in quotes")
            _check_keys(value, where, f"{above}{key}.")


class _OnceLoader(yaml.SafeLoader):
    """Reads YAML, but no mapping that has a key twice: PyYAML would take the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping.

        Raises:
            yaml.YAMLError: a key stands twice.
        """
        written = [
            key.value
            for key, _ in node.value
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
        ]
        for place, name in enumerate(written):
            if name in written[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), _OnceLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such job file; `bioembed init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigError(f"{path}:{line} not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold keys such as input, output and encoders")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"--set {override}: write key=value, e.g. encoders.beats.hop_s=0.25")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None
    node = raw
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                f"--set {key}: {'.'.join(parents[: depth + 1])} holds a value, not keys"
            )
        node = child
    node[last] = value


def _one_line(error: ValidationError, raw: dict[str, Any]) -> str:
    """Return the first problem as `key: got value; what is accepted`."""
    # A union reports each branch; an unknown key is the most useful thing to say first.
    problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    key = _written_key(first["loc"], raw)
    kind, got = first["type"], first["input"]
    if kind == "extra_forbidden":
        known = _known_keys(first["loc"])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return _missing(first["loc"])
    if kind in {"model_type", "dict_type"}:
        examples = {"encoders": "beats", "pools": "default"}
        example = examples.get(key) or _known_keys((*first["loc"], ""))[0]
        return f"{key}: got {got!r}; must hold keys such as {example}"
    context = first.get("ctx", {})
    if kind == "literal_error":
        return f"{key}: got {got!r}; use {_spoken(str(context['expected']))}"
    if kind == "value_error":
        text = str(context["error"])
        if not key or (":" in text and not text.startswith("use ")):
            return f"{key + '.' if key else ''}{text}"
        return f"{key}: got {got!r}; {text}"
    return f"{key}: got {got!r}; {first['msg'][:1].lower()}{first['msg'][1:]}"


def _missing(location: tuple[int | str, ...]) -> str:
    """Return what to say of a key that is not there; an encoder may just be misspelt."""
    key = ".".join(str(part) for part in location)
    if len(location) != 3 or location[0] != "encoders":
        return f"{key}: is missing"
    name = str(location[1])
    near = difflib.get_close_matches(name, DEFAULT_MODELS, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"only {', '.join(DEFAULT_MODELS)} bring one along"
    )
    return f"{key}: is missing; {hint}"


def _written_key(location: tuple[int | str, ...], raw: dict[str, Any]) -> str:
    """Return the dotted key as the user wrote it, without pydantic's names of union branches."""
    parts: list[str] = []
    node: Any = raw
    for place, part in enumerate(location):
        is_last_missing = place == len(location) - 1 and isinstance(node, dict)
        if not (is_last_missing or (isinstance(node, dict) and part in node)):
            break
        parts.append(str(part))
        node = node.get(part)
    return ".".join(parts)


def _spoken(expected: str) -> str:
    return expected.replace("'", '"')


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[BaseModel]] = {
        "input": InputConfig,
        "encoders": EncoderConfig,
        "codebooks": CodebookConfig,
        "pools": PoolConfig,
        "storage": StorageConfig if len(location) == 2 else StoreConfig,
    }
    table = tables.get(str(location[0]), Job) if len(location) > 1 else Job
    return list(table.model_fields)
