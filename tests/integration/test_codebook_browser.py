"""A codebook page in a browser: no errors, no network, sound that plays, tokens that lead to galleries."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import bioembed_ray
from bioembed_ray.report.codebook_page import CodebookOptions, codebook_pages
from bioembed_ray.report.frame import Link, render
from tests.unit.codebook_fixtures import write_output

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


class Looked:
    """A page that is open, and what went wrong on it."""

    def __init__(self, browser: sync_api.Browser, file: Path, size: dict[str, int]) -> None:
        self.context = browser.new_context(viewport=size)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on(
            "console",
            lambda m: self.wrong.append(m.text) if m.type in {"error", "warning"} else None,
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto(file.as_uri())

    def _note(self, request: sync_api.Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(f"asked for {request.url}")

    def top(self, selector: str) -> float:
        found: float = self.page.evaluate(
            "one => document.querySelector(one).getBoundingClientRect().top", selector
        )
        return found

    def wait_for_top(self, selector: str) -> None:
        """Wait until an element is near the top of the window."""
        self.page.wait_for_function(
            "one => { const t = document.querySelector(one).getBoundingClientRect().top;"
            " return t >= 0 && t < innerHeight / 2; }",
            arg=selector,
            timeout=10_000,
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    made = write_output(folder)
    (page,) = codebook_pages(bioembed_ray.open(made.output), CodebookOptions())
    links = [Link("index", "Overview"), Link(page.slug, page.title)]
    path = folder / f"{page.slug}.html"
    path.write_bytes(render(page, links))
    return path


@pytest.fixture
def desktop(browser: sync_api.Browser, file: Path) -> Iterator[Looked]:
    looked = Looked(browser, file, DESKTOP)
    yield looked
    assert looked.wrong == []
    looked.context.close()


def test_page_asks_for_nothing_and_complains_of_nothing(desktop: Looked) -> None:
    for selector in (".strip-tokens", ".matrix canvas"):
        painted = desktop.page.evaluate(
            "one => { const c = document.querySelector(one);"
            " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            " return new Set(new Uint32Array(d.buffer)).size; }",
            selector,
        )
        assert painted > 3, selector


def test_a_galleries_sound_has_a_length_and_plays(desktop: Looked) -> None:
    length = desktop.page.evaluate(
        "() => new Promise((done, fail) => { const a = document.querySelector('.clip audio');"
        " a.onloadedmetadata = () => done(a.duration); a.onerror = () => fail(a.error.message);"
        " a.preload = 'metadata'; a.load(); })"
    )
    # A frame of 0.1 s with 0.4 s around it on both sides, cut off at the recording's start.
    assert 0.4 < length < 1.1
    button = desktop.page.locator(".clip button").first
    button.click()
    desktop.page.wait_for_function("() => document.querySelector('.clip audio').currentTime > 0.05")
    whole = desktop.page.evaluate("document.querySelector('#strip audio').duration")
    assert whole == pytest.approx(desktop.page.evaluate("report.json('strip-data').stop"), abs=0.2)


def test_a_token_leads_to_its_gallery_from_everywhere(desktop: Looked) -> None:
    page = desktop.page
    tokens = page.evaluate("[...document.querySelectorAll('.gallery')].map(g => g.dataset.of)")
    last = tokens[-1]
    page.locator(f'.map a[data-token="{last}"]').click()
    desktop.wait_for_top(f"#token-{last}")
    assert page.locator(f"#token-{last}").get_attribute("class") == "gallery on"
    assert page.locator(".gallery.on").count() == 1
    first = tokens[0]
    page.locator(f'#transitions a[data-token="{first}"]').first.click()
    desktop.wait_for_top(f"#token-{first}")
    assert page.locator(".gallery.on").get_attribute("data-of") == first
    # The strip: the middle of its first run.
    token, _, low, high = page.evaluate("report.json('strip-data').runs[0]")
    page.locator('[data-zoom="1"]').click()
    strip = page.locator(".strip-tokens")
    strip.scroll_into_view_if_needed()
    wide = strip.evaluate("one => one.clientWidth")
    length_ms = page.evaluate(
        "1000 * (report.json('strip-data').stop - report.json('strip-data').start)"
    )
    strip.click(position={"x": wide * (low + high) / 2 / length_ms, "y": 10})
    desktop.wait_for_top(f"#token-{token}")
    assert page.locator(".gallery.on").get_attribute("data-of") == str(token)


def test_an_address_with_a_token_opens_at_it(browser: sync_api.Browser, file: Path) -> None:
    looked = Looked(browser, file, DESKTOP)
    token = looked.page.evaluate("[...document.querySelectorAll('.gallery')].at(-1).dataset.of")
    looked.page.goto("about:blank")
    looked.page.goto(f"{file.as_uri()}#token-{token}")
    looked.wait_for_top(f"#token-{token}")
    assert looked.page.locator(f"#token-{token}.on").count() == 1
    looked.context.close()


def test_the_mouse_is_told_what_it_is_over(desktop: Looked) -> None:
    page = desktop.page
    dot = page.locator(".map a").first
    dot.hover()
    tip = page.locator(".tip")
    assert tip.inner_text() == dot.get_attribute("data-tip")
    page.locator(".matrix canvas").hover(position={"x": 40, "y": 60})
    assert "token" in page.locator(".readout").inner_text()


def test_zoom_widens_the_strip_inside_its_frame(desktop: Looked) -> None:
    page = desktop.page
    page.locator('[data-zoom="1"]').click()
    narrow = page.locator(".strip-inner").evaluate("one => one.clientWidth")
    page.locator('[data-zoom="12"]').click()
    wide = page.locator(".strip-inner").evaluate("one => one.clientWidth")
    assert wide == pytest.approx(12 * narrow, rel=0.01)
    assert page.evaluate("document.documentElement.scrollWidth") == DESKTOP["width"]


def test_a_phone_shows_the_page_without_scrolling_sideways(
    browser: sync_api.Browser, file: Path
) -> None:
    looked = Looked(browser, file, PHONE)
    assert looked.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    boxes = looked.page.evaluate(
        "[...document.querySelectorAll('.clip, .map, .matrix canvas, #strip > audio, h1')]"
        ".map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])"
    )
    assert all(left >= 0 and right <= PHONE["width"] for left, right in boxes)
    assert looked.wrong == []
    looked.context.close()
