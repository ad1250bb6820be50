"""Parts of the report against brute force, numpy and the almanac."""

from __future__ import annotations

import base64
import io
import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import bioembed_ray
from bioembed_ray import schema, synthetic
from bioembed_ray.codebooks.sample import track_digest
from bioembed_ray.datasets import Dataset
from bioembed_ray.report import colours, daylight, maps
from bioembed_ray.report.build import ReportOptions, write_report
from bioembed_ray.report.charts import histogram, ticks
from bioembed_ray.report.frame import Link, Page, Section, render
from bioembed_ray.report.listening import (
    Stretch,
    choose_stretches,
    cut_clips,
    room,
)
from bioembed_ray.report.markup import table, text
from bioembed_ray.report.sampling import Points, sample_windows
from bioembed_ray.report.vectors import find_twins, typical_cosine
from bioembed_ray.results import Results
from tests import report_output
from tests.report_output import put_json, put_part, write_output
from tests.tables import shuffled, window_rows

D = 6
WINDOWS = Dataset("embeddings", "fake", "v1")


def window_table(names: list[str], n: int, seed: int) -> pa.Table:
    tracks = [(name, channel, n) for name in names for channel in (0, 1)]
    return shuffled(window_rows(tracks, D, seed=seed, last_valid_s=0.5), seed)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_output(root / "audio", root / "out")
    return root / "out"


@pytest.fixture
def results(written: Path) -> Results:
    return bioembed_ray.open(str(written))


def as_rows(points: Points) -> list[tuple[str, int, float, bytes]]:
    return [
        (
            points.name(k),
            int(points.channel[k]),
            float(points.start_s[k]),
            points.vectors[k].tobytes(),
        )
        for k in range(len(points))
    ]


def test_sample_is_the_same_however_rows_are_spread_over_parts(tmp_path: Path) -> None:
    whole = pa.concat_tables([window_table([f"{c}.wav" for c in "abcdef"], 400, 1)])
    samples = []
    for case, n_parts in (("one", 1), ("many", 7)):
        rows = (
            whole if n_parts == 1 else whole.take(np.random.default_rng(3).permutation(len(whole)))
        )
        edges = np.linspace(0, len(rows), n_parts + 1).astype(int)
        for k in range(n_parts):
            part = rows.slice(edges[k], edges[k + 1] - edges[k])
            put_part(tmp_path / case, WINDOWS, part, f"s{k}")
        put_json(tmp_path / case / "current.json", {})
        opened = bioembed_ray.open(str(tmp_path / case)).windows("fake")
        samples.append(sample_windows(opened, ["a.wav", "f.wav"], 150, followed=("c.wav", 100.0)))
    one, many = samples
    assert as_rows(one.windows) == as_rows(many.windows)
    assert as_rows(one.followed) == as_rows(many.followed)
    assert (one.n_windows, len(one.windows), len(one.followed)) == (4800, 150, 402)
    assert one.followed.end_s.min() == 100.5
    assert as_rows(one.windows) == sorted(as_rows(one.windows))
    # A fair draw: every recording has about its sixth of 150.
    assert np.bincount(one.windows.recording).min() > 8
    known = {
        (r["recording"], r["channel"], r["start_s"]): r["embedding"] for r in whole.to_pylist()
    }
    for name, channel, start, vector in as_rows(one.windows):
        assert np.array_equal(np.frombuffer(vector, np.float32), known[name, channel, start])
    for k, name in enumerate(one.recordings.names):
        wanted = np.mean([v for key, v in known.items() if key[0] == name], axis=0)
        np.testing.assert_allclose(one.recordings.vectors[k], wanted, atol=1e-6)
        np.testing.assert_allclose(many.recordings.vectors[k], wanted, atol=1e-6)
    assert one.recordings.names == ("a.wav", "f.wav")
    assert one.recordings.end_s.tolist() == [200.0, 200.0]


