"""The tokens of a stretch of a recording, under its spectrogram."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from bioembed_ray.audio.clips import (
    AUDIBLE_RATE_HZ,
    Sound,
    compressed,
    find_recordings,
    read_sounds,
    spectrogram_image,
)
from bioembed_ray.errors import InputError, RecordingError, StorageError
from bioembed_ray.report.census import Busiest
from bioembed_ray.report.codebook_numbers import ADJACENT
from bioembed_ray.report.token_clips import Hearing, slower, top_of
from bioembed_ray.results import Results
from bioembed_ray.run_lengths import as_text, run_lengths

COLUMNS, BANDS = 2400, 128
# A sweep of ultrasound is over in a tenth of a second: a second of it is a long time.
FAST_SHARE = 0.1
# More bands than this are not written out as text.
MOST_TEXT_BANDS = 32


@dataclass(frozen=True, slots=True)
class StripRun:
    """A run on the strip; seconds of the recording.

    Attributes:
        token: Id.
        band: Which of the tokens of a time step.
        start_s, stop_s: Cut off at the strip's ends.
    """

    token: int
    band: int
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class Strip:
    """A stretch of one channel of a recording with its tokens.

    Attributes:
        recording, channel: Which.
        start_s, stop_s: Stretch.
        bands: Tokens per time step.
        hop_s: Seconds from one time step to the next.
        runs: By band and time.
        texts: Run lengths as text, per band.
        top_hz: Top of the picture.
        image: Spectrogram as WebP; none where the recording cannot be read.
        sound: MP3; none where it cannot be read.
        slowed: How many times slower the sound is.
        problem: Why there is neither picture nor sound; empty where there are.
    """

    recording: str
    channel: int
    start_s: float
    stop_s: float
    bands: int
    hop_s: float
    runs: list[StripRun]
    texts: list[str]
    top_hz: float
    image: bytes
    sound: bytes
    slowed: int
    problem: str


def make_strip(
    results: Results, codebook: str, place: Busiest, length_s: float, hearing: Hearing
) -> Strip:
    """Return a stretch of a recording with its tokens.

    Args:
        results: The output.
        codebook: Whose tokens.
        place: Where it begins.
        length_s: Longest stretch; a tenth of it where the recording holds ultrasound.
        hearing: How the codebook's encoder hears.
    """
    piece, problem = _heard(results, place, length_s, hearing)
    if piece is None:
        stop_s = place.start_s + length_s
    else:
        stop_s = piece.start_s + len(piece.samples) / piece.rate_hz
    steps = _steps(results, codebook, place, stop_s)
    bands = len(steps[0].tokens) if steps else 1
    runs = [run for band in range(bands) for run in _runs(steps, band, stop_s)]
    top = 0.0 if piece is None else top_of(piece, hearing)
    slowed = 1 if piece is None else slower(piece)
    return Strip(
        recording=place.recording,
        channel=place.channel,
        start_s=place.start_s,
        stop_s=stop_s if piece is not None else max((run.stop_s for run in runs), default=stop_s),
        bands=bands,
        hop_s=steps[0].hop_s if steps else 0.0,
        runs=runs,
        texts=[_text(steps, band) for band in range(min(bands, MOST_TEXT_BANDS))],
        top_hz=top,
        image=b"" if piece is None else spectrogram_image(piece, COLUMNS, BANDS, top),
        sound=b"" if piece is None else compressed(piece, slowed),
        slowed=slowed,
        problem=problem,
    )


def _heard(
    results: Results, place: Busiest, length_s: float, hearing: Hearing
) -> tuple[Sound | None, str]:
    """Return the strip's sound, or why there is none."""
    try:
        known = find_recordings(results, [place.recording]).get(place.recording)
        if known is None or known.header is None:
            return None, f"{place.recording}: it never opened"
        if known.header.rate_hz > AUDIBLE_RATE_HZ:
            length_s *= FAST_SHARE
        bounds = [(place.start_s, place.start_s + length_s)]
        (sound,) = read_sounds(known, bounds, place.channel, hearing.channels)
    except (InputError, RecordingError, StorageError) as error:
        return None, str(error)
    if not len(sound.samples):
        return None, f"{place.recording}: no sound at {place.start_s:g} s"
    return sound, ""


@dataclass(frozen=True, slots=True)
class _Step:
    """The tokens of a time step, -1 where there is none."""

    start_s: float
    hop_s: float
    tokens: tuple[int, ...]


def _steps(results: Results, codebook: str, place: Busiest, stop_s: float) -> list[_Step]:
    """Return the time steps that begin on the strip, in order."""
    here = (pc.field("recording") == place.recording) & (pc.field("channel") == place.channel)
    found = []
    table = results.tokens(codebook).table(where=here & (pc.field("start_s") < stop_s))
    for number in range(len(table)):
        row = {name: table[name][number] for name in ("start_s", "hop_s", "per_step", "tokens")}
        start_s, hop_s, bands = (row[name].as_py() for name in ("start_s", "hop_s", "per_step"))
        low = max(0, math.ceil((place.start_s - start_s) / hop_s - 1e-6))
        high = max(low, math.ceil((stop_s - start_s) / hop_s - 1e-6))
        # A day's row is long: only what is on the strip becomes Python numbers.
        inside = row["tokens"].values.slice(low * bands, (high - low) * bands)
        tokens = [-1 if one is None else one for one in inside.to_pylist()]
        for step in range(len(tokens) // bands):
            chosen = tuple(tokens[step * bands : (step + 1) * bands])
            found.append(_Step(start_s + (low + step) * hop_s, hop_s, chosen))
    return found


def _runs(steps: list[_Step], band: int, stop_s: float) -> Iterator[StripRun]:
    """Yield the runs of a band; where nothing is known there is none."""
    open_run: StripRun | None = None
    for step in steps:
        token, end_s = step.tokens[band], min(stop_s, step.start_s + step.hop_s)
        if open_run is not None:
            meets = step.start_s - open_run.stop_s < ADJACENT * step.hop_s
            if meets and token == open_run.token:
                open_run = replace(open_run, stop_s=end_s)
                continue
            if open_run.token >= 0:
                yield open_run
        open_run = StripRun(token, band, step.start_s, end_s)
    if open_run is not None and open_run.token >= 0:
        yield open_run


def _text(steps: list[_Step], band: int) -> str:
    """Return the run lengths of a band as text; a hole between rows is a gap of whole steps."""
    tokens: list[int | None] = []
    for number, step in enumerate(steps):
        if number:
            hole = (step.start_s - steps[number - 1].start_s) / step.hop_s - 1
            tokens += [None] * round(hole)
        tokens.append(None if step.tokens[band] < 0 else step.tokens[band])
    return as_text(*run_lengths(tokens))


def first_row(results: Results, codebook: str, recording: str) -> Busiest | None:
    """Return where the tokens of a recording begin, None where it has none of this codebook."""
    rows = results.tokens(codebook).table(
        columns=["channel", "start_s"], where=pc.field("recording") == recording
    )
    if not len(rows):
        return None
    return Busiest(0.0, recording, rows["channel"][0].as_py(), rows["start_s"][0].as_py())
