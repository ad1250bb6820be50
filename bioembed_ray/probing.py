"""Looking into recordings on the cluster: headers read in parallel, containers listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bioembed_ray.audio.containers import members
from bioembed_ray.audio.probe import probe
from bioembed_ray.errors import InputError, Reason, RecordingError, StorageError
from bioembed_ray.inputs.inside import Opened
from bioembed_ray.inputs.left_out import LeftOut
from bioembed_ray.inputs.listing import Container, Recording
from bioembed_ray.inventory import Probed
from bioembed_ray.tasks import spread

PROBE_BATCH = 32


def probe_recordings(recordings: list[Recording]) -> Iterator[Probed]:
    """Read headers in parallel on the cluster; yields in any order.

    A file that kills its worker is found by splitting the batch, and is left out of the answer.
    """
    yield from spread(_probe_batch, recordings, PROBE_BATCH)


def list_members(containers: list[Container]) -> Iterator[Opened]:
    """List what is inside tar and Parquet objects, in parallel on the cluster; yields in any order.

    An object that kills its worker is left out of the answer.

    Raises:
        InputError: see `containers.members`.
    """
    for found in spread(_list_batch, containers, 1):
        if isinstance(found, InputError):
            raise found
        yield found


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


def _list_batch(containers: Sequence[Container]) -> list[Opened | InputError]:
    return [_list_one(container) for container in containers]


def _list_one(container: Container) -> Opened | InputError:
    try:
        return members(container)
    except InputError as error:
        return error
    except StorageError as error:
        refusal = RecordingError(Reason.STORAGE, str(error))
        return Opened(container.name, [], LeftOut(), refusal)
