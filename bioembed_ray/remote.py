"""Object stores through obstore, the counterpart of `disk.py`.

Keys with an empty part, `.`, `..` or a control character cannot be addressed: obstore refuses
them, and a listing that meets one ends with an error that names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from obstore.store import ObjectStore

# One flaky minute of a store should not cost a shard; an unreachable endpoint should not cost an hour.
RETRIES: dict[str, Any] = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
# obstore's 30 s for a whole request is short for a part of 100 MB on a busy link.
REQUEST_TIMEOUT = timedelta(seconds=120)
# Up to here one request writes an object, so a kill leaves no half upload that is paid for.
SINGLE_PUT_BYTES = 1 << 30
FILE_PUT_BYTES = 1 << 26
PAGE = 1000
# AWS_ENDPOINT_URL is what boto3 and the AWS CLI read; obstore knows AWS_ENDPOINT too.
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

# (key below the prefix, whole key, size in bytes, stamp)
Found = tuple[str, str, int, str]


@lru_cache(maxsize=64)
def _open(scheme: str, bucket: str, endpoint: str, has_region: bool) -> ObjectStore:
    from obstore.store import AzureStore, GCSStore, S3Store

    # Plain http is for stores on the own network; the endpoint variable says so.
    client: Any = {"timeout": REQUEST_TIMEOUT}
    options: Any = {"retry_config": RETRIES, "client_options": client}
    if scheme == "gs":
        return GCSStore(bucket, **options)
    if scheme == "az":
        return AzureStore(bucket, **options)
    client["allow_http"] = endpoint.startswith("http://")
    if endpoint:
        options["endpoint"] = endpoint
    if not has_region:
        options["region"] = "us-east-1"
    return S3Store(bucket, **options)


def store_of(scheme: str, bucket: str) -> ObjectStore:
    """Return the store of a bucket, as the environment describes it at this moment."""
    endpoint = next((os.environ[v] for v in ENDPOINT_VARIABLES if os.environ.get(v)), "")
    has_region = "AWS_REGION" in os.environ or "AWS_DEFAULT_REGION" in os.environ
    return _open(scheme, bucket, endpoint, has_region)


def filesystem(scheme: str) -> AbstractFileSystem:
    """Return a store as a file system for Arrow, its paths `bucket/key`."""
    from obstore.fsspec import FsspecStore

    class OneStore(FsspecStore):  # type: ignore[misc]
        """obstore's own file system, on the store that everything else goes through."""

        cachable = False

        def _construct_store(self, bucket: str) -> ObjectStore:
            return store_of(scheme, bucket)

    return OneStore(scheme)


def stamp_of(meta: Any) -> str:
    """Return the etag without its quotes, or size and time where a store has none."""
    # Listings tell milliseconds, reads only seconds.
    return (meta.get("e_tag") or "").strip('"') or (
        f"{meta['size']}-{int(meta['last_modified'].timestamp())}"
    )


def walk(store: ObjectStore, key: str, depth: int | None = None) -> Iterator[Found]:
    """Yield every object below a prefix, or the one object of that key; nothing where none stands."""
    import obstore

    prefix = key if key.endswith("/") or not key else key + "/"
    is_found = False
    for page in obstore.list(store, prefix or None, chunk_size=PAGE):
        for meta in page:
            is_found = True
            below = meta["path"][len(prefix) :]
            # Empty: the marker that a console makes for the folder itself.
            if below and (depth is None or below.count("/") < depth):
                yield below, meta["path"], int(meta["size"]), stamp_of(meta)
    if not is_found and key and not key.endswith("/"):
        with contextlib.suppress(FileNotFoundError):
            yield key.rsplit("/", 1)[-1], key, *stat_key(store, key)


def stat_key(store: ObjectStore, key: str) -> tuple[int, str]:
    """Return (size in bytes, stamp) of an object."""
    import obstore

    meta = obstore.head(store, key)
    return int(meta["size"]), stamp_of(meta)


def read_range(store: ObjectStore, key: str, start: int, stop: int) -> tuple[bytes, str]:
    """Return bytes [start, stop), fewer where the object ends, and the stamp of what was read."""
    import obstore

    try:
        result = obstore.get(store, key, options={"range": (start, stop)})
        return bytes(result.bytes()), stamp_of(result.meta)
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

    return bytes(obstore.get(store, key).bytes())


def delete(store: ObjectStore, key: str) -> None:
    """Delete an object; stores do not mind one that is not there."""
    import obstore

    obstore.delete(store, key)


def put(store: ObjectStore, key: str, body: bytes) -> None:
    """Write an object in one step."""
    import obstore

    obstore.put(store, key, body, use_multipart=len(body) > SINGLE_PUT_BYTES)


def put_file(store: ObjectStore, key: str, path: Path) -> None:
    """Write a local file as an object, in parts where it is large; seen whole or not at all."""
    import obstore

    # The size that `put` keeps to is too much to hold for a file that is on a disk already.
    obstore.put(store, key, path, use_multipart=path.stat().st_size > FILE_PUT_BYTES)


def create(store: ObjectStore, key: str, body: bytes) -> bool:
    """Write an object only where none stands; return whether this call made it."""
    import obstore

    try:
        obstore.put(store, key, body, mode="create")
    except obstore.exceptions.AlreadyExistsError:
        return False
    return True


def replace(store: ObjectStore, key: str, body: bytes, stamp: str) -> bool:
    """Overwrite an object only while it has this stamp; return whether it had."""
    import obstore
    from obstore import exceptions as obs

    try:
        meta = obstore.head(store, key)
        if stamp_of(meta) != stamp:
            return False
        # Google compares the generation, the others the etag; each in the store's own spelling.
        seen: Any = {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
        obstore.put(store, key, body, mode=seen)
    except (obs.PreconditionError, obs.AlreadyExistsError, FileNotFoundError):
        return False
    return True
