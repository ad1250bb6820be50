"""Object stores through obstore, the counterpart of `disk.py`.

Keys with an empty part, `.`, `..` or a control character cannot be addressed: obstore refuses
them, and a listing that meets one ends with an error that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bioembed_ray.persist import Patience, again, is_broken, is_spurious, names_no_bucket
from bioembed_ray.store.stores import open_store
from bioembed_ray.store.uris import split_uri

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from obstore.store import ObjectStore

# Up to here one request writes an object, so a kill leaves no half upload that is paid for.
SINGLE_PUT_BYTES = 1 << 30
FILE_PUT_BYTES = 1 << 26
PAGE = 1000

# (key below the prefix, whole key, size in bytes, stamp)
Found = tuple[str, str, int, str]
T = TypeVar("T")


def filesystem(uri: str) -> AbstractFileSystem:
    """Return the store of a URI as a file system for Arrow, its paths `bucket/key`."""
    from obstore.fsspec import FsspecStore

    class OneStore(FsspecStore):  # type: ignore[misc]
        """obstore's own file system, on the store that everything else goes through."""

        cachable = False

        def _construct_store(self, bucket: str) -> ObjectStore:
            is_same = bucket == split_uri(uri)[1]
            return open_store(uri if is_same else f"{scheme}://{bucket}")[0]

    scheme = split_uri(uri)[0]
    return OneStore(scheme)


def stamp_of(meta: Any) -> str:
    """Return the etag without its quotes, or size and time where a store has none."""
    # Listings tell milliseconds, reads only seconds.
    return (meta.get("e_tag") or "").strip('"') or (
        f"{meta['size']}-{int(meta['last_modified'].timestamp())}"
    )


def walk(store: ObjectStore, key: str, depth: int | None = None) -> Iterator[Found]:
    """Yield every object below a prefix, or the one object of that key; nothing where none stands."""
    prefix = key if key.endswith("/") or not key else key + "/"
    is_found = False
    for meta in _listed(store, prefix):
        is_found = True
        below = meta["path"][len(prefix) :]
        # Empty: the marker that a console makes for the folder itself.
        if below and (depth is None or below.count("/") < depth):
            yield below, meta["path"], int(meta["size"]), stamp_of(meta)
    if not is_found and key and not key.endswith("/"):
        with contextlib.suppress(FileNotFoundError):
            yield key.rsplit("/", 1)[-1], key, *stat_key(store, key)


def _listed(store: ObjectStore, prefix: str, after: str | None = None) -> Iterator[Any]:
    """Yield what a store lists below a prefix, in name order; a page that fails is asked for again."""
    import obstore

    patience = Patience(store)
    while True:
        try:
            for page in obstore.list(store, prefix or None, offset=after, chunk_size=PAGE):
                for meta in page:
                    after = meta["path"]
                    yield meta
                # Only a store that fails and fails again at the same place is given up.
                patience = Patience(store)
            return
        except obstore.exceptions.BaseError as error:
            if not (is_broken(error) or is_spurious(error)) or not patience.wait():
                raise


def _is_listed(store: ObjectStore, key: str) -> bool:
    """Return True where a listing has an object; False also where listing is not allowed."""
    from obstore import exceptions as obs

    folder = key[: key.rfind("/") + 1]
    try:
        # The key less its last character comes shortly before it, so one page holds it.
        for meta in _listed(store, folder, key[:-1]):
            if meta["path"] >= key:
                return bool(meta["path"] == key)
    except (obs.PermissionDeniedError, obs.UnauthenticatedError):
        return False
    except obs.BaseError as error:
        if "403 Forbidden" not in str(error):
            raise
    return False


