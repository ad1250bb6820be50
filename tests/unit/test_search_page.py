"""The page of hits, read by an HTML parser, Pillow and FFmpeg."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import av
import pytest
from PIL import Image

import bioembed_ray
from bioembed_ray.rows import Rows
from bioembed_ray.search import query as search_query
from bioembed_ray.search.exact import Wanted, scan
from bioembed_ray.search.page import page
from tests.unit.search_fixtures import embed_archive


class Parsed(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for found, attrs in self.found if found == tag and name in attrs]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    embed_archive(tmp_path)
    return bioembed_ray.open(str(tmp_path / "out")).windows("tiny")


def body(uri: str) -> bytes:
    return base64.b64decode(uri.partition("base64,")[2])


def seconds(mp3: bytes) -> float:
    with av.open(io.BytesIO(mp3)) as container:
        n = sum(frame.samples for frame in container.decode(audio=0))
        return n / container.streams.audio[0].rate


def test_every_hit_is_seen_and_heard_in_its_surroundings(rows: Rows) -> None:
    query = search_query.from_window(rows, "a.wav", 2.0, None)
    hits = rows.with_recordings(scan(rows, Wanted(query.vectors, 5)).hits, ["rate_hz"])
    parsed = Parsed(page(rows, hits, "<a.wav> & more"))
    assert parsed.all("li", "id") == [f"hit-{k}" for k in range(1, 6)]
    assert "Like <a.wav> & more" in parsed.text
    lengths = {"a.wav": 5.25, "b.wav": 3.0, "slow.wav": 4.0}
    marks = parsed.all("span", "style")
    sounds, pictures = parsed.all("audio", "src"), parsed.all("img", "src")
    for hit, mark, heard, seen in zip(hits.to_pylist(), marks, sounds, pictures, strict=True):
        low = max(0.0, hit["start_s"] - 1)
        high = min(lengths[hit["recording"]], hit["end_s"] + 1)
        # An MP3 is padded to whole frames of 1152 samples at most, at both ends.
        assert high - low <= seconds(body(heard)) <= high - low + 0.25
        left, width = (float(n) for n in re.findall(r"[\d.]+(?=%)", mark))
        assert left == pytest.approx(100 * (hit["start_s"] - low) / (high - low), abs=0.01)
        end = min(hit["end_s"], lengths[hit["recording"]])
        assert width == pytest.approx(100 * (end - hit["start_s"]) / (high - low), abs=0.01)
        assert Image.open(io.BytesIO(body(seen))).format == "WEBP"
    for hit in hits.to_pylist():
        assert f"{hit['score']:.4f}" in parsed.text
        assert f"rate_hz {hit['rate_hz']}" in parsed.text


def test_nothing_is_fetched(rows: Rows) -> None:
    hits = scan(rows, Wanted(search_query.from_window(rows, "a.wav", 0.0, None).vectors, 3)).hits
    parsed = Parsed(page(rows, hits, "a"))
    addresses = [
        v or "" for _, attrs in parsed.found for k, v in attrs.items() if k in ("src", "href")
    ]
    assert len(addresses) == 6
    assert all(address.startswith("data:") for address in addresses)
    assert "url(" not in page(rows, hits, "a")


def test_a_recording_that_is_gone_keeps_its_hit(rows: Rows, tmp_path: Path) -> None:
    hits = scan(rows, Wanted(search_query.from_window(rows, "b.wav", 0.0, None).vectors, 50)).hits
    (tmp_path / "in" / "b.wav").unlink()
    parsed = Parsed(page(rows, hits, "b"))
    assert len(parsed.all("li", "id")) == len(hits)
    n_gone = hits.column("recording").to_pylist().count("b.wav")
    assert parsed.text.count("No sound: ") == n_gone > 0
    assert len(parsed.all("audio", "src")) == len(hits) - n_gone
