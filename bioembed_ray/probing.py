"""Looking into recordings on the cluster: headers read in parallel, containers listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bioembed_ray.audio.containers import members
from bioembed_ray.audio.probe import probe
from bioembed_ray.errors import BioembedError, Reason, RecordingError, StorageError
from bioembed_ray.inputs.listing import Container, Recording
from bioembed_ray.inventory import Probed
from bioembed_ray.tasks import spread

PROBE_BATCH = 32


def probe_recordings(recordings: list[Recording]) -> Iterator[Probed]:
    """Read headers in parallel on the cluster; yields in any order.

    A file that kills its worker is found by splitting the batch, and is left out of the answer.
    """
    yield from spread(_probe_batch, recordings, PROBE_BATCH)


def list_members(containers: list[Container]) -> Iterator[Recording]:
    """List what is inside tar and Parquet objects, in parallel on the cluster."""
    for found in spread(_list_batch, containers, 1):
        if isinstance(found, Exception):
            raise found
        yield from found


def _probe_batch(recordings: Sequence[Recording]) -> list[Probed]:
    return [_probe_one(recording) for recording in recordings]


def _probe_one(recording: Recording) -> Probed:
    try:
        path = recording.labels.get("path")
        name = (
            path if recording.source.row is not None and isinstance(path, str) else recording.name
        )
        header, metadata = probe(recording.source, name)
    except RecordingError as error:
        return Probed(recording.name, reason=error.reason, detail=error.detail)
    except StorageError as error:
        return Probed(recording.name, reason=Reason.STORAGE, detail=str(error))
    # Foreign decoders on damaged headers; one recording must not stop the run.
    except Exception as error:  # noqa: BLE001
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Probed(recording.name, reason=Reason.DAMAGED, detail=detail)
    return Probed(recording.name, header, metadata)


def _list_batch(containers: Sequence[Container]) -> list[Any]:
    found: list[Any] = []
    for container in containers:
        try:
            found.append(list(members(container)))
        except BioembedError as error:
            found.append(error)
    return found
