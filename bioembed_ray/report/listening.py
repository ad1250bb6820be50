"""Which stretches of sound the report holds, and what they sound and look like.

A few hundred points spread over the maps are chosen, each the farthest from those before it, and a
stretch around each is cut out. Every window inside a stretch can then be heard.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bioembed_ray.audio.clips import (
    Sound,
    compressed,
    find_recordings,
    read_sounds,
    spectrogram_image,
)
from bioembed_ray.errors import RecordingError, StorageError
from bioembed_ray.report.sampling import Points
from bioembed_ray.results import Results

CONTEXT_S = 2.0
MOST_NEIGHBOURS = 12
# A slowed copy is as many times longer, so it holds the middle of its window only.
SLOWED_S = 2.0
SLOWED_BY = (5, 10, 20)
HEARD_HZ = 20_000
# Sound and pictures of one page, before base64 makes them a third longer; fewer where points take
# the room, so that a page stays below 30 MB.
MAX_BYTES, MIN_BYTES, PAGE_BYTES = 9 << 20, 2 << 20, 27 << 20

Coordinates = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of one channel of a recording, around a window.

    Attributes:
        recording: Name.
        channel: Channel.
        start_s, end_s: With context.
        window_start_s, window_end_s: The window it was chosen for.
    """

    recording: str
    channel: int
    start_s: float
    end_s: float
    window_start_s: float
    window_end_s: float

    def covers(self, points: Points) -> npt.NDArray[np.bool_]:
        """Return which windows lie inside: (N,)."""
        if self.recording not in points.names:
            return np.zeros(len(points), bool)
        ends = np.minimum(points.end_s, points.start_s + points.valid_s)
        found: npt.NDArray[np.bool_] = (
            (points.recording == points.names.index(self.recording))
            & (points.channel == self.channel)
            & (points.start_s >= self.start_s - 1e-6)
            & (ends <= self.end_s + 1e-6)
        )
        return found


