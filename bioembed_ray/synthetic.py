"""A small archive of made-up animal sound: what the demo and the tests read.

`tones/` holds the twelve recordings of the avex example (four pitches, three each, 15 dB above
white noise). `soundscape/` holds what real archives hold: a dawn chorus in FLAC, bats at 384 kHz,
two microphones in one recording, a recording cut off by a flat battery, and a text file that
calls itself audio. The same seed gives the same bytes.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

Signal = npt.NDArray[np.float64]

PITCHES_HZ = {"low": 220, "mid_low": 440, "mid_high": 880, "high": 1760}
TONES_PER_PITCH = 3
TONE_RATE_HZ = 16_000
TONE_S = 3.0
TONE_SNR_DB = 15.0
FIELD_RATE_HZ = 48_000
BAT_RATE_HZ = 384_000
# Full scale is 1; room is left, as a recordist would leave it.
PEAK = 0.5


def write_archive(folder: Path, seed: int = 0) -> list[str]:
    """Write the whole archive, 156 s of sound in 16 recordings, and one file that is none.

    A file that already holds the right bytes is left alone, so that a run over the archive sees
    nothing new.

    Args:
        folder: Made where it does not exist; other files in it stay.
        seed: Same seed, same bytes.

    Returns:
        Names relative to `folder`, sorted.
    """
    names = [f"tones/{name}" for name in write_tones(folder / "tones", seed)]
    rng = np.random.default_rng([seed, 1])
    site = folder / "soundscape"
    chorus = _dawn_chorus(rng, 75 * FIELD_RATE_HZ)
    stereo = np.stack(
        [_dawn_chorus(rng, 20 * FIELD_RATE_HZ), _rain(rng, 20 * FIELD_RATE_HZ)], axis=1
    )
    cut_off = _wav(_pcm16(_dawn_chorus(rng, 40 * FIELD_RATE_HZ)), FIELD_RATE_HZ)
    written = {
        "marsh_20240512_043000.flac": _flac(chorus, FIELD_RATE_HZ),
        "20240512_220000.WAV": _wav(_pcm16(_bats(rng, 5 * BAT_RATE_HZ)), BAT_RATE_HZ, _AUDIOMOTH),
        "forest_stereo.wav": _wav(_pcm16(stereo), FIELD_RATE_HZ, _GUANO),
        # The header promises 40 s; the bytes end after 20.
        "marsh_20240513_043000.wav": cut_off[: len(cut_off) // 2],
        "notes.wav": b"12 May: new batteries, microphone B replaced. No recording on this card.\n",
    }
    for name, body in written.items():
        _write(site / name, body)
    return sorted([*names, *(f"soundscape/{name}" for name in written)])


def write_tones(folder: Path, seed: int = 0) -> list[str]:
    """Write `low_00.wav` … `high_02.wav`: 3 s sines in noise at 16 kHz, mono, 32-bit float.

    The sine has amplitude 1 and the noise power 10^(-15/10), so that samples exceed 1: integers
    would clip them.

    Args:
        folder: Made where it does not exist.
        seed: Seed of the noise; every recording has noise of its own.

    Returns:
        The twelve names, sorted.

    Source:
        Example "embed audio" of avex-examples, which draws one noise for all twelve.
    """
    time_s = np.arange(int(TONE_S * TONE_RATE_HZ)) / TONE_RATE_HZ  # (N,)
    deviation = np.sqrt(10 ** (-TONE_SNR_DB / 10))
    names = []
    for row, (pitch, frequency_hz) in enumerate(PITCHES_HZ.items()):
        for take in range(TONES_PER_PITCH):
            rng = np.random.default_rng([seed, 0, row, take])
            tone = np.sin(2 * np.pi * frequency_hz * time_s)
            noise = rng.normal(0, deviation, len(time_s))
            names.append(f"{pitch}_{take:02d}.wav")
            _write(folder / names[-1], _wav((tone + noise).astype("<f4"), TONE_RATE_HZ))
    return sorted(names)


def _dawn_chorus(rng: np.random.Generator, n_samples: int) -> Signal:
    """Return birds, insects and rain over a quiet background: (N,) at 48 kHz."""
    rate_hz, seconds = FIELD_RATE_HZ, n_samples / FIELD_RATE_HZ
    many = int(4 * seconds)
    sound = 0.004 * _pink(rng, n_samples)
    warbler = _calls(rng, n_samples, rate_hz, many, 0.22, (3800, 5600), warble_hz=28)
    thrush = _calls(rng, n_samples, rate_hz, many // 3, 0.45, (2900, 1900), warble_hz=9)
    finch = _calls(rng, n_samples, rate_hz, many // 2, 0.06, (8200, 4700))
    sound += 0.25 * warbler + 0.3 * thrush + 0.2 * finch
    sound += 0.05 * _insects(n_samples, rate_hz)
    # A shower in the last third.
    swell = np.clip(np.linspace(-2, 1, n_samples), 0, 1)
    return _levelled(sound + 0.5 * swell * _rain(rng, n_samples))


def _calls(
    rng: np.random.Generator,
    n_samples: int,
    rate_hz: int,
    count: int,
    length_s: float,
    sweep_hz: tuple[float, float],
    warble_hz: float = 0,
) -> Signal:
    """Return `count` calls at random times: exponential sweeps with a warble, each a bit different."""
    length = int(length_s * rate_hz)
    starts = rng.integers(0, n_samples - length, count)
    place = np.arange(length) / length  # (M,), 0 to 1 along a call
    begin_hz, end_hz = sweep_hz
    individual = rng.normal(1, 0.04, (count, 1))
    warble = 1 + 0.06 * (warble_hz > 0) * np.sin(2 * np.pi * warble_hz * length_s * place)
    frequency_hz = individual * begin_hz * (end_hz / begin_hz) ** place * warble  # (count, M)
    phase = 2 * np.pi * np.cumsum(frequency_hz, axis=1) / rate_hz
    loudness = rng.uniform(0.2, 1, (count, 1)) * np.hanning(length)
    sound = np.zeros(n_samples)
    # Calls may overlap, so they are added one by one and not assigned.
    np.add.at(sound, starts[:, None] + np.arange(length), loudness * np.sin(phase))
    return sound


def _insects(n_samples: int, rate_hz: int) -> Signal:
    """Return a cricket's trill: 6.2 kHz in 38 pulses a second, 2 s on and 2 s off."""
    time_s = np.arange(n_samples) / rate_hz
    pulses: Signal = np.clip(np.sin(2 * np.pi * 38 * time_s), 0, None)
    trill: Signal = np.clip(4 * np.sin(2 * np.pi * 0.25 * time_s), 0, 1)
    return np.sin(2 * np.pi * 6200 * time_s) * pulses * trill


