"""A page of the report: one HTML file with everything in it, and links to its neighbours.

A page asks for nothing from outside. Its content security policy forbids that too, and lets only
the scripts run that it was made with: a name that slipped through as HTML would do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from bioembed_ray.report.markup import text


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page, with a heading and a link in the page's bar.

    Attributes:
        slug: Name of its anchor: small letters, digits and hyphens.
        title: Heading, plain text.
        html: Body, escaped by whoever made it.
        data: What scripts read with `report.json(id)`, or `report.bytes(id)` where it is bytes.
            Ids are unique on a page.
        scripts: Files of this package that the section needs, e.g. `map.js`; each runs once, after
            `frame.js`, when the whole page is there.
        summary: One line below the heading, plain text.
    """

    slug: str
    title: str
    html: str
    data: Mapping[str, object] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One file of the report.

    Attributes:
        slug: File name without `.html`.
        title: Heading and title of the window, plain text.
        lead: HTML below the heading.
        sections: In order.
    """

    slug: str
    title: str
    lead: str
    sections: Sequence[Section]


@dataclass(frozen=True, slots=True)
class Link:
    """A page as the others name it.

    Attributes:
        slug: File name without `.html`.
        title: Few words, plain text.
    """

    slug: str
    title: str


def render(page: Page, links: Sequence[Link] = ()) -> bytes:
    """Return a page as a file.

    Args:
        page: What it holds.
        links: All pages of the report in order, this one among them.
    """
    scripts = [read_file("frame.js"), *map(read_file, _scripts(page.sections))]
    style = read_file("style.css")
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data: blob:",
            "media-src data: blob:",
            "style-src 'unsafe-inline'",
            f"script-src {' '.join(map(_fingerprint, scripts))}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    blocks = [_block(name, value) for one in page.sections for name, value in one.data.items()]
    pieces = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{text(page.title)}</title>",
        f"<style>{style}</style>\n</head>\n<body>",
        '<a class="skip" href="#content">Skip to the content</a>',
        _bar(page, links),
        f'<main id="content">\n<header class="lead"><h1>{text(page.title)}</h1>{page.lead}</header>',
        *map(_section, page.sections),
        "</main>",
        *blocks,
        *(f"<script>{script}</script>" for script in scripts),
        "</body>\n</html>\n",
    ]
    return "\n".join(pieces).encode()


def read_file(name: str) -> str:
    """Return a style sheet or script of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _scripts(sections: Iterable[Section]) -> Iterable[str]:
    return dict.fromkeys(name for section in sections for name in section.scripts)


def _fingerprint(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _bar(page: Page, links: Sequence[Link]) -> str:
    pages = "".join(
        f'<a href="{text(link.slug)}.html"{_current(link, page)}>{text(link.title)}</a>'
        for link in links
    )
    anchors = "".join(
        f'<a href="#{text(section.slug)}">{text(section.title)}</a>' for section in page.sections
    )
    top = f'<div class="pages">{pages}</div>' if len(links) > 1 else ""
    return f'<nav class="bar" aria-label="Report">{top}<div class="anchors">{anchors}</div></nav>'


def _current(link: Link, page: Page) -> str:
    return ' aria-current="page"' if link.slug == page.slug else ""


def _section(section: Section) -> str:
    slug = text(section.slug)
    below = f'<p class="summary">{text(section.summary)}</p>' if section.summary else ""
    return (
        f'<section id="{slug}" aria-labelledby="{slug}-title">'
        f'<h2 id="{slug}-title">{text(section.title)}</h2>{below}{section.html}</section>'
    )


def _block(name: str, value: object) -> str:
    """Return data as an element that no browser runs."""
    if isinstance(value, bytes):
        kind, body = "application/octet-stream", base64.b64encode(value).decode()
    else:
        # A name with "</script>" in it would end the element.
        kind = "application/json"
        body = json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="{kind}" id="{text(name)}">{body}</script>'
