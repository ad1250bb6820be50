"""Clips: samples against soundfile, spectrograms against known tones, MP3 against FFmpeg."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from bioembed_ray import storage
from bioembed_ray.audio.clips import (
    FLOOR_DB,
    Sound,
    compressed,
    read_sounds,
    spectrogram_db,
    spectrogram_image,
)
from bioembed_ray.audio.probe import probe
from bioembed_ray.inputs.listing import Recording, Source
from bioembed_ray.ledger.ledger import Known

STRETCHES = [(0.0, 1.0), (3.25, 4.5), (2.0, 2.1), (9.5, 12.0)]


def known_file(path: Path) -> Known:
    info = storage.stat_object(str(path))
    source = Source(str(path), info.stamp, info.size_bytes)
    return Known(Recording(path.name, source), header=probe(source)[0])


def tone(hz: float, seconds: float, rate: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_stretches_are_the_samples_of_a_whole_read(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / name, 0.3 * rng.standard_normal((10 * 16_000, 2)), 16_000)
    whole, _ = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
    known = known_file(tmp_path / name)
    for channels, channel, wanted in (
        ("mix", 0, whole.mean(axis=1)),
        ("first", 0, whole[:, 0]),
        ("each", 1, whole[:, 1]),
    ):
        found = read_sounds(known, STRETCHES, channel, channels)  # type: ignore[arg-type]
        for sound, (start, stop) in zip(found, STRETCHES, strict=True):
            assert (sound.rate_hz, sound.start_s) == (16_000, start)
            expected = wanted[round(start * 16_000) : round(stop * 16_000)]
            np.testing.assert_allclose(sound.samples, expected, atol=1e-5)


@pytest.mark.parametrize(("hz", "rate"), [(440.0, 16_000), (3000.0, 48_000), (80_000.0, 384_000)])
def test_a_tone_is_a_line_at_its_frequency(hz: float, rate: int) -> None:
    sound = Sound(tone(hz, 0.5, rate), rate, 0.0)
    found = spectrogram_db(sound, columns=50, bands=100)
    assert found.shape == (100, 50)
    assert found.max() == 0
    assert abs(found[:, 25].argmax() - int(hz / (rate / 2) * 100)) <= 1
    # Far from the line there is nothing.
    assert found[95, 25] < -50
    zoomed = spectrogram_db(sound, columns=50, bands=100, max_hz=2 * hz)
    assert abs(zoomed[:, 25].argmax() - 50) <= 1


def test_silence_and_a_single_sample_have_a_picture() -> None:
    for samples in (np.zeros(1000, np.float32), np.ones(1, np.float32)):
        sound = Sound(samples, 8000, 0.0)
        picture = Image.open(io.BytesIO(spectrogram_image(sound, 60, 40)))
        assert picture.size == (60, 40)
    assert (spectrogram_db(Sound(np.zeros(9, np.float32), 8000, 0.0), 5, 4) == -FLOOR_DB).all()


@pytest.mark.parametrize(
    ("rate", "slowed", "hz"), [(16_000, 1, 1000), (44_100, 1, 5000), (384_000, 10, 40_000)]
)
def test_compressed_sound_plays_for_as_long_and_as_high(rate: int, slowed: int, hz: int) -> None:
    body = compressed(Sound(0.01 * tone(hz, 1.0, rate), rate, 0.0), slowed)
    with av.open(io.BytesIO(body)) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)
        seconds = samples.shape[1] / stream.rate
        spectrum = np.abs(np.fft.rfft(samples[0]))
        heard = spectrum.argmax() / seconds
    assert seconds == pytest.approx(slowed, abs=0.15)
    assert heard == pytest.approx(hz / slowed, rel=0.01)
    # A quiet recording is heard as loud as any.
    assert 0.5 < np.abs(samples).max() < 1
