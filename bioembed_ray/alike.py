"""Different sounds must give different vectors: the check for the silent kind of wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bioembed_ray.windows import WindowRule

if TYPE_CHECKING:
    from bioembed_ray.apply import Place, Windows

# Windows per part whose vectors are compared with one another.
COMPARED = 64


def compare(
    places: Sequence[Place], windows: Windows, layer: int, rule: WindowRule
) -> tuple[int, int]:
    """Return how many different sounds were compared, and how many different vectors they gave.

    An encoder that gives one vector for all sounds, or neighbours' vectors for each other, is the
    field's classic silent bug.
    """
    rows = np.unique(np.linspace(0, max(0, len(windows.start) - 1), COMPARED).astype(int))
    sounds: dict[bytes, bytes] = {}
    for row in rows[: len(windows.start)]:
        track = places[int(windows.place[row])].track
        low = int(windows.start[row]) - track.offset
        sound = track.samples[low : low + rule.window]
        if sound.any():
            sounds[sound.tobytes()] = windows.vectors[layer][row].tobytes()
    return len(sounds), len(set(sounds.values()))
