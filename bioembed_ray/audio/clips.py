"""Stretches of recordings to look at and to listen to: sound, its spectrogram, a small MP3.

Decoded by the code that a run decodes with, so what is heard is what was embedded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import soxr

from bioembed_ray.audio.decode import native_blocks
from bioembed_ray.errors import InputError
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Known
from bioembed_ray.results import Results

Wave = npt.NDArray[np.float32]
# MPEG-1, 2 and 2.5 layer III know no others (ISO 11172-3, 13818-3, and Fraunhofer's extension).
MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# A recording faster than this holds sound that nobody hears.
AUDIBLE_RATE_HZ = 50_000
# Louder than this in every clip, so that a quiet site is heard too; room is left for the codec.
PEAK = 0.7
FLOOR_DB = 70.0


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch of one channel of a recording, at the recording's own rate.

    Attributes:
        samples: (N,) float32, full scale ±1, finite.
        rate_hz: Samples per second.
        start_s: Where it begins in the recording.
    """

    samples: Wave
    rate_hz: int
    start_s: float

    @property
    def is_ultrasound(self) -> bool:
        """True where the recording holds more than people hear."""
        return self.rate_hz > AUDIBLE_RATE_HZ


def find_recordings(results: Results, names: Sequence[str]) -> dict[str, Known]:
    """Return where the bytes of some recordings are, those that could be opened once.

    Raises:
        InputError: a name that recordings/ does not have.
    """
    table = results.recordings()
    rows = table.filter(pc.field("recording").isin(pa.array(names, pa.string())))
    found = {known.recording.name: known for known in ledger_file.known_rows(rows)}
    for name in names:
        if name not in found:
            raise InputError(f"{results.output}: no recording {name!r}")
    return {name: known for name, known in found.items() if known.header is not None}


def read_sounds(
    known: Known,
    stretches: Sequence[tuple[float, float]],
    channel: int = 0,
    channels: Literal["mix", "first", "each"] = "mix",
) -> list[Sound]:
    """Return stretches of one recording; what can not be sought is decoded once for all of them.

    Args:
        known: From `find_recordings`.
        stretches: (start, stop) in seconds of the recording; cut off at both of its ends.
        channel: Channel of the rows the stretches come from.
        channels: What the job calls `channels`: whether channel 0 is the mean of all.

    Raises:
        RecordingError: damaged, or no longer what it was.
        StorageError: reading failed, after retries.
    """
    header = known.header
    assert header is not None
    rate = header.rate_hz
    bounds = [
        (max(0, round(start * rate)), max(0, round(stop * rate), round(start * rate)))
        for start, stop in stretches
    ]
    if header.seekable:
        waves = [_read(known, [bound], channel, channels)[0] for bound in bounds]
    else:
        waves = _read(known, bounds, channel, channels)
    return [Sound(wave, rate, low / rate) for wave, (low, _) in zip(waves, bounds, strict=True)]


def _read(
    known: Known, bounds: Sequence[tuple[int, int]], channel: int, channels: str
) -> list[Wave]:
    """Return native samples [low, high) for every bound, in one pass from the first to the last."""
    assert known.header is not None
    first, last = min(low for low, _ in bounds), max(high for _, high in bounds)
    pieces: list[list[Wave]] = [[] for _ in bounds]
    position = first
    for block in native_blocks(known.recording.source, known.header, first, last):
        one = block.mean(axis=1) if channels == "mix" else block[:, channel]
        for index, (low, high) in enumerate(bounds):
            inside = one[max(0, low - position) : max(0, high - position)]
            if len(inside):
                pieces[index].append(np.nan_to_num(inside, nan=0.0, posinf=0.0, neginf=0.0))
        position += len(block)
    empty = [np.zeros(0, np.float32)]
    return [np.concatenate(parts or empty).astype(np.float32, copy=False) for parts in pieces]


