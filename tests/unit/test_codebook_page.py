"""Codebook pages: figures from the card and from the archive, names that are never HTML, bounded size."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from sklearn.manifold import trustworthiness

import bioembed_ray
from bioembed_ray import schema, storage
from bioembed_ray.cli import commands
from bioembed_ray.codebooks.card import Codebook, concentration, usage
from bioembed_ray.report.census import take_census
from bioembed_ray.report.centroid_map import alike_order, centroid_map, principal_plane
from bioembed_ray.report.codebook_numbers import best_places
from bioembed_ray.report.codebook_page import CodebookOptions, codebook_pages
from bioembed_ray.report.codebook_sections import gallery_section
from bioembed_ray.report.codebook_transitions import transition_section
from bioembed_ray.report.frame import Page, Section, render
from bioembed_ray.report.galleries import Places
from bioembed_ray.report.token_clips import TokenClip
from tests.unit.codebook_fixtures import (
    BOOK,
    HOP_S,
    NAMES,
    NASTY,
    K,
    MadeUp,
    put_tokens,
    write_output,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return write_output(tmp_path_factory.mktemp("codebook"))


@pytest.fixture(scope="module")
def page(made: MadeUp) -> Page:
    (page,) = codebook_pages(bioembed_ray.open(made.output), CodebookOptions())
    return page


def section(page: Page, slug: str) -> Section:
    return next(one for one in page.sections if one.slug == slug)


def words(page: Page, slug: str) -> str:
    """Return a section as a reader sees it."""
    return html.unescape(re.sub(r"<[^>]+>", " ", section(page, slug).html))


def test_page_has_all_its_sections(page: Page) -> None:
    assert page.slug == f"codebook-{BOOK}"
    assert [one.slug for one in page.sections] == [
        "health",
        "map",
        "strip",
        "galleries",
        "transitions",
    ]


def test_health_is_of_the_archive_and_of_the_card(page: Page, made: MadeUp) -> None:
    every = np.concatenate([made.tokens[name] for name in NAMES])
    counts = np.bincount(every, minlength=K)
    origin = np.concatenate([np.full(len(made.tokens[n]), i) for i, n in enumerate(NAMES)])
    pairs, times = np.unique(np.stack([every, origin]), axis=1, return_counts=True)
    owned = concentration(pairs[0], pairs[1], times)
    text = " ".join(words(page, "health").split())
    assert f"{usage(counts)['perplexity']:.4g} in the archive" in text
    assert f"{(counts == 0).sum()} in the archive" in text
    assert "fitted 1.25, held out 1.5" in text
    assert "Rand index 0.750, mutual information 0.800" in text
    assert f"{owned['top_share_median']:.0%}, {owned['owned_codes']} owned; in the fit 30%" in text
    assert "Concentration by site" in text


def test_a_collapsed_codebook_is_an_alarm(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    for number, name in enumerate(NAMES):
        put_tokens(made.output, f"s{number}", name, np.full(40, 3))
    (page,) = codebook_pages(bioembed_ray.open(made.output), CodebookOptions())
    assert 'notice warning" role="alert"><strong>COLLAPSED' in section(page, "health").html
    # One token only: nothing follows it.
    assert "No token is followed" in section(page, "transitions").html


def test_every_used_token_has_a_gallery_of_different_recordings(page: Page, made: MadeUp) -> None:
    body = section(page, "galleries").html
    counts = np.bincount(np.concatenate(list(made.tokens.values())), minlength=K)
    shown = [int(code) for code in re.findall(r'id="token-(\d+)"', body)]
    assert sorted(shown) == np.flatnonzero(counts).tolist()
    for article in re.findall(r"<article.*?</article>", body, re.DOTALL):
        token = int(re.search(r'id="token-(\d+)"', article)[1])  # type: ignore[index]
        having = {name for name in NAMES if token in made.tokens[name]}
        titles = re.findall(r'<figcaption><span class="name" title="([^"]*)"', article)
        assert {html.unescape(title) for title in titles} == having
        assert len(titles) == len(having)
        assert article.count("<audio") == len(having)


def test_names_are_text_and_never_html(page: Page, made: MadeUp) -> None:
    body = render(page).decode()
    assert NASTY not in body
    assert "<img src=x" not in body
    assert html.escape(NASTY, quote=True) in body
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', body, re.DOTALL)
    assert all(isinstance(json.loads(one), dict) for one in data)


def test_options_bound_the_page(made: MadeUp) -> None:
    options = CodebookOptions(recording="forest/ü.wav", galleries=3, per_token=1, strip_s=1.5)
    (page,) = codebook_pages(bioembed_ray.open(made.output), options)
    assert section(page, "galleries").html.count("<article") == 3
    assert section(page, "galleries").html.count("<audio") <= 3
    assert section(page, "strip").data["strip-data"]["stop"] == 1.5  # type: ignore[index]
    assert "forest/ü.wav" in section(page, "strip").html


def test_a_recording_without_tokens_is_said_to_have_none(made: MadeUp) -> None:
    options = CodebookOptions(recording="<b>.wav", galleries=1)
    (page,) = codebook_pages(bioembed_ray.open(made.output), options)
    assert "&lt;b&gt;.wav has no tokens of this codebook" in section(page, "strip").html


def test_sound_that_is_gone_is_told_and_the_rest_stands(tmp_path: Path) -> None:
    made = write_output(tmp_path)
    for name in NAMES:
        (tmp_path / "audio" / name).unlink()
    (page,) = codebook_pages(bioembed_ray.open(made.output), CodebookOptions())
    body = section(page, "galleries").html
    assert "4 recordings cannot be heard" in body
    assert "<audio" not in body
    assert section(page, "strip").data["strip-data"]["runs"]  # type: ignore[index]


def test_reconstructions_of_a_vqvae_stand_in_its_page(tmp_path: Path) -> None:
    made = write_output(tmp_path)
    folder = storage.join(made.output, f"codebooks/{BOOK}/version=c1")
    card = json.loads(storage.read(storage.join(folder, "card.json")))
    card |= {
        "error": 0.03,
        "grid": [25, 16],
        "curve": {
            "step": [50, 100],
            "error": [0.4, 0.1],
            "held_out_error": [0.5, 0.2],
            "codes_used": [3, 9],
            "perplexity": [2.0, 8.0],
        },
        "training": {"steps": 100},
        "sampled": {"fitted": 140},
        "front_end": {
            "n_mels": 64, "fmin_hz": 0.0, "fmax_hz": 8000.0, "patch_s": 1, "silent_share": 0.25,
        },
    }  # fmt: skip
    del card["fit"]
    card["held_out"] = {"error": 0.04}
    storage.put(storage.join(folder, "card.json"), json.dumps(card).encode())
    storage.put(storage.join(folder, "reconstructions.png"), b"\x89PNG picture")
    (page,) = codebook_pages(bioembed_ray.open(made.output), CodebookOptions(galleries=1))
    body = section(page, "training").html
    assert "data:image/png;base64,iVBORyBwaWN0dXJl" in body
    assert "held out, step 100: 0.2" in body
    assert "fitted 0.0300, held out 0.0400" in words(page, "health")


@pytest.mark.parametrize(
    ("band_hz", "bottom", "height", "note"),
    [
        ((2000.0, 4000.0), 25.0, 25.0, "2.0–4.0 kHz"),
        ((6000.0, 9000.0), 75.0, 25.0, "6.0–8.0 kHz"),
        ((9000.0, 12000.0), 0.0, 100.0, "above 9.0 kHz, beyond its rate"),
        (None, 0.0, 100.0, "band 3"),
    ],
)
def test_a_clip_marks_what_its_token_heard(
    band_hz: tuple[float, float] | None, bottom: float, height: float, note: str
) -> None:
    clip = TokenClip(7, "x/a.wav", 0, 3, 1.0, 1.5, 0.5, 2.5, 8000.0, band_hz, b"i", b"s", 5)
    empty = best_places([], 1)
    places = Places(empty, ["x/a.wav"], True, "found")
    body = gallery_section([clip], [7], places, [], {7: "used"}).html
    wanted = f"left:25.00%;width:25.00%;bottom:{bottom:.2f}%;height:{height:.2f}%"
    assert wanted in body
    assert f"<span>0:01.00, {note}, 5× slower</span>" in body


def test_transitions_are_rows_of_shares() -> None:
    tokens = [0, 0, 1, 0, 2, 0, 1, 3]
    row = {"recording": "a", "channel": 0, "start_s": 0.0, "hop_s": HOP_S, "per_step": 1}
    table = pa.Table.from_pylist([row | {"tokens": tokens}], schema=schema.tokens("int16"))
    census = take_census(table.to_batches(), 5, {}, 1)
    found = transition_section(census, np.arange(5.0)[:, None])
    order = found.data["matrix-order"]["order"]  # type: ignore[index]
    raw = found.data["matrix-shares"]
    assert isinstance(raw, bytes)
    shares = np.frombuffer(raw, "<u2").reshape(4, 4) / 65_535
    assert sorted(order) == [0, 1, 2, 3]
    place = {token: order.index(token) for token in order}
    wanted = {(0, 1): 2 / 3, (0, 2): 1 / 3, (1, 0): 1 / 2, (1, 3): 1 / 2, (2, 0): 1.0}
    for a in order:
        for b in order:
            assert shares[place[a], place[b]] == pytest.approx(wanted.get((a, b), 0.0), abs=1e-4)


def test_few_centroids_lie_on_their_principal_plane() -> None:
    rng = np.random.default_rng(2)
    flat = rng.standard_normal((9, 2)) * [5.0, 2.0]
    turn, _ = np.linalg.qr(rng.standard_normal((7, 7)))
    points, share = principal_plane(flat @ turn[:2])
    assert share == pytest.approx(1.0)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    wanted = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    np.testing.assert_allclose(apart, wanted, atol=1e-9)
    book = Codebook("x", "1", "x", "1", "euclidean", (flat @ turn[:2]).astype(np.float32))
    placed = centroid_map(book)
    assert placed.points.min() == 0
    assert placed.points.max() == pytest.approx(1.0)
    assert "100%" in placed.note


def test_many_centroids_keep_their_neighbours_on_the_map() -> None:
    rng = np.random.default_rng(4)
    rows = (10 * rng.standard_normal((3, 8)))[np.arange(30) % 3] + rng.standard_normal((30, 8))
    placed = centroid_map(Codebook("x", "1", "x", "1", "euclidean", rows.astype(np.float32)))
    trust = trustworthiness(rows, placed.points, n_neighbors=5)
    assert trust > 0.8
    assert f"Trustworthiness {trust:.2f}" in placed.note


def test_like_tokens_stand_together() -> None:
    line = np.random.default_rng(0).permutation(12)
    order = alike_order(line[:, None].astype(float))
    assert np.abs(np.diff(line[order])).max() == 1


def test_the_command_writes_the_page_beside_the_first(made: MadeUp, tmp_path: Path) -> None:
    arguments = ["report", "--output", made.output, "--to", str(tmp_path), "--galleries", "2"]
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 0, done.output
    written = (tmp_path / f"codebook-{BOOK}.html").read_text(encoding="utf-8")
    assert written.count("<article") == 2
    assert 'href="index.html"' in written
    assert f'href="codebook-{BOOK}.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")
