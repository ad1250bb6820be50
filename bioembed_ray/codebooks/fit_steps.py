"""The course of a fit, over workers of any kind: rows checked, iterations, ids, the card.

The driver holds centroids and sums, never rows. After every iteration its state is one object on
storage; a fit that is begun again goes on from there and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TextIO

import numpy as np

from bioembed_ray import storage
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.alignment import align
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.card import (
    CARD_KEY,
    CODEBOOK_KEY,
    Codebook,
    card_bytes,
    codebook_bytes,
    read_codebook,
)
from bioembed_ray.codebooks.card_figures import Evidence, make_card
from bioembed_ray.codebooks.checkpoint import put_state, read_state
from bioembed_ray.codebooks.fit_worker import Check, Head
from bioembed_ray.codebooks.lloyd import State, advance, farthest
from bioembed_ray.codebooks.partial_sums import close, fold, prepare
from bioembed_ray.codebooks.rule import FIT_VERSION, Centroids, Fit, LloydRule
from bioembed_ray.codebooks.sample import merge
from bioembed_ray.errors import ConfigError, InputError

MOST_CLUSTERS = 1 << 20
# An iteration may take milliseconds or an hour; the first and the last are always told.
TELL_S = 5.0


class Pool(Protocol):
    """Workers that hold a sample between them."""

    device: str
    """What they compute on, in words."""

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Return every worker's answer, in the order of their groups."""
        ...

    def ask_one(self, method: str, *arguments: Any) -> Any:
        """Return one worker's answer."""
        ...


def sample_folder(fit: Fit) -> str:
    """Return where a fit's sample stands while it is needed."""
    return storage.join(fit.folder, "sample")


def check_request(
    fit: Fit, parts: Sequence[storage.ObjectInfo], groups: Mapping[str, str] | None
) -> None:
    """Raise one clear error where a fit cannot begin.

    Raises:
        ConfigError: a column or a number of clusters that cannot be.
        InputError: no parts.
    """
    if not parts:
        raise InputError(
            f"codebook {fit.name}: no frames of {fit.encoder} (version {fit.encoder_version}) stand yet"
        )
    if fit.sample.balance is not None and groups is None:
        raise ConfigError(
            f"codebooks.{fit.name}.balance: got {fit.sample.balance!r}; the manifest has no such column"
        )
    if not 1 <= fit.rule.clusters <= MOST_CLUSTERS:
        raise ConfigError(
            f"codebooks.{fit.name}.clusters: got {fit.rule.clusters}; use 1 to {MOST_CLUSTERS:,}"
        )


def fit_on(
    fit: Fit, info: SampleInfo, groups: Mapping[str, str] | None, pool: Pool, stream: TextIO
) -> dict[str, Any]:
    """Fit a codebook on a sample that stands; put it and its card; return the card.

    Args:
        fit: What is wanted.
        info: The sample.
        groups: Recording -> group, for the card.
        pool: Who computes.
        stream: Where progress is told.

    Raises:
        InputError: unusable rows, or fewer different ones than clusters.
        StorageError: reading or writing failed.
    """
    head: Head = pool.ask_one("head")
    _check_rows(fit, info, head, pool)
    last = None if fit.previous is None else read_codebook(fit.previous)
    if last is not None and last.centroids.shape[1] != info.dim:
        last = None
    started = time.monotonic()
    state = _iterate(fit, fit.rule.seed, info, head, last, pool, stream)
    seconds = time.monotonic() - started
    second = None
    if fit.second_seed and fit.rule.clusters > 1:
        second = _moved_back(
            _iterate(fit, fit.rule.seed + 1, info, head, None, pool, stream).centroids, head
        )
    centroids = _moved_back(state.centroids, head)
    order = np.arange(len(centroids))
    if last is not None:
        order = align(centroids, last.centroids, fit.rule.metric)
    codebook = Codebook(
        fit.name, fit.version, fit.encoder, fit.encoder_version, fit.rule.metric, centroids[order]
    )
    evidence = Evidence(
        state=state,
        info=info,
        usages=pool.ask("usage", np.ascontiguousarray(state.centroids[order]), head.centre),
        held=blocks.read_rows(sample_folder(fit), blocks.HELD_OUT) if info.n_held else None,
        second=second,
        last=last,
        groups=groups,
    )
    how = {
        "layer": fit.layer,
        "fit_version": FIT_VERSION,
        **asdict(fit.rule),
        "sample": asdict(fit.sample),
        "first_centroids": _origin(fit, last),
        "variance": head.variance,
        "device": pool.device,
        "seconds": seconds,
    }
    card = make_card(codebook, evidence, how)
    storage.put(storage.join(fit.folder, CARD_KEY), card_bytes(card))
    # Last of all, since where it stands all is done.
    storage.put(storage.join(fit.folder, CODEBOOK_KEY), codebook_bytes(codebook))
    blocks.drop_sample(sample_folder(fit))
    for seed in (fit.rule.seed, fit.rule.seed + 1):
        storage.delete(_state_uri(fit, seed))
    return card


