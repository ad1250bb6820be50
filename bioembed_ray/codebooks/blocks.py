"""The sample on storage: fixed groups of rows in the sample's order, and what is known of them.

    sample/sample.json          rows, dimension, rows per group, digest of what is in it
    sample/00000.npy            (N, D) vectors of a group, float16 or float32 as they came
    sample/00000.parquet        who and where they are
    sample/held_out.npy, .parquet

Groups are read as a whole, so data larger than memory is streamed by reading them again.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import storage
from bioembed_ray.codebooks.frame_parts import Rows, Vectors
from bioembed_ray.errors import BrokenOutput, NotFoundError

HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What stands on storage of a sample.

    Attributes:
        n_rows: Rows fitted on.
        n_held: Held-out rows kept.
        dim: Length of a vector, D.
        group_rows: Rows per group; the last has what is left.
        digest: Of the rows' hashes: which frames they are.
        request: Of the parts and the rule that they were chosen by, to know it again.
        n_seen: Frames there were to choose from, held-out ones included.
        by_group: Balanced group -> rows fitted on.
    """

    n_rows: int
    n_held: int
    dim: int
    group_rows: int
    digest: str
    request: str
    n_seen: int
    by_group: dict[str, int]

    @property
    def n_groups(self) -> int:
        """How many groups."""
        return -(-self.n_rows // self.group_rows)

    def rows_of(self, group: int) -> int:
        """Rows of one group."""
        return min(self.group_rows, self.n_rows - group * self.group_rows)


def group_name(group: int) -> str:
    """Return the name of a group's objects."""
    return f"{group:05d}"


def put_rows(folder: str, name: str, rows: Rows) -> None:
    """Put the vectors of some rows, and who and where they are.

    Raises:
        StorageError: writing failed.
    """
    body = io.BytesIO()
    if rows.vectors is None:
        raise ValueError("rows without vectors")
    np.save(body, np.ascontiguousarray(rows.vectors), allow_pickle=False)
    table = pa.table(
        {
            "recording": pa.DictionaryArray.from_arrays(
                pa.array(rows.recording, pa.int32()), pa.array(rows.names, pa.string())
            ),
            "channel": rows.channel,
            "position": rows.position,
            "patch": rows.patch,
            "hash": rows.hashes,
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.put(storage.join(folder, f"{name}.parquet"), bytes(sink.getvalue()))
    storage.put(storage.join(folder, f"{name}.npy"), body.getvalue())


def read_vectors(folder: str, name: str) -> Vectors:
    """Return the vectors of a group, (N, D).

    Raises:
        NotFoundError, StorageError: reading failed.
    """
    vectors: Vectors = np.load(io.BytesIO(storage.read(storage.join(folder, f"{name}.npy"))))
    return vectors


def read_places(folder: str, name: str) -> Rows:
    """Return who and where the rows of a group are, without their vectors.

    Raises:
        NotFoundError, StorageError: reading failed.
    """
    table = pq.read_table(io.BytesIO(storage.read(storage.join(folder, f"{name}.parquet"))))
    recording = table["recording"].combine_chunks()
    if not pa.types.is_dictionary(recording.type):
        recording = recording.dictionary_encode()
    if isinstance(recording, pa.ChunkedArray):
        recording = recording.chunk(0)
    return Rows(
        tuple(recording.dictionary.to_pylist()),
        recording.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        table["channel"].to_numpy(),
        table["position"].to_numpy(),
        table["patch"].to_numpy(),
        table["hash"].to_numpy(),
    )


def read_rows(folder: str, name: str) -> Rows:
    """Return the rows of a group with their vectors.

    Raises:
        NotFoundError, StorageError: reading failed.
    """
    return replace(read_places(folder, name), vectors=read_vectors(folder, name))


def drop_rows(folder: str, name: str) -> None:
    """Delete the objects of a group; ones that are not there are fine."""
    storage.delete(storage.join(folder, f"{name}.parquet"))
    storage.delete(storage.join(folder, f"{name}.npy"))


def put_info(folder: str, info: SampleInfo) -> None:
    """Put what is known of a sample; the last of its objects, so that where it stands all do."""
    storage.put(storage.join(folder, "sample.json"), json.dumps(asdict(info), indent=1).encode())


def read_info(folder: str) -> SampleInfo | None:
    """Return what is known of a sample, None where it was not finished.

    Raises:
        BrokenOutput: not such a file.
        StorageError: reading failed.
    """
    uri = storage.join(folder, "sample.json")
    try:
        return SampleInfo(**json.loads(storage.read(uri)))
    except NotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BrokenOutput(f"{uri}: not a sample's description; delete it and run again") from error


def drop_sample(folder: str) -> None:
    """Delete a sample's objects, its description first.

    Raises:
        StorageError: deleting failed.
    """
    storage.delete(storage.join(folder, "sample.json"))
    try:
        objects = list(storage.list_objects(folder))
    except NotFoundError:
        return
    for entry in objects:
        storage.delete(entry.uri)


def row_contents(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of every row's numbers; equal rows have equal ones, 0 and -0 alike.

    The sum of the row's 32-bit words, each mixed with its place (SplitMix64's constants).
    """
    words = (rows + np.float32(0)).view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        words += np.arange(1, words.shape[1] + 1, dtype=np.uint64) << np.uint64(32)
        words *= np.uint64(0xBF58476D1CE4E5B9)
        words ^= words >> np.uint64(29)
        words *= np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(32)
        total: npt.NDArray[np.uint64] = words.sum(axis=1, dtype=np.uint64)
        return total
