"""URIs as plain text: scheme, bucket and key; names that are no text; names fit to be shown."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote_to_bytes

from bioembed_ray.errors import ConfigError
from bioembed_ray.store import disk

SCHEMES = ("s3", "gs", "az")
# A local file whose name is not UTF-8, percent-escaped, since tables and messages hold only text.
RAW_SCHEME = "rawfile"


def split_uri(uri: str) -> tuple[str, str, str]:
    """Return (scheme, bucket, key); scheme is "" for a local path.

    Plain string work: `#`, `?` and `%` are ordinary characters of a key, not URL syntax.

    Raises:
        ConfigError: a scheme that is not supported.

    >>> split_uri("s3://lab/2024/a #1.wav")
    ('s3', 'lab', '2024/a #1.wav')
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "", "", uri
    if scheme == "file":
        return "", "", "/" + rest.lstrip("/")
    if scheme == RAW_SCHEME:
        return "", "", os.fsdecode(unquote_to_bytes(rest))
    if scheme not in SCHEMES:
        # `a://b` is also a legal, if odd, local path.
        raise ConfigError(f"{uri}: scheme {scheme!r}; use a local path, s3://, gs:// or az://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise ConfigError(f"{uri}: no bucket; write {scheme}://bucket/prefix")
    return scheme, bucket, key


def is_local(uri: str) -> bool:
    """Return True for a local path or a file:// URI."""
    return split_uri(uri)[0] == ""


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below `uri`.

    >>> join("s3://lab/reef/", "runs", "a.json")
    's3://lab/reef/runs/a.json'
    >>> join("/", "tmp")
    '/tmp'
    """
    return "/".join([uri.rstrip("/"), *parts])


def is_below(uri: str, folder: str) -> bool:
    """Return True for a folder or prefix itself, and for everything in it.

    >>> is_below("s3://lab/reef/runs/a.json", "s3://lab/reef"), is_below("s3://lab/reef2", "s3://lab/reef")
    (True, False)
    """
    return f"{uri}/".startswith(f"{folder.rstrip('/')}/")


def absolute(uri: str) -> str:
    """Return `uri` with a local path made absolute, so that a worker elsewhere means the same file."""
    scheme, _, key = split_uri(uri)
    return uri if scheme else local_uri(disk.absolute(key))


def local_uri(path: str) -> str:
    """Return a path as a URI that is text, whatever bytes the path holds."""
    return path if text_of(path) == path else f"{RAW_SCHEME}://{quote(os.fsencode(path))}"


def raw_path(uri: str) -> str:
    """Return a `rawfile` URI as the path that the disk has, so that its length counts; others as they are."""
    return split_uri(uri)[2] if uri.startswith(f"{RAW_SCHEME}://") else uri


def text_of(name: str) -> str:
    r"""Return a file name as text: bytes that are not UTF-8 become %XX.

    >>> text_of("caf\udce9.wav")
    'caf%E9.wav'
    """
    return re.sub("[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)


def shown_uri(uri: str) -> str:
    """Return a URI that fits one line of any terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text_of(uri))
