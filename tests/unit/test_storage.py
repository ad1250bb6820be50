"""Storage against the real file system and an S3 server, with boto3 as the witness."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bioembed_ray import storage
from bioembed_ray.errors import (
    ChangedError,
    ConfigError,
    DeniedError,
    InputError,
    NoBucketError,
    NotFoundError,
    StorageError,
)
from bioembed_ray.store import disk, remote
from bioembed_ray.store.errors import translated

ODD_KEYS = [
    "a b.wav",
    "a #1.wav",
    "50%.wav",
    "a%20b.wav",
    "a+b.wav",
    "q?x=1.wav",
    "br[1].wav",
    "star*.wav",
    "til~de.wav",
    "~home.wav",
    "ünï.wav",
    "e\u0301.wav",
    "日本/蛙.wav",
    "🐸.wav",
    " lead.wav",
    "trail.wav ",
    "a&b=c;d,e@f$g!h'i(j).wav",
    "A:colon|pipe^caret`tick{b}<x>.wav",
    'quote".wav',
    "back\\slash.wav",
    "...wav",
]
UNREADABLE_KEYS = ["a//b.wav", "/lead.wav", "dir/./x.wav", "dir/../y.wav", "tab\t.wav"]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3').uri}/store"


def _keys(uri: str) -> list[str]:
    return sorted(one.key for one in storage.list_objects(uri))


# ---- URIs ------------------------------------------------------------------------------------


def test_splits_uris_as_plain_text() -> None:
    assert storage.split_uri("s3://b/a%20b#c?d") == ("s3", "b", "a%20b#c?d")
    assert storage.split_uri("file:///a/b") == ("", "", "/a/b")
    assert storage.split_uri("/a/b") == ("", "", "/a/b")
    assert storage.split_uri("gs://b") == ("gs", "b", "")


def test_unknown_scheme_and_missing_bucket_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"http://x/y: scheme 'http'; use a local path, s3://"):
        storage.split_uri("http://x/y")
    with pytest.raises(ConfigError, match=r"s3:///x: no bucket; write s3://bucket/prefix"):
        storage.split_uri("s3:///x")


def test_joins_below_root_folder_and_prefix() -> None:
    assert storage.join("/", "a") == "/a"
    assert storage.join("s3://b/", "a", "b") == "s3://b/a/b"
    assert storage.join("s3://b", "a//b") == "s3://b/a//b"


def test_absolute_resolves_local_paths_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b.wav") == str(tmp_path / "b.wav")
    assert storage.absolute("~nobody-of-that-name/x") == str(tmp_path / "~nobody-of-that-name/x")
    assert storage.absolute("~/x") == str(Path.home() / "x")
    assert storage.absolute("s3://b/x") == "s3://b/x"


# ---- what goes in comes out ------------------------------------------------------------------


def test_odd_keys_round_trip_and_are_listed(root: str) -> None:
    for key in ODD_KEYS:
        storage.put(f"{root}/{key}", key.encode())
    assert _keys(root) == sorted(ODD_KEYS)
    for one in storage.list_objects(root):
        assert storage.read(one.uri) == one.key.encode()
        assert one.size_bytes == len(one.key.encode())
        assert storage.read_range(one.uri, 1, 3, one.stamp) == one.key.encode()[1:3]
        assert storage.stat_object(one.uri).stamp == one.stamp
        storage.delete(one.uri)
    assert _keys(root) == [] if root.startswith("s3") else True


def test_odd_keys_stand_in_the_bucket_under_their_own_names(s3) -> None:
    for key in ODD_KEYS:
        storage.put(f"{s3.uri}/{key}", key.encode())
    assert sorted(s3.listing()) == sorted(ODD_KEYS)


def test_odd_keys_put_by_others_are_read(s3) -> None:
    for key in ODD_KEYS:
        s3.put(f"in/{key}", key.encode())
    found = {one.key: storage.read(one.uri) for one in storage.list_objects(f"{s3.uri}/in")}
    assert found == {key: key.encode() for key in ODD_KEYS}


@pytest.mark.parametrize("key", UNREADABLE_KEYS)
def test_a_key_that_cannot_be_addressed_is_one_clear_error(s3, key: str) -> None:
    s3.put(f"in/{key}", b"x")
    with pytest.raises(StorageError, match=r"holds the key .*which cannot be read") as caught:
        list(storage.list_objects(f"{s3.uri}/in"))
    assert "\n" not in str(caught.value)
    assert repr(f"in/{key}") in str(caught.value).replace("\\\\", "\\")
    with pytest.raises(StorageError, match="no such name is possible"):
        storage.read(f"{s3.uri}/in/{key}")


def test_file_names_with_newline_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    raw = os.fsencode(folder)
    for name in (b"caf\xe9.wav", b"new\nline.wav", b"100%\xff.wav"):
        with open(raw + b"/" + name, "wb") as file:
            file.write(name)
    found = list(storage.list_objects(str(folder)))
    assert sorted(one.key for one in found) == ["100%%FF.wav", "caf%E9.wav", "new\nline.wav"]
    for one in found:
        one.uri.encode()
        assert storage.read_range(one.uri, 0, 99, one.stamp) == storage.read(one.uri)
        assert storage.stat_object(one.uri).stamp == one.stamp
        assert storage.absolute(one.uri) == one.uri
    assert {storage.read(one.uri) for one in found} == {
        b"caf\xe9.wav",
        b"new\nline.wav",
        b"100%\xff.wav",
    }
    with pytest.raises(NotFoundError) as caught:
        storage.read(str(folder / "gone\n.wav"))
    assert str(caught.value).endswith("gone\\n.wav: not found")


# ---- listing ---------------------------------------------------------------------------------


def test_lists_a_folder_an_object_and_nothing(root: str) -> None:
    storage.put(f"{root}/in/a.wav", b"1")
    storage.put(f"{root}/in/sub/b.wav", b"22")
    storage.put(f"{root}/in-other/c.wav", b"333")
    assert _keys(f"{root}/in") == ["a.wav", "sub/b.wav"]
    assert _keys(f"{root}/in/") == ["a.wav", "sub/b.wav"]
    [only] = storage.list_objects(f"{root}/in/sub/b.wav")
    assert (only.key, only.uri, only.size_bytes) == ("b.wav", f"{root}/in/sub/b.wav", 2)


def test_depth_limits_a_listing(root: str) -> None:
    for key in ("a.wav", "x/b.wav", "x/y/c.wav"):
        storage.put(f"{root}/{key}", b"")
    assert sorted(o.key for o in storage.list_objects(root, 1)) == ["a.wav"]
    assert sorted(o.key for o in storage.list_objects(root, 2)) == ["a.wav", "x/b.wav"]


def test_a_remote_prefix_without_objects_is_empty_a_missing_folder_is_an_error(
    s3, tmp_path
) -> None:
    assert _keys(f"{s3.uri}/nothing") == []
    assert _keys(s3.uri) == []
    with pytest.raises(NotFoundError, match=r"/nothing: not found"):
        _keys(str(tmp_path / "nothing"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFoundError, match="a part of the path is a file"):
        _keys(str(tmp_path / "file" / "x"))


def test_more_objects_than_one_page_are_listed(s3) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: storage.put(f"{s3.uri}/in/{n:05d}.wav", b""), range(1100)))
    assert _keys(f"{s3.uri}/in") == [f"{n:05d}.wav" for n in range(1100)]


def test_folder_marker_of_a_console_has_no_entry_of_its_own(s3) -> None:
    s3.put("in/")
    s3.put("in/a.wav")
    assert _keys(f"{s3.uri}/in") == ["a.wav"]


def test_links_are_followed_once_and_dangling_ones_shown(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (folder / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "far.wav").write_bytes(b"far")
    (folder / "a" / "x.wav").write_bytes(b"x")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "self.wav").symlink_to("self.wav")
    (folder / "not_fetched.wav").symlink_to("gone.wav")
    os.mkfifo(folder / "pipe.wav")
    found = {one.key: one for one in storage.list_objects(str(folder))}
    assert set(found) == {"a/x.wav", "linked/far.wav", "self.wav", "not_fetched.wav"}
    assert found["not_fetched.wav"].stamp == disk.DANGLING
    with pytest.raises(NotFoundError, match="not found"):
        storage.read_range(found["not_fetched.wav"].uri, 0, 1, disk.DANGLING)


def test_files_that_vanish_while_listed_are_left_out(tmp_path: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            storage.put(str(tmp_path / "in" / "churn.wav"), b"")

    storage.put(str(tmp_path / "in" / "stays.wav"), b"")
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            assert "stays.wav" in _keys(str(tmp_path / "in"))
    finally:
        stop.set()
        thread.join()


# ---- ranges and stamps -----------------------------------------------------------------------


def test_ranges_end_where_the_object_ends(root: str) -> None:
    storage.put(f"{root}/x", b"12345")
    storage.put(f"{root}/empty", b"")
    assert storage.read_range(f"{root}/x", 3, 900) == b"45"
    assert storage.read_range(f"{root}/x", 5, 9) == b""
    assert storage.read_range(f"{root}/x", 900, 910) == b""
    assert storage.read_range(f"{root}/x", 2, 2) == b""
    assert storage.read_range(f"{root}/empty", 0, 9) == b""
    assert storage.read(f"{root}/empty") == b""


def test_a_replaced_object_is_noticed_by_its_stamp(root: str) -> None:
    uri = f"{root}/x"
    storage.put(uri, b"old bytes")
    stamp = storage.stat_object(uri).stamp
    assert storage.read_range(uri, 0, 3, stamp) == b"old"
    storage.put(uri, b"new bytes, longer")
    with pytest.raises(ChangedError, match=r"/x: replaced since it was listed"):
        storage.read_range(uri, 0, 3, stamp)
    with pytest.raises(ChangedError):
        storage.read_range(uri, 500, 600, stamp)


def test_stamp_of_a_listing_is_the_stamp_of_one_object(root: str) -> None:
    storage.put(f"{root}/x", b"12345")
    [listed] = storage.list_objects(root)
    assert listed.stamp == storage.stat_object(f"{root}/x").stamp


# ---- writing ---------------------------------------------------------------------------------


def test_exists_and_delete(root: str) -> None:
    uri = f"{root}/folder/x"
    assert not storage.exists(uri)
    storage.put(uri, b"")
    assert storage.exists(uri)
    assert not storage.exists(f"{root}/folder")
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_many_objects_are_asked_for_at_once(root: str) -> None:
    uris = [f"{root}/{n}" for n in range(20)]
    for uri in uris[::2]:
        storage.put(uri, b"")
    assert [info is not None for info in storage.stat_objects(uris)] == [True, False] * 10


def test_put_is_seen_whole_or_not_at_all(root: str) -> None:
    uri = f"{root}/part"
    bodies = {bytes([n]) * 2_000_000 for n in (1, 2)}
    storage.put(uri, bytes([1]) * 2_000_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for body in bodies:
                storage.put(uri, body)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = {storage.read(uri) for _ in range(25)}
    finally:
        stop.set()
        thread.join()
    assert seen <= bodies
    assert _keys(root) == ["part"]


def test_a_file_is_put_when_its_block_ends_well(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{root}/deep/x"
    # Two sizes: in one request, and in parts.
    for size in (10, 6 << 20):
        monkeypatch.setattr(remote, "FILE_PUT_BYTES", 1 << 20)
        body = os.urandom(size)
        with storage.writing(uri) as path:
            path.write_bytes(body[: size // 2])
            with open(path, "ab") as file:
                file.write(body[size // 2 :])
        assert storage.read(uri) == body
        assert _keys(f"{root}/deep") == ["x"]
    with pytest.raises(RuntimeError), storage.writing(uri) as path:
        path.write_bytes(b"half of it")
        raise RuntimeError
    assert storage.read(uri) == body
    assert _keys(f"{root}/deep") == ["x"]


def test_one_of_many_threads_creates(root: str) -> None:
    bodies = [f"owner {n}".encode() for n in range(16)]
    start = threading.Barrier(len(bodies))

    def attempt(body: bytes) -> bool:
        start.wait()
        return storage.create(f"{root}/lease", body)

    with ThreadPoolExecutor(len(bodies)) as threads:
        won = list(threads.map(attempt, bodies))
    assert won.count(True) == 1
    assert storage.read(f"{root}/lease") == bodies[won.index(True)]


def _create(uri: str, body: bytes, at: float, answers: multiprocessing.Queue) -> None:
    time.sleep(max(0.0, at - time.time()))
    answers.put((body, storage.create(uri, body)))


def test_one_of_many_processes_creates(root: str) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    at = time.time() + 3
    processes = [
        context.Process(target=_create, args=(f"{root}/lease", f"{n}".encode(), at, answers))
        for n in range(4)
    ]
    for process in processes:
        process.start()
    results = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    winners = [body for body, is_made in results if is_made]
    assert len(winners) == 1
    assert storage.read(f"{root}/lease") == winners[0]


def test_create_without_links_still_creates_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    uri = str(tmp_path / "lease")
    assert storage.create(uri, b"first") is True
    assert storage.create(uri, b"second") is False
    assert storage.read(uri) == b"first"
    assert _keys(str(tmp_path)) == ["lease"]


def test_replace_with_a_stale_stamp_changes_nothing(root: str) -> None:
    uri = f"{root}/lease"
    assert storage.replace(uri, b"x", "stamp of nothing") is False
    storage.put(uri, b"first")
    stale = storage.stat_object(uri).stamp
    assert storage.replace(uri, b"second one", stale) is True
    assert storage.replace(uri, b"third", stale) is False
    assert storage.read(uri) == b"second one"


def test_one_of_many_threads_replaces(root: str) -> None:
    uri = f"{root}/lease"
    storage.put(uri, b"first")
    stamp = storage.stat_object(uri).stamp
    start = threading.Barrier(8)

    def attempt(n: int) -> bool:
        start.wait()
        return storage.replace(uri, b"owner" * (n + 2), stamp)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(attempt, range(8))).count(True) == 1


# ---- refusals --------------------------------------------------------------------------------


def test_missing_bucket_is_named(s3) -> None:
    for act in (
        lambda: list(storage.list_objects("s3://no-such-bucket/x")),
        lambda: storage.read("s3://no-such-bucket/x"),
        lambda: storage.put("s3://no-such-bucket/x", b""),
        lambda: storage.check_writable("s3://no-such-bucket/x"),
    ):
        with pytest.raises(NoBucketError, match=r"^s3://no-such-bucket: no such bucket$"):
            act()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nohost.invalid:9"])
def test_unreachable_endpoint_is_a_quick_clear_error(
    s3, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    start = time.monotonic()
    with pytest.raises(StorageError, match=rf"s3://b/x: no answer from {endpoint}; check the"):
        list(storage.list_objects("s3://b/x"))
    assert time.monotonic() - start < 20


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, answer: Callable[[BaseHTTPRequestHandler], None]):
    """A store that answers every request in this way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_PUT = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_closed_bucket_says_no_permission(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(request: BaseHTTPRequestHandler) -> None:
        request.send_response(403)
        request.end_headers()
        request.wfile.write(b"<Error><Code>AccessDenied</Code></Error>")

    with serving(monkeypatch, closed):
        with pytest.raises(DeniedError, match=r"s3://b/x: no permission; check the credentials"):
            list(storage.list_objects("s3://b/x"))
        with pytest.raises(DeniedError, match="s3://b/x: no permission"):
            storage.check_writable("s3://b/x")


def test_a_busy_store_and_a_dropped_connection_are_tried_again(
    s3, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(range(200)) * 500
    seen: list[str] = []

    def flaky(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Range"])
        if len(seen) <= 2:
            request.send_response(503)
            request.end_headers()
            return
        first, last = (int(n) for n in request.headers["Range"].removeprefix("bytes=").split("-"))
        part = body[first : last + 1]
        request.send_response(206)
        request.send_header("ETag", '"tag"')
        request.send_header("Last-Modified", "Tue, 24 Nov 2026 22:00:00 GMT")
        request.send_header("Content-Length", str(len(part)))
        request.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        request.end_headers()
        # The third answer breaks off in the middle.
        request.wfile.write(part[: len(part) // 2] if len(seen) == 3 else part)

    with serving(monkeypatch, flaky):
        assert storage.read_range("s3://b/x", 100, 90_000, "tag") == body[100:90_000]
    assert len(seen) >= 4


def test_missing_files_and_folders_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotFoundError, match=r"gone: not found$"):
        storage.read(str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="is a directory"):
        storage.read(str(tmp_path))
    with pytest.raises(NotFoundError, match="not found"):
        storage.stat_object(str(tmp_path))
    with pytest.raises(StorageError):
        storage.put(str(tmp_path / "file" / "x"), b"")
    with pytest.raises(InputError, match="is a file; output must be a folder"):
        storage.check_writable(str(tmp_path / "file"))


def test_check_writable_leaves_nothing(root: str) -> None:
    storage.check_writable(root)
    assert _keys(root) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skipped where mounting is refused."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_keeps_the_old_object(tiny_disk: Path) -> None:
    uri = str(tiny_disk / "part")
    storage.put(uri, b"old")
    for write in (storage.put, storage.create):
        with pytest.raises(StorageError, match=r"no space left on device$"):
            write(uri, bytes(200_000))
    assert storage.read(uri) == b"old"
    assert _keys(str(tiny_disk)) == ["part"]


def test_a_file_that_fills_the_disk_is_one_line_and_keeps_the_old_object(tiny_disk: Path) -> None:
    storage.put(str(tiny_disk / "x"), b"old")
    with (
        pytest.raises(StorageError, match=r"/x: no space left on device$"),
        storage.writing(str(tiny_disk / "x")) as path,
    ):
        path.write_bytes(b"x" * (8 << 20))
    assert storage.read(str(tiny_disk / "x")) == b"old"
    assert [entry.name for entry in tiny_disk.iterdir()] == ["x"]


def test_a_read_only_disk_is_one_line(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(StorageError, match=r"tiny: read-only file system$"):
        storage.check_writable(str(tiny_disk))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "in" / "closed").mkdir(parents=True)
    (tmp_path / "in" / "closed").chmod(0)
    with pytest.raises(DeniedError, match=r"in/closed: no permission$"):
        _keys(str(tmp_path / "in"))


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "closed").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DeniedError, match=r"in/closed: no permission$"):
        _keys(str(tmp_path / "in"))


def test_secrets_are_not_needed_for_a_local_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    storage.put(str(tmp_path / "x"), b"x")
    assert storage.read(f"file://{tmp_path}/x") == b"x"


def test_missing_credentials_say_what_to_set() -> None:
    # obstore then asks the machine's own metadata service, which a test must not.
    from obstore.exceptions import GenericError

    text = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token: 403 Forbidden"
    expected = r"^s3://b/x: no credentials .*AWS_SKIP_SIGNATURE=true"
    with pytest.raises(StorageError, match=expected), translated("s3://b/x"):
        raise GenericError(text)
