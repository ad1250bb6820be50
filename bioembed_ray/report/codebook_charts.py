"""Charts of a codebook page; whatever stands for a token can be chosen by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bioembed_ray.report.centroid_map import CentroidMap
from bioembed_ray.report.charts import svg, ticks
from bioembed_ray.report.codebook_numbers import Ints
from bioembed_ray.report.markup import count, text

# More bars than this are thinner than a pixel of a small screen.
MOST_BARS = 256
# More points than this are a cloud.
MOST_POINTS = 2000
# An id is written where no more used one stands this near, in units of the map; on a phone this.
LABEL_ROOM, PHONE_ROOM = 24.0, 58.0
# Successive ids lie a golden angle apart, so that neighbours in number differ in hue.
GOLDEN_ANGLE = 137.50776


def hue(token: int) -> int:
    """Return the hue of a token, degrees: always the same for the same id."""
    return round(token * GOLDEN_ANGLE) % 360


def share(value: float) -> str:
    """Return a share as percents, small ones with more digits.

    >>> share(0.314), share(0.0123), share(0.0004), share(0.00004)
    ('31%', '1.2%', '0.04%', '<0.01%')
    """
    if 0 < value < 0.0001:
        return "<0.01%"
    digits = 0 if value >= 0.1 or value == 0 else 1 if value >= 0.001 else 2
    return f"{value:.{digits}%}"


def length(value_s: float) -> str:
    """Return a short length of time: milliseconds below a second.

    >>> length(0.0634), length(1.026)
    ('63.4 ms', '1.03 s')
    """
    return f"{1000 * value_s:.3g} ms" if value_s < 0.9995 else f"{value_s:.3g} s"


def token_link(token: int) -> str:
    """Return a token that can be chosen."""
    return (
        f'<a class="token" href="#token-{token}" data-token="{token}" '
        f'style="--hue:{hue(token)}">{token}</a>'
    )


def usage_bars(counts: Ints, is_sorted: bool) -> str:
    """Return how often codes are used, by rank or by id; a dashed line is even use.

    Args:
        counts: (K,) tokens.
        is_sorted: The most used first; else in the order of ids.
    """
    total = max(1, int(counts.sum()))
    order = np.argsort(-counts, kind="stable") if is_sorted else np.arange(len(counts))
    groups = np.array_split(order, min(MOST_BARS, len(order)))
    heights = np.array([counts[group].mean() / total for group in groups])
    even = 1 / len(counts)
    left, top, wide, tall = 46.0, 8.0, 460.0, 130.0
    most = max(float(heights.max()), even) or 1.0
    bar = wide / len(groups)
    gap = min(1.0, bar * 0.15)
    body = []
    for value in ticks(0, most, 3):
        y = top + tall * (1 - value / most)
        body.append(f'<path class="axis" d="M{left} {y:.1f}h{wide}"/>')
        body.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value * 100:g}%</text>'
        )
    for place, (group, height) in enumerate(zip(groups, heights, strict=True)):
        first, last = int(group[0]), int(group[-1])
        alone = len(group) == 1
        title = (
            f"token {first}: {count(int(counts[first]))}, {share(float(height))}"
            if alone
            else f"{len(group)} tokens, {share(float(height))} each on average"
            + ("" if is_sorted else f" (ids {first} to {last})")
        )
        high = max(1.5, tall * float(height) / most) if height else 0.0
        x = left + place * bar
        style = f' style="--hue:{hue(first)}"' if alone else ""
        mark = (
            f'<rect class="{"code" if alone else "mark"}"{style} x="{x + gap / 2:.2f}" '
            f'y="{top + tall - high:.2f}" width="{bar - gap:.2f}" height="{high:.2f}"/>'
            f'<rect class="hit" x="{x:.2f}" y="{top}" width="{bar:.2f}" height="{tall}"/>'
        )
        if alone:
            mark = f'<a href="#token-{first}" data-token="{first}" data-tip="{text(title)}" tabindex="-1">{mark}</a>'
        else:
            mark = f'<g data-tip="{text(title)}">{mark}</g>'
        body.append(mark)
    y = top + tall * (1 - even / most)
    body.append(f'<path class="even" d="M{left} {y:.1f}h{wide}"/>')
    below = top + tall + 16
    ends = ("1", count(len(counts))) if is_sorted else ("0", count(len(counts) - 1))
    body.append(f'<text x="{left}" y="{below}">{ends[0]}</text>')
    body.append(f'<text x="{left + wide}" y="{below}" text-anchor="end">{ends[1]}</text>')
    label = "rank, the most used first" if is_sorted else "token id"
    body.append(
        f'<text class="strong" x="{left + wide / 2}" y="{below}" text-anchor="middle">{label}</text>'
    )
    return svg(left + wide + 6, below + 8, "".join(body), f"Use of codes by {label}")


def map_chart(placed: CentroidMap, counts: Ints, tips: Sequence[str]) -> str:
    """Return the map of centroids: a dot's area is the token's use; unused ones are hollow.

    Args:
        placed: Where they lie.
        counts: (K,) tokens.
        tips: One line per token.
    """
    order = np.argsort(-counts, kind="stable")[:MOST_POINTS]
    pad, wide = 38.0, 900.0
    height = max(float(placed.points[:, 1].max()), 1e-9)
    tall = wide * float(np.clip(height, 0.35, 0.62))
    side = min(wide, tall / height)
    x_of = pad + (wide - side) / 2 + placed.points[:, 0] * side
    y_of = pad + (tall + height * side) / 2 - placed.points[:, 1] * side
    # Areas that together cover a tenth of the map.
    scale = np.sqrt(0.1 * wide * tall / np.pi / max(1, counts.sum()))
    radii = np.clip(np.sqrt(counts) * scale, 3.0, 38.0)
    body, labels = [], list[str]()
    labelled: list[tuple[float, float]] = []
    for code in order.tolist():
        x, y = x_of[code], y_of[code]
        hollow = " hollow" if counts[code] == 0 else ""
        # A dot smaller than its id has it above.
        above = radii[code] + 8 if radii[code] < 9 else 0.0
        row = y - above
        near = min((max(abs(x - a), 1.6 * abs(row - b)) for a, b in labelled), default=np.inf)
        if near > LABEL_ROOM:
            # On a phone letters are larger, and fewer ids have room.
            kind = "" if near > PHONE_ROOM else ' class="wide"'
            labels.append(f'<text{kind} x="{x:.1f}" y="{row:.1f}" dy=".35em">{code}</text>')
            labelled.append((x, row))
        body.append(
            f'<a href="#token-{code}" data-token="{code}" data-tip="{text(tips[code])}">'
            f'<circle class="code{hollow}" style="--hue:{hue(code)}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{radii[code]:.1f}"/></a>'
        )
    drawing = svg(wide + 2 * pad, tall + 2 * pad, "".join(body + labels), "Map of centroids")
    return f'<div class="map">{drawing}</div>'


def curve(steps: Sequence[float], lines: Sequence[tuple[str, Sequence[float]]], title: str) -> str:
    """Return lines over training steps, from zero.

    Args:
        steps: (N,) ascending.
        lines: Name and (N,) values of each, two at most.
        title: What they are.
    """
    left, top, wide, tall = 52.0, 10.0, 420.0, 150.0
    most = max((max(values, default=0.0) for _, values in lines), default=0.0) or 1.0
    low, high = float(steps[0]), float(steps[-1])

    def at(step: float, value: float) -> str:
        x = left + wide * ((step - low) / (high - low) if high > low else 0.5)
        return f"{x:.1f} {top + tall * (1 - value / most):.1f}"

    body = []
    for value in ticks(0, most, 4):
        y = top + tall * (1 - value / most)
        body.append(f'<path class="axis" d="M{left} {y:.1f}h{wide}"/>')
        body.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for number, (name, values) in enumerate(lines):
        path = "L".join(at(s, v) for s, v in zip(steps, values, strict=True))
        body.append(
            f'<path class="line line-{number}" d="M{path}"><title>{text(name)}</title></path>'
        )
        body += [
            f'<circle class="knot line-{number}" cx="{place.split()[0]}" cy="{place.split()[1]}" r="2.6">'
            f"<title>{text(name)}, step {s:g}: {v:.4g}</title></circle>"
            for s, v, place in ((s, v, at(s, v)) for s, v in zip(steps, values, strict=True))
        ]
    below = top + tall + 17
    body.append(f'<text x="{left}" y="{below}">{low:g}</text>')
    body.append(f'<text x="{left + wide}" y="{below}" text-anchor="end">{high:g}</text>')
    body.append(
        f'<text class="strong" x="{left + wide / 2}" y="{below}" text-anchor="middle">step</text>'
    )
    names = "".join(
        f'<li><i class="line-{number}"></i>{text(name)}</li>'
        for number, (name, _) in enumerate(lines)
    )
    drawing = svg(left + wide + 10, below + 8, "".join(body), title)
    return f'<div class="curve"><h3>{text(title)}</h3>{drawing}<ul class="key">{names}</ul></div>'


def matrix_bytes(shares: npt.NDArray[np.float64]) -> bytes:
    """Return shares between 0 and 1 as little-endian uint16, row by row: 65535 is 1."""
    return np.rint(np.clip(shares, 0, 1) * 65_535).astype("<u2").tobytes()
