"""Sections of a codebook page that let tokens be seen and heard: strip, galleries, transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bioembed_ray.clips import data_uri
from bioembed_ray.report.census import Census
from bioembed_ray.report.centroid_map import alike_order
from bioembed_ray.report.codebook_charts import hue, matrix_bytes, share, token_link
from bioembed_ray.report.codebook_numbers import Floats, Ints
from bioembed_ray.report.frame import Section
from bioembed_ray.report.galleries import Places
from bioembed_ray.report.markup import (
    Column,
    clock,
    count,
    name,
    notice,
    picture,
    player,
    table,
    text,
)
from bioembed_ray.report.token_clips import TokenClip
from bioembed_ray.report.token_strip import Strip

SCRIPT = "codebook.js"
# Tokens in the picture of transitions, and in the table of all tokens: the most used ones.
MOST_IN_MATRIX, MOST_IN_TABLE = 256, 512
TOP_MOVES, NEXT_TOKENS = 20, 4


def strip_section(strip: Strip) -> Section:
    """Return the tokens of a stretch under its spectrogram, with a player."""
    where = f"{strip.recording}, {clock(strip.start_s)} to {clock(strip.stop_s)}"
    data = {
        "start": strip.start_s,
        "stop": strip.stop_s,
        "bands": strip.bands,
        "slowed": strip.slowed,
        # Milliseconds keep a page small; a frame is 20 of them.
        "runs": [
            [r.token, r.band, round(1000 * (r.start_s - strip.start_s), 1), round(1000 * (r.stop_s - strip.start_s), 1)]
            for r in strip.runs
        ],
    }  # fmt: skip
    shown = ""
    if strip.image:
        image = picture(strip.image, f"Spectrogram of {where}", "spectrogram", "image/webp")
        shown = (
            f'<div class="strip-picture">{image}<span class="top">{strip.top_hz / 1000:g} kHz</span>'
            '<span class="bottom">0</span></div>'
        )
    height = min(260, max(46, 12 * strip.bands)) + 22
    slow = f" The sound is {strip.slowed} times slower." if strip.slowed > 1 else ""
    several = (
        f" A time step has {strip.bands} tokens, one per band of frequency, low ones below."
        if strip.bands > 1
        else ""
    )
    lines = [
        (f"band {band}: " if len(strip.texts) > 1 else "") + line
        for band, line in enumerate(strip.texts)
    ]
    html = [
        f'<p class="quiet">{name(strip.recording)}, channel {strip.channel}</p>',
        notice(text(strip.problem), "warning") if strip.problem else "",
        '<div class="scroll strip" tabindex="0"><div class="strip-inner">',
        shown,
        f'<canvas class="strip-tokens" style="height:{height}px" role="img" '
        f'aria-label="Tokens of {text(where)}"></canvas><span class="playhead" hidden></span></div></div>',
        player(strip.sound, f"Sound of {where}") if strip.sound else "",
        f'<p class="quiet">A colour is a token, hatching is a gap; choose a run to see the token\'s gallery.{several}{slow}</p>',
        f"<details><summary>As run lengths</summary><pre class='runs'>{text(chr(10).join(lines))}</pre></details>",
    ]
    summary = f"{clock(strip.start_s)} to {clock(strip.stop_s)} of one recording."
    return Section("strip", "In a recording", "".join(html), {"strip-data": data}, (SCRIPT,), summary)


def gallery_section(
    clips: Sequence[TokenClip],
    shown: Sequence[int],
    places: Places,
    problems: Sequence[str],
    lines: Mapping[int, str],
) -> Section:
    """Return a gallery per token.

    Args:
        clips: By token, the best first.
        shown: Tokens with a gallery, the most used first.
        places: How the places were found.
        problems: What could not be heard.
        lines: HTML that says how each token is used.
    """
    mine: dict[int, list[TokenClip]] = {token: [] for token in shown}
    for clip in clips:
        mine[clip.token].append(clip)
    index = "".join(token_link(token) for token in shown)
    pieces = [notice(text(places.note), "note")]
    if problems:
        told = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        pieces.append(
            notice(f"{count(len(problems))} recordings cannot be heard: {text(told)}", "warning")
        )
    pieces.append(f'<nav class="tokens" aria-label="Tokens with a gallery">{index}</nav>')
    for token in shown:
        body = "".join(_clip(clip) for clip in mine[token]) or (
            '<p class="quiet">No place of this token can be heard.</p>'
        )
        pieces.append(
            f'<article class="gallery" id="token-{token}" style="--hue:{hue(token)}" data-of="{token}">'
            f'<h3><i class="swatch"></i>Token {token}</h3><p class="quiet">{lines[token]}</p>'
            f'<div class="clips">{body}</div></article>'
        )
    found = "nearest its centroid" if places.are_nearest else "of its longest runs"
    summary = f"{count(len(shown))} tokens, each with places {found} from different recordings."
    return Section("galleries", "Galleries", "".join(pieces), {}, (SCRIPT,), summary)


def _clip(clip: TokenClip) -> str:
    length = max(1e-9, clip.to_s - clip.from_s)
    left = 100 * max(0.0, clip.start_s - clip.from_s) / length
    wide = 100 * (min(clip.stop_s, clip.to_s) - max(clip.start_s, clip.from_s)) / length
    where = f"{clip.recording}, {clock(clip.start_s)}"
    notes = [clock(clip.start_s)]
    notes += [f"band {clip.band}"] if clip.band else []
    notes += [f"channel {clip.channel}"] if clip.channel else []
    notes += [f"{clip.slowed}× slower"] if clip.slowed > 1 else []
    return (
        f'<figure class="clip"><button type="button" aria-label="Play {text(where)}">'
        f'<img src="{data_uri(clip.image, "image/webp")}" alt="" loading="lazy" decoding="async">'
        f'<i class="stretch" style="left:{left:.2f}%;width:{max(wide, 0.4):.2f}%"></i><i class="playhead" hidden></i>'
        f'</button><audio preload="none" src="{data_uri(clip.sound, "audio/mpeg")}"></audio>'
        f"<figcaption>{name(clip.recording)}<span>{text(', '.join(notes))}</span></figcaption></figure>"
    )


def token_lines(census: Census) -> dict[int, str]:
    """Return HTML that says how each token that occurs is used."""
    total = max(1, int(census.counts.sum()))
    run_s, stay = census.run_s, census.stay
    top, top_share, n_origins = _top_origins(census)
    found = {}
    for token in np.flatnonzero(census.counts).tolist():
        followers = _followers(census, token)
        parts = [
            f"{count(int(census.counts[token]))} times ({share(census.counts[token] / total)})",
            f"runs of {1000 * run_s[token]:.3g} ms on average",
        ]
        if np.isfinite(stay[token]):
            parts.append(f"stays with {share(float(stay[token]))}")
        if n_origins[token]:
            parts.append(
                f"in {count(int(n_origins[token]))} recordings, {share(float(top_share[token]))} from {name(top[token])}"
            )
        line = " · ".join(parts)
        if followers:
            line += " · then " + " ".join(token_link(other) for other in followers)
        found[token] = line
    return found


def _followers(census: Census, token: int) -> list[int]:
    low, high = census.moves.indptr[token], census.moves.indptr[token + 1]
    counts, others = census.moves.data[low:high], census.moves.indices[low:high]
    order = np.lexsort((others, -counts))[:NEXT_TOKENS]
    return [int(others[k]) for k in order]


def _top_origins(census: Census) -> tuple[list[str], Floats, Ints]:
    """Return per token: its most frequent counted recording, that one's share, and how many have it."""
    table_ = census.by_recording
    top, top_share = [""] * len(census.counts), np.zeros(len(census.counts))
    n_origins = np.diff(table_.indptr).astype(np.int64)
    for token in np.flatnonzero(n_origins).tolist():
        data = table_.data[table_.indptr[token] : table_.indptr[token + 1]]
        best = int(data.argmax())
        top[token] = census.names[int(table_.indices[table_.indptr[token] + best])]
        top_share[token] = data[best] / data.sum()
    return top, top_share, n_origins


