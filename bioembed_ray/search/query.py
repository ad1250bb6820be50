"""What a search starts from: a window of the archive, a file of vectors, or sound.

Sound is encoded by the encoder that made the windows, with its settings and from the same grid of
windows, so that a file of the archive gives the very vectors that stand.
"""

from __future__ import annotations

import difflib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import storage
from bioembed_ray.audio.probe import probe
from bioembed_ray.config import Job
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.errors import ConfigError, InputError, NotFoundError, RecordingError
from bioembed_ray.inputs.listing import Source
from bioembed_ray.plan import Work
from bioembed_ray.rows import Rows
from bioembed_ray.search.encoder_again import encode_again, planned_again
from bioembed_ray.search.exact import Stretch, Vectors
from bioembed_ray.segments import Shard, Span
from bioembed_ray.shard_audio import decode_shard

# Times on the command line have been rounded by people.
SAME_TIME_S = 1e-6


@dataclass(frozen=True, slots=True)
class Query:
    """What windows are compared with.

    Attributes:
        vectors: (Q, D) float32, one per window of the query.
        title: What it is, for people.
        own: Where it lies in the archive, None where it does not.
    """

    vectors: Vectors
    title: str
    own: Stretch | None = None

    def mean(self) -> Query:
        """Return the query as one vector, the mean of its windows'."""
        mean = self.vectors.mean(axis=0, dtype=np.float64, keepdims=True)  # (1, D)
        return Query(mean.astype(np.float32), self.title, self.own)


@dataclass(frozen=True, slots=True)
class Sounding:
    """Which sound is searched for.

    Attributes:
        uri: An audio file.
        start_s: Where the sound begins in it, seconds of the file.
        stop_s: Where it ends; None at the file's end.
    """

    uri: str
    start_s: float = 0.0
    stop_s: float | None = None


def from_vector(path: str) -> Query:
    """Return the vector of a .npy file, (D,), or several, (Q, D).

    Raises:
        InputError: no such file, or something else in it.
    """
    try:
        found = np.load(io.BytesIO(storage.read(path)), allow_pickle=False)
    except NotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, EOFError):
        raise InputError(f"{path}: not a .npy file of numbers") from None
    if (
        not isinstance(found, np.ndarray)
        or found.ndim not in (1, 2)
        or found.dtype.kind not in "fiu"
        or not found.size
    ):
        shape = getattr(found, "shape", None)
        raise InputError(f"{path}: holds an array of shape {shape}; use (D,) or (Q, D) numbers")
    return Query(np.atleast_2d(found).astype(np.float32), path)


def from_window(rows: Rows, recording: str, at_s: float, channel: int | None) -> Query:
    """Return the vector of a window that stands.

    Args:
        rows: The windows.
        recording: Name of a recording.
        at_s: Start of the window.
        channel: Channel; the lowest that stands where None.

    Raises:
        InputError: no such recording or window; names the nearest.
    """
    where = pc.field("recording") == recording
    table = rows.table(columns=["channel", "start_s", "end_s"], where=where)
    if not len(table):
        known = pc.unique(rows.recordings().column("recording")).to_pylist()
        if recording in known:
            raise InputError(f"{recording}: has no windows; see `bioembed status` and failures/")
        lower = {name.casefold(): name for name in known}
        near = difflib.get_close_matches(recording.casefold(), lower, n=1, cutoff=0.3)
        hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
        raise InputError(f"no recording {recording!r}{hint}")
    channels = pc.unique(table.column("channel")).to_pylist()
    chosen = min(channels) if channel is None else channel
    if chosen not in channels:
        raise InputError(f"{recording}: no channel {chosen}; there is {_listed(channels)}")
    starts = table.filter(pc.field("channel") == chosen).column("start_s").to_numpy()
    nearest = float(starts[np.abs(starts - at_s).argmin()])
    if abs(nearest - at_s) > SAME_TIME_S:
        raise InputError(
            f"{recording}: no window starts at {at_s:g} s; the nearest starts at {nearest:.10g} s"
        )
    place = (
        where
        & (pc.field("channel") == pa.scalar(chosen, pa.int16()))
        & (pc.field("start_s") == nearest)
    )
    vectors, index = rows.numpy(columns=["start_s", "end_s", "embedding"], where=place)
    end = float(index.column("end_s")[0].as_py())
    title = f"{recording} at {nearest:.10g} s"
    return Query(vectors[:1], title, Stretch(recording, nearest, end))


