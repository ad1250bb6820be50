"""Which token follows which, and every token in a line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bioembed_ray.report.census import Census
from bioembed_ray.report.centroid_map import alike_order
from bioembed_ray.report.codebook_charts import length, matrix_bytes, share, token_link
from bioembed_ray.report.codebook_numbers import Floats, Ints
from bioembed_ray.report.codebook_sections import SCRIPT
from bioembed_ray.report.frame import Section
from bioembed_ray.report.markup import Column, count, name, notice, table

# Tokens in the picture of transitions, and in the table of all tokens: the most used ones.
MOST_IN_MATRIX, MOST_IN_TABLE = 256, 512
TOP_MOVES, NEXT_TOKENS = 20, 4


def token_lines(census: Census, shown: Sequence[int]) -> dict[int, str]:
    """Return HTML that says how some tokens are used."""
    total = max(1, int(census.counts.sum()))
    run_s, stay = census.run_s, census.stay
    top, top_share, n_origins = _top_origins(census)
    found = {}
    for token in shown:
        followers = _followers(census, token)
        parts = [
            f"{count(int(census.counts[token]))} times ({share(census.counts[token] / total)})",
            f"runs of {length(run_s[token])} on average",
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
        "Row: a token; column: the next different token of its track; the stronger the colour, the larger its share. "
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
    about = "Share: of the token's moves. Chance: how many times more often than if any run could follow."
    return f'<p class="quiet">{about}</p>{table(columns, rows)}'


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
                length(run_s[token]),
                share(float(stay[token])) if np.isfinite(stay[token]) else "",
                count(int(n_origins[token])),
                share(float(top_share[token])) if n_origins[token] else "",
                " ".join(token_link(other) for other in _followers(census, token)),
            )
        )
    titles = ("Times", "Share", "Mean run", "Stays", "Recordings", "From one")
    columns = [Column("Token"), *(Column(title, True) for title in titles), Column("Then")]
    dead = int((census.counts == 0).sum())
    left = int((census.counts > 0).sum()) - len(rows)
    notes = [f"{count(dead)} never used"] * bool(dead) + [
        f"{count(left)} less used ones left out"
    ] * bool(left)
    about = "Stays: share of the next time steps that have the same token. From one: what the recording with most of it gives."
    told = about + "".join(f" {note}." for note in notes)
    return f'<p class="quiet">{told}</p><div class="every">{table(columns, rows)}</div>'
