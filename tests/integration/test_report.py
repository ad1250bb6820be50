"""The report in a browser: what it shows is what the tables hold, and it asks for nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import bioembed_ray
from bioembed_ray.report import build
from bioembed_ray.report.build import ReportOptions, write_report
from tests.report_output import INJECTION, PITCHES, WEIGHTS, pitch_of, write_output

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
]

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write_output(root / "audio", root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def folder(output: Path) -> Path:
    # Few clips, so that some points can be heard and some cannot.
    options = ReportOptions(max_clips=12, recording=INJECTION)
    list(write_report(str(output), options, str(output / "report")))
    return output / "report"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Seen:
    """A page with all that went wrong on it, and all that it asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))
        self.page.route("**", self._let_through)
        self.page.goto(path.as_uri())
        assert self.page.evaluate("soundMap.state.map !== null")

    def _let_through(self, route: Any) -> None:
        self.requests.append(route.request.url)
        if re.match(r"(file|data|blob):", route.request.url):
            route.continue_()
        else:
            route.abort()

    def points(self) -> list[dict[str, Any]]:
        """Return what the map says its points are, and where their pixels are."""
        found: list[dict[str, Any]] = self.page.evaluate(
            """() => {
              const map = soundMap.state.map;
              return Array.from({ length: map.n }, (_, i) => ({
                recording: soundMap.page.names[map.recording[i]], start: map.start[i],
                length: soundMap.lengthOf(i), at: soundMap.place(i), clip: map.heard.clip[i],
                xy: [map.xy[2 * i], map.xy[2 * i + 1]],
              }));
            }"""
        )
        return found

    def click(self, point: dict[str, Any]) -> None:
        canvas = self.page.locator("#map-canvas")
        canvas.scroll_into_view_if_needed()
        canvas.click(position={"x": point["at"][0], "y": point["at"][1]})

    def detail(self) -> str:
        text: str = self.page.locator("#map-detail").inner_text()
        return text

    def sound_lengths(self) -> list[float]:
        """Return how long the players of the chosen point play, when they know."""
        # The page's policy forbids what waits for an expression.
        found: list[float] = self.page.locator("#map-detail audio").evaluate_all(
            """(all) => Promise.all(all.map((one) => new Promise((done) => {
              if (one.readyState >= 1) done(one.duration);
              else one.addEventListener("loadedmetadata", () => done(one.duration));
              one.addEventListener("error", () => done(NaN));
            })))"""
        )
        return found

    def pixels(self) -> set[tuple[int, int, int]]:
        """Return the colours on the canvas, those of nearly opaque pixels."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        found = self.page.evaluate(
            """() => {
              const canvas = document.getElementById("map-canvas");
              const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
              const seen = new Set();
              for (let k = 0; k < data.length; k += 4) {
                if (data[k + 3] > 180) seen.add(`${data[k] >> 4},${data[k + 1] >> 4},${data[k + 2] >> 4}`);
              }
              return [...seen];
            }"""
        )
        return {tuple(map(int, one.split(","))) for one in found}  # type: ignore[misc]


@pytest.fixture
def seen(browser: Any, folder: Path) -> Iterator[Seen]:
    page = Seen(browser, folder / "index.html")
    yield page
    page.context.close()


def clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:05.2f}"


@needs_browser
def test_page_asks_for_nothing_and_complains_of_nothing(seen: Seen, folder: Path) -> None:
    for level in ("recordings", "windows"):
        seen.page.click(f"[data-level={level}]")
    seen.click(next(point for point in seen.points() if point["clip"] >= 0))
    seen.page.wait_for_selector("#map-detail audio")
    assert seen.errors == []
    assert seen.requests[0] == (folder / "index.html").as_uri()
    assert {url.partition(":")[0] for url in seen.requests[1:]} <= {"data", "blob"}


@needs_browser
def test_an_attempt_to_reach_the_network_is_refused_by_the_page_itself(seen: Seen) -> None:
    seen.page.evaluate("() => { new Image().src = 'https://example.org/x.png'; }")
    seen.page.wait_for_timeout(300)
    assert not [url for url in seen.requests if url.startswith("http")]
    assert any("Content Security Policy" in error for error in seen.errors)


@needs_browser
def test_clicked_point_is_the_row_of_the_table(seen: Seen, output: Path) -> None:
    table = bioembed_ray.open(str(output)).windows("tiny").pandas()
    points = seen.points()
    # Of a window that is less than half sound there is nothing to see or to hear.
    heard = table[2 * table.valid_s >= table.end_s - table.start_s]
    rows = {(row.recording, row.start_s): row.end_s for row in heard.itertuples()}
    assert len(rows) < len(table)
    assert {(p["recording"], p["start"]) for p in points} == set(rows)
    assert all(p["start"] + p["length"] == rows[p["recording"], p["start"]] for p in points)
    # Points that no other point hides, far and wide over the map.
    at = np.array([point["at"] for point in points])
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    alone = np.flatnonzero(apart.min(axis=1) > 3)
    for index in alone[:: max(1, len(alone) // 12)]:
        point = points[index]
        seen.click(point)
        text = seen.detail()
        assert text.splitlines()[0] == point["recording"]
        start, stop = point["start"], point["start"] + point["length"]
        assert f"{clock(start)} – {clock(stop)}" in text
    assert len(alone) > 24


@needs_browser
def test_hovering_names_recording_and_time(seen: Seen) -> None:
    point = seen.points()[0]
    canvas = seen.page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    canvas.hover(position={"x": point["at"][0], "y": point["at"][1]})
    text = seen.page.locator("#map-tip").inner_text()
    shown = next(
        p for p in seen.points() if text.startswith(f"{p['recording']}\n{clock(p['start'])}")
    )
    assert np.hypot(*np.subtract(shown["at"], point["at"])) < 14


@needs_browser
def test_sound_plays_and_is_as_long_as_its_stretch(seen: Seen) -> None:
    for point in [p for p in seen.points() if p["clip"] >= 0][:4]:
        seen.page.evaluate("(i) => soundMap.choose(i)", seen.points().index(point))
        length = seen.sound_lengths()[0]
        clip = seen.page.evaluate("(k) => report.json('map-clips')[k]", point["clip"])
        assert np.isfinite(length)
        # MP3 has whole frames, of up to 1152 samples, and a delay.
        assert length == pytest.approx(clip["end"] - clip["start"], abs=0.25)
        assert clip["start"] <= point["start"] < clip["end"]
        image = seen.page.locator("#map-detail .spectrogram img")
        assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 100


@needs_browser
def test_ultrasound_has_a_slowed_copy_that_says_so(seen: Seen) -> None:
    points = seen.points()
    bats = [
        index
        for index, p in enumerate(points)
        if p["recording"].endswith("20240512_220000.WAV") and p["clip"] >= 0
    ]
    assert bats, "a map of this archive has a stretch of its bats"
    seen.page.evaluate("(i) => soundMap.choose(i)", bats[0])
    assert "Slowed 10 times, a derived copy of" in seen.detail()
    lengths = seen.sound_lengths()
    assert lengths[1] == pytest.approx(10.0, abs=0.3), "a window of one second, ten times slower"


@needs_browser
def test_sound_that_is_not_in_the_page_comes_with_a_command_that_works(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    import soundfile
    from click.testing import CliRunner

    from bioembed_ray.cli import commands

    points = seen.points()
    index = next(i for i, p in enumerate(points) if p["clip"] < 0)
    seen.page.evaluate("(i) => soundMap.choose(i)", index)
    command = shlex.split(seen.page.locator("#map-detail pre").inner_text())
    assert command[0] == "bioembed"
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(commands, command[1:])
    assert done.exit_code == 0, done.output
    samples, rate = soundfile.read(tmp_path / "listen.wav")
    start = max(0.0, points[index]["start"] - 2)
    original = (
        Path(str(bioembed_ray.open(command[3]).output)).parent
        / "audio"
        / points[index]["recording"]
    )
    wanted, own_rate = soundfile.read(original, always_2d=True)
    wanted = wanted.mean(axis=1)[round(start * own_rate) :][: len(samples)]
    assert rate == own_rate
    np.testing.assert_allclose(samples, wanted, atol=1e-4)
    seen.page.click("text=nearest dot with sound")
    seen.page.wait_for_selector("#map-detail audio")


@needs_browser
def test_selector_changes_colours_and_legend_counts_add_up(seen: Seen) -> None:
    n = len(seen.points())
    colours, legends = [], []
    options = seen.page.locator("#map-colour option").all_inner_texts()
    assert {"pitch", "folder", "recording", "hour of day", "day or night", "L2 norm"} <= set(
        options
    )
    assert "token of tiny-4" in options
    for title in ("pitch", "token of tiny-4", "hour of day", "L2 norm"):
        seen.page.select_option("#map-colour", title)
        colours.append(frozenset(seen.pixels()))
        legends.append(seen.page.locator("#map-legend").inner_text())
    assert len(set(colours)) == len(set(legends)) == 4
    seen.page.select_option("#map-colour", "pitch")
    counts = seen.page.locator("#map-legend small").all_inner_texts()
    assert sum(map(int, counts)) == n
    assert sorted(counts[:4]) == ["18"] * 4, "three tones of six windows for each pitch"


@needs_browser
def test_zoom_and_drag_move_the_map_and_reset_brings_it_back(seen: Seen) -> None:
    canvas = seen.page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    before = seen.points()[0]["at"]
    box = canvas.bounding_box()
    seen.page.mouse.move(box["x"] + 100, box["y"] + 100)
    seen.page.mouse.wheel(0, -300)
    zoomed = seen.points()[0]["at"]
    assert np.hypot(*np.subtract(zoomed, before)) > 5
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + 160, box["y"] + 130, steps=4)
    seen.page.mouse.up()
    moved = seen.points()[0]["at"]
    np.testing.assert_allclose(np.subtract(moved, zoomed), [60, 30], atol=1)
    seen.page.click("#map-reset")
    np.testing.assert_allclose(seen.points()[0]["at"], before, atol=0.01)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_wider_than_the_window(
    browser: Any, folder: Path, width: int, scheme: str
) -> None:
    page = Seen(browser, folder / "index.html", width, scheme)
    found = page.page.evaluate("document.documentElement.scrollWidth")
    ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.context.close()
    assert found == width
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (brightness > 128) == (scheme == "light")
    assert page.errors == []


@needs_browser
def test_a_name_that_is_html_stays_text(seen: Seen) -> None:
    points = seen.points()
    index = next(i for i, p in enumerate(points) if p["recording"] == INJECTION)
    seen.page.evaluate("(i) => soundMap.choose(i)", index)
    seen.page.select_option("#map-colour", "recording")
    seen.page.click("[data-level=recordings]")
    assert seen.page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert seen.errors == []


@needs_browser
def test_recordings_have_a_map_of_their_own(seen: Seen, output: Path) -> None:
    seen.page.click("[data-level=recordings]")
    points = seen.points()
    table = bioembed_ray.open(str(output)).windows("tiny").pandas()
    assert sorted(p["recording"] for p in points) == sorted(set(table["recording"]))
    index = next(i for i, p in enumerate(points) if p["recording"] == "tones/low_00.wav")
    seen.page.evaluate("(i) => soundMap.choose(i)", index)
    assert "0:03.00" in seen.detail()


@needs_browser
def test_map_keeps_the_four_pitches_apart(seen: Seen) -> None:
    tones = [p for p in seen.points() if pitch_of(p["recording"])]
    places = np.array([p["xy"] for p in tones])
    labels = [pitch_of(p["recording"]) for p in tones]
    assert len(tones) == 72
    assert set(labels) == set(PITCHES)
    right = 0
    for k in range(len(tones)):
        rest = np.arange(len(tones)) != k
        model = KNeighborsClassifier(5).fit(places[rest], np.array(labels)[rest])
        right += model.predict(places[k : k + 1])[0] == labels[k]
    assert right / len(tones) >= 0.95


def test_page_says_what_the_ledger_says(folder: Path, output: Path) -> None:
    html = (folder / "index.html").read_text()
    assert INJECTION not in html
    assert "&lt;img src=x onerror=alert(1)&gt;.wav" in html
    assert WEIGHTS in html
    assert "RANDOM weights: tiny." in html
    assert "header promises 40.000 s, data end at 20.000 s" in html
    assert "soundscape/notes.wav" in html
    assert not re.search(r"(src|href)=\"(https?:)?//", html)
    counts = bioembed_ray.open(str(output)).windows("tiny").count()
    assert f"{counts:,} windows" in html


def test_pictures_of_the_maps_stand_beside_the_page(folder: Path) -> None:
    from PIL import Image

    names = sorted(path.name for path in (folder / "maps").iterdir())
    assert names == ["tiny-recordings.png", "tiny-windows.png"]
    for name in names:
        with Image.open(folder / "maps" / name) as image:
            assert image.width > 600


def test_same_output_gives_the_same_points(output: Path, folder: Path, tmp_path: Path) -> None:
    options = ReportOptions(max_windows=100, max_clips=0)
    found = []
    for name in ("one", "two"):
        list(write_report(str(output), options, str(tmp_path / name)))
        html = (tmp_path / name / "index.html").read_text()
        found.append(re.findall(r'id="(map-tiny-windows-[a-z]+)">([^<]*)<', html))
    assert found[0] == found[1]
    assert {name for name, _ in found[0]} >= {"map-tiny-windows-xy", "map-tiny-windows-start"}
    page = re.search(r'id="map-page">([^<]*)<', html)
    assert page is not None
    (shown,) = [m for m in json.loads(page[1])["maps"] if m["level"] == "windows"]
    assert (shown["n"], shown["all"]) == (100, 316)


def test_unknown_recording_is_refused_with_the_nearest_names(output: Path) -> None:
    from bioembed_ray.errors import InputError

    options = ReportOptions(recording="tones/low_0.wav")
    with pytest.raises(InputError, match=r"did you mean tones/low_02\.wav|tones/low_00\.wav"):
        list(build.write_report(str(output), options, "unused"))
