"""The strip has every token where it belongs, and its sound and picture are the same stretch."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

import bioembed_ray
from bioembed_ray import parts, schema
from bioembed_ray.report.census import Busiest
from bioembed_ray.report.token_clips import Hearing, mel_bands
from bioembed_ray.report.token_strip import Strip, first_row, make_strip
from bioembed_ray.results import Results
from tests.unit.codebook_fixtures import (
    BOOK,
    HOP_S,
    NAMES,
    NASTY,
    TOKENS,
    put_table,
    write_ledger,
    write_output,
)

HEARING = Hearing("mix", 8000.0)


def put_rows(output: str, rows: list[dict[str, Any]]) -> Results:
    """Put rows of tokens in the place of a recording's."""
    about = {"recording": "a.wav", "channel": 0, "hop_s": HOP_S}
    table = pa.Table.from_pylist([about | row for row in rows], schema=schema.tokens("int16"))
    put_table(parts.part_uri(output, TOKENS, "s0"), table)
    return bioembed_ray.open(output)


def at(strip: Strip, seconds: float, band: int) -> int | None:
    found = [
        run.token for run in strip.runs if run.band == band and run.start_s <= seconds < run.stop_s
    ]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("bands", [1, 3])
def test_every_step_has_its_token_and_gaps_have_none(tmp_path: Path, bands: int) -> None:
    made = write_output(tmp_path, frames=False)
    rng = np.random.default_rng(bands)
    steps = rng.choice([0, 1, 1, 7, -1], (40, bands))
    steps[:, 0].sort()
    # Two rows that meet within a run, and one that begins half a step late.
    cuts = [(0, 13, 0.0), (13, 25, 0.0), (25, 40, 0.5 * HOP_S)]
    rows = [
        {
            "start_s": low * HOP_S + late,
            "per_step": bands,
            "tokens": [None if t < 0 else int(t) for t in steps[low:high].reshape(-1)],
        }
        for low, high, late in cuts
    ]
    results = put_rows(made.output, rows)
    start, length = 0.35, 2.5
    strip = make_strip(results, BOOK, Busiest(0.0, "a.wav", 0, start), length, HEARING)
    assert (strip.bands, strip.hop_s, strip.problem) == (bands, HOP_S, "")
    assert strip.stop_s == pytest.approx(start + length)
    n_shown = 0
    for low, high, late in cuts:
        for step in range(low, high):
            begins = step * HOP_S + late
            if start <= begins and begins + HOP_S <= start + length:
                n_shown += 1
                for band in range(bands):
                    token = steps[step, band]
                    assert at(strip, begins + HOP_S / 2, band) == (None if token < 0 else token)
    assert n_shown >= 23
    for band in range(bands):
        # Neighbours that meet are one run only where they are equal.
        mine = [run for run in strip.runs if run.band == band]
        for before, after in itertools.pairwise(mine):
            assert before.token != after.token or after.start_s - before.stop_s > 0.4 * HOP_S
    assert len(strip.texts) == bands


def test_run_lengths_are_written_below(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    rows = [
        {"start_s": 0.0, "per_step": 1, "tokens": [5, 5, None, 7]},
        {"start_s": 0.4, "per_step": 1, "tokens": [7, 7, 2]},
        {"start_s": 1.0, "per_step": 1, "tokens": [2]},
    ]
    strip = make_strip(
        put_rows(made.output, rows), BOOK, Busiest(0.0, "a.wav", 0, 0.0), 3.0, HEARING
    )
    assert strip.texts == ["u5x2 <gap>x1 u7x3 u2x1 <gap>x3 u2x1"]


def test_sound_and_picture_are_of_the_stretch(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    results = bioembed_ray.open(made.output)
    strip = make_strip(results, BOOK, Busiest(0.0, NASTY, 0, 1.0), 2.0, HEARING)
    assert (strip.start_s, strip.stop_s, strip.slowed, strip.top_hz) == (1.0, 3.0, 1, 8000.0)
    with av.open(io.BytesIO(strip.sound)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(2.0, abs=0.15)
    picture = Image.open(io.BytesIO(strip.image)).convert("L")
    pixels = np.asarray(picture, float)
    # The sweep of the made-up sound: 500 + 800 t Hz at t seconds.
    for column in (0.1, 0.5, 0.9):
        line = pixels[:, round(column * pixels.shape[1])].argmax()
        heard = 8000 * (1 - line / pixels.shape[0])
        assert heard == pytest.approx(500 + 800 * (1.0 + 2.0 * column), abs=250)


def test_ultrasound_is_a_short_stretch_and_slowed(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    path = tmp_path / "audio" / "a.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.standard_normal(4 * 192_000), 192_000)
    write_ledger(made.output, tmp_path / "audio", NAMES)
    results = bioembed_ray.open(made.output)
    strip = make_strip(results, BOOK, Busiest(0.0, "a.wav", 0, 0.0), 10.0, Hearing("mix", None))
    assert (strip.stop_s, strip.slowed, strip.top_hz) == (1.0, 5, 96_000.0)
    with av.open(io.BytesIO(strip.sound)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(5.0, abs=0.15)


def test_a_recording_that_is_gone_leaves_its_tokens(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    (tmp_path / "audio" / "a.wav").unlink()
    results = bioembed_ray.open(made.output)
    strip = make_strip(results, BOOK, Busiest(0.0, "a.wav", 0, 0.0), 10.0, HEARING)
    assert strip.problem
    assert (strip.image, strip.sound) == (b"", b"")
    assert strip.runs
    assert strip.stop_s == pytest.approx(len(made.tokens["a.wav"]) * HOP_S)


def test_a_recording_begins_where_its_tokens_begin(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    results = put_rows(made.output, [{"start_s": 1.5, "per_step": 1, "tokens": [1]}])
    assert first_row(results, BOOK, "a.wav") == Busiest(0.0, "a.wav", 0, 1.5)
    assert first_row(results, BOOK, "unheard.wav") is None


def test_bands_of_vqvae_codes_are_the_reach_of_their_mel_filters() -> None:
    from bioembed_ray.vqvae.mel import MelRule, filter_bank

    rule = MelRule(48_000, 2048, 480, 64, 0.0, 24_000.0)
    bank = filter_bank(rule).numpy()  # (bins, mels)
    hz = np.arange(len(bank)) * rule.rate_hz / rule.n_fft
    for band, (low, high) in enumerate(mel_bands(64, 0.0, 24_000.0)):
        heard = hz[bank[:, 4 * band : 4 * band + 4].any(axis=1)]
        assert low <= heard.min() <= low + 30
        assert high - 30 <= heard.max() <= high
