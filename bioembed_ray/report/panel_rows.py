"""The rows of a recording's picture, one under the other, on one axis of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioembed_ray.audio.clips import Sound, at_peak, data_uri, spectrogram_image
from bioembed_ray.report.charts import ticks
from bioembed_ray.report.markup import clock, count, text
from bioembed_ray.report.sampling import Points

LEFT, WIDE, RIGHT = 86.0, 980.0, 14.0
WAVE, IMAGE, LANE, NORM = 116.0, 150.0, 11.0, 54.0
COLUMNS = 980
# More starts than this would hide the waveform.
MOST_LINES = 90


@dataclass(frozen=True, slots=True)
class Scale:
    """Seconds of the recording on the picture's horizontal axis."""

    low: float
    high: float

    def x(self, at_s: float) -> float:
        """Return the pixel of a time."""
        return LEFT + WIDE * (at_s - self.low) / (self.high - self.low)


def waveform(sound: Sound, scale: Scale, y: float, windows: Points | None) -> str:
    """Return the waveform with windows laid over it, if they are few: (N,) samples, lowest and highest per pixel."""
    stop = sound.start_s + len(sound.samples) / sound.rate_hz
    columns = max(2, min(COLUMNS, len(sound.samples), int(scale.x(stop) - LEFT)))
    edges = np.linspace(0, len(sound.samples), columns + 1).astype(int)[:-1]
    samples = at_peak(sound.samples, WAVE / 2)
    high, low = np.maximum.reduceat(samples, edges), np.minimum.reduceat(samples, edges)
    peak = float(np.abs(sound.samples).max())
    x = LEFT + (scale.x(stop) - LEFT) * (np.arange(columns) + 0.5) / columns
    middle = y + WAVE / 2
    upper = [f"{a:.1f} {middle - b:.1f}" for a, b in zip(x, high, strict=True)]
    lower = [f"{a:.1f} {middle - b:.1f}" for a, b in zip(x, low, strict=True)]
    outline = "L".join([*upper, *reversed(lower)])
    lines, bands = "", ""
    if windows is not None and len(windows) <= MOST_LINES:
        lines = "".join(
            f'<line class="start" x1="{scale.x(at):.1f}" x2="{scale.x(at):.1f}" y1="{y}" '
            f'y2="{y + WAVE:.0f}"/>'
            for at in windows.start_s
            if at >= scale.low
        )
        # Where windows overlap, bands do, and look darker.
        bands = "".join(
            f'<rect class="band band{k % 2}" x="{scale.x(max(a, scale.low)):.1f}" y="{y}" '
            f'width="{scale.x(b) - scale.x(max(a, scale.low)):.1f}" height="{WAVE:.0f}"/>'
            for k, (a, b) in enumerate(zip(windows.start_s, windows.end_s, strict=True))
        )
    return (
        f'{bands}{lines}<line class="axis" x1="{LEFT}" x2="{LEFT + WIDE}" y1="{middle}" y2="{middle}"/>'
        f'<path class="wave" d="M{outline}Z"/>'
        f'<text x="{LEFT - 8}" y="{y + 9}" text-anchor="end">{peak:.3g}</text>'
        f'<text x="{LEFT - 8}" y="{y + WAVE:.0f}" text-anchor="end">−{peak:.3g}</text>'
        f'<text class="strong" x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">amplitude</text>'
    )