def transition_section(census: Census, rows: npt.NDArray[np.float64]) -> Section:
    """Return which token follows which, as a picture and as a list.

    Args:
        census: What the pass counted.
        rows: (K, D) centroids as their metric sees them, to put like beside like.
    """
    used = np.argsort(-census.counts, kind="stable")[:MOST_IN_MATRIX]
    used = used[census.counts[used] > 0]
    if not len(used) or not census.moves.nnz:
        html = notice("No token is followed by another one in these tracks.", "note")
        return Section("transitions", "Transitions", html)
    order = used[alike_order(rows[used])]
    leaving = np.asarray(census.moves.sum(axis=1)).reshape(-1)
    moves = census.moves[order][:, order].toarray()
    shares = moves / np.maximum(1, leaving[order])[:, None]
    picture_ = (
        '<div class="matrix"><canvas role="img" aria-label="Share of each next token, by token"></canvas>'
        '<p class="quiet readout" aria-live="polite">&nbsp;</p></div>'
    )
    html = (
        f'<div class="split">{picture_}<div>{_top_moves(census, leaving)}</div></div>'
        '<h3 id="every-token">Every token</h3>' + _token_table(census)
    )
    left_out = int((census.counts > 0).sum()) - len(order)
    most = f" The {len(order)} most used tokens are shown." if left_out else ""
    summary = (
        "Row: a token; column: the next different token of its track; the darker, the larger its share. "
        f"Tokens that are alike stand together.{most}"
    )
    data = {
        "matrix-shares": matrix_bytes(shares),
        "matrix-order": {"order": order.tolist(), "most": float(shares.max())},
    }
    return Section("transitions", "Transitions", html, data, (SCRIPT,), summary)


