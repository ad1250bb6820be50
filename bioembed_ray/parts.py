"""Arrays become one Parquet part named by its shard; parts are listed and read back.

The listing of a partition is the state of the work: a shard is done where its part stands. What
became of its recordings stands in the part's own metadata, so a part is put once, whole, and
nothing else has to be written with it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import schema, storage
from bioembed_ray.config import Job
from bioembed_ray.datasets import Dataset, PlannedEncoder, placement
from bioembed_ray.errors import BrokenOutput, NotFoundError, Reason, RecordingError
from bioembed_ray.outcomes import Failure, PartOutcome, outcome_from_json, outcome_to_json
from bioembed_ray.segments import Shard, span_to_json
from bioembed_ray.window_seconds import window_seconds

if TYPE_CHECKING:
    # They bring torch along, 4 s that reading and planning can do without.
    from bioembed_ray.apply import Place, Windows
    from bioembed_ray.frames import Frames

FOOTER_BYTES = 1 << 16
# What begins the keys of a part's metadata.
OWN = "bioembed."


def part_uri(output: str, dataset: Dataset, shard: str) -> str:
    """Return where the part of a shard stands."""
    return storage.join(output, dataset.prefix, f"{shard}.parquet")


def list_parts(output: str, dataset: Dataset) -> dict[str, storage.ObjectInfo]:
    """Return shard id -> object for every part of a dataset; none where it does not exist yet."""
    try:
        objects = list(storage.list_objects(storage.join(output, dataset.prefix)))
    except NotFoundError:
        return {}
    return {
        entry.key.removesuffix(".parquet"): entry
        for entry in objects
        if entry.key.endswith(".parquet") and not entry.key.startswith(".")
    }


def storable_windows(windows: Windows, layer: int, dtype: str) -> Windows:
    """Return the windows whose vectors a part can hold; those beyond its type are lost."""
    from bioembed_ray.apply import lost_window, without_lost

    fits = _fits(windows.vectors[layer], dtype)
    if fits.all():
        return windows
    error = RecordingError(Reason.NONFINITE_VECTOR, _beyond(dtype, "embedding_dtype"))
    lost = [lost_window(windows, row, error) for row in np.flatnonzero(~fits)]
    return without_lost(replace(windows, lost=windows.lost + lost))


def storable_frames(
    shard: Shard,
    places: Sequence[Place],
    frames: Frames,
    layer: int,
    receptive: int,
    dtype: str,
    dataset: Dataset,
) -> tuple[Frames, tuple[Failure, ...]]:
    """Return the frames whose vectors a part can hold, and a failure per place with others."""
    fits = _fits(frames.vectors[layer], dtype)
    if fits.all():
        return frames, ()
    failures = []
    for index in np.unique(frames.place[~fits]).tolist():
        place, starts = places[index], frames.start[~fits & (frames.place == index)]
        failure = Failure(
            shard.spans[place.span].recording,
            Reason.NONFINITE_VECTOR,
            f"{len(starts)} frames: {_beyond(dtype, 'frame_dtype')}",
            encoder=dataset.encoder,
            version=dataset.version,
            channel=place.track.channel,
            start_s=place.clock.seconds(int(starts[0])),
            end_s=place.clock.seconds(int(starts[-1]) + receptive),
            shard=shard.id,
        )
        failures.append(failure)
    kept = replace(
        frames,
        place=frames.place[fits],
        start=frames.start[fits],
        patch=frames.patch[fits],
        vectors=[vectors[fits] for vectors in frames.vectors],
    )
    return kept, tuple(failures)


def _fits(vectors: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.bool_]:
    """Return (n,): whether every number of a vector stays finite in the stored type."""
    if dtype == "float32":
        return np.ones(len(vectors), bool)
    with np.errstate(over="ignore"):
        fits: npt.NDArray[np.bool_] = np.isfinite(vectors.astype(dtype)).all(axis=1)
    return fits


def _beyond(dtype: str, key: str) -> str:
    return f"a value beyond {np.finfo(dtype).max:g}, the largest {dtype}; set {key}: float32"


def windows_table(
    shard: Shard,
    places: Sequence[Place],
    windows: Windows,
    layer: int,
    window: int,
    dtype: str,
    dim: int,
) -> pa.Table:
    """Return one row per window, in the order of spans, channels and starts."""
    names = [shard.spans[place.span].recording for place in places]
    seconds = np.array(
        [
            window_seconds(places[place].clock, start, window, valid)
            for place, start, valid in zip(
                windows.place.tolist(), windows.start.tolist(), windows.valid, strict=True
            )
        ],
        np.float64,
    ).reshape(-1, 3)
    return pa.table(
        [
            _names(names, windows.place),
            _channels(places, windows.place),
            *(pa.array(column) for column in seconds.T),
            _vectors(windows.vectors[layer], dtype, dim),
        ],
        schema=schema.embeddings(dim, dtype),
    )


def frames_table(
    shard: Shard,
    places: Sequence[Place],
    frames: Frames,
    layer: int,
    receptive: int,
    dtype: str,
    dim: int,
) -> pa.Table:
    """Return one row per frame, in the order of spans, channels, positions and patches."""
    names = [shard.spans[place.span].recording for place in places]
    scale = np.array(
        [place.clock.encoder_hz * place.clock.time_expansion for place in places] or [1], np.int64
    )[frames.place]
    return pa.table(
        [
            _names(names, frames.place),
            _channels(places, frames.place),
            pa.array(frames.start),
            pa.array(frames.patch),
            # int64 / int64 rounds once: positions stay below 2^53.
            pa.array(frames.start / scale),
            pa.array((frames.start + receptive) / scale),
            _vectors(frames.vectors[layer], dtype, dim),
        ],
        schema=schema.frames(dim, dtype),
    )


def _names(names: list[str], index: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(index))


def _channels(places: Sequence[Place], index: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(np.array([place.track.channel for place in places], np.int16)[index])


def _vectors(vectors: npt.NDArray[np.float32], dtype: str, dim: int) -> pa.Array:
    flat = np.ascontiguousarray(vectors).reshape(-1).astype(dtype, copy=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), dim)


def part_bytes(
    table: pa.Table, encoder: PlannedEncoder, shard: Shard, outcome: PartOutcome, job: Job
) -> bytes:
    """Return the whole Parquet file of a part; the same content gives the same bytes."""
    facts = {
        "encoder": outcome.dataset.encoder,
        "version": outcome.dataset.version,
        "shard": outcome.shard,
        "weights": weights_stamp(encoder),
        "config": encoder.config.model_dump_json(),
        "placement": json.dumps(placement(encoder, job)),
        "spans": json.dumps([span_to_json(span) for span in shard.spans]),
        "outcome": json.dumps(outcome_to_json(outcome)),
    }
    return file_bytes(table, facts)


def file_bytes(table: pa.Table, facts: dict[str, str]) -> bytes:
    """Return a part's rows, and what is said of them, as a Parquet file."""
    metadata = {f"{OWN}{key}": value for key, value in facts.items()}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=["recording"],
        # Statistics of vector values help no query.
        write_statistics=[
            name for name in table.schema.names if name not in {"embedding", "tokens"}
        ],
    )
    return bytes(sink.getvalue())


