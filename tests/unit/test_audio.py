"""Reading spans: resampling against others, the same samples from every cut, damaged recordings."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray.audio.spans import SpanAudio, read_span
from bioembed_ray.segments import Span
from bioembed_ray.windows import Clock
from tests.unit.audio_samples import wav
from tests.unit.references import ODD_RATES, sound, span_of, write_wave

NO_REACH = (0.0, 0.0)


def read(span: Span, rate_hz: int = 16_000, **options: object) -> SpanAudio:
    return read_span(span, (rate_hz,), options.pop("reach", NO_REACH), **options)  # type: ignore[arg-type]


def whole(span: Span, rate_hz: int = 16_000, **options: object) -> np.ndarray:
    tracks = read(span, rate_hz, **options).tracks[rate_hz]
    assert len(tracks) == 1
    assert tracks[0].offset == 0
    return tracks[0].samples


def smooth(rate_hz: int, seconds: float, top_hz: float = 3000) -> np.ndarray:
    """Return tones below every Nyquist in use: there filters of different steepness agree."""
    time = np.arange(int(rate_hz * seconds)) / rate_hz
    highest = min(top_hz, rate_hz * 0.35)
    wave = sum(
        0.2 * np.sin(2 * np.pi * f * time + f) for f in np.linspace(highest / 10, highest, 4)
    )
    return np.asarray(wave, np.float32)


@pytest.mark.parametrize("rate_hz", [1000, *ODD_RATES])
def test_pieces_are_the_whole_recording_resampled_at_once(tmp_path: Path, rate_hz: int) -> None:
    wave = sound(int(rate_hz * 23.7) + 3)
    found = whole(span_of(write_wave(tmp_path / "a.wav", wave, rate_hz)))
    wanted = soxr.resample(wave, rate_hz, 16_000, quality="HQ") if rate_hz != 16_000 else wave
    assert found.dtype == np.float32
    assert len(found) == Clock(rate_hz, 16_000).length(len(wave))
    n = min(len(found), len(wanted))
    assert len(wanted) - n <= 1
    # At the very end, soxr's flush and silence differ by what lies beyond the last sample.
    edge = 256
    # Ratios without a small common form make soxr interpolate its own filter between phases.
    limit = 2e-6 if rate_hz == 250_001 else 5e-7
    assert np.abs(found[: n - edge] - wanted[: n - edge]).max() <= limit


@pytest.mark.parametrize("rate_hz", [1000, 11_025, 22_050, 44_100, 48_000, 384_000, 500_000])
def test_scipy_hears_the_same(tmp_path: Path, rate_hz: int) -> None:
    wave = smooth(rate_hz, 11.3)
    found = whole(span_of(write_wave(tmp_path / "a.wav", wave, rate_hz)))
    ratio = Fraction(16_000, rate_hz)
    wanted = scipy.signal.resample_poly(wave, ratio.numerator, ratio.denominator)
    inside = slice(2000, min(len(found), len(wanted)) - 2000)
    error = found[inside] - wanted[inside]
    assert np.sqrt(np.mean(error**2)) < 2e-3 * np.sqrt(np.mean(wanted[inside] ** 2))


@pytest.mark.parametrize("rate_hz", [1000, 11_025, 250_001])
def test_an_impulse_stays_where_it_is(tmp_path: Path, rate_hz: int) -> None:
    at = int(rate_hz * 21.25)
    wave = np.zeros(rate_hz * 25, np.float32)
    wave[at] = 0.9
    found = whole(span_of(write_wave(tmp_path / "a.wav", wave, rate_hz)))
    assert abs(int(np.abs(found).argmax()) - at * 16_000 / rate_hz) <= 0.5


@pytest.mark.parametrize(
    ("rate_hz", "encoder_hz", "expansion"),
    [
        (16_000, 16_000, 1),
        (11_025, 16_000, 1),
        (44_100, 16_000, 1),
        (1000, 16_000, 1),
        (4001, 16_000, 1),
        (24_000, 16_000, 10),
        (7919, 1000, 3),
    ],
)
@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_any_span_gives_the_very_samples_of_the_whole(
    tmp_path: Path, rate_hz: int, encoder_hz: int, expansion: int, extension: str
) -> None:
    n = int(rate_hz * 43.3 / expansion)
    path = tmp_path / f"a.{extension}"
    write_wave(path, sound(n, channels=2), rate_hz, "FLOAT" if extension == "wav" else "PCM_16")
    span = span_of(path)
    options = {"channels": "each", "time_expansion": expansion}
    all_tracks = read(span, encoder_hz, **options).tracks[encoder_hz]
    clock = Clock(rate_hz, encoder_hz, expansion)

    @settings(deadline=None, max_examples=12)
    @given(st.integers(0, n - 1), st.integers(1, n), st.booleans(), st.floats(0, 12))
    def check(start: int, length: int, is_open: bool, reach: float) -> None:
        stop = None if is_open else min(n, start + length)
        found = read(
            replace(span, start=start, stop=stop), encoder_hz, reach=(reach, reach), **options
        )
        assert found.n_extent == (n if stop is None else stop) - start
        assert found.n_native in (None, n)
        for track, reference in zip(found.tracks[encoder_hz], all_tracks, strict=True):
            end = track.offset + len(track.samples)
            assert track.offset <= max(0, start * clock.ratio - reach * encoder_hz + 1)
            wanted = clock.length(n if stop is None else stop) + reach * encoder_hz
            assert end >= min(wanted - 1, len(reference.samples))
            assert np.array_equal(track.samples, reference.samples[track.offset : end])
            if found.n_native is None:
                assert end < len(reference.samples) or end == clock.length(n)

    check()


def test_several_rates_are_read_at_once_and_do_not_touch_each_other(tmp_path: Path) -> None:
    span = span_of(write_wave(tmp_path / "a.wav", sound(22_050 * 25), 22_050))
    together = read_span(span, (16_000, 32_000, 48_000), NO_REACH)
    for rate_hz in (16_000, 32_000, 48_000):
        alone = whole(span, rate_hz)
        assert np.array_equal(together.tracks[rate_hz][0].samples, alone)


def test_channels_mix_first_and_each(tmp_path: Path) -> None:
    wave = sound(16_000, channels=3)
    span = span_of(write_wave(tmp_path / "a.wav", wave, 16_000))
    np.testing.assert_allclose(whole(span, channels="mix"), wave.mean(axis=1), atol=1e-7)
    assert np.array_equal(whole(span, channels="first"), wave[:, 0])
    each = read(span, channels="each").tracks[16_000]
    assert [track.channel for track in each] == [0, 1, 2]
    assert np.array_equal(np.stack([track.samples for track in each], axis=1), wave)


def test_time_expansion_is_the_same_samples_at_a_lower_rate(tmp_path: Path) -> None:
    wave = sound(384_000 * 3)
    fast = span_of(write_wave(tmp_path / "fast.wav", wave, 384_000))
    slow = span_of(write_wave(tmp_path / "slow.wav", wave, 38_400))
    assert np.array_equal(whole(fast, time_expansion=10), whole(slow))


def test_nan_and_infinity_become_silence_and_are_counted_in_their_own_span(tmp_path: Path) -> None:
    wave = sound(16_000 * 30)
    bad = [5, 16_000 * 12, 16_000 * 12 + 1, 16_000 * 29]
    wave[bad] = [np.nan, np.inf, -np.inf, np.nan]
    span = span_of(write_wave(tmp_path / "a.wav", wave, 16_000))
    clean = wave.copy()
    clean[bad] = 0
    assert np.array_equal(whole(span), clean)
    assert read(span).n_nonfinite == 4
    cuts = [(0, 16_000 * 12), (16_000 * 12, 16_000 * 12 + 1), (16_000 * 12 + 1, None)]
    parts = [read(replace(span, start=a, stop=b), reach=(3.0, 3.0)) for a, b in cuts]
    assert [part.n_nonfinite for part in parts] == [1, 1, 2]


def test_nan_in_one_channel_leaves_the_other_in_the_mix(tmp_path: Path) -> None:
    wave = sound(1000, channels=2)
    wave[10, 0] = np.nan
    span = span_of(write_wave(tmp_path / "a.wav", wave, 16_000))
    assert whole(span)[10] == wave[10, 1] / 2


@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-24),
        ("FLOAT", 0),
        ("DOUBLE", 0),
        ("PCM_U8", 2**-7),
        ("ALAW", 0.02),
        ("ULAW", 0.02),
    ],
)
def test_every_coding_keeps_its_level(tmp_path: Path, subtype: str, step: float) -> None:
    wave = sound(20_000, channels=2)
    span = span_of(write_wave(tmp_path / "a.wav", wave, 16_000, subtype))
    assert span.header.subtype == subtype
    found = read(span, channels="each").tracks[16_000]
    for track in found:
        assert np.abs(track.samples - wave[:, track.channel]).max() <= step


def test_a_file_that_ends_before_its_promise_gives_what_is_there(tmp_path: Path) -> None:
    body = wav(b"\x11\x22" * 400_000, rate_hz=16_000)
    (tmp_path / "a.wav").write_bytes(body[: 44 + 2 * 100_000])
    span = span_of(tmp_path / "a.wav")
    audio = read(span)
    assert (audio.n_extent, audio.n_native) == (100_000, 100_000)
    assert len(audio.tracks[16_000][0].samples) == 100_000
    assert span.promised == 400_000


def test_a_header_that_says_less_than_there_is_does_not_cut_the_recording(tmp_path: Path) -> None:
    # A stream whose size was never filled in: the data chunk says 0.
    (tmp_path / "a.wav").write_bytes(wav(b"\x11\x22" * 100_000, size=0, rate_hz=16_000))
    assert read(span_of(tmp_path / "a.wav")).n_extent == 100_000


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("start_s", [21, 45])
def test_a_span_beyond_the_end_is_empty(tmp_path: Path, extension: str, start_s: int) -> None:
    path = tmp_path / f"a.{extension}"
    sf.write(path, sound(16_000 * 20), 16_000)
    span = replace(span_of(path), start=start_s * 16_000)
    for stop in (None, (start_s + 10) * 16_000):
        audio = read(replace(span, stop=stop), reach=(2.0, 2.0))
        assert audio.n_extent == 0
        assert audio.n_native is not None
        assert audio.n_native <= span.start


def test_a_span_that_the_end_falls_into_is_cut_there(tmp_path: Path) -> None:
    wave = sound(16_000 * 25)
    span = span_of(write_wave(tmp_path / "a.wav", wave, 16_000))
    audio = read(replace(span, start=16_000 * 22, stop=16_000 * 60), reach=(1.0, 1.0))
    assert (audio.n_extent, audio.n_native) == (16_000 * 3, 16_000 * 25)
    track = audio.tracks[16_000][0]
    assert np.array_equal(track.samples, wave[track.offset :])


def test_an_end_beyond_what_is_read_is_not_known(tmp_path: Path) -> None:
    span = span_of(write_wave(tmp_path / "a.wav", sound(16_000 * 45), 16_000))
    assert read(replace(span, stop=16_000 * 10), reach=(0.0, 1.0)).n_native is None
    assert read(replace(span, stop=16_000 * 40), reach=(0.0, 6.0)).n_native == 16_000 * 45


def test_one_sample_is_a_recording(tmp_path: Path) -> None:
    span = span_of(write_wave(tmp_path / "a.wav", sound(1), 11_025))
    audio = read(span)
    assert (audio.n_extent, audio.n_native) == (1, 1)
    assert len(audio.tracks[16_000][0].samples) == 2  # 1.45 samples, rounded up