def test_recordings_with_a_mean_are_bounded(tmp_path: Path) -> None:
    names = [f"{k:02d}.wav" for k in range(30)]
    put_part(tmp_path, WINDOWS, window_table(names, 3, 0))
    put_json(tmp_path / "current.json", {})
    rows = bioembed_ray.open(str(tmp_path)).windows("fake")
    found = sample_windows(rows, names, 10, max_recordings=5)
    assert found.recordings.names == tuple(
        sorted(sorted(names, key=lambda name: track_digest(name, -1))[:5])
    )


def test_bad_vectors_are_counted_over_all_windows_and_left_out(tmp_path: Path) -> None:
    rows = window_table(["a.wav"], 50, 0).to_pylist()
    rows[3]["embedding"][2] = np.nan
    rows[4]["embedding"][0] = np.inf
    rows[5]["embedding"] = [0.25] * D
    put_part(tmp_path, WINDOWS, pa.Table.from_pylist(rows, schema.embeddings(D, "float32")))
    put_json(tmp_path / "current.json", {})
    found = sample_windows(bioembed_ray.open(str(tmp_path)).windows("fake"), ["a.wav"], 1000)
    assert (found.n_windows, found.n_nonfinite, found.n_constant) == (100, 2, 1)
    assert len(found.windows) == 98
    assert np.isfinite(found.windows.vectors).all()
    assert np.isfinite(found.recordings.vectors).all()


@pytest.mark.parametrize(
    ("moment", "latitude", "longitude", "wanted", "within"),
    [
        # Sunrise and sunset, HM Nautical Almanac Office: the sun's centre at -0.833 degrees.
        ("2024-06-21T03:43:00+00:00", 51.5, -0.13, -0.833, 0.2),
        ("2024-06-21T20:21:30+00:00", 51.5, -0.13, -0.833, 0.2),
        ("2024-12-21T08:04:00+00:00", 51.5, -0.13, -0.833, 0.2),
        # Solstice noon: 90 degrees less latitude plus the obliquity; midnight sun at the North Cape.
        ("2024-06-20T12:02:00+00:00", 0.0, 0.0, 90 - 23.44, 0.1),
        ("2024-06-20T22:19:00+00:00", 71.17, 25.78, 71.17 + 23.44 - 90, 0.1),
        # Sydney, sunrise 05:41 on 21 December (AEDT, UTC+11).
        ("2024-12-21T05:41:00+11:00", -33.87, 151.21, -0.833, 0.3),
    ],
)
def test_sun_stands_where_the_almanac_says(
    moment: str, latitude: float, longitude: float, wanted: float, within: float
) -> None:
    at = np.array([datetime.fromisoformat(moment).timestamp()])
    found = daylight.sun_elevation(at, np.array([latitude]), np.array([longitude]))
    assert found[0] == pytest.approx(wanted, abs=within)


def test_day_twilight_night_and_unknown() -> None:
    at = [
        datetime.fromisoformat(f"2024-06-21T{clock}+00:00").timestamp()
        for clock in ("12:00", "03:20", "00:00")
    ]
    place = np.full(4, 51.5), np.full(4, -0.13)
    codes = daylight.by_sun(np.array([*at, np.nan]), *place)
    assert codes.tolist() == [daylight.DAY, daylight.TWILIGHT, daylight.NIGHT, daylight.UNKNOWN]
    hours = np.array([5.99, 6.0, 17.99, 18.0, np.nan])
    assert daylight.by_clock(hours).tolist() == [2, 0, 0, 2, 255]