def weights_stamp(encoder: PlannedEncoder) -> str:
    """Return what is said of an encoder's weights wherever its vectors are."""
    checkpoint = encoder.checkpoint
    if encoder.is_random:
        return f"RANDOM, untrained (seed {checkpoint.seed})"
    if encoder.is_untrained:
        return "not trained yet"
    if checkpoint.repo is not None:
        return f"{checkpoint.repo}@{checkpoint.commit}"
    return f"local, sha256 {checkpoint.digest}"


def read_table(entry: storage.ObjectInfo) -> pa.Table:
    """Return a part's rows.

    Raises:
        StorageError: reading failed.
    """
    return pq.read_table(pa.BufferReader(storage.read(entry.uri)))


def read_metadata(entry: storage.ObjectInfo) -> dict[str, str]:
    """Return a part's own metadata from its footer, without reading its vectors.

    Raises:
        BrokenOutput: not a Parquet file, or not one of ours.
        StorageError: reading failed.
    """
    size = entry.size_bytes
    tail = storage.read_range(entry.uri, max(0, size - FOOTER_BYTES), size)
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise BrokenOutput(f"{entry.uri}: not a whole Parquet file; delete it and run again")
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if footer > len(tail):
        tail = storage.read_range(entry.uri, max(0, size - footer), size)
    try:
        # A footer alone is a valid Parquet file to the metadata reader.
        whole = pq.read_metadata(io.BytesIO(b"PAR1" + tail[-footer:]))
        found = whole.schema.to_arrow_schema()
    except (pa.ArrowInvalid, OSError):
        raise BrokenOutput(
            f"{entry.uri}: not a whole Parquet file; delete it and run again"
        ) from None
    return metadata_of(entry, found)


def metadata_of(entry: storage.ObjectInfo, found: pa.Schema) -> dict[str, str]:
    """Return a part's own metadata from its schema.

    Raises:
        BrokenOutput: not one of ours.
    """
    metadata = {
        key.decode().removeprefix(OWN): value.decode()
        for key, value in (found.metadata or {}).items()
        if key.startswith(OWN.encode())
    }
    if "outcome" not in metadata:
        raise BrokenOutput(f"{entry.uri}: not written by bioembed; move it out of the output")
    return metadata


def read_outcome(entry: storage.ObjectInfo) -> tuple[PartOutcome, list[dict[str, Any]]]:
    """Return what became of a part's shard, and the shard's spans as plain values.

    Raises:
        BrokenOutput, StorageError: see `read_metadata`.
    """
    metadata = read_metadata(entry)
    return outcome_from_json(json.loads(metadata["outcome"])), json.loads(metadata["spans"])
