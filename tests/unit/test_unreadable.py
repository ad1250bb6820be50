"""Folders and links that may not be read cost what lies in them, are named, and stop nothing else."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bioembed_ray import probing, run, versions
from bioembed_ray.config import InputConfig
from bioembed_ray.errors import DeniedError, InputError, Reason, RecordingError, StorageError
from bioembed_ray.inputs.inside import Opened
from bioembed_ray.inputs.left_out import Kind, LeftOut
from bioembed_ray.inputs.listing import Container, Listing, list_input
from bioembed_ray.inventory import Changes
from bioembed_ray.ledger import ledger_file
from bioembed_ray.plan_text import describe_plan
from bioembed_ray.report_text import describe_result, describe_status
from bioembed_ray.store import disk
from bioembed_ray.summary import Tally
from tests.unit.made_up_archive import WINDOWS, Archive, names_of
from tests.unit.references import FakeRegistry

NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be somebody whom permission bits stop; root is stopped by none."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An archive that everybody may read; pytest's own folders are for its user alone."""
    path = Path(tempfile.mkdtemp(prefix="bioembed-test-"))
    path.chmod(0o755)
    for name in ("a.wav", "private/b.wav", "private/deep/c.wav", "x/d.wav", "notes.txt"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    yield path
    for closed in path.rglob("*"):
        if closed.is_dir() and not closed.is_symlink():
            closed.chmod(0o755)
    shutil.rmtree(path)


def listed(uri: Path | str | tuple[str, ...], **options: Any) -> Listing:
    uri = str(uri) if isinstance(uri, Path) else uri
    config = InputConfig.model_validate({"uri": uri, **options})
    # Modules that are imported late would be read as nobody.
    with contextlib.suppress(StorageError, InputError):
        list_input(config)
    with as_nobody():
        return list_input(config)


def names(found: Listing) -> list[str]:
    return [one.name for one in found.recordings]


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_without_permission_is_named_and_the_others_are_read(
    folder: Path, mode: int
) -> None:
    (folder / "private").chmod(mode)
    found = listed(folder)
    assert names(found) == ["a.wav", "x/d.wav"]
    assert {name: str(error) for name, error in found.unreadable.items()} == {
        "private/": "storage: permission denied; what it holds is not known. Make it readable, or set "
        "input.exclude: private/**"
    }
    assert str(found.left_out) == "1 that cannot be read (private/), 1 not audio (1 .txt)"


def test_a_folder_that_is_excluded_is_not_even_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "private").chmod(0)
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    for glob in ("private/**", "**/private/**", "pri*/**/*"):
        found = listed(folder, exclude=[glob])
        assert names(found) == ["a.wav", "x/d.wav"]
        assert found.unreadable == {}
        assert found.left_out.examples[Kind.NOT_SELECTED] == ["private/"]
    assert {os.path.relpath(path, folder) for path in opened} == {".", "x"}
    # Something in it may be wanted still.
    assert list(listed(folder, exclude=["private/*"]).unreadable) == ["private/"]


def test_a_folder_that_nothing_is_wanted_from_may_be_closed(folder: Path) -> None:
    (folder / "private").chmod(0)
    found = listed(folder, include=["*.wav", "x/**"])
    assert (names(found), found.unreadable) == (["a.wav", "x/d.wav"], {})
    assert found.left_out.count(Kind.NOT_SELECTED) == 1
    assert list(listed(folder, include=["**/*.wav"]).unreadable) == ["private/"]
    by_glob = listed(f"{folder}/x*/*.wav")
    assert (names(by_glob), by_glob.unreadable) == (["x/d.wav"], {})
    assert list(listed(f"{folder}/*/*.wav").unreadable) == ["private/"]


def test_lost_and_found_of_a_disk_disturbs_nobody(folder: Path) -> None:
    for name in ("lost+found", "x/.cache"):
        (folder / name).mkdir()
        (folder / name).chmod(0)
    found = listed(folder)
    assert found.unreadable == {}
    assert found.left_out.examples[Kind.HIDDEN] == ["lost+found/", "x/.cache/"]