def test_a_report_holds_sound_that_is_all_but_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording of denormal numbers, the smallest floats there are: LAME ends processes over less."""

    def write_archive(folder: Path) -> list[str]:
        names = synthetic.write_archive(folder)
        for name in (name for name in names if name.startswith("tones/")):
            wave, rate_hz = soundfile.read(folder / name, dtype="float32")
            wave = (np.sign(wave) * 1e-40).astype(np.float32)
            soundfile.write(folder / name, wave, rate_hz, format="WAV", subtype="FLOAT")
        return names

    monkeypatch.setattr(report_output, "write_archive", write_archive)
    write_output(tmp_path / "audio", tmp_path / "out")
    lines = list(write_report(str(tmp_path / "out"), ReportOptions(), str(tmp_path / "report")))
    assert len(lines) == 2
    page = (tmp_path / "report" / "index.html").read_text()
    assert "could not be read for sound" not in page


def test_window_tokens_are_the_most_frequent_ones(results: Results) -> None:
    points = sample_windows(results.windows("tiny"), [], 1000).windows
    found = colours.window_tokens(results, "tiny-4", points)
    segments = {s["recording"]: s for s in results.tokens("tiny-4").table().to_pylist()}
    for k in range(len(points)):
        segment = segments[points.name(k)]
        heard = [
            token
            for i, token in enumerate(segment["tokens"])
            if token is not None and points.start_s[k] - 1e-9 <= i * 0.05 < points.end_s[k] - 1e-9
        ]
        assert found[k] == max(set(heard), key=heard.count)
    assert set(found) == {0, 1, 2, 3, 4}


def test_colours_by_recording_are_those_of_the_table(results: Results) -> None:
    names = sorted(results.recordings().column("recording").to_pylist())
    known = colours.about(results.recordings(), names)
    found = {one.title: one for one in colours.of_recordings(known)}
    rows = {row["recording"]: row for row in results.recordings().to_pylist()}
    for title, column in (("pitch", "pitch"), ("site", "site"), ("device", "device")):
        if title not in found:
            assert len({row[column] for row in rows.values()} - {None}) < 2
            continue
        one = found[title]
        shown = [None if code == colours.MISSING else one.labels[code] for code in one.values]
        assert shown == [rows[name][column] for name in names]
    assert len(found["recording"].labels) == len(names)
    clocks = dict(zip(names, known.clock_s, strict=True))
    assert clocks["soundscape/20240512_220000.WAV"] == datetime(2024, 5, 12, 22).timestamp() - (
        datetime(1970, 1, 1).timestamp()
    )


def points_at(recordings: list[str], starts: np.ndarray, index: np.ndarray) -> Points:
    n = len(starts)
    return Points(
        tuple(recordings),
        index,
        np.zeros(n, np.int16),
        starts,
        starts + 1,
        np.ones(n),
        np.ones((n, 3), np.float32),
    )


def test_stretches_are_chosen_farthest_first() -> None:
    rng = np.random.default_rng(0)
    # Far apart in time, so that a stretch holds one window only.
    points = points_at(["a.wav"], np.arange(60) * 100.0, np.zeros(60, np.int64))
    places = rng.standard_normal((60, 2)).astype(np.float32)
    found = [round(s.window_start_s / 100) for s in choose_stretches([(points, places)], 12)]
    chosen = [found[0]]
    assert found[0] == ((places - np.median(places, axis=0)) ** 2).sum(axis=1).argmin()
    for _ in range(11):
        far = np.linalg.norm(places[:, None] - places[chosen], axis=2).min(axis=1)
        chosen.append(int(far.argmax()))
    assert found == chosen


def test_what_one_stretch_holds_is_not_cut_out_again() -> None:
    points = points_at(["a.wav"], np.arange(8) * 0.5, np.zeros(8, np.int64))
    places = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    found = choose_stretches([(points, places), (points, places[::-1])], 100)
    heard = np.zeros(8, bool)
    for stretch in found:
        assert not heard[int(stretch.window_start_s * 2)]
        heard |= stretch.covers(points)
    assert heard.all()
    assert choose_stretches([(points, places)], 0) == []


def test_slowed_copy_brings_ultrasound_within_hearing(results: Results) -> None:
    name = "soundscape/20240512_220000.WAV"
    original, rate = soundfile.read(Path(results.output).parent / "audio" / name)
    at = int(np.abs(original).argmax()) / rate
    stretch = Stretch(name, 0, at - 1.5, at + 1.5, at - 0.5, at + 0.5)
    (clip,), problems = cut_clips(results, [stretch], "mix", 1 << 20)
    assert problems == []
    assert (clip.slowed, clip.rate_hz) == (10, 384_000)
    samples, slow_rate = soundfile.read(io.BytesIO(clip.slowed_sound))
    assert len(samples) / slow_rate == pytest.approx(10, abs=0.2)
    part = original[round((at - 0.5) * rate) : round((at + 0.5) * rate)]

    def centre(sound: np.ndarray, rate_hz: int) -> float:
        power = np.abs(np.fft.rfft(sound)) ** 2
        hertz = np.fft.rfftfreq(len(sound), 1 / rate_hz)
        inside = hertz > rate_hz / 40
        return float((power * hertz)[inside].sum() / power[inside].sum())

    assert centre(samples, slow_rate) == pytest.approx(centre(part, rate) / 10, rel=0.15)


def test_clips_stay_within_their_bytes_and_say_what_is_gone(
    results: Results, written: Path
) -> None:
    names = ["tones/low_00.wav", "tones/low_01.wav", "tones/low_02.wav"]
    stretches = [Stretch(name, 0, 0.0, 3.0, 1.0, 2.0) for name in names]
    audio = written.parent / "audio"
    hidden = audio / "tones" / "hidden"
    (audio / names[0]).rename(hidden)
    try:
        clips, problems = cut_clips(results, stretches, "mix", 1 << 20)
    finally:
        hidden.rename(audio / names[0])
    assert [clip.stretch.recording for clip in clips] == names[1:]
    assert len(problems) == 1
    assert problems[0].startswith("tones/low_00.wav: ")
    size = clips[0].n_bytes + clips[1].n_bytes
    few, _ = cut_clips(results, stretches[1:], "mix", size - 1)
    assert [clip.stretch.recording for clip in few] == names[1:2]


def test_equal_vectors_are_a_fault_only_where_sounds_differ(results: Results) -> None:
    points = sample_windows(results.windows("tiny"), [], 1000).windows
    assert find_twins(results, points, "mix").n_windows == 0
    one = points.vectors.copy()
    one[:] = one[0]
    same = Points(
        points.names,
        points.recording,
        points.channel,
        points.start_s,
        points.end_s,
        points.valid_s,
        one,
    )
    twins = find_twins(results, same, "mix")
    assert twins.n_windows == len(points)
    assert twins.n_compared == len(twins.different) > 4


def test_equal_vectors_of_equal_sounds_are_fine(results: Results) -> None:
    points = points_at(["tones/low_00.wav"], np.array([0.5, 0.5]), np.zeros(2, np.int64))
    twins = find_twins(results, points, "mix")
    assert (twins.n_windows, twins.n_compared, twins.different) == (2, 1, [])


def test_typical_cosine_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    points = points_at(["a.wav"], np.arange(80) * 1.0, np.zeros(80, np.int64))
    vectors = (rng.standard_normal((80, 3)) + 1).astype(np.float32)
    points = Points(*[getattr(points, f) for f in Points.__slots__[:-1]], vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = np.median((unit @ unit.T)[np.triu_indices(80, 1)])
    assert typical_cosine(points) == pytest.approx(wanted, abs=0.05)


def test_coordinates_keep_their_shape_on_the_grid() -> None:
    places = np.array([[0, 0], [4, 1], [2, 0.5]], np.float32)
    found = maps.quantised(places).astype(float)
    assert np.ptp(found[:, 0]) == 65_535
    assert np.ptp(found[:, 1]) == pytest.approx(65_535 / 4, abs=2)
    assert np.abs(found[2] - found[:2].mean(axis=0)).max() <= 1


@pytest.mark.parametrize("n_maps", [1, 6])
def test_page_of_100_000_points_stays_below_30_mb(n_maps: int) -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    names = tuple(f"site_{k % 40:02d}/2024/SMM{k % 40:05d}_{k:06d}.wav" for k in range(20_000))
    index = np.sort(rng.integers(0, len(names), n))
    points = points_at(list(names), rng.integers(0, 7200, n) / 2, index)
    made = []
    for k in range(n_maps):
        token = colours.Colouring("token", "category", "point", np.zeros(n, np.uint16), ("u0",))
        norm = colours.Colouring("norm", "number", "point", np.zeros(n, np.uint16), (), 0, 1)
        day = colours.Colouring("day", "category", "point", np.zeros(n, np.uint16), ("day",))
        places = rng.standard_normal((n, 2)).astype(np.float32)
        made.append(
            maps.SoundMap(f"e{k}", "v", "w", "windows", points, places, n, (token, norm, day))
        )
    table_ = pa.table({"recording": list(names), "site": [name[:7] for name in names]})
    known = colours.about(table_, names)
    data = maps.payload(made, known, colours.of_recordings(known), "site", "listen")
    size = len(render(Page("index", "t", "", [Section("maps", "Maps", "", data)])))
    # Sound takes what is left, a third longer as base64.
    assert size + room(data) * 4 / 3 < 30e6


class Blocks(HTMLParser):
    """The script elements of a page, as a parser of HTML finds them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self._open: dict[str, str | None] | None = None
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.found.append((dict(attrs), ""))
            self._open = dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        self._open = None if tag == "script" else self._open

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            attrs, body = self.found[-1]
            self.found[-1] = (attrs, body + data)


