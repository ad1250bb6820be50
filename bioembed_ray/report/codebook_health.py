"""How healthy a codebook is: the figures of its card and of the archive's tokens, each explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse

from bioembed_ray.codebooks.card import concentration, usage, verdict
from bioembed_ray.report.census import Census
from bioembed_ray.report.codebook_charts import curve, length, share, token_link, usage_bars
from bioembed_ray.report.frame import Section
from bioembed_ray.report.markup import count, facts, figure, notice, picture, table, text

Figures = list[tuple[str, str, str]]
"""Name, value as HTML, and what it means."""


def health_section(card: Mapping[str, Any], census: Census) -> Section:
    """Return the section on a codebook's health.

    Args:
        card: Its card.
        census: What the pass over the archive's tokens counted.
    """
    found = usage(census.counts)
    line = verdict(found)
    kind = "warning" if line.startswith("COLLAPSED") else "note" if _is_poor(line) else "good"
    html = [
        notice(f"<strong>{text(line)}</strong>", kind),
        facts(_big(found, census)),
        '<div class="grid pair">',
        figure(
            usage_bars(census.counts, is_sorted=True),
            "Share of all tokens, the most used code first. The dashed line is even use.",
        ),
        figure(
            usage_bars(census.counts, is_sorted=False),
            "The same by id: a stretch of empty ids would be codes that never found a frame.",
        ),
        "</div><h3>Figures, and what they say</h3>",
        table(
            ("Figure", "Value", "What it says"),
            [
                (
                    text(name),
                    f'<span class="value">{value}</span>',
                    f'<span class="quiet">{text(why)}</span>',
                )
                for name, value, why in _explained(card, census, found)
            ],
        ),
    ]
    seen = f"Counted from all {count(int(census.counts.sum()))} tokens of the archive"
    return Section(
        "health", "Health", "".join(html), summary=f"{seen}; fit figures are from the card."
    )


def _is_poor(line: str) -> bool:
    return not line.startswith("healthy")


def _big(found: Mapping[str, Any], census: Census) -> list[tuple[str, str]]:
    runs = int(census.n_runs.sum())
    mean_s = census.hop_s * int(census.counts.sum()) / max(1, runs)
    most = f"<small>of {np.log2(found['codes']):.2f} at most</small>"
    return [
        ("Codes in use", f"{count(found['used'])}<small>of {count(found['codes'])}</small>"),
        ("Dead codes", count(found["dead"])),
        ("Perplexity", f"{found['perplexity']:.4g}<small>{share(found['perplexity_share'])} of the codes</small>"),
        ("Entropy", f"{found['entropy_bits']:.2f} bits{most}"),
        ("Most used code", f"{share(found['top_share'])}<small>token {token_link(found['top_code'])}</small>"),
        ("Mean run", f"{length(mean_s)}<small>a step is {length(census.hop_s)}</small>"),
    ]  # fmt: skip


def _explained(card: Mapping[str, Any], census: Census, found: Mapping[str, Any]) -> Figures:
    rows: Figures = [
        (
            "Perplexity",
            f"{found['perplexity']:.4g} in the archive, {card['usage']['perplexity']:.4g} in the fit",
            "As many equally frequent codes would be as uncertain: near the number of codes use is "
            "even, near 1 the codebook has collapsed.",
        ),
        (
            "Entropy",
            f"{found['entropy_bits']:.3f} bits",
            "What one token tells on average, before its neighbours are known.",
        ),
        (
            "Dead codes",
            f"{count(found['dead'])} in the archive, {count(card['usage']['dead'])} in the fit",
            "Codes that no frame is nearest to; they take room and say nothing.",
        ),
    ]
    rows += _of_fit(card)
    rows += _of_held_out(card.get("held_out") or {})
    rows += _origins("recording", census.by_recording, card.get("by_recording"), census.n_counted)
    if len(census.sites) > 1:
        rows += _origins("site", census.by_site, card.get("by_group"), len(census.sites))
    rows += _of_previous(card.get("previous"))
    total = int(census.counts.sum()) + census.n_gaps
    rows.append(
        (
            "Gaps",
            f"{count(census.n_gaps)} ({share(census.n_gaps / max(1, total))})",
            "Places that should have a token and have none, since their stretch failed; positions stay exact.",
        )
    )
    return rows


def _of_fit(card: Mapping[str, Any]) -> Figures:
    inertia = card.get("fit", {}).get("inertia")
    if inertia:
        held = (card.get("held_out") or {}).get("inertia")
        beside = "" if held is None else f", held out {held:.5g}"
        why = (
            "Mean squared distance of a frame from its centroid; held-out frames much farther than "
            "fitted ones mean too few frames for this many codes."
        )
        return [("Inertia", f"fitted {inertia[-1]:.5g}{beside}", why)]
    if "error" not in card:
        return []
    rows = [
        (
            "Reconstruction error",
            f"fitted {card['error']:.4f}, held out {card['held_out']['error']:.4f}",
            "Mean squared difference of standardised log-mel values, original against what the codes "
            "keep: 1 is as bad as always giving the mean.",
        )
    ]
    silent = card.get("front_end", {}).get("silent_share")
    if silent is not None:
        why = "Mel values at the floor; where there are many, figures say more of silence than of sound."
        rows.append(("Digital silence", share(silent), why))
    return rows


def _of_held_out(held: Mapping[str, Any]) -> Figures:
    rows: Figures = []
    seeds = held.get("seeds")
    if seeds:
        value = (
            f"Rand index {seeds['adjusted_rand_index']:.3f}, mutual information "
            f"{seeds['adjusted_mutual_information']:.3f}"
        )
        why = (
            "How alike a fit from another seed sorts the same held-out frames, adjusted for chance: 1 "
            "is the same sorting, 0 is chance."
        )
        rows.append(("Agreement of two seeds", value, why))
    for key, origin in (("recording_and_token", "recording"), ("group_and_token", "group")):
        one = held.get(key)
        if one:
            why = (
                f"How much a token tells of its {origin}, adjusted for chance: 0 is nothing, 1 would "
                f"make it a label of the {origin} and not of the sound."
            )
            value = f"{one['adjusted_mutual_information']:.3f}"
            rows.append((f"Token and {origin}", value, why))
    return rows


def _origins(
    what: str, by_origin: sparse.csr_array, fitted: Mapping[str, Any] | None, n_counted: int
) -> Figures:
    """Return how far codes belong to single recordings or sites, in the archive and in the fit."""
    pairs = by_origin.tocoo()
    now = concentration(
        pairs.coords[0].astype(np.int64), pairs.coords[1].astype(np.int64), pairs.data
    )
    if now["top_share_median"] is None:
        return []
    beside = ""
    if fitted is not None and fitted.get("top_share_median") is not None:
        beside = f"; in the fit {share(fitted['top_share_median'])}, {fitted['owned_codes']} owned"
    even = f" With {count(n_counted)} {what}s alike it would be {share(1 / max(1, n_counted))}."
    return [
        (
            f"Concentration by {what}",
            f"{share(now['top_share_median'])}, {now['owned_codes']} owned{beside}",
            f"Over codes, the median share of a code's tokens that its most frequent {what} gives; "
            f"a code is owned where one gives nine tenths.{even}",
        )
    ]


def _of_previous(previous: Mapping[str, Any] | None) -> Figures:
    if previous is None:
        return []
    changed = previous.get("changed_tokens")
    beside = "" if changed is None else f", {share(changed)} of held-out tokens changed"
    why = (
        "How far centroids moved from those that had their ids, relative to a frame's usual distance "
        "from its centroid."
    )
    value = f"mean {previous['mean_shift']:.3g}, most {previous['max_shift']:.3g}{beside}"
    return [(f"Drift since version {previous['version']}", value, why)]


def training_section(card: Mapping[str, Any], reconstructions: bytes) -> Section:
    """Return what a VQ-VAE's training says, and originals beside what their codes keep.

    Args:
        card: The model's card.
        reconstructions: `reconstructions.png`; empty where it is gone.
    """
    course, training = card["curve"], card["training"]
    errors = [("training", course["error"]), ("held out", course["held_out_error"])]
    use = [("codes used", course["codes_used"]), ("perplexity", course["perplexity"])]
    pieces = []
    if reconstructions:
        what = "Held-out patches (above) and what their codes keep of them (below)"
        pieces.append(
            figure(
                f'<div class="scroll" tabindex="0">{picture(reconstructions, what, "reconstructions")}</div>',
                f"{what}; the same colours stand for the same decibels within a pair.",
            )
        )
    pieces += [
        '<div class="grid pair">',
        curve(course["step"], errors, "Error, share of the variance"),
        curve(course["step"], use, "Codes used, and perplexity, on held-out patches"),
        "</div>",
    ]
    grid = card["grid"]
    summary = (
        f"{count(training['steps'])} steps on {count(card['sampled']['fitted'])} patches of "
        f"{card['front_end']['patch_s']} s; a patch becomes {grid[0]} × {grid[1]} codes, time by band."
    )
    return Section("training", "Reconstruction", "".join(pieces), summary=summary)
