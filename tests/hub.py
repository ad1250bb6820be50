"""A Hugging Face hub on 127.0.0.1: huggingface_hub really downloads from it.

It answers what the real one answers to `model_info`, `auth_check`, tree listings and downloads
(HEAD and ranged GET with ETag, X-Repo-Commit and X-Linked-Etag), keeps every commit, and can hold
private, gated and missing repositories. Use it in a subprocess with `hub.environment(cache)`, or
in the same process with the `loopback` fixture-like `hub.use(monkeypatch, cache)`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5")


@dataclass
class Repo:
    """Commits and branches of one model repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False


@dataclass
class Hub:
    """The running hub: publish to it, read its log, point a process at it."""

    url: str
    repos: dict[str, Repo] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    down: bool = False
    """Answers 503 to everything."""

    def publish(
        self,
        repo: str,
        files: dict[str, bytes | Path],
        branch: str = "main",
        *,
        gated: bool = False,
    ) -> str:
        """Add one commit with exactly these files; return its 40 hex digits."""
        contents = {
            name: body if isinstance(body, bytes) else body.read_bytes()
            for name, body in files.items()
        }
        stand = self.repos.setdefault(repo, Repo())
        stand.gated = gated
        seed = f"{repo}{len(stand.commits)}{sorted((n, _sha256(b)) for n, b in contents.items())}"
        commit = hashlib.sha1(seed.encode()).hexdigest()
        stand.commits[commit] = contents
        stand.refs[branch] = commit
        return commit

    def publish_folder(self, repo: str, folder: Path, branch: str = "main") -> str:
        """Publish every file of a folder, as `save_pretrained` left it."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return self.publish(repo, {str(p.relative_to(folder)): p for p in paths}, branch)

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """Return the environment of a subprocess that sees this hub and an own cache."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "127.0.0.1",
            **more,
        }

    def use(self, monkeypatch: Any, cache: Path) -> None:
        """Point this process's huggingface_hub here; its constants are read at import."""
        from huggingface_hub import constants

        point_at(monkeypatch, self.url, cache)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def point_at(monkeypatch: Any, url: str, cache: Path) -> None:
    """Point this process's huggingface_hub at an endpoint and a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))


@contextlib.contextmanager
def loopback_hub() -> Iterator[Hub]:
    """Run a hub on a free port of 127.0.0.1 until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_blob(body: bytes) -> str:
    """Return the id git gives a file: the hub's etag of a file that is not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def etag(name: str, body: bytes) -> str:
    """Return the hub's etag of a file: sha256 in LFS, else the git blob id."""
    return _sha256(body) if name.endswith(LFS) else git_blob(body)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: Any) -> None:
        """Keep the test output quiet; the hub has its own log."""

    def _answer(self, *, with_body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.log.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        query = parse_qs(parts.query)
        if hub.down:
            self._fail(503, "Down", with_body)
        elif path[:2] == ["api", "models"] and len(path) >= 4:
            self._api(hub, "/".join(path[2:4]), path[4:], query, with_body)
        elif len(path) >= 5 and path[2] == "resolve":
            self._resolve(hub, "/".join(path[:2]), path[3], "/".join(path[4:]), with_body)
        else:
            self._fail(404, "EntryNotFound", with_body)

    def _api(
        self, hub: Hub, name: str, rest: list[str], query: dict[str, list[str]], with_body: bool
    ) -> None:
        repo = hub.repos.get(name)
        if repo is None:
            # The real hub says 401 to strangers, so as not to tell what is private.
            self._fail(401, "RepoNotFound", with_body)
            return
        if rest == ["auth-check"]:
            self._fail(403, "GatedRepo", with_body) if repo.gated else self._json({}, with_body)
            return
        revision = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree") else "main"
        commit = _commit(repo, revision)
        if commit is None:
            self._fail(404, "RevisionNotFound", with_body)
            return
        if rest and rest[0] == "tree":
            self._json([_tree_row(n, b) for n, b in repo.commits[commit].items()], with_body)
            return
        blobs = "blobs" in query
        siblings = [_sibling(n, b, blobs) for n, b in repo.commits[commit].items()]
        self._json(
            {
                "_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings,
                "private": False, "gated": "manual" if repo.gated else False, "disabled": False,
                "downloads": 0, "likes": 0, "tags": [], "createdAt": "2024-01-01T00:00:00.000Z",
            },
            with_body,
        )  # fmt: skip

    def _resolve(self, hub: Hub, name: str, revision: str, file: str, with_body: bool) -> None:
        repo = hub.repos.get(name)
        if repo is None:
            self._fail(401, "RepoNotFound", with_body)
            return
        if repo.gated:
            self._fail(403, "GatedRepo", with_body)
            return
        commit = _commit(repo, revision)
        if commit is None:
            self._fail(404, "RevisionNotFound", with_body)
            return
        body = repo.commits[commit].get(file)
        if body is None:
            self._fail(404, "EntryNotFound", with_body, commit)
            return
        headers = {
            "ETag": f'"{etag(file, body)}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if file.endswith(LFS):
            headers |= {"X-Linked-Etag": f'"{etag(file, body)}"', "X-Linked-Size": str(len(body))}
        start = self._first_byte(body)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self._send(206 if start else 200, body[start:], headers, with_body)

    def _first_byte(self, body: bytes) -> int:
        asked = self.headers.get("Range", "")
        start = asked.removeprefix("bytes=").split("-")[0]
        return min(int(start), len(body)) if start.isdigit() else 0

    def _json(self, value: Any, with_body: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, with_body)

    def _fail(self, status: int, code: str, with_body: bool, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        if commit:
            headers["X-Repo-Commit"] = commit
        self._send(status, b"{}", headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _commit(repo: Repo, revision: str) -> str | None:
    if revision in repo.commits:
        return revision
    return repo.refs.get(revision)


def _lfs(body: bytes) -> dict[str, Any]:
    return {"sha256": _sha256(body), "size": len(body), "pointerSize": 134}


def _sibling(name: str, body: bytes, blobs: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": name}
    if blobs:
        row |= {"size": len(body), "blobId": git_blob(body)}
        if name.endswith(LFS):
            row["lfs"] = _lfs(body)
    return row


def _tree_row(name: str, body: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": git_blob(body)}
    if name.endswith(LFS):
        lfs = _lfs(body)
        row["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}
    return row
