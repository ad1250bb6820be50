"""The bytes of one recording as a seekable file: ranged reads, readahead, Parquet cells.

libsndfile and FFmpeg call back into Python for every read. An exception there is lost (libsndfile
then sees an early end and a WAV just comes out shorter), so a `ByteFile` never raises while it is
read: it keeps the first storage error, answers "end of file", and `check` raises afterwards.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray.audio.compressed import is_compressed, member_bytes
from bioembed_ray.errors import ChangedError, Reason, RecordingError, StorageError
from bioembed_ray.inputs.listing import Source
from bioembed_ray.storage import ABSENT, DANGLING, read_range, stat_object

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Patches = tuple[tuple[int, bytes], ...]

# A header, or one seek, fits in the first read; a stream soon costs few requests.
FIRST_READ = 256 << 10
LARGEST_READ = 8 << 20
# Blocks kept: the header, the end of the file, and where reading is.
KEPT_BLOCKS = 3
# Rows decoded at once from a Parquet column of whole recordings.
ROWS_PER_BATCH = 4


class ByteFile(io.RawIOBase):
    """One recording's bytes, read-only.

    Attributes:
        size: Length in bytes, patches included.
        error: The first storage error met; every later read answers end of file.

    Args:
        source: Where the bytes are.
        patches: (position, bytes) laid over the file. A patch may start before byte 0: the file
            then starts there, which is how a short header is replaced by a longer one.
        content: The bytes themselves, where they are in memory already.
        begin: Byte of the recording at which the file starts, where that is none of the above.
    """

    def __init__(
        self,
        source: Source,
        patches: Patches = (),
        content: bytes | None = None,
        begin: int | None = None,
    ) -> None:
        super().__init__()
        self._source = source
        self._content = content
        self._begin = min([0, *(place for place, _ in patches)]) if begin is None else begin
        self._patches = tuple((position - self._begin, body) for position, body in patches)
        length = source.size_bytes if content is None else len(content)
        self.size = length - self._begin
        self.error: StorageError | None = None
        self._position = 0
        self._blocks: list[tuple[int, bytes]] = []
        self._ahead = FIRST_READ
        self._last_stop = -1
        self._expected_stop = self.size

    def place(self) -> int:
        """Return the byte of the recording that is read next."""
        return self._position + self._begin

    def expect_until(self, position: int) -> None:
        """Say where reading is expected to stop, so that readahead does not fetch far past it."""
        self._expected_stop = min(self.size, position)

    def check(self) -> None:
        """Raise the first storage error, if there was one.

        Raises:
            StorageError: what a read met since the file was opened.
        """
        if self.error is not None:
            raise self.error

    def read_at(self, position: int, count: int) -> bytes:
        """Return up to `count` bytes from `position`, fewer only at the end of the file.

        Raises:
            StorageError: the store refused.
        """
        self.seek(position)
        body = self.read(count)
        self.check()
        return body or b""

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        # A decoder misled by a broken header may ask for a place before the start.
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:  # noqa: D102
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            piece = self._piece(len(view) - filled)
            if not piece:
                break
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def _piece(self, wanted: int) -> memoryview | bytes:
        """Return some bytes from the current position, none at the end or after an error."""
        position = self._position
        if self.error is not None or position >= self.size or wanted <= 0:
            return b""
        for index, (start, body) in enumerate(self._blocks):
            if start <= position < start + len(body):
                self._blocks.append(self._blocks.pop(index))
                break
        else:
            try:
                start, body = position, self._fetch(position, self._read_length(wanted))
            except StorageError as error:
                self.error = error
                return b""
            self._blocks = [*self._blocks[-(KEPT_BLOCKS - 1) :], (start, body)]
        return memoryview(body)[position - start : position - start + wanted]

    def _read_length(self, wanted: int) -> int:
        position = self._position
        if position == self._last_stop:
            self._ahead = min(2 * self._ahead, LARGEST_READ)
        else:
            self._ahead = FIRST_READ
        until = self._expected_stop - position
        ahead = min(self._ahead, until) if until > 0 else FIRST_READ
        return min(max(wanted, ahead), LARGEST_READ, self.size - position)

    def _fetch(self, position: int, length: int) -> bytes:
        start, stop = position + self._begin, position + self._begin + length
        body = bytes(-min(start, 0)) + self._stored(max(start, 0), max(stop, 0))
        self._last_stop = position + length
        for place, patch in self._patches:
            first, last = max(place, position), min(place + len(patch), position + length)
            if first < last:
                body = (
                    body[: first - position]
                    + patch[first - place : last - place]
                    + body[last - position :]
                )
        return body[:length]

    def _stored(self, start: int, stop: int) -> bytes:
        if self._content is not None:
            return self._content[start:stop]
        source = self._source
        body = read_range(source.uri, source.offset + start, source.offset + stop, source.stamp)
        if len(body) != stop - start:
            raise ChangedError(f"{source.uri}: shorter than it was when listed")
        return body


def open_source(source: Source, patches: Patches = (), begin: int | None = None) -> ByteFile:
    """Return the bytes of a recording as a file; see `ByteFile` for patches and begin.

    A file, or a member of a tar, is read as it is needed; a Parquet cell, or a member of a
    compressed tar, is read at once.

    Raises:
        RecordingError: a link to nowhere, what a manifest names in vain, an empty Parquet cell, a Parquet file that cannot be
            read, or a compressed tar that is damaged before the member.
        StorageError: the store refused while that was read.
    """
    if source.stamp == DANGLING:
        # Nothing to retry: once its target is there it has another stamp, and is read anew.
        raise RecordingError(
            Reason.EMPTY, "a link whose target is not there; fetch it, e.g. by `git annex get`"
        )
    if source.stamp == ABSENT:
        raise RecordingError(Reason.MISSING, "the manifest names it, and nothing stands there")
    if source.row is not None:
        return ByteFile(source, patches, _read_cell(source), begin)
    if is_compressed(source.uri):
        return ByteFile(source, patches, member_bytes(source), begin)
    return ByteFile(source, patches, begin=begin)


class _Cursor:
    """A place in one column of one row group, which only moves forward.

    Rows of a shard are asked for in order, and every recording twice (probe, decode). Keeping the
    place reads each row group once instead of once per row.
    """

    def __init__(self, source: Source) -> None:
        assert source.column is not None
        self.key = (source.uri, source.stamp, source.column)
        self.column = source.column
        info = stat_object(source.uri)
        self.bytes = ByteFile(Source(source.uri, source.stamp, info.size_bytes))
        # No pre-buffering: it would hold a whole row group of audio.
        try:
            self.file = pq.ParquetFile(self.bytes, pre_buffer=False, buffer_size=1 << 20)
        finally:
            self.bytes.check()
        self.first_row = 0
        self.group = -1
        self.cells: pa.Array = pa.array([], pa.binary())
        self.batches: Iterator[pa.RecordBatch] = iter(())

    def cell(self, row: int) -> bytes | None:
        group, first = self._locate(row)
        if group != self.group or row < self.first_row:
            self.batches = self.file.iter_batches(
                batch_size=ROWS_PER_BATCH, row_groups=[group], columns=[self.column]
            )
            self.group, self.first_row, self.cells = group, first, pa.array([], pa.binary())
        while row >= self.first_row + len(self.cells):
            self.first_row += len(self.cells)
            self.cells = _leaf(next(self.batches).column(0))
        value: bytes | None = self.cells[row - self.first_row].as_py()
        return value

    def _locate(self, row: int) -> tuple[int, int]:
        first = 0
        for group in range(self.file.metadata.num_row_groups):
            n_rows = self.file.metadata.row_group(group).num_rows
            if row < first + n_rows:
                return group, first
            first += n_rows
        raise StopIteration


def _leaf(column: pa.Array) -> pa.Array:
    """Return the binary values inside the structs of a nested column such as `audio.bytes`."""
    while pa.types.is_struct(column.type):
        column = column.flatten()[0]
    return column


_here = threading.local()


def _read_cell(source: Source) -> bytes:
    assert source.row is not None
    cursor: _Cursor | None = getattr(_here, "cursor", None)
    try:
        if cursor is None or cursor.key != (source.uri, source.stamp, source.column):
            cursor = _Cursor(source)
        # Only a cursor that came through whole is kept for the next row.
        _here.cursor = None
        value = cursor.cell(source.row)
        cursor.bytes.check()
        _here.cursor = cursor
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        if cursor is not None:
            cursor.bytes.check()
        detail = str(error).splitlines()[0] if str(error) else "no such row or column"
        raise RecordingError(
            Reason.DAMAGED, f"Parquet row {source.row}, column {source.column}: {detail}"
        ) from error
    if not value:
        raise RecordingError(
            Reason.EMPTY, f"Parquet row {source.row}, column {source.column}: no bytes"
        )
    return value
