"""What to read: a prefix, globs, a list or a manifest become recordings and containers.

Nothing is opened here. Tar and Parquet objects are handed on as containers, and `containers.py`
lists what they hold, many at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TypeVar

from bioembed_ray.config import InputConfig
from bioembed_ray.errors import InputError, Reason, RecordingError
from bioembed_ray.inputs.expand import Found, from_manifest, from_uris
from bioembed_ray.inputs.globs import any_of, is_glob, names_extension, reaches, takes_all_below
from bioembed_ray.inputs.left_out import Kind, LeftOut
from bioembed_ray.inputs.manifest import Label
from bioembed_ray.inputs.names import (
    AUDIO_EXTENSIONS,
    PARQUET_EXTENSION,
    TAR_EXTENSIONS,
    extension_of,
    is_hidden,
    is_system_folder,
    length_above,
)
from bioembed_ray.storage import UNREADABLE
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
        inside: Of a member of a tar or Parquet object: how that was listed (`inside.Inside`).
    """

    name: str
    source: Source
    labels: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    inside: str | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """A tar or Parquet object, to be opened by `containers.members`.

    Attributes:
        name: Path relative to the input root.
        below: Path below the URI that led to it.
        uri: Where it is.
        size_bytes: Its size.
        stamp: What the listing said of its content.
        labels: Columns of the manifest; every member gets them.
        exclude: Globs that leave members out, by `below` and the path inside.
        is_named: The caller asked for it by name or extension, so that no audio in it is an error.
    """

    name: str
    below: str
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
        root: The folder or prefix that names are relative to.
        left_out: What is no recording, and why; whoever opens containers adds to it.
        unreadable: Folders (which end in `/`), links and containers that cannot be read -> why.
    """

    recordings: list[Recording]
    containers: list[Container]
    root: str
    left_out: LeftOut = field(default_factory=LeftOut)
    unreadable: dict[str, RecordingError] = field(default_factory=dict)


Named = TypeVar("Named", Recording, Container)


def list_input(config: InputConfig) -> Listing:
    """Return every recording and container that the input names.

    Raises:
        InputError: nothing to read, listed objects that do not exist, two objects of one name, a
            manifest that cannot be read.
        StorageError: a folder or bucket that is missing, forbidden or out of reach; a folder below
            one that can be read is `unreadable` instead.
    """
    left_out = LeftOut()
    if config.manifest is not None:
        root, found = from_manifest(config.manifest, config.uri)
    else:
        uris = [config.uri] if isinstance(config.uri, str) else list(config.uri)
        root, found = from_uris(uris, partial(_enters, config.exclude, left_out))
    return _selected(config, found, root, left_out)


def _enters(exclude: tuple[str, ...], left_out: LeftOut, folder: str) -> bool:
    """Return whether a folder can hold a recording, else count it."""
    is_system = is_system_folder(folder)
    if not is_system and not any(takes_all_below(glob, folder) for glob in exclude):
        return True
    left_out.add(Kind.HIDDEN if is_system else Kind.NOT_SELECTED, f"{folder}/")
    return False


def _selected(config: InputConfig, found: Iterable[Found], root: str, left_out: LeftOut) -> Listing:
    is_included, is_excluded = any_of(config.include), any_of(config.exclude)
    offset = length_above(root)
    listing = Listing([], [], root, left_out)
    kinds: dict[tuple[str, str | None, bool], str] = {}
    for one in found:
        if not one.is_named and is_hidden(one.below):
            left_out.add_unheard(one.below)
            continue
        extension = extension_of(one.below)
        about = (extension, one.glob, one.is_named)
        if about not in kinds:
            kinds[about] = _kind(config, *about)
        kind, name = kinds[about], text_of(raw_path(one.info.uri)[offset:])
        is_lost, is_folder = one.info.stamp.startswith(UNREADABLE), one.below.endswith("/")
        if is_lost and not extension:
            # A folder, or a link that may lead to one.
            kind, path = "folder", one.below.rstrip("/")
            passes = not config.include or any(reaches(glob, path) for glob in config.include)
        else:
            passes = not config.include or is_included(one.below)
        if kind == "other":
            left_out.add_unheard(one.below)
        elif not passes or (not is_folder and is_excluded(one.below)):
            left_out.add(Kind.NOT_SELECTED, one.below)
        elif is_lost:
            left_out.add(Kind.UNREADABLE, one.below)
            why, glob = one.info.stamp.removeprefix(UNREADABLE), one.below + "**" * is_folder
            error = unknown(Reason.STORAGE, why, glob)
            listing.unreadable[f"{name}/" if is_folder else name] = error
        elif kind == "audio":
            source = Source(one.info.uri, one.info.stamp, one.info.size_bytes)
            listing.recordings.append(Recording(name, source, one.labels))
        else:
            at = (name, one.below, one.info.uri, one.info.size_bytes, one.info.stamp)
            is_named = kind == "named container"
            listing.containers.append(Container(*at, one.labels, config.exclude, is_named))
    if not listing.recordings and not listing.containers:
        raise InputError(_nothing_found(config, shown_uri(raw_path(root)), left_out))
    listing.recordings[:] = unique(listing.recordings)
    listing.containers[:] = _unique(listing.containers, attrgetter("uri"))
    return listing


def unknown(reason: Reason, why: str, glob: str) -> RecordingError:
    """Return why something that may hold recordings cannot be read, and what to do about it."""
    detail = f"{why}; what it holds is not known. Make it readable, or set input.exclude: {glob}"
    return RecordingError(reason, detail)


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


def _nothing_found(config: InputConfig, where: str, left_out: LeftOut) -> str:
    if not left_out:
        if isinstance(config.uri, str) and is_glob(config.uri):
            return f"no audio: nothing matches {config.uri}"
        return f"no audio under {where}: nothing is there"
    head = f"no audio under {where}: {left_out}; "
    if config.include or config.exclude:
        globs = [*config.include, *(f"not {glob}" for glob in config.exclude)]
        deeper = [glob for glob in config.include if "/" not in glob]
        hint = f"; write **/{deeper[0]} to look into folders" if deeper else ""
        return f"{head}nothing is selected by {', '.join(globs)}{hint}"
    if PARQUET_EXTENSION in left_out.extensions.get(Kind.NOT_AUDIO, ()):
        return f"{head}nothing ends in .wav .flac .mp3 .ogg …; to read audio inside Parquet, set input.include to **/*.parquet"
    return f"{head}nothing ends in .wav .flac .mp3 .ogg …; set input.include or input.manifest"
