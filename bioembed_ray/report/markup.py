"""Small pieces of HTML; whatever comes from outside is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bioembed_ray.audio.clips import data_uri

RANDOM_MARK = "RANDOM"


def text(value: object) -> str:
    """Return a value as HTML text, safe in an element and in a quoted attribute.

    >>> text("<b>")
    '&lt;b&gt;'
    """
    return html.escape(str(value), quote=True)


def count(number: int) -> str:
    """Return a number with thousands separated.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,}"


def seconds(value: float) -> str:
    """Return a length of time for people: seconds, minutes or hours.

    >>> seconds(75.25), seconds(59.5), seconds(155.99999), seconds(7200)
    ('1 min 15 s', '59.5 s', '2 min 36 s', '2.0 h')
    """
    if value < 60:
        return f"{value:.3g} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{value / 3600:,.1f} h"


def clock(value: float) -> str:
    """Return a position in a recording, as players show it.

    >>> clock(3.5), clock(3725.25)
    ('0:03.50', '1:02:05.25')
    """
    hundredths = round(value * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 100:02d}.{rest % 100:02d}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def name(value: object) -> str:
    """Return a long name that is cut where there is no room, whole in its tooltip."""
    return f'<span class="name" title="{text(value)}">{text(value)}</span>'


def is_random(weights: str) -> bool:
    """Return whether what is said of weights says that they are random."""
    return weights.upper().startswith(RANDOM_MARK)


def weights_mark(weights: str) -> str:
    """Return what is said of weights, in red where they are random."""
    if is_random(weights):
        return f'<strong class="random" title="the vectors mean nothing">{text(weights)}</strong>'
    return name(weights)


def notice(body: str, kind: str = "note") -> str:
    """Return a paragraph that stands out.

    Args:
        body: HTML.
        kind: `note`, `warning` or `good`.
    """
    role = ' role="alert"' if kind == "warning" else ""
    return f'<p class="notice {text(kind)}"{role}>{body}</p>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return big figures with small titles, side by side; the figures are HTML."""
    cells = "".join(f"<div><dt>{text(title)}</dt><dd>{body}</dd></div>" for title, body in pairs)
    return f'<dl class="facts">{cells}</dl>'


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, and whether it holds numbers."""

    title: str
    is_number: bool = False


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table that scrolls by itself where it is too wide; cells are HTML."""
    known = [Column(one) if isinstance(one, str) else one for one in columns]
    kinds = [' class="number"' if one.is_number else "" for one in known]
    head = "".join(
        f'<th scope="col"{kind}>{text(one.title)}</th>'
        for one, kind in zip(known, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(body: bytes, alt: str, css: str = "", kind: str = "image/png") -> str:
    """Return a picture that stands in the page itself."""
    return f'<img class="{text(css)}" src="{data_uri(body, kind)}" alt="{text(alt)}">'


def figure(body: str, caption: str) -> str:
    """Return a picture or chart (HTML) with its caption (HTML)."""
    return f"<figure>{body}<figcaption>{caption}</figcaption></figure>"


def player(sound: bytes, label: str, kind: str = "audio/mpeg") -> str:
    """Return a player whose sound stands in the page itself."""
    return (
        f'<audio controls preload="metadata" aria-label="{text(label)}" '
        f'src="{data_uri(sound, kind)}"></audio>'
    )
