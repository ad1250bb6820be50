"""Small clips that show tokens: a spectrogram with the token's stretch marked, and its sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bioembed_ray.audio.clips import (
    AUDIBLE_RATE_HZ,
    Sound,
    compressed,
    find_recordings,
    read_sounds,
    spectrogram_image,
)
from bioembed_ray.codebooks.card import Codebook
from bioembed_ray.current import read_description
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import RecordingError, StorageError
from bioembed_ray.ledger.ledger import Known
from bioembed_ray.report.galleries import Places
from bioembed_ray.report.listening import slowdown
from bioembed_ray.results import Results
from bioembed_ray.vqvae.mel import STEP

# A frame of 25 ms alone is a click; what stands around it says what it belongs to.
CONTEXT_S, FAST_CONTEXT_S = 0.4, 0.08
MOST_S, FAST_MOST_S = 3.0, 0.6
COLUMNS, BANDS = 168, 84
# Sound and pictures of all galleries of a page, before base64 makes them a third longer.
MAX_BYTES = 9 << 20


@dataclass(frozen=True, slots=True)
class Hearing:
    """How a codebook's encoder hears recordings.

    Attributes:
        channels: What the job calls `channels`.
        top_hz: Highest frequency of the recording that it hears; None where nobody said.
        bands_hz: Lowest and highest frequency of every band of its tokens; empty where that is
            not known, or where a time step has one token.
    """

    channels: Literal["mix", "first", "each"]
    top_hz: float | None
    bands_hz: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenClip:
    """A place that shows a token.

    Attributes:
        token: Id.
        recording, channel, band: Where.
        start_s, stop_s: The token's own stretch.
        from_s, to_s: What the clip holds.
        top_hz: Top of the picture.
        band_hz: What the token's band sees; None where that is not known.
        image: Spectrogram as WebP.
        sound: MP3.
        slowed: How many times slower the sound is, 1 where it is not.
    """

    token: int
    recording: str
    channel: int
    band: int
    start_s: float
    stop_s: float
    from_s: float
    to_s: float
    top_hz: float
    band_hz: tuple[float, float] | None
    image: bytes
    sound: bytes
    slowed: int


def hearing_of(results: Results, book: Codebook) -> Hearing:
    """Return how an encoder heard the recordings, from what is written of its current version."""
    current = results.current.get("encoders", {}).get(book.encoder, {}).get("embeddings")
    about = None
    if current is not None:
        about = read_description(results.output, Dataset("embeddings", book.encoder, current))
    if about is None:
        return Hearing("mix", None)
    content = about["content"]
    expansion = content["time_expansion"]
    front = results.card(book.name).get("front_end")
    bands = () if front is None else mel_bands(front["n_mels"], front["fmin_hz"], front["fmax_hz"])
    return Hearing(
        content["channels"],
        content["rate_hz"] / 2 * expansion,
        tuple((low * expansion, high * expansion) for low, high in bands),
    )


def mel_bands(n_mels: int, fmin_hz: float, fmax_hz: float) -> list[tuple[float, float]]:
    """Return what each band of VQ-VAE codes sees, in Hz: the filters of four mel bands.

    >>> [(round(low), round(high)) for low, high in mel_bands(8, 0, 8000)]
    [(0, 2008), (1421, 8000)]
    """
    import librosa

    edges = librosa.mel_frequencies(n_mels=n_mels + 2, fmin=fmin_hz, fmax=fmax_hz)
    # Filter k reaches from edge k to edge k + 2.
    return [(float(edges[k]), float(edges[k + STEP + 1])) for k in range(0, n_mels, STEP)]


def slower(sound: Sound) -> int:
    """Return how many times slower a sound is played: 1 where people hear it as it is."""
    return slowdown(sound.rate_hz) if sound.is_ultrasound else 1


def top_of(sound: Sound, hearing: Hearing) -> float:
    """Return the top of a picture: what the encoder hears, at most half the recording's rate."""
    return min(hearing.top_hz or sound.rate_hz / 2, sound.rate_hz / 2)


def cut_token_clips(
    results: Results, places: Places, shown: Sequence[int], hearing: Hearing
) -> tuple[list[TokenClip], list[str]]:
    """Return the clips of some tokens, and what could not be heard and why, one line each.

    Recordings that are gone or damaged leave no clip. Where all together are too large, each token
    keeps its best ones: the first places of all tokens come before the second.
    """
    found = places.places
    rank, seen = [], dict.fromkeys(shown, 0)
    for token in found.token.tolist():
        rank.append(seen[token])
        seen[token] += 1
    fast = _fast_recordings(results, sorted({places.names[n] for n in found.origin.tolist()}))
    wanted: dict[tuple[str, int], list[int]] = {}
    for row in range(len(found.token)):
        key = (places.names[int(found.origin[row])], int(found.channel[row]))
        wanted.setdefault(key, []).append(row)
    made: dict[int, TokenClip] = {}
    problems: list[str] = []
    for (name, channel), rows in wanted.items():
        if name not in fast:
            problems.append(f"{name}: recordings/ does not know it, or it never opened")
            continue
        known, is_fast = fast[name]
        bounds = [_stretch(float(found.start_s[k]), float(found.stop_s[k]), is_fast) for k in rows]
        try:
            sounds = read_sounds(known, bounds, channel, hearing.channels)
        except (RecordingError, StorageError) as error:
            problems.append(f"{name}: {error}")
            continue
        for row, sound in zip(rows, sounds, strict=True):
            if len(sound.samples):
                made[row] = _clip(places, row, sound, hearing)
    kept, left = [], MAX_BYTES
    for row in sorted(made, key=lambda row: (rank[row], row)):
        left -= len(made[row].image) + len(made[row].sound)
        if left < 0:
            break
        kept.append(row)
    return [made[row] for row in sorted(kept)], problems


def _fast_recordings(results: Results, names: list[str]) -> dict[str, tuple[Known, bool]]:
    """Return the recordings that can be read, and whether they hold ultrasound."""
    there = set(results.recordings().column("recording").to_pylist())
    known = find_recordings(results, [name for name in names if name in there])
    found = {}
    for name, one in known.items():
        assert one.header is not None
        found[name] = (one, one.header.rate_hz > AUDIBLE_RATE_HZ)
    return found


def _stretch(start_s: float, stop_s: float, is_fast: bool) -> tuple[float, float]:
    """Return what to cut out around a token: all of it with context, or its beginning if it is long."""
    context, most = (FAST_CONTEXT_S, FAST_MOST_S) if is_fast else (CONTEXT_S, MOST_S)
    low = max(0.0, start_s - context)
    return low, min(stop_s + context, low + most)


def _clip(places: Places, row: int, sound: Sound, hearing: Hearing) -> TokenClip:
    found = places.places
    top, slowed = top_of(sound, hearing), slower(sound)
    band = int(found.band[row])
    return TokenClip(
        token=int(found.token[row]),
        recording=places.names[int(found.origin[row])],
        channel=int(found.channel[row]),
        band=band,
        start_s=float(found.start_s[row]),
        stop_s=float(found.stop_s[row]),
        from_s=sound.start_s,
        to_s=sound.start_s + len(sound.samples) / sound.rate_hz,
        top_hz=top,
        band_hz=hearing.bands_hz[band] if band < len(hearing.bands_hz) else None,
        image=spectrogram_image(sound, COLUMNS, BANDS, top),
        sound=compressed(sound, slowed),
        slowed=slowed,
    )