def _rain(rng: np.random.Generator, n_samples: int) -> Signal:
    """Return drops: clicks at random times and of random loudness, over a hiss. (N,), peak 1."""
    drops = (rng.random(n_samples) < 0.002) * rng.exponential(1, n_samples)
    sound: Signal = drops * rng.choice([-1.0, 1.0], n_samples) + 0.05 * rng.normal(size=n_samples)
    return sound / float(np.abs(sound).max())


def _bats(rng: np.random.Generator, n_samples: int) -> Signal:
    """Return echolocation at 384 kHz: 4 ms sweeps from 80 down to 20 kHz, in two passes."""
    sweep_hz = (80_000.0, 20_000.0)
    sound = 0.003 * _pink(rng, n_samples)
    for start in (n_samples // 10, n_samples // 2):
        stop = start + n_samples // 3
        sound[start:stop] += _calls(rng, stop - start, BAT_RATE_HZ, 20, 0.004, sweep_hz)
    return _levelled(sound)


def _pink(rng: np.random.Generator, n_samples: int) -> Signal:
    """Return noise whose power falls as 1/f, standard deviation 1: (N,)."""
    spectrum = np.fft.rfft(rng.normal(size=n_samples))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, n_samples)
    return noise / float(noise.std())


def _levelled(sound: Signal) -> Signal:
    return sound * (PEAK / float(np.abs(sound).max()))


def _pcm16(sound: Signal) -> npt.NDArray[np.int16]:
    return np.round(sound * 32767).astype("<i2")


def _flac(sound: Signal, rate_hz: int) -> bytes:
    body = io.BytesIO()
    soundfile.write(body, _pcm16(sound), rate_hz, format="FLAC", subtype="PCM_16")
    return body.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    """Return one RIFF chunk, padded to an even length as the format wants."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _wav(
    samples: npt.NDArray[np.int16] | npt.NDArray[np.float32], rate_hz: int, metadata: bytes = b""
) -> bytes:
    """Return a WAV file of (N,) or (N, channels) samples, int16 or float32.

    libsndfile would write the time of day into a float file, and no metadata of recorders.
    """
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    width = samples.itemsize
    code = 3 if samples.dtype.kind == "f" else 1
    layout = struct.pack(
        "<HHIIHH", code, channels, rate_hz, rate_hz * channels * width, channels * width, 8 * width
    )
    if code == 3:  # every format but PCM has an extension and a count of samples
        layout = _chunk(b"fmt ", layout + b"\0\0") + _chunk(
            b"fact", struct.pack("<I", len(samples))
        )
    else:
        layout = _chunk(b"fmt ", layout)
    return _chunk(b"RIFF", b"WAVE" + layout + metadata + _chunk(b"data", samples.tobytes()))


_COMMENT = (
    b"Recorded at 22:00:00 12/05/2024 (UTC) by AudioMoth 24F319055FDF3B28 at medium gain "
    b"while battery was 4.1V and temperature was 11.3C.\0"
)
_AUDIOMOTH = _chunk(
    b"LIST",
    b"INFO" + _chunk(b"ICMT", _COMMENT) + _chunk(b"IART", b"AudioMoth 24F319055FDF3B28\0"),
)
_GUANO = _chunk(
    b"guan",
    b"GUANO|Version: 1.0\n"
    b"Timestamp: 2024-05-12T06:15:00+02:00\n"
    b"Make: Wildlife Acoustics\n"
    b"Model: Song Meter SM4\n"
    b"Samplerate: 48000\n"
    b"Length: 20.0\n"
    b"Loc Position: 52.3702 4.8952\n"
    b"Note: left microphone in the canopy, right one under the roof\n",
)


def _write(path: Path, body: bytes) -> None:
    """Write a file, unless it already holds these bytes: a new time would make it a new recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != body:
        path.write_bytes(body)
