"""One shard decoded: a waveform per span and rate, or in its place why there is none.

Plain functions, no Ray: the stream calls them in its tasks, a test calls them directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bioembed_ray.audio.spans import read_span
from bioembed_ray.config import Job
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.errors import Reason, RecordingError, StorageError
from bioembed_ray.outcomes import Failure
from bioembed_ray.plan import Work
from bioembed_ray.segments import Span
from bioembed_ray.transport import Audio
from bioembed_ray.versions import reach_s

# Short recordings spend their time waiting for the store; a few at once hide that.
READ_THREADS = 4
# A store that fails for so many recordings in a row, none between them read, is out of reach.
STORE_ERRORS = 2 * READ_THREADS


def decode_shard(work: Work, encoders: Sequence[PlannedEncoder], job: Job) -> list[Audio]:
    """Decode every span once, at every rate that the missing datasets need.

    A recording's own errors come back in its place; none is raised. Where the store fails for
    several in a row the rest is not read: nothing of the shard will be committed, and every one
    would wait for a store that is not there.
    """
    needed = [e for e in encoders if set(e.all_datasets) & set(work.datasets)]
    rates = tuple(sorted({encoder.facts.rate_hz for encoder in needed}))
    reach = reach_s(tuple(needed))

    in_a_row: list[RecordingError] = []

    def read(number: int) -> Audio:
        if number in work.crashed:
            return RecordingError(Reason.CRASHED, "the worker process died on it, repeatedly")
        if len(in_a_row) >= STORE_ERRORS:
            return RecordingError(Reason.STORAGE, f"not read after {in_a_row[-1].detail}")
        audio = _read(work.shard.spans[number], rates, reach, job)
        if isinstance(audio, RecordingError) and audio.reason is Reason.STORAGE:
            in_a_row.append(audio)
        else:
            in_a_row.clear()
        return audio

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, range(len(work.shard.spans))))


def _read(span: Span, rates: tuple[int, ...], reach: tuple[float, float], job: Job) -> Audio:
    try:
        audio = read_span(span, rates, reach, job.input.channels, job.input.time_expansion)
    except RecordingError as error:
        return error
    except StorageError as error:
        name = type(error).__name__
        is_other = name in {"ChangedError", "NotFoundError"}
        return RecordingError(Reason.CHANGED if is_other else Reason.STORAGE, str(error))
    except MemoryError:
        return RecordingError(Reason.OUT_OF_MEMORY, "decoding ran out of memory")
    # Decoders are foreign code fed with damaged files; one recording must not stop the run.
    except Exception as error:  # noqa: BLE001
        text = " ".join(str(error).split())[:300]
        return RecordingError(Reason.DAMAGED, f"{type(error).__name__}: {text}")
    if audio.n_extent == 0 and span.start == 0:
        if audio.fault is not None:
            return RecordingError(Reason.DAMAGED, audio.fault)
        return RecordingError(Reason.EMPTY, "decodes to no samples")
    return audio


def transient(work: Work, audios: Sequence[Audio]) -> list[Failure]:
    """Return the failures that a later run may not meet; with any of them nothing is committed."""
    return [
        Failure(span.recording, audio.reason, audio.detail, shard=work.shard.id)
        for span, audio in zip(work.shard.spans, audios, strict=True)
        if isinstance(audio, RecordingError) and audio.reason.is_transient
    ]
