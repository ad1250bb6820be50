"""Charts as SVG: they take the page's colours, light or dark, and stay sharp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bioembed_ray.report.markup import count, text

Floats = npt.NDArray[np.float64]


def svg(width: float, height: float, body: str, label: str) -> str:
    """Return a drawing that scales down to the room there is, never up."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="width:{width:g}px" role="img" '
        f'aria-label="{text(label)}">{body}</svg>'
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two, at most `most` + 1.

    >>> ticks(0, 0.5, 5)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9)))
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [round(k * step, 12) for k in range(first, last + 1)]


def stacked_bar(parts: Mapping[str, float], unit: str, width: float = 640) -> str:
    """Return a bar of shares, in the colours that the style sheet gives their names."""
    total = sum(parts.values())
    if total <= 0:
        return ""
    x, pieces = 0.0, []
    for name, value in parts.items():
        wide = width * value / total
        if value > 0:
            # A sliver is still seen.
            pieces.append(
                f'<rect x="{x:.2f}" y="0" width="{max(wide, 1.5):.2f}" height="14" '
                f'style="fill:var(--{text(name)})"><title>{text(name)}: {value:,.3f} {text(unit)}, '
                f"{value / total:.2%}</title></rect>"
            )
        x += wide
    label = ", ".join(f"{name} {value / total:.1%}" for name, value in parts.items() if value)
    return svg(width, 14, "".join(pieces), label)


def key(names: Sequence[str]) -> str:
    """Return what the colours of `stacked_bar` mean."""
    rows = "".join(
        f'<li><i style="background:var(--{text(name)})"></i>{text(name)}</li>' for name in names
    )
    return f'<ul class="key">{rows}</ul>'


def histogram(values: Floats, label: str, unit: str = "", bins: int = 48) -> str:
    """Return a histogram with counts on its left axis.

    Args:
        values: (N,) finite.
        label: Title of the horizontal axis.
        unit: What is counted.
        bins: Bars, evenly spread between the smallest and largest value.
    """
    if not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    if low == high:
        spread = max(abs(low) * 0.05, 1e-6)
        low, high = low - spread, high + spread
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    left, top, wide, tall = 48.0, 8.0, 340.0, 120.0
    most = max(1, int(counts.max()))
    bar = wide / bins
    body = []
    for value in ticks(0, most, 3):
        if value != int(value):
            continue
        y = top + tall * (1 - value / most)
        body.append(f'<path class="axis" d="M{left} {y:.1f}h{wide}"/>')
        body.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{count(int(value))}</text>'
        )
    for k, number in enumerate(counts):
        if number:
            high_px = max(1.0, tall * number / most)
            body.append(
                f'<rect class="mark" x="{left + k * bar + 0.4:.2f}" y="{top + tall - high_px:.2f}" '
                f'width="{bar - 0.8:.2f}" height="{high_px:.2f}"><title>{edges[k]:.4g} to '
                f"{edges[k + 1]:.4g}: {count(int(number))} {text(unit)}</title></rect>"
            )
    # Five digits tell ticks apart, unless all values are nearly the same.
    digits = 5 if high - low > 1e-3 * abs(high) else 9
    for value in ticks(low, high, 5 if digits == 5 else 2):
        x = left + wide * (value - low) / (high - low)
        shown = f"{value:.{digits}g}"
        body.append(f'<text x="{x:.1f}" y="{top + tall + 16}" text-anchor="middle">{shown}</text>')
    body.append(
        f'<text class="strong" x="{left + wide / 2}" y="{top + tall + 34}" text-anchor="middle">'
        f"{text(label)}</text>"
    )
    return svg(left + wide + 12, top + tall + 40, "".join(body), f"Histogram of {label}")


def heat(rows: Sequence[str], columns: Sequence[str], values: Floats, unit: str) -> str:
    """Return a table of squares, the darker the more.

    Args:
        rows: Titles on the left.
        columns: Titles below; only some are written where there are many.
        values: (rows, columns), at least 0.
        unit: Of the values.
    """
    shown = [name if len(name) <= 26 else f"{name[:12]}…{name[-12:]}" for name in rows]
    side = float(np.clip(700 / max(len(columns), 1), 15, 36))
    left = 12 + 6.4 * max((len(name) for name in shown), default=0)
    most = float(values.max()) or 1.0
    body = []
    for r, name in enumerate(shown):
        y = 4 + r * side
        body.append(
            f'<text x="{left - 8:.0f}" y="{y + side / 2 + 3:.1f}" text-anchor="end">{text(name)}'
            f"<title>{text(rows[r])}</title></text>"
        )
        for c, column in enumerate(columns):
            value = float(values[r, c])
            fill = "var(--sunk)" if value == 0 else "var(--accent)"
            opacity = 1.0 if value == 0 else 0.25 + 0.75 * value / most
            body.append(
                f'<rect x="{left + c * side:.1f}" y="{y:.1f}" width="{side - 2}" height="{side - 2}" '
                f'rx="2" style="fill:{fill};opacity:{opacity:.2f}"><title>{text(rows[r])}, '
                f"{text(column)}: {value:,.3g} {text(unit)}</title></rect>"
            )
    wide = left + len(columns) * side
    below = 4 + len(rows) * side
    every = max(1, int(np.ceil(70 / side)))
    body += [
        f'<text x="{left + c * side:.1f}" y="{below + 13:.1f}">{text(column)}</text>'
        for c, column in enumerate(columns)
        if c % every == 0
    ]
    return svg(wide + 60, below + 20, "".join(body), f"{unit} by row and column")
