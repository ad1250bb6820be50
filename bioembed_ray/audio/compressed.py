"""Members of a compressed tar. There is no seeking in gzip, so reading one decompresses up to it."""

from __future__ import annotations

import gzip
import io
import threading
import zlib
from typing import TYPE_CHECKING

from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.inputs.listing import Source
from bioembed_ray.storage import read_range

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 4 << 20
# What gzip raises on a stream that is cut off, or not gzip, or damaged inside.
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


def is_compressed(uri: str) -> bool:
    """Return True where offsets count in the decompressed stream: `.tar.gz` and `.tgz`."""
    return uri.lower().endswith((".tar.gz", ".tgz"))


class _ObjectFile(io.RawIOBase):
    """An object read front to back in blocks; storage errors are raised as they are."""

    def __init__(self, uri: str, stamp: str) -> None:
        super().__init__()
        self._uri, self._stamp = uri, stamp
        self._position = 0
        self._start, self._block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is not known")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._start <= self._position < self._start + len(self._block):
            self._start = self._position
            stop = self._start + BLOCK_BYTES
            self._block = read_range(self._uri, self._start, stop, self._stamp)
        view = memoryview(buffer).cast("B")
        place = self._position - self._start
        piece = self._block[place : place + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def open_stream(uri: str, stamp: str) -> gzip.GzipFile:
    """Return the decompressed bytes of an object as a file; going back starts over.

    Reading it raises `DAMAGE` where the stream is broken, StorageError where the store refuses.
    """
    return gzip.GzipFile(fileobj=io.BufferedReader(_ObjectFile(uri, stamp), 1 << 16), mode="rb")


_here = threading.local()


def member_bytes(source: Source) -> bytes:
    """Return the bytes of a member of a compressed tar.

    The stream is kept open per thread, so that members in their order cost one pass in all.

    Returns:
        `source.size_bytes` bytes, fewer where the stream is damaged inside the member.

    Raises:
        RecordingError: damaged before the member.
        StorageError: the store refused.
    """
    key = (source.uri, source.stamp)
    known, stream = getattr(_here, "stream", (None, None))
    if stream is None or known != key:
        stream = open_stream(*key)
    # Only a stream that came through whole is kept for the next member.
    _here.stream = (None, None)
    pieces: list[bytes] = []
    missing = source.size_bytes
    try:
        stream.seek(source.offset)
        while missing:
            piece = stream.read1(min(missing, 1 << 16))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        _here.stream = (key, stream)
    except DAMAGE as error:
        if not pieces:
            raise RecordingError(
                Reason.DAMAGED, f"compressed tar is damaged before byte {source.offset:,}: {error}"
            ) from error
    return b"".join(pieces)