def choose_stretches(maps: Sequence[tuple[Points, Coordinates]], most: int) -> list[Stretch]:
    """Return stretches spread over all maps, the first ones spread best.

    Maps take turns. Each turn takes the point farthest from every point that can be heard already.

    Args:
        maps: Windows and where they are on their map, (N, 2).
        most: Most stretches.
    """
    scaled = [_unit(coordinates) for _, coordinates in maps]
    distance = [np.full(len(points), np.inf) for points, _ in maps]
    chosen: list[Stretch] = []
    while len(chosen) < most:
        n_before = len(chosen)
        for index, (points, _) in enumerate(maps):
            far = distance[index]
            if len(chosen) >= most or not len(far) or far.max() <= 0:
                continue
            # All are infinitely far at first: the middle of the map begins.
            row = int(far.argmax()) if np.isfinite(far).all() else _middle(scaled[index])
            stretch = _around(points, row)
            chosen.append(stretch)
            for other, (others, _) in enumerate(maps):
                heard = np.flatnonzero(stretch.covers(others))
                # With windows every few milliseconds, some of the neighbours speak for all.
                for one in heard[:: max(1, len(heard) // MOST_NEIGHBOURS)]:
                    apart = ((scaled[other] - scaled[other][one]) ** 2).sum(axis=1)
                    distance[other] = np.minimum(distance[other], apart)
                distance[other][heard] = 0
            # Whatever rounding says of its end, it is not chosen twice.
            distance[index][row] = 0
        if len(chosen) == n_before:
            break
    return chosen


def _unit(coordinates: Coordinates) -> npt.NDArray[np.float64]:
    if not len(coordinates):
        return np.zeros((0, 2))
    low = coordinates.min(axis=0)
    widest = max(float(np.ptp(coordinates, axis=0).max()), 1e-9)
    unit: npt.NDArray[np.float64] = (coordinates.astype(np.float64) - low) / widest
    return unit


def _middle(scaled: npt.NDArray[np.float64]) -> int:
    return int(((scaled - np.median(scaled, axis=0)) ** 2).sum(axis=1).argmin())


def _around(points: Points, row: int) -> Stretch:
    start = float(points.start_s[row])
    # Padding is not in the recording.
    end = min(float(points.end_s[row]), start + float(points.valid_s[row]))
    return Stretch(
        points.name(row),
        int(points.channel[row]),
        max(0.0, start - CONTEXT_S),
        end + CONTEXT_S,
        start,
        end,
    )


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch that can be heard and seen.

    Attributes:
        stretch: Which.
        end_s: Where the sound ends: earlier than the stretch at the end of a recording.
        rate_hz: The recording's rate.
        sound: MP3.
        image: Spectrogram as WebP, up to half the rate.
        slowed: How many times slower the copy is; 0 for none.
        slowed_start_s, slowed_end_s: What the copy holds.
        slowed_sound: MP3.
    """

    stretch: Stretch
    end_s: float
    rate_hz: int
    sound: bytes
    image: bytes
    slowed: int = 0
    slowed_start_s: float = 0.0
    slowed_end_s: float = 0.0
    slowed_sound: bytes = b""

    @property
    def n_bytes(self) -> int:
        """Bytes of sound and picture."""
        return len(self.sound) + len(self.image) + len(self.slowed_sound)

    def plain(self, recording: int) -> dict[str, Any]:
        """Return what the page's script reads.

        Args:
            recording: Number of the recording on the page.
        """
        return {
            "recording": recording,
            "channel": self.stretch.channel,
            "start": self.stretch.start_s,
            "end": self.end_s,
            "isTail": self.end_s < self.stretch.end_s - 0.001,
            "top": self.rate_hz / 2,
            "sound": base64.b64encode(self.sound).decode(),
            "image": base64.b64encode(self.image).decode(),
            "slowed": self.slowed,
            "slowedStart": self.slowed_start_s,
            "slowedEnd": self.slowed_end_s,
            "slowedSound": base64.b64encode(self.slowed_sound).decode(),
        }


def cut_clips(
    results: Results,
    stretches: Sequence[Stretch],
    channels: Literal["mix", "first", "each"],
    max_bytes: int,
) -> tuple[list[Clip], list[str]]:
    """Return stretches as sound and picture, and why some are not.

    Recordings that are gone, or damaged since, leave a line and no clip. The first stretches are
    kept where all together are too large; `room` says how large.
    """
    if not stretches:
        return [], []
    found: dict[int, Clip] = {}
    problems: list[str] = []
    known = find_recordings(results, sorted({one.recording for one in stretches}))
    groups: dict[tuple[str, int], list[int]] = {}
    for number, one in enumerate(stretches):
        groups.setdefault((one.recording, one.channel), []).append(number)
    for (name, channel), numbers in groups.items():
        if name not in known:
            problems.append(f"{name}: it never opened")
            continue
        bounds = [(stretches[k].start_s, stretches[k].end_s) for k in numbers]
        try:
            sounds = read_sounds(known[name], bounds, channel, channels)
        except (RecordingError, StorageError) as error:
            problems.append(f"{name}: {error}")
            continue
        for number, sound in zip(numbers, sounds, strict=True):
            if len(sound.samples):
                found[number] = _clip(stretches[number], sound)
    kept: list[Clip] = []
    left = max_bytes
    for number in sorted(found):
        left -= found[number].n_bytes
        if left < 0:
            break
        kept.append(found[number])
    return kept, problems


def room(data: Mapping[str, object]) -> int:
    """Return how many bytes of sound a page may hold beside its points."""
    taken = sum(len(value) for value in data.values() if isinstance(value, bytes)) * 4 // 3
    names = len(json.dumps([value for value in data.values() if not isinstance(value, bytes)]))
    return int(np.clip((PAGE_BYTES - taken - names) * 3 // 4, MIN_BYTES, MAX_BYTES))


def slowdown(rate_hz: int) -> int:
    """Return how many times slower all of a recording is within hearing: 5, 10 or 20.

    >>> slowdown(192_000), slowdown(384_000)
    (5, 10)
    """
    return next((by for by in SLOWED_BY if rate_hz / 2 / by <= HEARD_HZ), SLOWED_BY[-1])


def _clip(stretch: Stretch, sound: Sound) -> Clip:
    end = sound.start_s + len(sound.samples) / sound.rate_hz
    clip = Clip(stretch, end, sound.rate_hz, compressed(sound), spectrogram_image(sound))
    if not sound.is_ultrasound:
        return clip
    by = slowdown(sound.rate_hz)
    middle = (stretch.window_start_s + stretch.window_end_s) / 2
    half = min(SLOWED_S, stretch.window_end_s - stretch.window_start_s) / 2
    low, high = (
        round((at - sound.start_s) * sound.rate_hz) for at in (middle - half, middle + half)
    )
    part = Sound(sound.samples[max(0, low) : high], sound.rate_hz, middle - half)
    if not len(part.samples):
        return clip
    return Clip(
        stretch,
        end,
        sound.rate_hz,
        clip.sound,
        clip.image,
        by,
        middle - half,
        middle - half + len(part.samples) / sound.rate_hz,
        compressed(part, by),
    )