def lanes(title: str, windows: Points, scale: Scale, y: float) -> tuple[str, float]:
    """Return windows as bars, in as many rows as overlap, and how tall that is."""
    free: list[float] = []
    body = []
    for start, end, valid in zip(windows.start_s, windows.end_s, windows.valid_s, strict=True):
        row = next((k for k, until in enumerate(free) if until <= start + 1e-6), len(free))
        free[row : row + 1] = [end]
        top = y + 14 + row * LANE
        a, b, c = (scale.x(max(at, scale.low)) for at in (start, start + valid, end))
        tip = (
            f"<title>{clock(float(start))} to {clock(float(end))}, {float(valid):.3f} s of it sound"
            "</title>"
        )
        body.append(
            f'<rect class="window" x="{a + 0.5:.2f}" y="{top:.1f}" width="{max(b - a - 1, 0.5):.2f}" '
            f'height="{LANE - 3}" rx="2">{tip}</rect>'
        )
        if c - b > 1:
            body.append(
                f'<rect class="padding" x="{b:.2f}" y="{top + 0.5:.1f}" width="{c - b - 1:.2f}" '
                f'height="{LANE - 4}" rx="2">{tip}</rect>'
            )
    n = len(windows)
    padded = int((windows.end_s - windows.start_s - windows.valid_s > 1e-3).sum())
    hop = float(np.median(np.diff(windows.start_s))) if n > 1 else 0.0
    said = f"{count(n)} windows of {float(np.median(windows.end_s - windows.start_s)):g} s"
    said += f", one every {hop:g} s" if hop else ""
    said += f", {padded} padded" if padded else ""
    head = f'<text class="strong" x="{LEFT}" y="{y + 8:.0f}">{text(title)}: {text(said)}</text>'
    return head + "".join(body), 14 + LANE * len(free)


def spectrogram(sound: Sound, scale: Scale, y: float, stop: float) -> str:
    """Return the spectrogram, as far as the sound goes."""
    image = spectrogram_image(sound, columns=900, bands=160)
    top = sound.rate_hz / 2000
    marks = "".join(
        f'<text x="{LEFT - 8}" y="{y + IMAGE * (1 - value / top) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in ticks(0, top, 4)
    )
    return (
        f'<image x="{LEFT}" y="{y:.0f}" width="{scale.x(stop) - LEFT:.1f}" height="{IMAGE}" '
        f'preserveAspectRatio="none" href="{data_uri(image, "image/webp")}"/>{marks}'
        f'<text class="strong" transform="translate({LEFT - 46} {y + IMAGE / 2}) rotate(-90)" '
        f'text-anchor="middle">kHz</text>'
    )


def norms(encoder: str, points: Points, scale: Scale, y: float) -> str:
    """Return the length of each vector over the middle of its window."""
    values: npt.NDArray[np.float64] = np.linalg.norm(points.vectors.astype(np.float64), axis=1)
    low, high = float(values.min()), float(values.max())
    spread = high - low or max(abs(high), 1.0) * 0.1
    middle = np.maximum(points.start_s, scale.low) / 2 + points.end_s / 2
    places = [
        (scale.x(float(at)), y + (NORM - 12) * (1 - (value - low) / spread) + 6)
        for at, value in zip(middle, values, strict=True)
    ]
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    dots = "".join(
        f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="1.8"><title>{value:,.5g}</title></circle>'
        for (a, b), value in zip(places, values, strict=True)
    )
    shown = encoder if len(encoder) < 13 else f"{encoder[:11]}…"
    return (
        f'<line class="axis" x1="{LEFT}" x2="{LEFT + WIDE}" y1="{y + NORM:.0f}" y2="{y + NORM:.0f}"/>'
        f'<path class="norm" d="M{line}"/>{dots}'
        f'<text class="strong" x="{LEFT - 8}" y="{y + NORM / 2 + 4:.0f}" text-anchor="end">{text(shown)}</text>'
        f'<text x="{LEFT - 8}" y="{y + 10:.0f}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{LEFT - 8}" y="{y + NORM - 2:.0f}" text-anchor="end">{low:.4g}</text>'
    )


def axis(scale: Scale, y: float, stop: float) -> str:
    """Return the axis of time, and a line where the sound ends."""
    marks = "".join(
        f'<text x="{scale.x(at):.1f}" y="{y + 14:.0f}" text-anchor="middle">{at:g}</text>'
        for at in ticks(scale.low, scale.high, 12)
    )
    end = scale.x(stop)
    edge = (
        f'<line class="end" x1="{end:.1f}" x2="{end:.1f}" y1="8" y2="{y:.0f}"/>'
        if scale.high - stop > 1e-3
        else ""
    )
    title = f'<text class="strong" x="{LEFT + WIDE / 2}" y="{y + 32:.0f}" text-anchor="middle">seconds</text>'
    return edge + marks + title
