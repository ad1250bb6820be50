"""A shard's waveforms as one flat array, to cross the object store without a copy."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np

from bioembed_ray.audio.spans import SpanAudio, Track, Wave
from bioembed_ray.errors import RecordingError

Audio = SpanAudio | RecordingError


def flatten(audios: Sequence[Audio]) -> tuple[bytes, Wave]:
    """Return what a shard decoded to as an index and one flat array, to cross the object store."""
    waves: list[Wave] = []
    position = 0
    slim: list[object] = []
    for audio in audios:
        if isinstance(audio, RecordingError):
            slim.append(audio)
            continue
        tracks = {}
        for rate, found in audio.tracks.items():
            rows = []
            for track in found:
                rows.append((track.channel, track.offset, position, len(track.samples)))
                waves.append(track.samples)
                position += len(track.samples)
            tracks[rate] = rows
        about = (audio.n_native, audio.n_extent, audio.holes, audio.n_nonfinite, audio.fault)
        slim.append((tracks, *about))
    flat = np.concatenate(waves) if waves else np.zeros(0, np.float32)
    return pickle.dumps(slim), flat


def unflatten(index: bytes, flat: Wave) -> list[Audio]:
    """Return the shard's audio, as views of the flat array."""
    audios: list[Audio] = []
    for entry in pickle.loads(index):
        if isinstance(entry, RecordingError):
            audios.append(entry)
            continue
        tracks, *about = entry
        audios.append(
            SpanAudio(
                {
                    rate: [
                        Track(channel, offset, flat[at : at + length])
                        for channel, offset, at, length in rows
                    ]
                    for rate, rows in tracks.items()
                },
                *about,
            )
        )
    return audios
