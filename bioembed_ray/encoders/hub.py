"""The Hugging Face hub: what a revision is now, and the files of exactly that commit."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bioembed_ray.encoders.state import few
from bioembed_ray.errors import WeightsError

LOG = logging.getLogger(__name__)
COMMIT = re.compile(r"[0-9a-f]{40}")
# The hub answers in well under a second; without a limit a dead route hangs for minutes.
HUB_TIMEOUT_S = 8.0


def resolve(
    repo: str, revision: str | None, patterns: Sequence[str], model: str
) -> tuple[str, dict[str, str]]:
    """Return the commit that a revision is now, and the etags of the files wanted, by name.

    Where the hub cannot be reached, or `HF_HUB_OFFLINE` is set, the local cache answers.

    Raises:
        WeightsError: see `weights.hub_checkpoint`.
    """
    found = _ask_hub(repo, revision, model)
    if found is None:
        found = _ask_cache(repo, revision, model, patterns)
    commit, etags = found
    names = _wanted(etags, patterns, f"{model}: {repo} at {commit[:8]}")
    return commit, {name: etags[name] for name in names}


def download(repo: str, commit: str, names: Sequence[str], model: str) -> Path:
    """Return the folder of the cache that holds these files of a commit, downloaded if need be.

    Raises:
        WeightsError: unreachable, or no longer there.
    """
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # Bars of several actors in one log are noise; the run has its own progress line.
    disable_progress_bars()
    place = Path()
    for name in names:
        with _hub_errors(repo, commit, model) as reach:
            # A commit that stands in the cache needs no request at all.
            file = huggingface_hub.hf_hub_download(
                repo, name, revision=commit, endpoint=os.environ.get("HF_ENDPOINT")
            )
            place = Path(file).parents[name.count("/")]
        if reach.failed:
            raise WeightsError(
                f"{model}: {name} is not in the cache and the hub is unreachable; "
                "set weights: /path/to/model, or weights: random for a dry run"
            )
    return place


def _wanted(etags: dict[str, str], patterns: Sequence[str], where: str) -> tuple[str, ...]:
    missing = _missing(etags, patterns)
    if missing:
        raise WeightsError(f"{where} has no {missing}; it has {few(etags)}")
    return tuple(sorted({name for p in patterns for name in fnmatch.filter(etags, p)}))


def _missing(names: Collection[str], patterns: Sequence[str]) -> str:
    """Return what of the patterns is not there: every plain name must be, and one of the globs."""
    plain = [p for p in patterns if not _is_glob(p) and p not in names]
    globs = [p for p in patterns if _is_glob(p)]
    if globs and not any(fnmatch.filter(names, pattern) for pattern in globs):
        plain.append(" or ".join(globs))
    return ", ".join(plain)


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _ask_hub(repo: str, revision: str | None, model: str) -> tuple[str, dict[str, str]] | None:
    """Return commit and etag per file, or None where the hub cannot be reached."""
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with _hub_errors(repo, revision, model) as reach:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
        if info.gated:
            # A gated repository shows its file list to everyone; only its files are closed.
            api.auth_check(repo)
    if reach.failed:
        return None
    siblings = info.siblings or []
    etags = {s.rfilename: s.lfs.sha256 if s.lfs else (s.blob_id or "") for s in siblings}
    commit = str(info.sha)
    _remember(repo, revision or huggingface_hub.constants.DEFAULT_REVISION, commit, etags)
    return commit, etags


@dataclass(slots=True)
class _Reach:
    failed: bool = False


@contextlib.contextmanager
def _hub_errors(repo: str, revision: str | None, model: str) -> Iterator[_Reach]:
    """Turn the hub's refusals into one line each; note where it could not be reached at all."""
    import httpx2
    from huggingface_hub import errors

    reach = _Reach()
    try:
        yield reach
    except errors.GatedRepoError:
        raise WeightsError(
            f"{model}: {repo} is gated; accept its terms on the hub and set HF_TOKEN, or set weights: /path/to/model"
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"{model}: the hub has no repository {repo}, or it is private; check the name, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsError(
            f"{model}: {repo} has no revision {revision!r}; use a branch, a tag or a commit"
        ) from None
    except errors.HFValidationError:
        raise WeightsError(
            f"{model}: {repo!r} is no hub name; write owner/name, or a path that exists"
        ) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, httpx2.TransportError):
        reach.failed = True
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise WeightsError(
                f"{model}: the hub denies access to {repo} (HTTP {status}); set HF_TOKEN, or set weights: /path/to/model"
            ) from None
        if status < 500 and status != 429:
            raise WeightsError(f"{model}: the hub refused {repo} (HTTP {status})") from None
        reach.failed = True


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    return cache / repo_folder_name(repo_id=repo, repo_type="model")


def _remember(repo: str, revision: str, commit: str, etags: dict[str, str]) -> None:
    """Note in the cache what a branch was and which files its commit has, for runs offline.

    A download by branch would note the branch; ours go by commit.
    """
    folder = _cache_folder(repo)
    # Best effort: a cache that cannot be written still serves this run.
    with contextlib.suppress(OSError):
        _write(_listing(repo, commit), json.dumps(etags, sort_keys=True))
        if revision != commit:
            _write(folder / "refs" / revision, commit)


def _listing(repo: str, commit: str) -> Path:
    return _cache_folder(repo) / "bioembed" / f"{commit}.json"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


def _ask_cache(
    repo: str, revision: str | None, model: str, patterns: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """Return commit and etag per file of a revision whose wanted files are all in the cache.

    Raises:
        WeightsError: not there, or not whole.
    """
    missing = WeightsError(
        f"{model}: weights are not in the cache and the hub is unreachable; "
        "set weights: /path/to/model, or weights: random for a dry run"
    )
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        ref = _cache_folder(repo) / "refs" / commit
        if not ref.is_file():
            raise missing
        commit = ref.read_text(encoding="utf-8").strip()
    snapshot = _cache_folder(repo) / "snapshots" / commit
    etags = _cached_etags(snapshot, _listing(repo, commit))
    wanted = [name for pattern in patterns for name in fnmatch.filter(etags, pattern)]
    if _missing(etags, patterns) or not all((snapshot / name).exists() for name in wanted):
        raise missing
    LOG.warning("%s: hub not reached; using commit %s of the cache", model, commit[:8])
    return commit, etags


def _cached_etags(snapshot: Path, listing: Path) -> dict[str, str]:
    """Return the etags the hub gave, or those in a snapshot that others downloaded.

    A snapshot is a folder of links whose targets are named by the etag, so that a digest made from
    it is the one that the hub's own answer would give.
    """
    if listing.is_file():
        return dict(json.loads(listing.read_text(encoding="utf-8")))
    return {
        link.relative_to(snapshot).as_posix(): link.readlink().name
        for link in snapshot.rglob("*")
        if link.is_symlink() and link.exists()
    }