def _origin(fit: Fit, last: Codebook | None) -> str:
    if last is not None and len(last.centroids) == fit.rule.clusters:
        return f"centroids of version {last.version}"
    return "greedy k-means++ on the sample's first rows"


def _check_rows(fit: Fit, info: SampleInfo, head: Head, pool: Pool) -> None:
    checks: list[Check] = pool.ask("check", head.centre)
    n_unusable = sum(check.n_unusable for check in checks)
    if n_unusable:
        first = next(check.first_unusable for check in checks if check.n_unusable)
        raise InputError(
            f"codebook {fit.name}: {n_unusable:,} of {info.n_rows:,} sampled frames hold NaN, infinity "
            f"or values beyond 1e18, the first: {first}; encode these recordings again or exclude them"
        )
    n_different = len(merge([check.different for check in checks], fit.rule.clusters))
    if n_different < fit.rule.clusters:
        frames = "frame" if n_different == 1 else "different frames"
        raise InputError(
            f"codebook {fit.name}: only {n_different:,} {frames} for {fit.rule.clusters:,} clusters "
            f"(sample of {info.n_rows:,}); lower clusters or raise fit_frames"
        )


def _state_uri(fit: Fit, seed: int) -> str:
    return storage.join(fit.folder, f"fit-seed-{seed}.safetensors")


def _iterate(
    fit: Fit,
    seed: int,
    info: SampleInfo,
    head: Head,
    last: Codebook | None,
    pool: Pool,
    stream: TextIO,
) -> State:
    """Return the final state of one fit, from its checkpoint where there is one."""
    rule, uri = fit.rule, _state_uri(fit, seed)
    warm = last if last is not None and len(last.centroids) == rule.clusters else None
    key = json.dumps(
        [
            FIT_VERSION,
            fit.version,
            asdict(rule),
            seed,
            info.request,
            pool.device,
            warm and warm.version,
        ]
    )
    key = hashlib.sha256(key.encode()).hexdigest()[:16]
    state = read_state(uri, key)
    if state is None:
        if warm is not None:
            first = prepare(warm.centroids, rule.metric, head.centre).numpy()
        else:
            first = pool.ask_one("seed", head.centre, seed)
        state = State(first)
    label = fit.name if seed == fit.rule.seed else f"{fit.name} with seed {seed}"
    told = -TELL_S
    while state.ended is None:
        started = time.monotonic()
        state = iteration(state, rule, head, pool)
        put_state(uri, state, key)
        now = time.monotonic()
        if state.ended is not None or now - told >= TELL_S:
            told = now
            stream.write(_line(label, state, info.n_rows / (now - started)) + "\n")
            stream.flush()
    return state


def iteration(state: State, rule: LloydRule, head: Head, pool: Pool) -> State:
    """Return the state after one pass over the whole sample."""
    answers = pool.ask("step", state.centroids, head.centre)
    total = close(fold(node for nodes, _ in answers for node in nodes))
    joined = "".join(digest for _, digests in answers for digest in digests)
    digest = hashlib.sha256(joined.encode()).hexdigest()[:16]
    n_empty = int((total.counts == 0).sum())
    far = None
    if n_empty:
        found = pool.ask("far", state.centroids, head.centre, n_empty)
        far = farthest((one for group in found for one in group), n_empty)
    return advance(state, total, digest, far, rule, rule.tolerance * head.variance)


def _line(label: str, state: State, rate: float) -> str:
    inertia = state.inertia[-1]
    change = ""
    if state.iteration > 1 and state.inertia[-2] > 0:
        change = f" ({inertia / state.inertia[-2] - 1:+.3%})"
    text = (
        f"codebook {label}: iteration {state.iteration}, inertia {inertia:.6g}{change}, "
        f"shift {state.shift[-1]:.3g}, {state.n_empty[-1]} empty, {rate:,.0f} rows/s"
    )
    ends = {
        "labels stayed": "; done, no label changed",
        "converged": "; done, shift within tolerance",
        "max_iterations": "; stopped at max_iterations",
    }
    return text + ends.get(state.ended or "", "")


def _moved_back(centroids: Centroids, head: Head) -> Centroids:
    """Return centroids in the frames' own space."""
    if head.centre is None:
        return centroids
    moved: Centroids = (centroids.astype(np.float64) + head.centre).astype(np.float32)
    return moved