def test_links_into_a_closed_folder_are_named(folder: Path) -> None:
    (folder / "e.wav").symlink_to("private/b.wav")
    (folder / "site2").symlink_to("private/deep")
    (folder / "more.txt").symlink_to("private/deep")
    (folder / "private").chmod(0)
    found = listed(folder, exclude=["private/**"])
    assert names(found) == ["a.wav", "x/d.wav"]
    assert sorted(found.unreadable) == ["e.wav", "site2"]
    assert found.unreadable["site2"].detail.endswith("set input.exclude: site2")
    assert listed(folder, exclude=["private/**", "site2", "e.wav"]).unreadable == {}
    assert found.left_out.count(Kind.NOT_AUDIO) == 2


def test_the_input_itself_has_to_be_readable(folder: Path) -> None:
    (folder / "private").chmod(0)
    for uri in (folder / "private", f"{folder}/private/*.wav"):
        with pytest.raises(DeniedError, match=r"private(/\*\.wav)?: no permission$"):
            listed(uri)
    with pytest.raises(DeniedError, match=r"private: no permission$"):
        listed((str(folder / "x"), str(folder / "private")))


def test_nothing_but_closed_folders_is_an_error_that_names_them(folder: Path) -> None:
    (folder / "private").chmod(0)
    with pytest.raises(
        InputError, match=r"no audio under .*: 1 that cannot be read \(private/\), "
    ):
        listed(folder, include=["private/**"])


def test_files_that_a_list_or_manifest_names_in_a_closed_folder_are_named(folder: Path) -> None:
    table = folder / "table.csv"
    table.write_text("uri,site\na.wav,n\nprivate/b.wav,s\n")
    (folder / "private").chmod(0)
    for found in (
        listed(".", manifest=str(table)),
        listed((str(folder / "a.wav"), str(folder / "private/b.wav"))),
    ):
        assert names(found) == ["a.wav"]
        assert list(found.unreadable) == ["private/b.wav"]


def test_a_closed_folder_whose_name_is_no_text(folder: Path) -> None:
    closed = folder / os.fsdecode(b"caf\xe9")
    closed.mkdir()
    closed.chmod(0)
    found = listed(folder)
    assert list(found.unreadable) == ["caf%E9/"]
    assert found.unreadable["caf%E9/"].detail.endswith("input.exclude: caf%E9/**")
    assert listed(folder, exclude=["caf%E9/**"]).unreadable == {}


def test_a_disk_that_fails_below_one_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def fails(path: str) -> object:
        codes = {"private": errno.EIO, "x": errno.ENOENT}
        code = codes.get(Path(path).name)
        if code is not None:
            raise OSError(code, os.strerror(code), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails)
    found = list_input(InputConfig(uri=str(folder)))
    # What vanished while it was listed was never there.
    assert names(found) == ["a.wav"]
    assert list(found.unreadable) == ["private/"]
    assert found.unreadable["private/"].detail.startswith("input/output error; ")
    with pytest.raises(OSError, match="Input/output error"):
        list(disk.walk(str(folder)))


# ---- runs ------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    registry = FakeRegistry({"fake": WINDOWS})
    monkeypatch.setattr(versions, "registry", registry)
    return Archive(tmp_path, registry)


def close(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    scandir = os.scandir

    def refuses(path: str) -> object:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)