def from_sound(rows: Rows, sounding: Sounding, weights: str | None = None) -> Query:
    """Return the vectors of the windows that a run would make of a file, those inside the sound.

    Windows lie on the grid that a run lays over the whole file. Where the sound holds none of them
    whole, the query is the one that covers most of it. Channels are treated as the run did; where
    it took each on its own, the query has windows of every channel.

    Args:
        rows: The windows to search, whose encoder and settings are taken.
        sounding: The sound.
        weights: Where the weights are now, if not where they were.

    Raises:
        InputError: no such sound, or the encoder at hand is not the one that made the windows.
        WeightsError: the weights are gone.
    """
    planned, job, number = planned_again(rows, weights)
    span = _span(sounding, planned, job)
    (audio,) = decode_shard(Work(Shard((span,)), planned.datasets), [planned], job)
    if isinstance(audio, RecordingError):
        raise InputError(f"{sounding.uri}: {audio}")
    windows = encode_again(planned, job, span, audio)
    if not len(windows.start):
        lost = f": {windows.lost[0].error}" if windows.lost else ""
        raise InputError(f"{sounding.uri}: no window{lost}; is the sound there?")
    scale = planned.facts.rate_hz * job.input.time_expansion
    starts = windows.start / scale
    valid = np.array(windows.valid, np.float64)
    ends = starts + valid / scale
    chosen = _inside(
        starts, ends, starts + planned.rule.window / scale, sounding.start_s, sounding.stop_s
    )
    stored = windows.vectors[number][chosen].astype(job.embedding_dtype)
    title = f"{sounding.uri} {starts[chosen].min():.10g} to {ends[chosen].max():.10g} s"
    return Query(stored.astype(np.float32), title)


def _span(sounding: Sounding, planned: PlannedEncoder, job: Job) -> Span:
    """Return the native samples in which a window of the query may start."""
    uri = storage.absolute(sounding.uri)
    try:
        info = storage.stat_object(uri)
        source = Source(info.uri, info.stamp, info.size_bytes)
        header, _ = probe(source)
    except NotFoundError:
        raise InputError(f"{sounding.uri}: no such file") from None
    except RecordingError as error:
        raise InputError(f"{sounding.uri}: {error}") from None
    low, high = sounding.start_s, sounding.stop_s
    if low < 0 or (high is not None and high <= low):
        raise ConfigError(
            f"--start {low:g} --stop {high}: use two times of the file, the earlier first"
        )
    rate = header.rate_hz
    if header.n_promised is not None and low * rate >= header.n_promised:
        length = header.n_promised / rate
        raise InputError(
            f"{sounding.uri}: is {length:.6g} s long; --start {low:g} lies behind its end"
        )
    # Windows that begin before a short sound may be the ones that cover it.
    window_s = planned.rule.window / (planned.facts.rate_hz * job.input.time_expansion)
    start = max(0, int((low - window_s) * rate))
    stop = None if high is None else int(np.ceil(high * rate))
    if stop is not None and header.n_samples is not None and stop >= header.n_samples:
        stop = None
    return Span(info.key, source, header, start, stop)


def _inside(
    starts: npt.NDArray[np.float64],
    ends: npt.NDArray[np.float64],
    full_ends: npt.NDArray[np.float64],
    low: float,
    high: float | None,
) -> npt.NDArray[np.int64]:
    """Return the windows that lie whole between two times, else those that cover most of it.

    Args:
        starts: (W,) seconds.
        ends: (W,) where their sound ends.
        full_ends: (W,) where they end, padding included.
        low: First second.
        high: Last second; None for the file's end.
    """
    last = float(ends.max()) if high is None else high
    slack = SAME_TIME_S
    whole = (starts >= low - slack) & (full_ends <= last + slack)
    if whole.any():
        return np.flatnonzero(whole)
    covered = np.minimum(ends, last) - np.maximum(starts, low)
    most = covered >= covered.max() - slack
    # Of windows that cover as much, the one whose middle is nearest: then least else is in it.
    off = np.abs((starts + full_ends) / 2 - (low + last) / 2)
    nearest = starts[np.where(most, off, np.inf).argmin()]
    return np.flatnonzero(np.abs(starts - nearest) <= slack)


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, sorted(values)))
