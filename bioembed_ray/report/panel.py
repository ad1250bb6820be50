"""One recording in full: its waveform with the windows laid over it, spectrogram, vectors' lengths."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from bioembed_ray.audio.clips import Sound, compressed, find_recordings, read_sounds
from bioembed_ray.errors import InputError, RecordingError, StorageError
from bioembed_ray.report.charts import svg
from bioembed_ray.report.frame import Section
from bioembed_ray.report.listening import slowdown
from bioembed_ray.report.markup import clock, name, notice, player, text
from bioembed_ray.report.panel_rows import (
    IMAGE,
    LEFT,
    NORM,
    RIGHT,
    WAVE,
    WIDE,
    Scale,
    axis,
    lanes,
    norms,
    spectrogram,
    waveform,
)
from bioembed_ray.report.sampling import Points, Sampled
from bioembed_ray.report.vectors import Channels
from bioembed_ray.results import Results

# Longer recordings are shown from the end, where windows may reach past the sound.
SHOWN_S = 60.0
MOST_SLOWED_S = 6.0


def choose_recording(results: Results, wanted: str | None) -> str | None:
    """Return the recording to show: the one wanted, or the longest without a failure that is shown whole.

    Raises:
        InputError: the output does not know the recording; names those spelled alike.
    """
    table = results.recordings()
    names: list[str] = table.column("recording").to_pylist()
    if wanted is not None:
        if wanted not in names:
            close = difflib.get_close_matches(wanted, names, 3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise InputError(f"{results.output}: no recording {wanted!r}{hint}")
        return wanted
    failed = set(results.failures().column("recording").to_pylist())
    lengths = table.column("duration_s").to_pylist()
    good = [
        (length, one)
        for one, length in zip(names, lengths, strict=True)
        if length and one not in failed
    ]
    # Of those that are shown whole the longest, else the shortest of all.
    whole = [pair for pair in good if pair[0] <= SHOWN_S]
    best = max(whole, default=min(good, default=None))
    return None if best is None else best[1]


def shown_from(results: Results, recording: str | None) -> tuple[str, float] | None:
    """Return the recording and the second from which it is shown."""
    if recording is None:
        return None
    table = results.recordings()
    row = table.column("recording").to_pylist().index(recording)
    length = table.column("duration_s")[row].as_py() or 0.0
    return recording, max(0.0, float(np.floor(length - SHOWN_S)))


def panel_section(
    results: Results, samples: Sequence[Sampled], recording: str | None, channels: Channels
) -> Section:
    """Return the section on one recording.

    Args:
        results: The output.
        samples: What one pass over each encoder left, with every window of the recording.
        recording: Its name; None where none can be shown.
        channels: What the job calls `channels`.
    """
    if recording is None:
        return Section("recording", "A recording", notice("No recording was embedded."))
    found = [(one.encoder, _first_channel(one.followed)) for one in samples]
    channel = min((int(w.channel[0]) for _, w in found if len(w)), default=0)
    last = max((float((w.start_s + w.valid_s).max()) for _, w in found if len(w)), default=0.0)
    low = max(0.0, np.floor(last - SHOWN_S))
    try:
        known = find_recordings(results, [recording])[recording]
        sound = read_sounds(known, [(low, max(last, low + 0.1))], channel, channels)[0]
    except (RecordingError, StorageError, KeyError) as error:
        body = notice(f"{text(recording)} could not be read: {text(error)}", "warning")
        return Section("recording", "A recording", body)
    if not len(sound.samples):
        body = notice(f"{text(recording)}: no sound between {clock(low)} and {clock(last)}.")
        return Section("recording", "A recording", body)
    html = _players(sound, low > 0) + _drawing(sound, found)
    title = f"{name(recording)} · {sound.rate_hz / 1000:g} kHz · channel {channel}"
    return Section(
        "recording",
        "A recording",
        f'<p class="quiet">{title}</p>{html}{_explanation(found)}',
        scripts=("panel.js",),
        summary="How a recording becomes windows, and how long the vectors are along it.",
    )


def _first_channel(points: Points) -> Points:
    if not len(points):
        return points
    rows = points.channel == points.channel.min()
    return points.take(rows)


def _players(sound: Sound, is_end: bool) -> str:
    end = sound.start_s + len(sound.samples) / sound.rate_hz
    what = f"{clock(sound.start_s)} to {clock(end)}" + (", the end of it" if is_end else "")
    made = f'<div class="panel-sound">{player(compressed(sound), what)}</div>'
    if sound.is_ultrasound:
        by = slowdown(sound.rate_hz)
        part = Sound(
            sound.samples[: int(MOST_SLOWED_S * sound.rate_hz)], sound.rate_hz, sound.start_s
        )
        stop = part.start_s + len(part.samples) / part.rate_hz
        label = (
            f"Slowed {by} times, a derived copy of {clock(part.start_s)} to {clock(stop)}; "
            "encoders heard the original:"
        )
        made += f'<p class="slowed">{text(label)}</p>{player(compressed(part, by), label)}'
    return made


def _drawing(sound: Sound, found: Sequence[tuple[str, Points]]) -> str:
    stop = sound.start_s + len(sound.samples) / sound.rate_hz
    shown = [(one, _inside(points, sound.start_s, stop)) for one, points in found]
    ends = [float(points.end_s.max()) for _, points in shown if len(points)]
    scale = Scale(sound.start_s, max([stop, *ends]))
    body, y = [], 8.0
    groups = _rules(shown)
    body.append(waveform(sound, scale, y, groups[0][1] if groups else None))
    y += WAVE + 12
    for title, points in groups:
        drawn, height = lanes(title, points, scale, y)
        body.append(drawn)
        y += height + 8
    body.append(spectrogram(sound, scale, y, stop))
    y += IMAGE + 12
    for encoder, points in shown:
        if len(points):
            body.append(norms(encoder, points, scale, y))
            y += NORM + 10
    body.append(axis(scale, y, stop))
    body.append(f'<line id="panel-head" class="playhead" x1="0" x2="0" y1="8" y2="{y:.0f}"/>')
    whole = svg(LEFT + WIDE + RIGHT, y + 40, "".join(body), "Waveform, windows, spectrogram, norms")
    data = (
        f'data-x0="{LEFT}" data-x1="{scale.x(stop):.2f}" data-seconds="{stop - sound.start_s:.6f}"'
    )
    return f'<div class="scroll panel" id="panel" tabindex="0" {data}>{whole}</div>'


def _inside(points: Points, low: float, high: float) -> Points:
    rows = (points.start_s < high) & (points.end_s > low + 1e-9)
    return points.take(rows)


def _rules(shown: Sequence[tuple[str, Points]]) -> list[tuple[str, Points]]:
    """Return (encoders, windows) for every different set of windows."""
    groups: dict[bytes, tuple[list[str], Points]] = {}
    for encoder, points in shown:
        if len(points):
            key = np.round(np.stack([points.start_s, points.end_s]), 6).tobytes()
            groups.setdefault(key, ([], points))[0].append(encoder)
    return [(", ".join(names), points) for names, points in groups.values()]


def _explanation(found: Sequence[tuple[str, Points]]) -> str:
    absent = [encoder for encoder, points in found if not len(points)]
    missing = f" No windows here: {text(', '.join(absent))}." if absent else ""
    return (
        '<p class="quiet">Bars are windows, hollow where they reach past the end and are filled up '
        "with silence (the dashed line is the end of the sound). Below, the L2 norm of each "
        f"window's vector, each encoder on its own scale.{missing}</p>"
    )
