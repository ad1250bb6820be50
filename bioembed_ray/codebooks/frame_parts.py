"""Parts of frames/ or embeddings/ read for a sample: first who and where, then the chosen vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import storage
from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.codebooks.sample import (
    Hashes,
    SampleRule,
    Selection,
    frame_hashes,
    is_held_out,
    order_keys,
    smallest,
)
from bioembed_ray.errors import InputError
from bioembed_ray.inputs.listing import Source

# Decoded at once: some ten thousand rows of 768 float32, fewer longer ones.
BATCH_ROWS, BATCH_BYTES = 1 << 14, 48 << 20
PLACES = ("recording", "channel", "sample", "patch", "start_s")
# Windows are placed by their start in seconds; a microsecond tells any two apart.
POSITIONS_PER_S = 1_000_000

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """Frames and where they are from.

    Attributes:
        names: Names of recordings.
        recording: (N,) index into `names`.
        channel: (N,) channel.
        position: (N,) first sample, or microseconds for windows.
        patch: (N,) frequency patch.
        hashes: (N,) hash.
        vectors: (N, D), or None where only the places were read.
    """

    names: tuple[str, ...]
    recording: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int16]
    position: npt.NDArray[np.int64]
    patch: npt.NDArray[np.int16]
    hashes: Hashes
    vectors: Vectors | None = None

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Rows:
        """Return some of the rows."""
        return Rows(
            self.names,
            self.recording[rows],
            self.channel[rows],
            self.position[rows],
            self.patch[rows],
            self.hashes[rows],
            None if self.vectors is None else self.vectors[rows],
        )

    def place(self, row: int) -> str:
        """Return where a row is from, for messages."""
        name = self.names[int(self.recording[row])]
        return f"{name}, channel {self.channel[row]}, position {self.position[row]}, patch {self.patch[row]}"


def row_hashes(
    recordings: Sequence[str],
    recording: npt.NDArray[np.integer],
    channel: npt.NDArray[np.integer],
    start_s: npt.NDArray[np.float64],
    patch: npt.NDArray[np.integer] | None = None,
) -> Hashes:
    """Return the hash of every row that is placed by its second: (N,) uint64.

    Args:
        recordings: Names.
        recording: (N,) index into the names.
        channel: (N,) channel.
        start_s: (N,) seconds from the recording's start.
        patch: (N,) frequency patch; 0 without it.
    """
    position = np.rint(start_s * POSITIONS_PER_S).astype(np.int64)
    patch = np.zeros_like(position) if patch is None else patch
    return frame_hashes(recordings, recording, channel, position, patch)


def read_part(uri: str, with_vectors: bool) -> Iterator[Rows]:
    """Yield the rows of a part, some at a time.

    Args:
        uri: A part of frames/ or embeddings/.
        with_vectors: Whether vectors are read, or only who and where.

    Raises:
        InputError: not such a part.
        StorageError: reading failed.
    """
    entry = storage.stat_object(uri)
    file = ByteFile(Source(entry.uri, entry.stamp, entry.size_bytes))
    try:
        table = pq.ParquetFile(cast(IO[bytes], file), pre_buffer=False, buffer_size=1 << 20)
        present = [name for name in PLACES if name in table.schema_arrow.names]
        columns = [*present, "embedding"] if with_vectors else present
        n_rows = BATCH_ROWS
        if with_vectors:
            width = table.schema_arrow.field("embedding").type.list_size
            n_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // (4 * width)))
        for batch in table.iter_batches(n_rows, columns=columns, use_threads=False):
            yield _rows(batch)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        file.check()
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{uri}: not a part of frames/ or embeddings/ ({text})") from error
    file.check()


def _rows(batch: pa.RecordBatch) -> Rows:
    column = {name: batch.column(name) for name in batch.schema.names}
    recordings = column["recording"].dictionary_encode()
    names = tuple(recordings.dictionary.to_pylist())
    recording = recordings.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    channel = column["channel"].to_numpy(zero_copy_only=False)
    if "sample" in column:
        position = column["sample"].to_numpy(zero_copy_only=False)
        patch = column["patch"].to_numpy(zero_copy_only=False)
    else:
        starts = column["start_s"].to_numpy(zero_copy_only=False)
        position = np.rint(starts * POSITIONS_PER_S).astype(np.int64)
        patch = np.zeros(len(position), np.int16)
    vectors = None
    if "embedding" in column:
        flat = column["embedding"].flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(len(position), -1)
    hashes = frame_hashes(names, recording, channel, position, patch)
    return Rows(names, recording, channel, position, patch, hashes, vectors)


def group_of(
    rows: Rows, groups: Mapping[str, str] | None
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the groups that rows belong to: their names, and (N,) which one.

    Args:
        rows: Frames.
        groups: Recording -> group; None puts all into one, and so does a recording without one.
    """
    if groups is None:
        return ("",), np.zeros(len(rows), np.int64)
    names = [groups.get(name, "") for name in rows.names]
    found, index = np.unique(np.array(names, dtype=object), return_inverse=True)
    return tuple(found.tolist()), index.reshape(-1)[rows.recording]


