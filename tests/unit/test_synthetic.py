"""The made-up archive is what its documentation says, read back by libsndfile and numpy alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bioembed_ray.synthetic import write_archive, write_tones

TONES = [
    f"{pitch}_{take:02d}.wav"
    for pitch in ("high", "low", "mid_high", "mid_low")
    for take in range(3)
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def peak_hz(samples: np.ndarray, rate_hz: int) -> float:
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    return float(np.argmax(power) * rate_hz / len(samples))


def test_returns_every_file_it_wrote_and_no_other(tmp_path: Path) -> None:
    names = write_archive(tmp_path)
    assert names == sorted(digests(tmp_path))
    assert [name for name in names if name.startswith("tones/")] == [f"tones/{t}" for t in TONES]
    assert len(names) == 17


def test_same_seed_same_bytes_and_another_seed_other_bytes(archive: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "again")
    write_archive(tmp_path / "other", seed=1)
    first, other = digests(archive), digests(tmp_path / "other")
    assert digests(tmp_path / "again") == first
    same = {name for name in first if first[name] == other[name]}
    assert same == {"soundscape/notes.wav"}


def test_writing_again_leaves_every_file_untouched(archive: Path) -> None:
    files = [path for path in archive.rglob("*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in files]
    write_archive(archive)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_tones_are_three_seconds_at_their_pitch_and_15_db_above_white_noise(tmp_path: Path) -> None:
    pitches = {"low": 220, "mid_low": 440, "mid_high": 880, "high": 1760}
    assert write_tones(tmp_path) == TONES
    for name in TONES:
        samples, rate_hz = soundfile.read(tmp_path / name, dtype="float64")
        assert (rate_hz, samples.shape) == (16_000, (48_000,))
        frequency_hz = pitches[name[:-7]]
        assert peak_hz(samples, rate_hz) == pytest.approx(frequency_hz, abs=0.5)
        tone = np.sin(2 * np.pi * frequency_hz * np.arange(48_000) / 16_000)
        noise = samples - tone
        assert 10 * np.log10(1 / np.mean(noise**2)) == pytest.approx(15, abs=0.1)
        assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.03


def test_tones_keep_samples_beyond_full_scale(tmp_path: Path) -> None:
    write_tones(tmp_path)
    info = soundfile.info(tmp_path / "low_00.wav")
    assert (info.format, info.subtype, info.channels) == ("WAV", "FLOAT", 1)
    assert np.abs(soundfile.read(tmp_path / "low_00.wav")[0]).max() > 1.2


def test_takes_of_one_pitch_differ_in_their_noise(tmp_path: Path) -> None:
    write_tones(tmp_path)
    takes = np.stack([soundfile.read(tmp_path / f"low_{take:02d}.wav")[0] for take in range(3)])
    noise = takes - np.sin(2 * np.pi * 220 * np.arange(48_000) / 16_000)
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.03


def test_soundscape_has_the_formats_and_lengths_of_a_field_season(archive: Path) -> None:
    told = {}
    for path in sorted((archive / "soundscape").iterdir()):
        if path.name != "notes.wav":
            info = soundfile.info(path)
            read = len(soundfile.read(path)[0]) / info.samplerate
            told[path.name] = (info.format, info.samplerate, info.channels, round(read, 3))
    assert told == {
        "20240512_220000.WAV": ("WAV", 384_000, 1, 5.0),
        "forest_stereo.wav": ("WAV", 48_000, 2, 20.0),
        "marsh_20240512_043000.flac": ("FLAC", 48_000, 1, 75.0),
        "marsh_20240513_043000.wav": ("WAV", 48_000, 1, 20.0),
    }


def test_cut_off_recording_promises_twice_what_it_holds(archive: Path) -> None:
    body = (archive / "soundscape/marsh_20240513_043000.wav").read_bytes()
    place = body.index(b"data") + 4
    assert int.from_bytes(body[place : place + 4], "little") == 40 * 48_000 * 2
    assert len(body) - place - 4 == pytest.approx(20 * 48_000 * 2, abs=64)


def test_text_file_is_refused_by_libsndfile(archive: Path) -> None:
    with pytest.raises(soundfile.LibsndfileError, match="Format not recognised"):
        soundfile.info(archive / "soundscape/notes.wav")


def test_bats_call_between_20_and_80_khz(archive: Path) -> None:
    samples, rate_hz = soundfile.read(archive / "soundscape/20240512_220000.WAV")
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / rate_hz)
    in_band = power[(hertz > 18_000) & (hertz < 90_000)].sum()
    assert in_band / power[hertz > 5_000].sum() > 0.95


def test_recorders_metadata_is_where_their_readers_look(archive: Path) -> None:
    comment = soundfile.SoundFile(archive / "soundscape/20240512_220000.WAV").comment
    assert comment.startswith("Recorded at 22:00:00 12/05/2024 (UTC) by AudioMoth 24F319055FDF3B28")
    stereo = (archive / "soundscape/forest_stereo.wav").read_bytes()
    place = stereo.index(b"guan")
    size = int.from_bytes(stereo[place + 4 : place + 8], "little")
    lines = stereo[place + 8 : place + 8 + size].decode().splitlines()
    assert lines[0] == "GUANO|Version: 1.0"
    assert "Loc Position: 52.3702 4.8952" in lines


def test_channels_of_the_stereo_recording_are_different_sounds(archive: Path) -> None:
    samples, _ = soundfile.read(archive / "soundscape/forest_stereo.wav")
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.05


def test_no_sound_is_clipped(archive: Path) -> None:
    for path in (archive / "soundscape").iterdir():
        if path.name != "notes.wav":
            assert np.abs(soundfile.read(path)[0]).max() <= 1.0
