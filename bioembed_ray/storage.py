"""Objects by URI: list, read a range, put in one step, create once, delete.

Local paths go through the operating system (`store/disk.py`), everything else through
obstore (`store/remote.py`). A put is seen whole or not at all on both.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bioembed_ray.errors import ChangedError, InputError, NotFoundError, StorageError
from bioembed_ray.store import disk, remote, uris
from bioembed_ray.store.disk import ABSENT, DANGLING, UNREADABLE
from bioembed_ray.store.errors import translated
from bioembed_ray.store.stores import open_store
from bioembed_ray.store.uris import absolute, is_local, join, split_uri

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = [
    "ABSENT",
    "DANGLING",
    "UNREADABLE",
    "ObjectInfo",
    "absolute",
    "arrow_paths",
    "check_writable",
    "create",
    "delete",
    "exists",
    "is_local",
    "join",
    "list_objects",
    "put",
    "read",
    "read_range",
    "replace",
    "split_uri",
    "stat_object",
    "stat_objects",
    "writing",
]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object.

    Attributes:
        key: Name relative to the listed prefix, `/` between parts; bytes that are no text as %XX.
        uri: Full URI or absolute local path.
        size_bytes: Size in bytes.
        stamp: Changes when the content does: the store's etag, or `<size>-<mtime in ns>` locally;
            `DANGLING` for a link to nowhere, `ABSENT` for what a manifest names in vain, `UNREADABLE…`.
    """

    key: str
    uri: str
    size_bytes: int
    stamp: str


def list_objects(
    uri: str, depth: int | None = None, enters: Callable[[str], bool] | None = None
) -> Iterator[ObjectInfo]:
    """Yield every object below a prefix (or the one object it names).

    A remote prefix without objects yields nothing; stores have no folders. In name order page by
    page on a store, folder by folder on a disk.

    Args:
        uri: Folder, prefix or object.
        depth: Most folders deep, 1 = only what lies right below; None = all.
        enters: Whether to open a local folder, see `disk.walk`; its key may not be text.

    Raises:
        NotFoundError, NoBucketError: a local folder or a bucket that does not exist.
        DeniedError, StorageError: the store refused, or could not be reached.
    """
    scheme, bucket, key = split_uri(uri)
    if not scheme:
        with translated(uri, name_the_file=True):
            for name, path, size, stamp in disk.walk(disk.absolute(key), depth, enters):
                yield ObjectInfo(uris.text_of(name), uris.local_uri(path), size, stamp)
        return
    with translated(uri):
        store, key = open_store(uri)
        for below, whole, size, stamp in remote.walk(store, key, depth):
            yield ObjectInfo(below, f"{scheme}://{bucket}/{whole}", size, stamp)


def stat_object(uri: str) -> ObjectInfo:
    """Return what a listing would say of one object.

    Raises:
        NotFoundError: it does not exist, or is a folder.
        DeniedError, StorageError: the store refused, or could not be reached.
    """
    scheme, _, key = split_uri(uri)
    with translated(uri):
        if not scheme:
            path = disk.absolute(key)
            return ObjectInfo(
                uris.text_of(Path(path).name), uris.local_uri(path), *disk.stat_file(path)
            )
        size, stamp = remote.stat_key(*open_store(uri))
        return ObjectInfo(key.rsplit("/", 1)[-1], uri, size, stamp)


def stat_objects(uris: list[str]) -> list[ObjectInfo | None]:
    """Return `stat_object` of many objects of a store at once, None where nothing stands.

    Raises:
        DeniedError, StorageError: the store refused, or could not be reached.
    """

    def look(uri: str) -> ObjectInfo | None:
        try:
            return stat_object(uri)
        except NotFoundError:
            return None

    # A HEAD waits some 30 ms for the store and needs no CPU.
    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(look, uris))


def read_range(uri: str, start: int, stop: int, stamp: str | None = None) -> bytes:
    """Return bytes [start, stop) of an object, fewer where it ends before.

    Args:
        uri: The object.
        start: First byte, >= 0.
        stop: One past the last byte.
        stamp: What the listing said; a read of another version raises.

    Raises:
        ChangedError: the object is no longer the one with this stamp.
        NotFoundError, DeniedError, StorageError: after retries.
    """
    scheme, _, key = split_uri(uri)
    if stop <= start:
        return b""
    with translated(uri):
        if not scheme:
            body, found = disk.read_range(disk.absolute(key), start, stop)
        else:
            body, found = remote.read_range(*open_store(uri), start, stop)
    if stamp is not None and stamp != found:
        raise ChangedError(f"{uris.shown_uri(uri)}: replaced since it was listed")
    return body