def test_recordings_in_a_folder_that_was_closed_stay(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.wav", "site2/b.wav", "site2/c.wav", "site20/d.wav"):
        archive.add(name)
    (archive.input / "site2" / "t.tar").write_text("tar")
    archive.inside = {"site2/t.tar": ["e.wav"]}
    archive.run(archive.plan())
    with monkeypatch.context() as patched:
        close(patched, "site2")
        archive.add("new.wav")
        found = archive.plan()
        assert found.changes == Changes(n_new=1)
        assert names_of(found) == {"new.wav"}
        assert "site2/t.tar/e.wav" in found.ledger.known
        assert archive.opened == []
        assert found.notes[0].startswith("site2/: permission denied; what it holds is not known.")
        (failure,) = found.ledger.waiting()
        assert (failure.recording, failure.reason) == ("site2/", Reason.STORAGE)
        archive.run(found)
        # It is no recording, so that none is gone once it opens again.
        assert "site2/" not in found.ledger.known
        result = run._finish(archive.plan(), Tally(), ())
        assert result.exit_code == 1
        assert result.tally.transient == [failure.line]
    saved = ledger_file.load(str(archive.output))
    assert saved is not None
    assert [one.recording for one in saved.waiting()] == ["site2/"]
    found = archive.plan()
    assert (found.changes, found.todo, found.ledger.waiting()) == (Changes(), [], [])
    assert run._finish(found, Tally(), ()).exit_code == 0


def test_what_was_left_out_is_told_by_plan_run_and_status(archive: Archive) -> None:
    for name in ("a.wav", "b.wav.part", "notes.txt", "more.txt"):
        archive.add(name)
    (archive.input / "lost+found").mkdir()
    line = (
        "left out   1 hidden or unfinished but named like audio (b.wav.part), 1 hidden or temporary "
        "(lost+found/), 2 not audio (2 .txt)"
    )
    found = archive.plan()
    assert line in list(describe_plan(found))
    archive.run(found)
    result = run._finish(archive.plan(), Tally(), ())
    assert line in list(describe_result(result))
    (record,) = (archive.output / "runs").iterdir()
    assert json.loads(record.read_text())["left_out"]["unfinished"] == {
        "n": 1,
        "extensions": {"part": 1},
        "examples": ["b.wav.part"],
    }
    assert line in list(describe_status(str(archive.output)))
    # A later run says what it saw, though it did no work.
    (archive.input / "notes.txt").unlink()
    time.sleep(1.1)
    run._finish(archive.plan(), Tally(), ())
    assert line not in list(describe_status(str(archive.output)))


def test_a_container_that_cannot_be_opened_is_named_and_what_was_in_it_stays(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add("a.wav")
    for name in ("b.tar", "c.tar", "d.tar"):
        (archive.input / name).write_text(name)
    archive.inside = {"b.tar": ["x.wav"], "c.tar": ["x.wav"], "d.tar": ["x.wav"]}
    archive.run(archive.plan())
    members = archive.members

    def refuse(asked: list[Container]) -> Iterator[Opened]:
        error = RecordingError(Reason.STORAGE, "c.tar: no permission")
        for one in members(asked):
            # Of d.tar there is no answer: it killed whoever looked into it.
            if one.name != "d.tar":
                yield Opened(one.name, [], LeftOut(), error) if one.name == "c.tar" else one

    monkeypatch.setattr(archive, "members", refuse)
    for name in ("b.tar", "c.tar", "d.tar"):
        (archive.input / name).write_text(f"another {name}")
    archive.inside["b.tar"].append("y.wav")
    found = archive.plan()
    assert (found.changes.n_new, found.changes.n_changed, found.changes.n_removed) == (1, 1, 0)
    assert [one.line for one in found.ledger.failures if one.shard is None] == [
        "c.tar: storage: c.tar: no permission; what it holds is not known. Make it readable, or set "
        "input.exclude: c.tar",
        "d.tar: crashed: listing what it holds killed the worker; what it holds is not known. Make it "
        "readable, or set input.exclude: d.tar",
    ]
    assert [one.recording for one in found.ledger.waiting()] == ["c.tar", "d.tar"]
    assert found.listing.left_out.examples[Kind.UNREADABLE] == ["c.tar", "d.tar"]


def test_a_container_that_the_store_refuses_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def members(container: Container) -> Opened:
        raise DeniedError("b.tar: no permission")

    monkeypatch.setattr(probing, "members", members)
    (found,) = probing._list_batch([Container("b.tar", "b.tar", "/b.tar", 1, "s")])
    assert isinstance(found, Opened)
    assert str(found.refusal) == "storage: b.tar: no permission"
