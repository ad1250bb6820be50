"""What names tell: the kind of a file, what is hidden, which folder several things share."""

from __future__ import annotations

from collections.abc import Iterable

from bioembed_ray.errors import InputError
from bioembed_ray.store.uris import raw_path

# `wac` (Wildlife Acoustics) has no free decoder; it is read so that it fails with its reason.
AUDIO_EXTENSIONS = frozenset(
    # A table of names reads better than 25 lines.
    "wav wave w64 rf64 aif aiff aifc flac mp3 ogg oga opus m4a mp4 aac wma wv webm mka caf au snd 3gp amr wac".split()  # noqa: SIM905
)
TAR_EXTENSIONS = frozenset({"tar", "tar.gz", "tgz"})
PARQUET_EXTENSION = "parquet"


def is_hidden(path: str) -> bool:
    """Return True where a part starts with `.` or `~`, or the name ends in `.tmp`.

    >>> [is_hidden(p) for p in ("a/._b.wav", ".Trash/b.wav", "~b.wav", "a~1/b.wav")]
    [True, True, True, False]
    """
    return (
        path.startswith((".", "~")) or "/." in path or "/~" in path or path.lower().endswith(".tmp")
    )


def is_audio(path: str) -> bool:
    """Return True where the extension is one of an audio format."""
    return extension_of(path) in AUDIO_EXTENSIONS


def extension_of(path: str) -> str:
    """Return the extension in small letters without its dot, `tar.gz` whole, "" for none."""
    name = path.rpartition("/")[2].lower()
    if name.endswith(".tar.gz"):
        return "tar.gz"
    stem, _, extension = name.rpartition(".")
    return extension if stem else ""


def parent(uri: str) -> str:
    """Return the folder that a URI or path lies in."""
    return uri.rpartition("/")[0] or "/"


def common_folder(folders: Iterable[str]) -> str:
    """Return the deepest folder that holds all of these.

    Raises:
        InputError: they lie in stores of different kinds.
    """
    split = [raw_path(folder).rstrip("/").split("/") for folder in dict.fromkeys(folders)]
    low, high = min(split), max(split)
    # What the first and the last in order share, all share.
    n_shared = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
    shared = low[: min(len(low), len(high)) if n_shared is None else n_shared]
    if not shared:
        raise InputError(
            f"input.uri: mixes {'/'.join(low) or '/'} and {'/'.join(high) or '/'}; use one kind of store"
        )
    if shared[0].endswith(":") and len(shared) < 3:
        return f"{shared[0]}//"
    return "/".join(shared) or "/"


def length_above(root: str) -> int:
    """Return how many characters of a path below `root` come before its name.

    >>> length_above("s3://lab"), length_above("s3://"), length_above("/")
    (9, 5, 1)
    """
    path = raw_path(root)
    return len(path) + (not path.endswith("/"))