def test_data_comes_back_as_it_was_given_whatever_is_in_it() -> None:
    value = {"name": "</script><script>alert(1)</script><!--", "n": [1, 2.5, None], "ü": "–"}
    data = {"plain": value, "raw": bytes(range(256))}
    page = render(Page("index", "<b>", "", [Section("a", "A & B", "", data)]))
    blocks = {attrs.get("id"): body for attrs, body in Blocks(page).found}
    assert json.loads(blocks["plain"]) == value
    assert base64.b64decode(blocks["raw"]) == bytes(range(256))
    assert b"<title>&lt;b&gt;</title>" in page
    assert b"alert(1)</script>" not in page


def test_policy_lets_only_the_page_s_own_scripts_run() -> None:
    import hashlib

    page = render(Page("index", "t", "", [Section("maps", "M", "", {}, ("panel.js",))]))
    policy = re.search(rb'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = set(re.findall(rb"'sha256-([^']*)'", policy[1]))
    running = [body for attrs, body in Blocks(page).found if "type" not in attrs]
    digests = {base64.b64encode(hashlib.sha256(body.encode()).digest()) for body in running}
    assert len(running) == 2
    assert digests == allowed
    assert b"default-src 'none'" in policy[1]
    assert b"unsafe-inline" not in policy[1].partition(b"script-src")[2]


def test_pages_link_to_each_other() -> None:
    links = [Link("index", "Overview"), Link("codebook-a<b", "A<B")]
    page = render(Page("index", "t", "", []), links).decode()
    assert '<a href="index.html" aria-current="page">Overview</a>' in page
    assert '<a href="codebook-a&lt;b.html">A&lt;B</a>' in page


def test_histogram_has_a_bar_for_every_filled_bin() -> None:
    values = np.random.default_rng(0).normal(5, 1, 3000)
    drawn = histogram(values, "length", "windows", bins=30)
    counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) windows</title>", drawn)]
    assert counts == [n for n in np.histogram(values, bins=30)[0] if n]
    assert "NaN" not in histogram(np.full(4, 2.0), "length")
    assert ticks(0.2, 1.0, 4) == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_cells_are_html_and_titles_are_not() -> None:
    made = table(["<i>"], [(text("<b>"),)], caption="a & b")
    assert "&lt;i&gt;" in made
    assert "<td>&lt;b&gt;</td>" in made
    assert "a &amp; b" in made
