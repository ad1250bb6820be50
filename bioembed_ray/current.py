"""Which version of each encoder and codebook is current, what it is, and why another is wanted.

`current.json` moves in one put, an encoder together with its codebooks, so that whoever reads it
never joins vectors of one version with tokens of another. `versions/` says in full what a version is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from bioembed_ray import storage
from bioembed_ray.datasets import Dataset, Output, PlannedEncoder
from bioembed_ray.errors import NotFoundError
from bioembed_ray.parts import weights_stamp

CURRENT_KEY = "current.json"


def read_current(output: str) -> dict[str, Any]:
    """Return which versions are current; empty before the first complete run."""
    return _read(storage.join(output, CURRENT_KEY)) or {}


def move_current(output: str, finished: list[PlannedEncoder], held_back: Iterable[str]) -> None:
    """Make the versions of finished encoders current, in one put; nothing is put where they are.

    Args:
        output: The output.
        finished: Encoders with every part of theirs and of their codebooks.
        held_back: Codebooks that this run left alone; an encoder whose new version they do not
            follow yet keeps its old one.
    """
    current = read_current(output)
    encoders = dict(current.get("encoders", {}))
    codebooks = dict(current.get("codebooks", {}))
    waits = {codebooks[name]["encoder"] for name in held_back if name in codebooks}
    for encoder in finished:
        for result in encoder.outputs:
            is_new = encoders.get(result.name, {}).get("embeddings") != result.embeddings.version
            if is_new and result.name in waits:
                continue
            _move(result, weights_stamp(encoder), encoders, codebooks, is_new)
    found = {"encoders": encoders, "codebooks": codebooks}
    if found != {key: current.get(key, {}) for key in found}:
        for encoder in finished:
            _describe_versions(output, encoder)
        body = json.dumps({**current, **found}, indent=2, sort_keys=True)
        storage.put(storage.join(output, CURRENT_KEY), body.encode())


def _move(
    result: Output, weights: str, encoders: dict[str, Any], codebooks: dict[str, Any], is_new: bool
) -> None:
    encoders[result.name] = {
        "embeddings": result.embeddings.version,
        "frames": None if result.frames is None else result.frames.version,
        "weights": weights,
    }
    if is_new:
        # Codebooks that the job no longer has stay with the version that left.
        for name in [name for name, one in codebooks.items() if one["encoder"] == result.name]:
            del codebooks[name]
    for tokens in result.tokens:
        codebooks[tokens.name] = {
            "encoder": result.name,
            "codebook": tokens.folder.rpartition("version=")[2],
            "tokens": tokens.dataset.version,
        }


def _describe_versions(output: str, encoder: PlannedEncoder) -> None:
    """Put what an encoder's versions are, in full, where it is not said yet."""
    fits = {t.dataset: t.fit for output in encoder.outputs for t in output.tokens}
    checkpoint = {key: one for key, one in asdict(encoder.checkpoint).items() if one}
    for dataset in encoder.datasets:
        found = {
            "table": dataset.table,
            "name": dataset.encoder,
            "version": dataset.version,
            "model": encoder.config.model,
            "checkpoint": checkpoint,
            "content": dataset.content,
            "fit": fits.get(dataset),
        }
        body = json.dumps(found, indent=2, sort_keys=True).encode()
        storage.create(_description_uri(output, dataset), body)


def read_description(output: str, dataset: Dataset) -> dict[str, Any] | None:
    """Return what a version is, None where nobody said."""
    return _read(_description_uri(output, dataset))


def _description_uri(output: str, dataset: Dataset) -> str:
    return storage.join(
        output, "versions", dataset.table, dataset.encoder, f"{dataset.version}.json"
    )


def _read(uri: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(storage.read(uri))
    except NotFoundError:
        return None
    return found


def reasons(output: str, encoders: Iterable[PlannedEncoder]) -> Iterator[tuple[str, str]]:
    """Yield (output of an encoder, why the current version is not the one wanted)."""
    current = read_current(output).get("encoders", {})
    for encoder in encoders:
        for result in encoder.outputs:
            last = current.get(result.name, {}).get("embeddings")
            if last in {None, result.embeddings.version}:
                continue
            old = read_description(output, Dataset("embeddings", result.name, last))
            if old is None:
                yield result.name, f"version {last} is another one"
                continue
            new = {
                "checkpoint": asdict(encoder.checkpoint),
                "content": result.embeddings.content,
            }
            for text in differences(old, new):
                yield result.name, text


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return how two versions differ, one text each.

    >>> differences({"content": {"hop": 8000, "rate_hz": 16000}}, {"content": {"hop": 4000, "rate_hz": 16000}})
    ['hop_s moved from 0.5 to 0.25']
    """
    was, now = old["content"], new["content"]
    found = []
    if was.get("weights") != now.get("weights"):
        found.append(_weights_moved(old["checkpoint"], new["checkpoint"]))
    for key in sorted((was.keys() | now.keys()) - {"weights"}):
        if was.get(key) == now.get(key):
            continue
        before, after, title = was.get(key), now.get(key), key
        if key in {"window", "hop", "min_valid"}:
            title = f"{key}_s"
            before = before and before / was["rate_hz"]
            after = after and after / now["rate_hz"]
        found.append(f"{title} moved from {shown(before)} to {shown(after)}")
    return found


def _weights_moved(old: dict[str, Any], new: dict[str, Any]) -> str:
    if old["kind"] != new["kind"]:
        return (
            f"weights moved from {_weights(old)} ({old['kind']}) to {_weights(new)} ({new['kind']})"
        )
    on = {"hub": " on the hub", "local": f" in {new.get('path')}"}.get(new["kind"], "")
    return f"weights moved from {_weights(old)} to {_weights(new)}{on}"


def _weights(checkpoint: dict[str, Any]) -> str:
    """Return what names weights for people: a commit, a seed, or the digest of their bytes."""
    if checkpoint.get("commit"):
        return str(checkpoint["commit"])[:7]
    if checkpoint["kind"] == "random":
        return f"seed {checkpoint.get('seed') or 0}"
    return str(checkpoint["digest"])[:7]


def shown(value: Any) -> str:
    """Return a setting's value for people."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value else json.dumps(value)