def spectrogram_db(
    sound: Sound, columns: int, bands: int, max_hz: float | None = None
) -> npt.NDArray[np.float32]:
    """Return a power spectrogram for a picture.

    Args:
        sound: At least one sample.
        columns: Time steps, evenly spread over the sound.
        bands: Frequency bands, linear from 0 Hz, low ones first.
        max_hz: Top of the picture; half the rate without it.

    Returns:
        (bands, columns) decibels below the loudest value, at least -70; -70 throughout for silence.
    """
    top = min(max_hz or sound.rate_hz / 2, sound.rate_hz / 2)
    # A window as long as a column, but fine enough for the bands: the usual compromise.
    size = 1 << int(np.clip(np.ceil(np.log2(2 * bands * sound.rate_hz / 2 / top)), 6, 13))
    padded = np.pad(sound.samples, size // 2)
    starts = np.linspace(0, max(0, len(padded) - size), columns).astype(np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(padded, (0, size)), size)[starts]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2  # (columns, size / 2 + 1)
    edges = np.linspace(0, top / (sound.rate_hz / 2) * (size // 2), bands + 1).astype(np.int64)
    # The loudest line of a band, so that a thin whistle is not averaged away.
    reduced = np.maximum.reduceat(power, np.minimum(edges[:-1], size // 2), axis=1)
    loudest = float(reduced.max(initial=0.0))
    if loudest <= 0:
        return np.full((bands, columns), -FLOOR_DB, np.float32)
    decibels = 10 * np.log10(np.maximum(reduced / loudest, 10 ** (-FLOOR_DB / 10)))
    return np.ascontiguousarray(decibels.T, np.float32)


def spectrogram_image(
    sound: Sound, columns: int = 240, bands: int = 112, max_hz: float | None = None
) -> bytes:
    """Return a spectrogram as a WebP picture of `columns` × `bands` pixels, low frequencies below."""
    import matplotlib as mpl
    from PIL import Image

    level = 1 + spectrogram_db(sound, columns, bands, max_hz)[::-1] / FLOOR_DB
    pixels = mpl.colormaps["magma"](level, bytes=True)[..., :3]
    body = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(body, "WEBP", quality=70, method=4)
    return body.getvalue()


def at_peak(samples: Wave, peak: float) -> Wave:
    """Return samples (N,) scaled so that the loudest is at `peak`; silence stays silence.

    Worked in float64: below a loudest of 2e-39, a denormal number, the factor is no float32, and what
    comes of it, NaN, ends the process in LAME.
    """
    exact = samples.astype(np.float64)
    loudest = float(np.abs(exact).max(initial=0.0))
    return (exact * (peak / loudest)).astype(np.float32) if loudest > 0 else samples


def compressed(sound: Sound, slowed: int = 1) -> bytes:
    """Return a sound as MP3, which every browser plays, at the same loudness whatever the site.

    Args:
        sound: What to compress; silence stays silence.
        slowed: Play it this many times slower, so that 80 kHz become 8 kHz at 10.

    Returns:
        MP3, mono; sound above half of 48 kHz / `slowed` is left out.
    """
    rate = sound.rate_hz / slowed
    target = next((r for r in MP3_RATES_HZ if r >= rate), MP3_RATES_HZ[-1])
    # Before resampling too, which sums: the loudest floats would add up to infinity.
    samples = at_peak(sound.samples, PEAK)
    if rate != target:
        samples = at_peak(soxr.resample(samples, rate, target, quality="HQ"), PEAK)
    body = io.BytesIO()
    # An encoder that gets less than a frame writes nothing that plays.
    samples = np.pad(samples, (0, max(0, 2304 - len(samples))))
    soundfile.write(body, samples, target, format="MP3", compression_level=0.7)
    return body.getvalue()


def data_uri(body: bytes, kind: str) -> str:
    """Return bytes as a `data:` address; `kind` is a media type such as `image/webp`."""
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"
