"""The figures of a codebook card, from what a fit left: usages, held-out frames, the last version."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from bioembed_ray.codebooks.alignment import drift
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.card import (
    Codebook,
    agreement,
    concentration,
    dependence,
    usage,
    verdict,
)
from bioembed_ray.codebooks.fit_worker import Usage
from bioembed_ray.codebooks.frame_parts import Rows, Vectors, group_of
from bioembed_ray.codebooks.lloyd import State
from bioembed_ray.codebooks.nearest import assign, make_codes
from bioembed_ray.codebooks.partial_sums import prepare
from bioembed_ray.codebooks.rule import Centroids

PACKAGES = ("bioembed_ray", "numpy", "torch", "ray", "scikit-learn", "pyarrow")
NOTES = {
    "inertia": "mean squared distance of a frame from its centroid; cosine: 2 (1 - cosine)",
    "perplexity": "2^entropy: as many equally frequent codes would be as uncertain",
    "top_share_median": "over codes: share of a code's frames from its most frequent origin",
    "owned_codes": "codes with nine tenths of their frames from one origin",
    "adjusted_mutual_information": "0 as by chance, 1 where each decides the other",
    "drift": "shifts relative to the root of the held-out (else fitted) inertia",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a card is made from.

    Attributes:
        state: Where the fit ended.
        info: The sample.
        usages: Which codes the fitted rows of which recordings have, per worker.
        held: Held-out rows; None where there are none.
        second: Centroids of the fit with the next seed; None where it was not asked for.
        last: The codebook that went before; None where there is none.
        groups: Recording -> group; None where there are none.
    """

    state: State
    info: SampleInfo
    usages: Sequence[Usage]
    held: Rows | None
    second: Centroids | None
    last: Codebook | None
    groups: Mapping[str, str] | None


def make_card(codebook: Codebook, evidence: Evidence, how: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of a codebook.

    Args:
        codebook: The codebook, ids settled.
        evidence: What its figures are from.
        how: What decided the fit, as plain values.
    """
    state, info = evidence.state, evidence.info
    names, token, recording, count = _joined(evidence.usages)
    n_codes = len(codebook.centroids)
    counts = np.bincount(token, weights=count, minlength=n_codes).astype(np.int64)
    fitted = usage(counts)
    card: dict[str, Any] = {
        "verdict": verdict(fitted),
        "name": codebook.name,
        "version": codebook.version,
        "encoder": codebook.encoder,
        "encoder_version": codebook.encoder_version,
        "clusters": n_codes,
        "dim": codebook.centroids.shape[1],
        "metric": codebook.metric,
        "fit": {
            **how,
            "ended": state.ended,
            "iterations": state.iteration,
            "inertia": [value / info.n_rows for value in state.inertia],
            "shift": state.shift,
            "empty": state.n_empty,
        },
        "sampled": {
            "seen": info.n_seen,
            "fitted": info.n_rows,
            "held_out": info.n_held,
            "digest": info.digest,
            "by_group": info.by_group,
        },
        "usage": fitted,
        "counts": counts.tolist(),
        "by_recording": concentration(token, recording, count),
    }
    if evidence.groups is not None:
        card["by_group"] = concentration(
            *_by_group(names, token, recording, count, evidence.groups)
        )
    if evidence.held is not None:
        card["held_out"] = _held_out(codebook, evidence, evidence.held)
    if evidence.last is not None:
        spread = float(np.sqrt(_inertia(card, info)))
        card["previous"] = {
            "version": evidence.last.version,
            "encoder_version": evidence.last.encoder_version,
            "clusters": len(evidence.last.centroids),
            **drift(codebook.centroids, evidence.last.centroids, spread, codebook.metric),
            **_changed(codebook, evidence.last, evidence.held),
        }
    card["environment"] = _environment()
    card["notes"] = NOTES
    return card


def _inertia(card: dict[str, Any], info: SampleInfo) -> float:
    held = card.get("held_out")
    return float(held["inertia"] if held else card["fit"]["inertia"][-1])


def _joined(
    usages: Sequence[Usage],
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return all workers' pairs of code and recording, each once."""
    totals: dict[tuple[str, int], int] = {}
    for part in usages:
        for token, recording, count in zip(
            part.token.tolist(), part.recording.tolist(), part.count.tolist(), strict=True
        ):
            key = (part.names[recording], token)
            totals[key] = totals.get(key, 0) + count
    pairs = sorted(totals)
    names = sorted({name for name, _ in pairs})
    code = {name: number for number, name in enumerate(names)}
    return (
        names,
        np.array([token for _, token in pairs], np.int64),
        np.array([code[name] for name, _ in pairs], np.int64),
        np.array([totals[pair] for pair in pairs], np.int64),
    )


def _by_group(
    names: Sequence[str],
    token: npt.NDArray[np.int64],
    recording: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    groups: Mapping[str, str],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    found, index = np.unique([groups.get(name, "") for name in names], return_inverse=True)
    pair, inverse = np.unique(token * len(found) + index[recording], return_inverse=True)
    total = np.bincount(inverse, weights=count).astype(np.int64)
    return pair // len(found), pair % len(found), total


def _held_out(codebook: Codebook, evidence: Evidence, held: Rows) -> dict[str, Any]:
    vectors = _vectors(held)
    tokens, squares = _tokens(codebook, codebook.centroids, vectors)
    figures: dict[str, Any] = {
        "frames": len(tokens),
        "inertia": float(squares.mean(dtype=np.float64)),
        "usage": usage(np.bincount(tokens, minlength=len(codebook.centroids))),
        "recording_and_token": dependence(tokens, held.recording),
    }
    if evidence.groups is not None:
        figures["group_and_token"] = dependence(tokens, group_of(held, evidence.groups)[1])
    if evidence.second is not None:
        other, squares = _tokens(codebook, evidence.second, vectors)
        figures["seeds"] = {
            **(agreement(tokens, other) or {}),
            "inertia_of_other": float(squares.mean(dtype=np.float64)),
        }
    return figures


def _vectors(rows: Rows) -> Vectors:
    if rows.vectors is None:
        raise ValueError("rows without vectors")
    return rows.vectors


def _tokens(
    codebook: Codebook, centroids: Centroids, vectors: Vectors
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return tokens, and squared distances as the fit means them."""
    if codebook.metric == "cosine":
        tokens, distances = assign(
            prepare(vectors, "cosine", None), make_codes(centroids, "cosine")
        )
        return tokens, 2 * distances
    tokens, distances = assign(vectors, make_codes(centroids, "euclidean"))
    return tokens, np.square(distances)


def _changed(codebook: Codebook, last: Codebook, held: Rows | None) -> dict[str, Any]:
    if held is None:
        return {}
    now, _ = _tokens(codebook, codebook.centroids, _vectors(held))
    then, _ = _tokens(codebook, last.centroids, _vectors(held))
    return {"changed_tokens": float((now != then).mean()), "frames": len(now)}


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
