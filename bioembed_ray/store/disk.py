"""The local file system: walk, stat, write in one step, create once.

Plain operating system calls, since any byte is legal in a file name and obstore's local store
escapes some of them. `storage.py` is the one caller and turns `OSError` into our errors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# (key below the root, absolute path, size in bytes, stamp)
Found = tuple[str, str, int, str]
# A link whose target is not there (git-annex before `get`): listed, so that it fails in the open.
DANGLING = "dangling-link"
# Named by a manifest and not there: it fails in the open too, and is read once it has another stamp.
ABSENT = "absent"
# How the stamp of a folder, or link, begins that the disk refuses to read; why follows.
UNREADABLE = "unreadable: "


def absolute(path: str) -> str:
    """Return the path with `~`, `.` and `..` resolved; a `~name` of no user stays as it is."""
    # pathlib keeps `..`, and raises on `~name`, which is a legal file name.
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def stamp_of(status: os.stat_result) -> str:
    """Return `<size>-<mtime in ns>`."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def walk(
    root: str, depth: int | None = None, enters: Callable[[str], bool] | None = None
) -> Iterator[Found]:
    """Yield every file below a folder, links followed, or the one file that `root` names.

    Files that vanish while the walk is on are left out, links to nowhere are not.

    Args:
        root: Absolute path.
        depth: Most folders deep to go, 1 = only files right below `root`; None = all.
        enters: Whether to open a folder, by its key. With it, a folder or link below `root` that
            cannot be read does not end the walk: it is yielded, a folder's key with `/` at its end.

    Raises:
        OSError: `root` cannot be read; without `enters`, or something below it.
    """
    top = Path(root).stat()
    if not stat.S_ISDIR(top.st_mode):
        yield Path(root).name, root, *stat_file(root)
        return
    # With the folders it was reached through: a link back to one of these would never end.
    folders = [(root, 1, frozenset({(top.st_dev, top.st_ino)}))]
    start = len(root.rstrip("/")) + 1
    while folders:
        folder, level, chain = folders.pop()
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
            found = [(entry, _stat(entry, enters is not None)) for entry in ordered]
        except (FileNotFoundError, NotADirectoryError):
            if folder == root:
                raise
            continue
        except OSError as error:
            if enters is None or folder == root:
                raise
            yield f"{folder[start:]}/", folder, 0, _unreadable(error)
            continue
        for entry, status in found:
            key = entry.path[start:]
            if isinstance(status, OSError):
                yield key, entry.path, 0, _unreadable(status)
            elif status is None:
                if entry.is_symlink():
                    yield key, entry.path, 0, DANGLING
            elif stat.S_ISREG(status.st_mode):
                yield key, entry.path, status.st_size, stamp_of(status)
            elif stat.S_ISDIR(status.st_mode) and (depth is None or level < depth):
                own = (status.st_dev, status.st_ino)
                if own not in chain and (enters is None or enters(key)):
                    folders.append((entry.path, level + 1, chain | {own}))


def _unreadable(error: OSError) -> str:
    return f"{UNREADABLE}{(error.strerror or str(error)).lower()}"


def _stat(entry: os.DirEntry[str], is_kept: bool) -> os.stat_result | OSError | None:
    """Return what the entry leads to, None for nothing: it vanished, or is a link to nowhere.

    A refusal is the answer where it `is_kept`, unless the folder as such lets nobody through.
    """
    try:
        return entry.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        if not is_kept or (isinstance(error, PermissionError) and not entry.is_symlink()):
            raise
        return error


def stat_file(path: str) -> tuple[int, str]:
    """Return (size in bytes, stamp) of a file.

    Raises:
        FileNotFoundError: nothing there, or something that is not a file.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a file", path)
    return status.st_size, stamp_of(status)


def read_range(path: str, start: int, stop: int) -> tuple[bytes, str]:
    """Return bytes [start, stop), fewer where the file ends, and the stamp of what was read."""
    with open(path, "rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        file.seek(start)
        return file.read(stop - start), stamp


def put(path: str, body: bytes) -> None:
    """Write beside the target, flush to the disk, rename; a power cut leaves the old or the new."""
    staged = _staged(path, body)
    try:
        staged.replace(path)
    except OSError:
        staged.unlink()
        raise
    with _folder(path) as folder:
        os.fsync(folder)


def publish(staged: Path, path: str) -> None:
    """Flush a file that lies beside the target, and give it the target's name."""
    with open(staged, "rb") as file:
        os.fsync(file.fileno())
    staged.replace(path)
    with _folder(path) as folder:
        os.fsync(folder)


def create(path: str, body: bytes) -> bool:
    """Write a file only where none stands; return whether this call made it."""
    staged = _staged(path, body)
    try:
        # A link fails where the name is taken, and shows the content whole.
        Path(path).hardlink_to(staged)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}:
            raise
        return _create_exclusive(path, body)
    finally:
        staged.unlink()
    return True


def _create_exclusive(path: str, body: bytes) -> bool:
    """The way for file systems without links (exFAT, some mounts); a kill may leave it short."""
    try:
        with open(path, "xb") as file:
            file.write(body)
    except FileExistsError:
        return False
    return True


def replace(path: str, body: bytes, stamp: str) -> bool:
    """Overwrite a file only while it has this stamp; return whether it had.

    Check and write happen under a lock on the folder, which other callers of this function heed.
    """
    try:
        with _folder(path) as folder:
            # Network file systems may refuse; the lease re-reads what it wrote.
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            if stat_file(path)[1] != stamp:
                return False
            put(path, body)
            return True
    except FileNotFoundError:
        return False


def _staged(path: str, body: bytes) -> Path:
    """Write a file beside the target."""
    staged = beside(path)
    try:
        with open(staged, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise
    return staged


def beside(path: str) -> Path:
    """Return a new name beside the target; the dot hides what a kill leaves from readers that glob."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{uuid.uuid4().hex}.tmp"


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    descriptor = os.open(Path(path).parent, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
