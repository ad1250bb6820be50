"""What to read: a prefix, globs, a list or a manifest become recordings and containers.

Nothing is opened here. Tar and Parquet objects are handed on as containers, and `containers.py`
lists what they hold, many at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeVar

from bioembed_ray.config import InputConfig
from bioembed_ray.errors import InputError
from bioembed_ray.inputs.expand import Found, from_manifest, from_uris
from bioembed_ray.inputs.globs import any_of, is_glob, names_extension
from bioembed_ray.inputs.manifest import Label
from bioembed_ray.inputs.names import (
    AUDIO_EXTENSIONS,
    PARQUET_EXTENSION,
    TAR_EXTENSIONS,
    extension_of,
    is_hidden,
    length_above,
)
from bioembed_ray.store.uris import raw_path, shown_uri, text_of


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of one recording are.

    Attributes:
        uri: The object: an audio file, a tar or a Parquet file.
        stamp: What the listing said of the object's content (`storage.ObjectInfo.stamp`).
        size_bytes: Bytes of the recording itself; of a Parquet row the mean in its row group.
        offset: First byte of the recording inside the object (tar members), else 0. In a `.tar.gz`
            or `.tgz` it counts in the decompressed stream.
        row: Row of a Parquet file, counted over the whole file; None elsewhere.
        column: Name of the Parquet column with the bytes (`audio.bytes` inside a struct); None
            elsewhere.
    """

    uri: str
    stamp: str
    size_bytes: int
    offset: int = 0
    row: int | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One audio object.

    Attributes:
        name: Path relative to the input root; the identity of the recording.
        source: Where its bytes are.
        labels: Columns of the manifest, or of the row or member beside it, that ride along.
    """

    name: str
    source: Source
    labels: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Container:
    """A tar or Parquet object, to be opened by `containers.members`.

    Attributes:
        name: Path relative to the input root.
        uri: Where it is.
        size_bytes: Its size.
        stamp: What the listing said of its content.
        labels: Columns of the manifest; every member gets them.
        exclude: Globs on a member's full name that leave it out.
        is_named: The caller asked for it by name or extension, so that no audio in it is an error.
    """

    name: str
    uri: str
    size_bytes: int
    stamp: str
    labels: dict[str, Label] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    is_named: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing found, both lists sorted by name.

    Attributes:
        recordings: Plain audio objects.
        containers: Tar and Parquet objects whose members are not known yet.
        n_hidden: Objects left out for a part of their path that starts with `.` or `~`, or `.tmp`.
        n_other: Objects left out that are no audio, or not selected by include and exclude.
        root: The folder or prefix that names are relative to.
    """

    recordings: list[Recording]
    containers: list[Container]
    n_hidden: int
    n_other: int
    root: str


Named = TypeVar("Named", Recording, Container)


def list_input(config: InputConfig) -> Listing:
    """Return every recording and container that the input names.

    Raises:
        InputError: nothing to read, listed objects that do not exist, two objects of one name, a
            manifest that cannot be read.
        StorageError: a folder or bucket that is missing, forbidden or out of reach.
    """
    if config.manifest is not None:
        root, found = from_manifest(config.manifest, config.uri)
    else:
        uris = [config.uri] if isinstance(config.uri, str) else list(config.uri)
        root, found = from_uris(uris)
    return _selected(config, found, root)


def _selected(config: InputConfig, found: Iterable[Found], root: str) -> Listing:
    is_included, is_excluded = any_of(config.include), any_of(config.exclude)
    offset = length_above(root)
    recordings: list[Recording] = []
    containers: list[Container] = []
    others: Counter[str] = Counter()
    n_hidden = 0
    kinds: dict[tuple[str, str | None, bool], str] = {}
    for one in found:
        if not one.is_named and is_hidden(one.below):
            n_hidden += 1
            continue
        extension = extension_of(one.below)
        about = (extension, one.glob, one.is_named)
        if about not in kinds:
            kinds[about] = _kind(config, *about)
        passes = (not config.include or is_included(one.below)) and not is_excluded(one.below)
        if kinds[about] == "other" or not passes:
            others[extension] += 1
            continue
        info = one.info
        name = text_of(raw_path(info.uri)[offset:])
        if kinds[about] == "audio":
            source = Source(info.uri, info.stamp, info.size_bytes)
            recordings.append(Recording(name, source, one.labels))
        else:
            is_named = kinds[about] == "named container"
            at = (name, info.uri, info.size_bytes, info.stamp)
            containers.append(Container(*at, one.labels, config.exclude, is_named))
    if not recordings and not containers:
        raise InputError(_nothing_found(config, shown_uri(raw_path(root)), others, n_hidden))
    opened = _unique(containers, attrgetter("uri"))
    return Listing(unique(recordings), opened, n_hidden, others.total(), root)


def unique(recordings: Iterable[Recording]) -> list[Recording]:
    """Return recordings sorted by name, one that was reached twice only once.

    Raises:
        InputError: two recordings of one name.
    """
    return _unique(recordings, attrgetter("source"))


def _unique(named: Iterable[Named], place_of: Callable[[Named], object]) -> list[Named]:
    kept: list[Named] = []
    for one in sorted(named, key=attrgetter("name")):
        if kept and kept[-1].name == one.name:
            if place_of(kept[-1]) != place_of(one):
                raise InputError(
                    f"two inputs are named {one.name}: {_shown(kept[-1])} and {_shown(one)}"
                )
            continue
        kept.append(one)
    return kept


def _shown(one: Recording | Container) -> str:
    return shown_uri(raw_path(one.source.uri if isinstance(one, Recording) else one.uri))


def _kind(config: InputConfig, extension: str, glob: str | None, is_named: bool) -> str:
    """Return what an object with this extension is: audio, container, named container or other."""
    globs = [*config.include, *([glob] if glob else [])]
    is_named = is_named or any(names_extension(glob, extension) for glob in globs)
    if extension in TAR_EXTENSIONS:
        return "named container" if is_named else "container"
    if extension == PARQUET_EXTENSION:
        # Beside recordings lies many a metadata.parquet, so these have to be asked for.
        if is_named:
            return "named container"
        return "container" if config.include else "other"
    return "audio" if is_named or extension in AUDIO_EXTENSIONS else "other"


def _nothing_found(config: InputConfig, where: str, others: Counter[str], n_hidden: int) -> str:
    n_seen = others.total() + n_hidden
    if not n_seen:
        if isinstance(config.uri, str) and is_glob(config.uri):
            return f"no audio: nothing matches {config.uri}"
        return f"no audio under {where}: nothing is there"
    top = [
        f"{n:,} .{extension}" if extension else f"{n:,} without extension"
        for extension, n in others.most_common(4)
    ]
    counts = [*top, *([f"{n_hidden:,} hidden"] if n_hidden else [])]
    head = f"no audio under {where}: {n_seen:,} objects ({', '.join(counts)}), "
    if config.include or config.exclude:
        globs = [*config.include, *(f"not {glob}" for glob in config.exclude)]
        deeper = [glob for glob in config.include if "/" not in glob]
        hint = f"; write **/{deeper[0]} to look into folders" if deeper else ""
        return f"{head}none selected by {', '.join(globs)}{hint}"
    if others[PARQUET_EXTENSION]:
        return f"{head}none ending in .wav .flac .mp3 .ogg …; to read audio inside Parquet, set input.include to **/*.parquet"
    return f"{head}none ending in .wav .flac .mp3 .ogg …; set input.include or input.manifest"