@dataclass(frozen=True, slots=True)
class Counts:
    """Frames of a part: how many may be fitted on, by group, and how many are held out."""

    fitted: dict[str, int]
    held: int


def count_part(uri: str, rule: SampleRule, groups: Mapping[str, str] | None) -> Counts:
    """Count the frames of a part."""
    counts: dict[str, int] = {}
    n_held = 0
    for rows in read_part(uri, with_vectors=False):
        is_held = is_held_out(rows.hashes, rule.held_out)
        n_held += int(is_held.sum())
        kept = rows.take(~is_held)
        names, group = group_of(kept, groups)
        for name, count in zip(names, np.bincount(group, minlength=len(names)), strict=True):
            counts[name] = counts.get(name, 0) + int(count)
    return Counts(counts, n_held)


def part_hashes(
    uri: str, rule: SampleRule, groups: Mapping[str, str] | None, quota: Mapping[str, int]
) -> tuple[dict[str, Hashes], Hashes]:
    """Return the smallest hashes of a part: by group, no more than its quota, and the held-out ones."""
    fitted: dict[str, list[Hashes]] = {}
    held = [np.zeros(0, np.uint64)]
    for rows in read_part(uri, with_vectors=False):
        is_held = is_held_out(rows.hashes, rule.held_out)
        held.append(rows.hashes[is_held])
        kept = rows.take(~is_held)
        names, group = group_of(kept, groups)
        for number, name in enumerate(names):
            fitted.setdefault(name, []).append(kept.hashes[group == number])
    best = {
        name: smallest(np.concatenate(all_), quota[name])
        for name, all_ in fitted.items()
        if name in quota
    }
    return best, smallest(np.concatenate(held), rule.held_out_frames)


def chosen_rows(
    uri: str, selection: Selection, groups: Mapping[str, str] | None
) -> tuple[Rows | None, Rows | None]:
    """Return the rows of a part that are fitted on, and those kept to judge by, with vectors."""
    fitted, held = [], []
    for rows in read_part(uri, with_vectors=True):
        is_fitted, is_kept = selection.chosen(rows.hashes, *group_of(rows, groups))
        fitted.append(rows.take(is_fitted))
        held.append(rows.take(is_kept))
    return stack_rows(fitted), stack_rows(held)


def stack_rows(pieces: Sequence[Rows | None]) -> Rows | None:
    """Return rows of several origins as one; None where there are none.

    Raises:
        InputError: vectors of different lengths.
    """
    full = [piece for piece in pieces if piece is not None and len(piece)]
    if not full:
        return None
    names = sorted({name for piece in full for name in piece.names})
    code = {name: number for number, name in enumerate(names)}
    recording = [
        np.array([code[name] for name in piece.names], np.int64)[piece.recording] for piece in full
    ]
    vectors = [piece.vectors for piece in full if piece.vectors is not None]
    widths = {piece.shape[1] for piece in vectors}
    if len(widths) > 1:
        raise InputError(
            f"frames of different lengths: {sorted(widths)}; they are of different encoders"
        )
    return Rows(
        tuple(names),
        np.concatenate(recording),
        np.concatenate([piece.channel for piece in full]),
        np.concatenate([piece.position for piece in full]),
        np.concatenate([piece.patch for piece in full]),
        np.concatenate([piece.hashes for piece in full]),
        cast(Vectors, np.concatenate(vectors)) if vectors else None,
    )


def in_order(rows: Rows) -> Rows:
    """Return rows in the sample's order, each hash once.

    Where two frames have the same hash (one pair among 5 million with probability 7e-7), the first
    by name, channel, position and patch stays.
    """
    keys = order_keys(rows.hashes)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if np.any(ordered[1:] == ordered[:-1]):
        # Names are sorted, so their index stands for them.
        order = np.lexsort((rows.patch, rows.position, rows.channel, rows.recording, keys))
        ordered = keys[order]
        order = order[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return rows.take(order)
