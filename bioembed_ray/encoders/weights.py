"""Where weights come from, and what names them in a version.

A checkpoint is resolved once, on the driver, and is pinned from then on: a hub commit with the
etags of its files, the sha256 of a local file or folder, or a seed. Workers fetch exactly that.
Nothing here falls back to other weights.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bioembed_ray.encoders.hub import download, resolve
from bioembed_ray.encoders.state import read_state, seeded, verify_state
from bioembed_ray.errors import WeightsError

__all__ = [
    "Checkpoint",
    "fetch",
    "hub_checkpoint",
    "local_checkpoint",
    "random_checkpoint",
    "read_state",
    "seeded",
    "verify_state",
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Pinned weights.

    Attributes:
        kind: Where they come from; `none` where there are none, `untrained` before they are made.
        digest: Hex digits that enter the version.
        path: Local file or folder.
        repo: Hub repository.
        commit: Hub commit, 40 hex digits.
        files: Names inside the repository or folder, sorted.
        seed: Seed of random weights.
    """

    kind: Literal["hub", "local", "random", "none", "untrained"]
    digest: str
    path: str | None = None
    repo: str | None = None
    commit: str | None = None
    files: tuple[str, ...] = ()
    seed: int | None = None


def random_checkpoint(seed: int, architecture: str) -> Checkpoint:
    """Return untrained weights, named by their seed and the network they fill."""
    digest = hashlib.sha256(f"random:{seed}:{architecture}".encode()).hexdigest()
    return Checkpoint("random", digest, seed=seed)


def local_checkpoint(path: str, patterns: Sequence[str] = ("*",)) -> Checkpoint:
    """Return the weights in a file or folder, named by their content.

    Args:
        path: The file or folder.
        patterns: Globs on the names inside a folder; hidden files never count.

    Raises:
        WeightsError: nothing there, or it cannot be read.
    """
    place = Path(path).expanduser()
    files = _local_files(place, patterns)
    return Checkpoint("local", _content_digest(place, files), path=str(place), files=files)


def _local_files(place: Path, patterns: Sequence[str]) -> tuple[str, ...]:
    if place.is_file():
        return ()
    if not place.is_dir():
        raise WeightsError(
            f"{place}: no such file or folder; set weights to a checkpoint that exists"
        )
    names = (p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
    wanted = [
        name
        for name in names
        if not any(part.startswith(".") for part in name.split("/"))
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if not wanted:
        raise WeightsError(f"{place}: the folder holds none of {', '.join(patterns)}")
    return tuple(sorted(wanted))


def _content_digest(place: Path, files: tuple[str, ...]) -> str:
    """Return the sha256 of a file, or of the names and sha256 of the files of a folder."""
    try:
        if not files:
            return _sha256(place)
        lines = "".join(f"{name} {_sha256(place / name)}\n" for name in files)
    except OSError as error:
        raise WeightsError(f"{place}: cannot be read ({error.strerror or error})") from None
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_checkpoint(
    repo: str, revision: str | None, files_or_patterns: Sequence[str], *, model: str | None = None
) -> Checkpoint:
    """Return the commit that a revision of a hub repository is now, with its files' etags.

    Where the hub cannot be reached, or `HF_HUB_OFFLINE` is set, the local cache answers, if it
    holds that revision with all files.

    Args:
        repo: "owner/name".
        revision: Branch, tag or commit; None is the default branch.
        files_or_patterns: Every plain name must be there, and a match of at least one of the globs.
        model: What the caller calls the model in messages; None is the repository's name.

    Raises:
        WeightsError: unreachable and not cached, no such repository, revision or file, or no
            access to it.
    """
    commit, etags = resolve(repo, revision, files_or_patterns, model or repo)
    lines = "".join(f"{name} {etag}\n" for name, etag in etags.items())
    # Without the commit: a commit that only edits a README moves no number.
    digest = hashlib.sha256(f"hub:{repo}\n{lines}".encode()).hexdigest()
    return Checkpoint("hub", digest, repo=repo, commit=commit, files=tuple(etags))


def fetch(checkpoint: Checkpoint, only: Sequence[str] = (), *, model: str | None = None) -> Path:
    """Return where the weights are on this machine, after checking or downloading them.

    Args:
        checkpoint: Hub or local weights; random ones have no place.
        only: Some of the checkpoint's files, e.g. a small config.json; all where empty.
        model: What the caller calls the model in messages.

    Returns:
        The local file or folder; for the hub the folder that holds exactly that commit's files.

    Raises:
        WeightsError: gone, changed since it was resolved, or unreachable.
    """
    if checkpoint.path is not None:
        return _check_local(Path(checkpoint.path), checkpoint, only)
    repo, commit = checkpoint.repo, checkpoint.commit
    if repo is None or commit is None:
        raise ValueError("random weights cannot be fetched")
    return download(repo, commit, only or checkpoint.files, model or repo)


def _check_local(place: Path, checkpoint: Checkpoint, only: Sequence[str]) -> Path:
    """Compare content: another machine may hold another file under the same name."""
    if not place.exists():
        raise WeightsError(
            f"{place}: no such file or folder on this machine; put it where every worker sees it"
        )
    if not only and _content_digest(place, checkpoint.files) != checkpoint.digest:
        raise WeightsError(f"{place}: not the weights this run was planned with; plan it again")
    return place
