"""URIs, lists, globs and manifest rows become the objects that they name."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from bioembed_ray import storage
from bioembed_ray.errors import DeniedError, InputError, NoBucketError, NotFoundError
from bioembed_ray.inputs.globs import compile_glob, depth_of, is_glob, reaches, split_glob
from bioembed_ray.inputs.manifest import Label, read_manifest
from bioembed_ray.inputs.names import (
    AUDIO_EXTENSIONS,
    PARQUET_EXTENSION,
    TAR_EXTENSIONS,
    common_folder,
    extension_of,
    length_above,
    parent,
)
from bioembed_ray.storage import ABSENT, UNREADABLE, ObjectInfo
from bioembed_ray.store.uris import raw_path, shown_uri, text_of

# From here on one listing of the common folder is quicker than asking for each object.
LIST_ABOVE = 1000

# Whether to open a local folder, by its path below the URI that led to it.
Enters = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Found:
    """One object: its path below the URI that led to it, and whether it was asked for by name."""

    info: ObjectInfo
    below: str
    glob: str | None = None
    is_named: bool = False
    labels: dict[str, Label] = field(default_factory=dict)


def from_uris(uris: list[str], enters: Enters) -> tuple[str, Iterator[Found]]:
    """Return (root that names are relative to, objects) of files, folders, prefixes, globs, .txt lists.

    A folder or link below one of these that cannot be read is an object too (`UNREADABLE`).

    Raises:
        InputError: a list holds nothing, or names what does not exist.
        StorageError: the one folder or bucket named is missing, forbidden or out of reach.
    """
    entries = _with_lists_read(uris)
    if not entries:
        raise InputError("input.uri: names nothing")
    if len(entries) == 1:
        root, found = _expand(entries[0], enters)
        return root, found
    known = _stat_files([uri for uri in entries if _looks_like_file(uri)])
    roots: list[str] = []
    parts: list[Iterable[Found]] = []
    missing: list[str] = []
    for uri in entries:
        if uri in known:
            roots.append(parent(uri))
            parts.append([_named(known[uri])])
            continue
        try:
            root, found = _expand(uri, enters)
            first = next(found, None)
        except NotFoundError:
            first = None
        if first is None:
            missing.append(uri)
            continue
        roots.append(root)
        parts.append(chain([first], found))
    _raise_missing(missing, len(entries), "input.uri")
    return common_folder(roots), chain.from_iterable(parts)


def _with_lists_read(uris: list[str]) -> list[str]:
    """Return the URIs made absolute, each .txt replaced by the lines in it."""
    entries: list[str] = []
    for uri in uris:
        if uri.lower().endswith(".txt") and not is_glob(uri):
            entries += _lines(storage.absolute(uri))
        else:
            entries.append(storage.absolute(uri))
    return list(dict.fromkeys(uri.rstrip("/") or "/" for uri in entries))


def _lines(uri: str) -> list[str]:
    try:
        text = storage.read(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    lines = (line.rstrip("\r") for line in text.split("\n"))
    named = [line for line in lines if line.strip() and not line.startswith("#")]
    if not named:
        raise InputError(f"{uri}: lists nothing")
    return [_resolve(parent(uri), line) for line in named]


def _resolve(base: str, written: str) -> str:
    """Return an absolute URI; a relative one is below `base`."""
    if "://" in written or written.startswith(("/", "~")):
        return storage.absolute(written)
    if storage.is_local(base):
        return storage.absolute(storage.join(storage.split_uri(base)[2], written))
    scheme, bucket, key = storage.split_uri(storage.join(base, written))
    return f"{scheme}://{bucket}/{posixpath.normpath(key)}"


def _looks_like_file(uri: str) -> bool:
    extension = extension_of(uri)
    return extension in AUDIO_EXTENSIONS | TAR_EXTENSIONS or extension == PARQUET_EXTENSION


def _stat_files(uris: list[str]) -> dict[str, ObjectInfo]:
    """Return what stands of these objects, by URI."""
    found: dict[str, ObjectInfo] = {}
    buckets: dict[tuple[str, str], list[str]] = {}
    for uri in uris:
        buckets.setdefault(storage.split_uri(uri)[:2], []).append(uri)
    for (scheme, _), named in buckets.items():
        if scheme and len(named) > LIST_ABOVE:
            wanted = set(named)
            folder = common_folder([parent(uri) for uri in named])
            found |= {o.uri: o for o in storage.list_objects(folder) if o.uri in wanted}
        else:
            looked = storage.stat_objects(named) if scheme else map(_stat_local, named)
            infos = zip(named, looked, strict=True)
            found |= {uri: info for uri, info in infos if info is not None}
    return found


def _stat_local(uri: str) -> ObjectInfo | None:
    """Return what a listing would say of a file, None where nothing stands."""
    try:
        return storage.stat_object(uri)
    except NotFoundError:
        return None
    except DeniedError:
        path = raw_path(uri)
        return ObjectInfo(text_of(path.rpartition("/")[2]), uri, 0, f"{UNREADABLE}no permission")


def _expand(uri: str, enters: Enters) -> tuple[str, Iterator[Found]]:
    """Return (root, objects) of a file, folder, prefix or glob; what exists literally wins."""
    objects = storage.list_objects(uri, None, lambda key: enters(text_of(key)))
    try:
        first = next(objects, None)
    except (NoBucketError, NotFoundError):
        if not is_glob(uri):
            raise
        first = None
    if first is None:
        return _expand_glob(uri, enters) if is_glob(uri) else (uri, iter(()))
    if first.uri == uri:
        return parent(uri), iter([_named(first)])
    return uri, (Found(info, info.key) for info in chain([first], objects))


def _expand_glob(uri: str, enters: Enters) -> tuple[str, Iterator[Found]]:
    scheme, bucket, _ = storage.split_uri(uri)
    if scheme and is_glob(bucket):
        raise InputError(f"{uri}: no wildcard is possible in the bucket")
    root, glob = split_glob(uri)
    matches = compile_glob(glob).fullmatch

    def opens(key: str) -> bool:
        return reaches(glob, text_of(key)) and enters(text_of(key))

    return root, (
        Found(info, info.key, glob)
        for info in storage.list_objects(root, depth_of(glob), opens)
        # What lies in a folder that cannot be read might match.
        if matches(info.key) or info.key.endswith("/")
    )


def _named(info: ObjectInfo) -> Found:
    return Found(info, info.key, is_named=True)


def from_manifest(manifest: str, uri: str | tuple[str, ...]) -> tuple[str, Iterator[Found]]:
    """Return (root that names are relative to, objects with their labels) of a manifest.

    Args:
        manifest: CSV or Parquet file.
        uri: Where its relative URIs start from; ".": the manifest's own folder.

    Raises:
        InputError: see `read_manifest`; two rows of one uri with different labels; not one uri
            that exists. A few that do not are recordings that fail.
    """
    if not isinstance(uri, str):
        raise InputError("input.uri: with a manifest, give the one folder that its uris start from")
    manifest = storage.absolute(manifest)
    base = (storage.absolute(uri) if uri != "." else parent(manifest)).rstrip("/") or "/"
    rows: dict[str, tuple[int, dict[str, Label]]] = {}
    for line, written, labels in read_manifest(manifest):
        target = _resolve(base, written)
        earlier = rows.setdefault(target, (line, labels))
        if earlier[1] != labels:
            raise InputError(
                f"{manifest}: rows {earlier[0]} and {line} give {written} different labels"
            )
    known = _stat_files(list(rows))
    missing = [uri for uri in rows if uri not in known]
    if len(missing) == len(rows):
        _raise_missing(missing, len(rows), manifest)
    known |= {uri: ObjectInfo(text_of(raw_path(uri)), uri, 0, ABSENT) for uri in missing}
    start = base.rstrip("/") + "/"
    # Names are then the manifest's own spelling, which is what people join on.
    root = base if all(uri.startswith(start) for uri in rows) else None
    root = root or common_folder([parent(uri) for uri in rows])
    offset = length_above(root)
    return root, (
        Found(known[uri], text_of(raw_path(uri)[offset:]), None, True, labels)
        for uri, (_, labels) in rows.items()
    )


def _raise_missing(missing: list[str], n_listed: int, where: str) -> None:
    if missing:
        shown = ", ".join(shown_uri(uri) for uri in missing[:3])
        more = " …" if len(missing) > 3 else ""
        raise InputError(
            f"{where}: {len(missing):,} of {n_listed:,} listed do not exist: {shown}{more}"
        )
