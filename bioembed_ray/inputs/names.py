"""What names tell: the kind of a file, what is hidden, which folder several things share."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from bioembed_ray.errors import InputError
from bioembed_ray.store.uris import raw_path

# Container, as `audio.sniff` calls it -> what its files are called. The sound of a video is sound:
# camera traps and hydrophones write AVI, MOV, MP4 and Matroska.
EXTENSIONS = {
    "WAV": "wav wave bwf amb",
    "RIFX": "rifx",
    "RF64": "rf64",
    "BW64": "bw64",
    "W64": "w64",
    "AIFF": "aif aiff aifc afc",
    "SVX": "8svx 16svx svx iff",
    "FLAC": "flac fla",
    "OGG": "ogg oga opus spx ogv ogx ogm",
    "CAF": "caf",
    "AU": "au snd",
    "NIST": "sph nist",
    "VOC": "voc",
    "IRCAM": "sf ircam",
    "MP3": "mp3 mp2 mp1 mpa mpga",
    "AAC": "aac adts",
    "M4A": "m4a m4b m4r",
    "MP4": "mp4 m4v 3gp 3gpp 3g2 f4a f4v",
    "MOV": "mov qt",
    "WMA": "wma asf wmv",
    "WAVPACK": "wv",
    "MATROSKA": "mka mkv webm weba",
    "AVI": "avi",
    "FLV": "flv",
    "TTA": "tta",
    "APE": "ape",
    "MPC": "mpc mp+ mpp",
    "MPC8": "mpc",
    "TAK": "tak",
    "AMR": "amr awb",
    # Wildlife Acoustics: no free decoder, so it is read to fail with its reason.
    "WAC": "wac",
}
AUDIO_EXTENSIONS = frozenset(" ".join(EXTENSIONS.values()).split())
TAR_EXTENSIONS = frozenset({"tar", "tar.gz", "tgz"})
PARQUET_EXTENSION = "parquet"
# Folders of a system or a tool, not of a collection; some are copies of all that lies beside them.
_SYSTEM_FOLDERS = (
    "lost+found",
    "system volume information",
    "$recycle.bin",
    "recycler",
    ".snapshot",
    ".snapshots",
    ".zfs",
    ".spotlight-v100",
    ".fseventsd",
    ".trashes",
    "@eadir",
    "#recycle",
    "#snapshot",
    "__macosx",
)
_SYSTEM_FOLDER = re.compile(
    rf"(?:^|/)(?:{'|'.join(map(re.escape, _SYSTEM_FOLDERS))}|\.trash-[^/]*)/", re.IGNORECASE
)
# What browsers and copying tools call a file before it is whole.
_UNFINISHED = frozenset(
    ("tmp", "temp", "part", "partial", "filepart", "crdownload", "download", "opdownload", "aria2")
)
_RSYNC = re.compile(r"\..+\.[A-Za-z0-9]{6}")


def is_hidden(path: str) -> bool:
    """Return True where a part starts with `.` or `~`, the name ends in `.tmp`, or a folder is a system's.

    >>> [is_hidden(p) for p in ("a/._b.wav", ".Trash/b.wav", "~b.wav", "a~1/b.wav", "lost+found/b.wav")]
    [True, True, True, False, True]
    """
    return (
        path.startswith((".", "~"))
        or "/." in path
        or "/~" in path
        or path.lower().endswith(".tmp")
        or is_system_folder(path.rpartition("/")[0])
    )


# Many objects share a folder.
@functools.lru_cache(1 << 12)
def is_system_folder(path: str) -> bool:
    """Return True where a folder, or one above it, is a system's: `lost+found`, `.Trash-1000`, `@eaDir`."""
    return _SYSTEM_FOLDER.search(f"{path}/") is not None


def seems_audio(path: str) -> bool:
    """Return True where a name that is no recording's may still stand for one: hidden, or not whole.

    >>> names = ("~x.wav", ".x.wav.Ab12Cd", "x.wav.part", ".syncthing.x.tar.tmp", ".DS_Store", "x.tmp")
    >>> [seems_audio(name) for name in names]
    [True, True, True, True, False, False]
    """
    name = path.rpartition("/")[2].rstrip("~")
    stem, _, last = name.rpartition(".")
    is_unfinished = last.lower() in _UNFINISHED or _RSYNC.fullmatch(name) is not None
    whole = (stem if is_unfinished else name).lstrip(".~")
    return extension_of(whole) in AUDIO_EXTENSIONS | TAR_EXTENSIONS


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
