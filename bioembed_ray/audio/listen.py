"""A stretch of a recording as a WAV file, wherever the recording is: in a bucket, a tar, a table."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from bioembed_ray import storage
from bioembed_ray.audio.clips import find_recordings, read_sounds
from bioembed_ray.errors import InputError
from bioembed_ray.results import Results
from bioembed_ray.summary import last_record


def write_stretch(
    results: Results,
    recording: str,
    channel: int,
    start_s: float,
    length_s: float,
    slowed: int,
    target: str,
) -> str:
    """Put a stretch as 32-bit float samples, as the run decoded them; return what to say of it.

    Args:
        results: The output that knows the recording.
        recording: Its name.
        channel: Channel of the rows; 0 is the mean where the job mixes channels.
        start_s: Where it begins in the recording.
        length_s: How long it is; less at the end of the recording.
        slowed: How many times slower it plays: the same samples at a lower rate.
        target: Path or URI of the WAV file.

    Raises:
        InputError: no such recording, channel or stretch.
        RecordingError: the recording is damaged, or no longer what it was.
        StorageError: reading or writing failed.
    """
    known = find_recordings(results, [recording]).get(recording)
    if known is None or known.header is None:
        raise InputError(f"{recording}: it never opened; failures/ says why")
    if not 0 <= channel < known.header.channels:
        n_channels = known.header.channels
        raise InputError(f"{recording}: got channel {channel}, there are {n_channels}, from 0")
    record = last_record(results.output) or {}
    channels = record.get("job", {}).get("input", {}).get("channels", "mix")
    bounds = [(start_s, start_s + length_s)]
    sound = read_sounds(known, bounds, channel, channels)[0]
    if not len(sound.samples):
        raise InputError(f"{recording}: no sound from {start_s:g} s on")
    body = io.BytesIO()
    rate = max(1, round(sound.rate_hz / slowed))
    samples = np.ascontiguousarray(sound.samples)
    soundfile.write(body, samples, rate, format="WAV", subtype="FLOAT")
    storage.put(target, body.getvalue())
    seconds = len(samples) / sound.rate_hz
    how = f", slowed {slowed} times" if slowed > 1 else ""
    return f"{target}: {seconds:.3f} s from {sound.start_s:.3f} s{how}"
