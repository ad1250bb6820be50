"""Runs over damaged recordings: the damage is a hole, everything around it stands, the accounts agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import soundfile

from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import embed, tiny_encoder
from tests.damage import by_ffmpeg
from tests.unit.transformers_fixtures import speech_folder

RATE = 16_000
SECONDS = 70
# What each recording has that is no sound: native samples.
NAN = (500_000, 530_000)


def wave_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.2 * rng.standard_normal(SECONDS * RATE)).clip(-1, 1).astype(np.float32)


def frame_holding(path: Path, whole: np.ndarray) -> tuple[int, int]:
    """Return the samples of the FLAC frame that FFmpeg, which asks no checksum, decodes to something else."""
    found = by_ffmpeg(path.read_bytes(), "flac")[: len(whole)]
    (start,) = np.unique(np.flatnonzero(found != whole[: len(found)]) // 4096) * 4096
    return int(start), int(start) + 4096


def archive(folder: Path) -> dict[str, tuple[np.ndarray, tuple[int, int]]]:
    """Write recordings; return, by name, the sound that is left with zeros in the hole, and the hole."""
    folder.mkdir()
    made = {}
    for number, (name, place) in enumerate((("a.flac", 0.3), ("b.flac", 0.71))):
        whole = (wave_of(number) * 32767).round() / 32768
        soundfile.write(folder / name, whole, RATE, "PCM_16")
        body = bytearray((folder / name).read_bytes())
        body[int(len(body) * place)] ^= 0x55
        (folder / name).write_bytes(bytes(body))
        start, stop = frame_holding(folder / name, whole)
        whole[start:stop] = 0
        made[name] = (whole.astype(np.float32), (start, stop))
    whole = wave_of(2)
    whole[slice(*NAN)] = np.nan
    soundfile.write(folder / "c.wav", whole, RATE, "FLOAT")
    made["c.wav"] = (np.nan_to_num(whole), NAN)
    return made


@pytest.fixture(scope="module")
def outputs(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same recordings cut into segments of 20 s, and not cut at all."""
    folder = tmp_path_factory.mktemp("damaged")
    encoders = {
        "energy": tiny_encoder(tiny.torchscript(folder / "energy.pt")),
        "speech": {"model": str(speech_folder(folder / "speech")), "frames": "all"},
    }
    made = archive(folder / "in")
    codebooks = {"units": {"encoder": "speech", "clusters": 8, "fit_frames": 2000}}
    results = {
        segment_s: embed(
            folder / "in",
            folder / f"out{segment_s}",
            encoders,
            codebooks=codebooks,
            segment_s=segment_s,
            shard_minutes=0.4,
            max_failed_fraction=0.1,
            frame_dtype="float32",
        )
        for segment_s in (20, 3600)
    }
    return {"made": made, "folder": folder, "results": results}


def table(output: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as database:
        return database.execute(query.replace("$", str(output))).fetchall()


@pytest.mark.ray
def test_windows_around_a_hole_are_those_of_the_sound_that_is_left(outputs: dict[str, Any]) -> None:
    for segment_s in (20, 3600):
        assert outputs["results"][segment_s].exit_code == 0
        output = outputs["folder"] / f"out{segment_s}"
        rows = oracles.windows(output, "energy")
        expected = set()
        for name, (left, (low, high)) in outputs["made"].items():
            for start in oracles.window_starts(len(left), RATE, RATE // 2):
                if low <= start and min(start + RATE, len(left)) <= high:
                    continue
                expected.add((name, 0, start / RATE))
                window = oracles.cut(left, start, RATE)
                assert oracles.relative(rows[name, 0, start / RATE], tiny.alone(window)) <= 1e-5
        assert rows.keys() == expected
        found = table(
            output,
            "SELECT recording, start_s, valid_s FROM '$/embeddings/encoder=energy/*/*.parquet'",
        )
        for name, start_s, valid_s in found:
            left, (low, high) = outputs["made"][name]
            start = round(start_s * RATE)
            painted = np.zeros(RATE, bool)
            painted[: max(0, min(RATE, len(left) - start))] = True
            painted[max(0, low - start) : max(0, high - start)] = False
            assert valid_s == pytest.approx(painted.sum() / RATE, abs=1e-6)


@pytest.mark.ray
def test_frames_and_tokens_lack_just_what_hears_the_hole(outputs: dict[str, Any]) -> None:
    for segment_s in (20, 3600):
        output = outputs["folder"] / f"out{segment_s}"
        frames = oracles.frames(output, "speech")
        expected = {
            (name, 0, start)
            for name, (left, (low, high)) in outputs["made"].items()
            for start in range(0, len(left) - 400 + 1, 320)
            if start + 400 <= low or start >= high
        }
        assert frames.keys() == expected
        tokens = table(
            output,
            "SELECT recording, start_s, hop_s, tokens FROM '$/tokens/codebook=units/*/*.parquet'",
        )
        named = {
            (name, 0, round((start_s + place * hop_s) * RATE))
            for name, start_s, hop_s, ids in tokens
            for place, token in enumerate(ids)
            if token is not None
        }
        assert named == expected


@pytest.mark.ray
def test_nothing_depends_on_how_recordings_are_cut(outputs: dict[str, Any]) -> None:
    cut, whole = (outputs["folder"] / f"out{segment_s}" for segment_s in (20, 3600))
    for encoder in ("energy", "speech"):
        oracles.assert_same(oracles.windows(cut, encoder), oracles.windows(whole, encoder))
    oracles.assert_same(oracles.frames(cut, "speech"), oracles.frames(whole, "speech"))


@pytest.mark.ray
def test_the_accounts_say_where_and_how_much(outputs: dict[str, Any]) -> None:
    for segment_s in (20, 3600):
        output = outputs["folder"] / f"out{segment_s}"
        assert list(verify(str(output))) == []
        found = table(
            output,
            "SELECT recording, min(start_s), max(end_s), sum(n_samples) FROM '$/failures/*.parquet' "
            "WHERE reason = 'damaged' GROUP BY ALL ORDER BY ALL",
        )
        expected = [
            (name, low / RATE, high / RATE, high - low)
            for name, (_, (low, high)) in outputs["made"].items()
        ]
        assert found == expected
        known = table(
            output,
            "SELECT recording, status, duration_s, n_samples_decoded FROM '$/recordings/*.parquet' "
            "ORDER BY ALL",
        )
        assert known == [
            (name, "partial", SECONDS, SECONDS * RATE - (high - low))
            for name, (_, (low, high)) in outputs["made"].items()
        ]