def _top_moves(census: Census, leaving: Ints) -> str:
    moves = census.moves.tocoo()
    best = np.lexsort((moves.coords[1], moves.coords[0], -moves.data))[:TOP_MOVES]
    runs = int(census.n_runs.sum())
    rows = []
    for k in best.tolist():
        a, b, n = int(moves.coords[0][k]), int(moves.coords[1][k]), int(moves.data[k])
        part = n / max(1, int(leaving[a]))
        # By chance a run of any other token follows.
        chance = census.n_runs[b] / max(1, runs - census.n_runs[a])
        rows.append(
            (
                f"{token_link(a)} → {token_link(b)}",
                count(n),
                share(part),
                f"{part / chance:.3g} ×" if chance else "",
            )
        )
    columns = (
        "Most frequent",
        Column("Times", True),
        Column("Share", True),
        Column("Chance", True),
    )
    return table(
        columns,
        rows,
        "Share: of the token's moves. Chance: how many times more often than if any run could follow.",
    )


def _token_table(census: Census) -> str:
    total = max(1, int(census.counts.sum()))
    order = np.argsort(-census.counts, kind="stable")[:MOST_IN_TABLE]
    run_s, stay = census.run_s, census.stay
    _, top_share, n_origins = _top_origins(census)
    rows = []
    for token in order[census.counts[order] > 0].tolist():
        rows.append(
            (
                f'<span id="row-{token}">{token_link(token)}</span>',
                count(int(census.counts[token])),
                share(census.counts[token] / total),
                f"{1000 * run_s[token]:.3g}",
                share(float(stay[token])) if np.isfinite(stay[token]) else "",
                count(int(n_origins[token])),
                share(float(top_share[token])) if n_origins[token] else "",
                " ".join(token_link(other) for other in _followers(census, token)),
            )
        )
    titles = ("Tokens", "Share", "Run, ms", "Stays", "Recordings", "From one")
    columns = [Column("Token"), *(Column(title, True) for title in titles), Column("Then")]
    dead = int((census.counts == 0).sum())
    left = int((census.counts > 0).sum()) - len(rows)
    notes = [f"{count(dead)} never used"] * bool(dead) + [
        f"{count(left)} less used ones left out"
    ] * bool(left)
    about = "Stays: share of the next time steps with the same token. From one: share of the recording that has most."
    return f'<div class="every">{table(columns, rows, about + "".join(f" {note}." for note in notes))}</div>'