def _sure(store: ObjectStore, key: str, call: Callable[[], T]) -> T:
    """Return what a read returns; a 404 is believed only where a listing lacks the object, too.

    Stores are consistent today, but gateways and caches before them are not, and an object that
    seems not to be there is a recording lost, or a `current.json` begun anew.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it is listed, and stays unreadable.
    """
    is_there = False

    def is_passing(error: Exception) -> bool:
        nonlocal is_there
        if not isinstance(error, FileNotFoundError):
            return is_broken(error)
        # An answer to HEAD has no text, so that the listing says that the bucket is missing.
        is_there = not names_no_bucket(str(error)) and _is_listed(store, key)
        return is_there

    try:
        return again(store, call, is_passing)
    except FileNotFoundError as error:
        if not is_there:
            raise
        raise OSError("is listed, but cannot be read: the store answers 404") from error


def stat_key(store: ObjectStore, key: str) -> tuple[int, str]:
    """Return (size in bytes, stamp) of an object."""
    import obstore

    meta = _sure(store, key, lambda: obstore.head(store, key))
    return int(meta["size"]), stamp_of(meta)


def read_range(store: ObjectStore, key: str, start: int, stop: int) -> tuple[bytes, str]:
    """Return bytes [start, stop), fewer where the object ends, and the stamp of what was read."""
    import obstore

    def get() -> tuple[bytes, str]:
        result = obstore.get(store, key, options={"range": (start, stop)})
        return bytes(result.bytes()), stamp_of(result.meta)

    try:
        return _sure(store, key, get)
    except obstore.exceptions.BaseError as error:
        # Stores answer 416 where the range starts at or behind the end.
        if "416" not in str(error):
            raise
        size, stamp = stat_key(store, key)
        if start < size:
            raise
        return b"", stamp


def read(store: ObjectStore, key: str) -> bytes:
    """Return a whole object."""
    import obstore

    return _sure(store, key, lambda: bytes(obstore.get(store, key).bytes()))


def delete(store: ObjectStore, key: str) -> None:
    """Delete an object; stores do not mind one that is not there."""
    import obstore

    again(store, lambda: obstore.delete(store, key), is_broken)


def put(store: ObjectStore, key: str, body: bytes) -> None:
    """Write an object in one step."""
    import obstore

    is_large = len(body) > SINGLE_PUT_BYTES
    again(store, lambda: obstore.put(store, key, body, use_multipart=is_large), is_broken)


def put_file(store: ObjectStore, key: str, path: Path) -> None:
    """Write a local file as an object, in parts where it is large; seen whole or not at all."""
    import obstore

    # The size that `put` keeps to is too much to hold for a file that is on a disk already.
    obstore.put(store, key, path, use_multipart=path.stat().st_size > FILE_PUT_BYTES)


def create(store: ObjectStore, key: str, body: bytes) -> bool:
    """Write an object only where none stands; return whether this call made it."""
    import obstore

    try:
        again(store, lambda: obstore.put(store, key, body, mode="create"), is_broken)
    except obstore.exceptions.AlreadyExistsError:
        return _holds(store, key, body)
    return True


def replace(store: ObjectStore, key: str, body: bytes, stamp: str) -> bool:
    """Overwrite an object only while it has this stamp; return whether it had."""
    import obstore
    from obstore import exceptions as obs

    def overwrite() -> bool:
        meta = _sure(store, key, lambda: obstore.head(store, key))
        if stamp_of(meta) != stamp:
            return _holds(store, key, body)
        # Google compares the generation, the others the etag; each in the store's own spelling.
        seen: Any = {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
        obstore.put(store, key, body, mode=seen)
        return True

    try:
        return again(store, overwrite, is_broken)
    except FileNotFoundError as error:
        if names_no_bucket(str(error)):
            raise
        return False
    except (obs.PreconditionError, obs.AlreadyExistsError):
        return _holds(store, key, body)


def _holds(store: ObjectStore, key: str, body: bytes) -> bool:
    """Return True where a refused write had come through, and only its answer was lost."""
    try:
        return read(store, key) == body
    except FileNotFoundError:
        return False
