"""What a search starts from: sound against the network called directly, windows, files of vectors."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

import bioembed_ray
from bioembed_ray.errors import ConfigError, InputError
from bioembed_ray.results import Results
from bioembed_ray.rows import Rows
from bioembed_ray.search import query as search_query
from bioembed_ray.search.exact import Wanted, scan
from bioembed_ray.search.query import Sounding
from tests import tiny
from tests.unit.references import sound, write_wave
from tests.unit.search_fixtures import embed_archive

RATE = 16_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    root = tmp_path_factory.mktemp("search")
    return embed_archive(root), bioembed_ray.open(str(root / "out"))


@pytest.fixture
def rows(archive: tuple[Path, Results]) -> Rows:
    return archive[1].windows("tiny")


def test_sound_gives_what_the_network_gives(archive: tuple[Path, Results], rows: Rows) -> None:
    wave, _ = soundfile.read(archive[0] / "a.wav", dtype="float32")
    query = search_query.from_sound(rows, Sounding(str(archive[0] / "a.wav")))
    # Whole windows only: the last ones reach past the end.
    direct = [tiny.alone(wave[k * 8000 :][:RATE]) for k in range(9)]
    np.testing.assert_allclose(query.vectors, direct, atol=1e-6)
    np.testing.assert_allclose(query.mean().vectors[0], np.mean(direct, axis=0), atol=1e-6)


def test_sound_of_another_rate_and_elsewhere(rows: Rows, tmp_path: Path) -> None:
    wave = sound(3 * 48_000, 9, channels=2)
    path = write_wave(tmp_path / "other.flac", wave, 48_000, "PCM_24")
    query = search_query.from_sound(rows, Sounding(str(path), 1.0, 2.0))
    heard = soxr.resample(wave.mean(axis=1), 48_000, RATE, quality="HQ")
    np.testing.assert_allclose(query.vectors, [tiny.alone(heard[RATE : 2 * RATE])], atol=1e-4)


@pytest.mark.parametrize(
    ("start_s", "stop_s", "starts"),
    [
        (1.0, 2.0, [1.0]),
        (0.9, 2.6, [1.0, 1.5]),
        # Too short for a window: the one that covers it, and of several the best centred one.
        (1.6, 1.7, [1.0]),
        (1.8, 1.9, [1.5]),
        (1.9, 2.3, [1.5]),
        (1.2, 1.9, [1.0]),
        # At the end the padded window covers most.
        (5.0, None, [4.5]),
        (5.05, 5.2, [4.5]),
    ],
)
def test_a_time_range_takes_the_windows_inside_it(
    archive: tuple[Path, Results],
    rows: Rows,
    start_s: float,
    stop_s: float | None,
    starts: list[float],
) -> None:
    uri = str(archive[0] / "a.wav")
    query = search_query.from_sound(rows, Sounding(uri, start_s, stop_s))
    for vector, start in zip(query.vectors, starts, strict=True):
        (hit,) = scan(rows, Wanted(vector[None], 1)).hits.to_pylist()
        assert (hit["recording"], hit["start_s"], hit["score"]) == ("a.wav", start, 1.0)


def test_every_channel_time_expansion_and_stored_type(archive: tuple[Path, Results]) -> None:
    rows = bioembed_ray.open(archive[1].output.replace("/out", "/each")).windows("tiny")
    query = search_query.from_sound(rows, Sounding(str(archive[0] / "b.wav"), 1.0, 1.5))
    found = [scan(rows, Wanted(vector[None], 1)).hits.to_pylist()[0] for vector in query.vectors]
    places = [(hit["recording"], hit["channel"], hit["start_s"]) for hit in found]
    assert places == [("b.wav", 0, 1.0), ("b.wav", 1, 1.0)]
    assert [hit["score"] for hit in found] == [1.0, 1.0]


def test_a_window_of_the_archive_finds_itself_first(rows: Rows) -> None:
    query = search_query.from_window(rows, "slow.wav", 1.5, None)
    best, *others = scan(rows, Wanted(query.vectors, 50)).hits.to_pylist()
    assert (best["recording"], best["start_s"], best["score"]) == ("slow.wav", 1.5, 1.0)
    assert all(hit["score"] < 1 for hit in others)
    assert query.own is not None
    apart = scan(rows, Wanted(query.vectors, 50, besides=query.own)).hits
    near = [hit["start_s"] for hit in apart.to_pylist() if hit["recording"] == "slow.wav"]
    assert sorted(near) == [0.0, 0.5, 2.5, 3.0, 3.5]


@pytest.mark.parametrize(
    ("name", "at_s", "channel", "said"),
    [
        ("a.wav", 1.2, None, "no window starts at 1.2 s; the nearest starts at 1 s"),
        ("a.wav", 99, None, "the nearest starts at 5 s"),
        ("A.wav", 1, None, "no recording 'A.wav'; did you mean 'a.wav'?"),
        ("a.wav", 1, 3, "no channel 3; there is 0"),
    ],
)
def test_a_window_that_is_not_there(
    rows: Rows, name: str, at_s: float, channel: int | None, said: str
) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        search_query.from_window(rows, name, at_s, channel)


def test_files_of_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.arange(8))
    np.save(tmp_path / "two.npy", np.ones((2, 8)))
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2)))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "no.npy").write_text("0 1 2")
    assert search_query.from_vector(str(tmp_path / "one.npy")).vectors.shape == (1, 8)
    assert search_query.from_vector(str(tmp_path / "two.npy")).vectors.shape == (2, 8)
    for name, said in (
        ("cube", r"\(2, 2, 2\)"),
        ("text", "numbers"),
        ("no", "not a .npy"),
        ("gone", "no such"),
    ):
        with pytest.raises(InputError, match=said):
            search_query.from_vector(str(tmp_path / f"{name}.npy"))


def test_sound_that_is_not_there(archive: tuple[Path, Results], rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_text("no sound")
    uri = str(archive[0] / "a.wav")
    for sounding, said in (
        (Sounding(str(tmp_path / "gone.wav")), "no such file"),
        (Sounding(str(tmp_path / "no.wav")), "unsupported"),
        (Sounding(uri, 30.0), "is 5.25 s long; --start 30 lies behind its end"),
    ):
        with pytest.raises(InputError, match=said):
            search_query.from_sound(rows, sounding)
    with pytest.raises(ConfigError, match="the earlier first"):
        search_query.from_sound(rows, Sounding(uri, 2.0, 1.0))


def test_other_weights_are_refused(
    archive: tuple[Path, Results], rows: Rows, tmp_path: Path
) -> None:
    uri = str(archive[0] / "a.wav")
    moved = shutil.copy(archive[0].parent / "tiny.pt", tmp_path / "moved.pt")
    assert len(search_query.from_sound(rows, Sounding(uri), str(moved)).vectors) == 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script: Any = torch.jit.load(str(moved))
        script.filters.mul_(2)
        torch.jit.save(script, str(tmp_path / "other.pt"))
    with pytest.raises(InputError, match=f"not {rows.version}: weights moved from"):
        search_query.from_sound(rows, Sounding(uri), str(tmp_path / "other.pt"))
