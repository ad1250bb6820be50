"""The section on vectors: how long they are, and whether something is silently wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bioembed_ray.audio.clips import find_recordings, read_sounds
from bioembed_ray.errors import RecordingError, StorageError
from bioembed_ray.report import charts
from bioembed_ray.report.frame import Section
from bioembed_ray.report.markup import clock, count, figure, name, notice, text, weights_mark
from bioembed_ray.report.sampling import Points, Sampled
from bioembed_ray.results import Results

Channels = Literal["mix", "first", "each"]
# Pairs of equal vectors whose sound is compared.
COMPARED = 8
PAIRS = 2_000


@dataclass(frozen=True, slots=True)
class Twins:
    """Windows of the sample with the same vector.

    Attributes:
        n_windows: Windows whose vector another window has too.
        n_compared: Pairs whose sound was compared.
        different: Pairs of different sounds, as (first, second) rows.
        unread: Pairs whose sound could not be read.
    """

    n_windows: int
    n_compared: int
    different: list[tuple[int, int]]
    unread: int


def vector_section(results: Results, samples: Sequence[Sampled], channels: Channels) -> Section:
    """Return the section, one card per encoder."""
    cards = []
    for one in samples:
        twins = find_twins(results, one.windows, channels)
        cards.append(_card(one, twins))
    return Section(
        "vectors",
        "Vectors",
        f'<div class="grid wide">{"".join(cards)}</div>',
        summary="The length of every vector, and the checks for vectors that are silently wrong.",
    )


def find_twins(results: Results, windows: Points, channels: Channels) -> Twins:
    """Return which windows share a vector, and whether they share their sound as well.

    Silence, and sound that stands twice in the archive, rightly give one vector. Different sounds
    with one vector are a fault of weights or batching.
    """
    if not len(windows):
        return Twins(0, 0, [], 0)
    keys = np.ascontiguousarray(windows.vectors).view(np.void(windows.vectors.shape[1] * 4).dtype)
    _, first, group = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    counts = np.bincount(group)
    # Every row but the first of its group is paired with the first.
    later = np.flatnonzero((counts[group] > 1) & (first[group] != np.arange(len(group))))
    spread = (
        later[np.unique(np.linspace(0, len(later) - 1, COMPARED).astype(int))]
        if len(later)
        else later
    )
    different: list[tuple[int, int]] = []
    unread = 0
    for row in spread:
        pair = (int(first[group[row]]), int(row))
        try:
            one, two = (_sound(results, windows, k, channels) for k in pair)
        except (RecordingError, StorageError):
            unread += 1
            continue
        if one.shape != two.shape or not np.array_equal(one, two):
            different.append(pair)
    return Twins(int(counts[counts > 1].sum()), len(spread) - unread, different, unread)


def _sound(
    results: Results, windows: Points, row: int, channels: Channels
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    recording = windows.name(row)
    known = find_recordings(results, [recording])[recording]
    start = float(windows.start_s[row])
    bounds = [(start, start + float(windows.valid_s[row]))]
    return read_sounds(known, bounds, int(windows.channel[row]), channels)[0].samples


def _card(one: Sampled, twins: Twins) -> str:
    lengths = np.linalg.norm(one.windows.vectors.astype(np.float64), axis=1)
    chart = charts.histogram(lengths, "L2 norm of a window's vector", "windows")
    sampled = (
        "all windows"
        if len(lengths) + one.n_nonfinite == one.n_windows
        else f"a sample of {count(len(lengths))} windows"
    )
    caption = f"From {sampled}."
    if len(lengths):
        low, middle, high = (float(np.quantile(lengths, q)) for q in (0.05, 0.5, 0.95))
        caption += (
            f" Median {middle:,.4g}, 90 % between {low:,.4g} and {high:,.4g}; "
            f"cosine of two windows: median {typical_cosine(one.windows):.3f}."
        )
    return (
        f'<article class="card"><h3>{text(one.encoder)}</h3>'
        f'<p class="quiet">{count(one.n_windows)} windows of {one.windows.vectors.shape[1]:,} numbers · '
        f"{weights_mark(one.weights)}</p>{figure(chart, text(caption))}{_checks(one, twins)}</article>"
    )


def typical_cosine(windows: Points) -> float:
    """Return the median cosine of random pairs of windows; NaN for fewer than two.

    Close to 1, an encoder tells sounds apart by small differences only.
    """
    if len(windows) < 2:
        return float("nan")
    draw = np.random.default_rng(0)
    one = draw.integers(0, len(windows), PAIRS)
    # Never the same window twice.
    two = (one + draw.integers(1, len(windows), PAIRS)) % len(windows)
    a, b = (windows.vectors[rows].astype(np.float64) for rows in (one, two))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.median((a * b).sum(axis=1) / np.maximum(norms, 1e-300)))


def _checks(one: Sampled, twins: Twins) -> str:
    found = []
    if one.n_nonfinite:
        found.append(
            notice(
                f"{count(one.n_nonfinite)} of {count(one.n_windows)} vectors hold NaN or infinity: "
                "precision or weights are wrong. They are left out of everything else here.",
                "warning",
            )
        )
    if one.n_constant:
        found.append(
            notice(
                f"{count(one.n_constant)} of {count(one.n_windows)} vectors are one number over and "
                "over: the encoder heard nothing, or gave nothing.",
                "warning",
            )
        )
    if twins.different:
        pairs = "".join(
            f"<li>{_where(one.windows, a)} and {_where(one.windows, b)}</li>"
            for a, b in twins.different[:3]
        )
        found.append(
            notice(
                f"Different sounds have one vector: {len(twins.different)} of {twins.n_compared} "
                f"pairs compared.<ul>{pairs}</ul>",
                "warning",
            )
        )
    elif twins.n_windows:
        unread = f", {twins.unread} could not be read" if twins.unread else ""
        found.append(
            notice(
                f"{count(twins.n_windows)} windows share their vector with another; the sound of "
                f"{twins.n_compared} pairs was compared and is the same{unread}."
                if twins.n_compared
                else f"{count(twins.n_windows)} windows share their vector with another; "
                "their sound could not be read to tell whether rightly so."
            )
        )
    if not found:
        found.append(
            notice(
                f"Of all {count(one.n_windows)} vectors none is constant or not finite; in the "
                "sample no two are the same.",
                "good",
            )
        )
    return "".join(found)


def _where(windows: Points, row: int) -> str:
    return f"{name(windows.name(row))} at {clock(float(windows.start_s[row]))}"