def read(uri: str) -> bytes:
    """Return a whole object.

    Raises:
        NotFoundError, DeniedError, StorageError: after retries.
    """
    scheme, _, key = split_uri(uri)
    with translated(uri):
        if not scheme:
            return Path(disk.absolute(key)).read_bytes()
        return remote.read(*open_store(uri))


def arrow_paths(uris: list[str]) -> tuple[FileSystem, list[str]]:
    """Return the objects as paths of an Arrow file system, which reads only what a scan needs.

    Args:
        uris: Objects of one bucket, or local files.
    """
    from pyarrow import fs

    scheme, _, _ = split_uri(uris[0])
    if not scheme:
        return fs.LocalFileSystem(), [disk.absolute(split_uri(uri)[2]) for uri in uris]
    filesystem = fs.PyFileSystem(fs.FSSpecHandler(remote.filesystem(uris[0])))
    return filesystem, [uri.partition("://")[2] for uri in uris]


def exists(uri: str) -> bool:
    """Return True where an object of that name stands; a folder is none."""
    try:
        stat_object(uri)
    except NotFoundError:
        return False
    return True


def put(uri: str, body: bytes) -> None:
    """Write an object in one step: readers see the old one, or the new one whole.

    Raises:
        DeniedError, StorageError: no permission, disk full, unreachable.
    """
    scheme, _, key = split_uri(uri)
    with translated(uri):
        if not scheme:
            disk.put(disk.absolute(key), body)
        else:
            remote.put(*open_store(uri), body)


@contextlib.contextmanager
def writing(uri: str) -> Iterator[Path]:
    """Give a local file to fill; when the block ends well, it is put at `uri` in one step.

    For what is larger than memory. Locally the file lies beside its target, for a store in the
    folder for temporary files.

    Raises:
        DeniedError, StorageError: no permission, disk full, unreachable.
    """
    scheme, _, key = split_uri(uri)
    if scheme:
        with tempfile.TemporaryDirectory(prefix="bioembed") as folder:
            path = Path(folder) / "object"
            yield path
            with translated(uri):
                remote.put_file(*open_store(uri), path)
        return
    with translated(uri):
        path = disk.beside(disk.absolute(key))
    try:
        yield path
        with translated(uri):
            disk.publish(path, disk.absolute(key))
    except OSError as error:
        # What the block reads may fail as well; a full disk is about what it writes.
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        with translated(uri):
            raise
    finally:
        path.unlink(missing_ok=True)


def create(uri: str, body: bytes) -> bool:
    """Write an object only where none stands; return whether this call made it.

    Two callers that write the same bytes to a store may both hear that they did: an answer may be
    lost, and then the bytes tell who wrote them.
    """
    scheme, _, key = split_uri(uri)
    with translated(uri):
        if not scheme:
            return disk.create(disk.absolute(key), body)
        return remote.create(*open_store(uri), body)


def replace(uri: str, body: bytes, stamp: str) -> bool:
    """Overwrite an object only while it is still the one with this stamp; return whether it was.

    On a local disk this holds among callers of this function (a lock on the folder).
    """
    scheme, _, key = split_uri(uri)
    with translated(uri):
        if not scheme:
            return disk.replace(disk.absolute(key), body, stamp)
        return remote.replace(*open_store(uri), body, stamp)


def delete(uri: str) -> None:
    """Delete an object; one that is not there is fine."""
    scheme, _, key = split_uri(uri)
    with contextlib.suppress(NotFoundError), translated(uri):
        if not scheme:
            Path(disk.absolute(key)).unlink()
        else:
            remote.delete(*open_store(uri))


def check_writable(uri: str) -> None:
    """Raise one clear error where nothing can be written below `uri`.

    Raises:
        InputError: a file stands where the folder should be.
        DeniedError, NoBucketError, StorageError: no permission, bucket missing, unreachable.
    """
    scheme, _, key = split_uri(uri)
    if not scheme and Path(disk.absolute(key)).is_file():
        raise InputError(f"{uri}: is a file; output must be a folder or a prefix")
    probe = join(uri, f".write-check-{uuid.uuid4().hex}")
    try:
        put(probe, b"")
    except StorageError as error:
        raise type(error)(str(error).replace(uris.shown_uri(probe), uris.shown_uri(uri))) from error
    delete(probe)
