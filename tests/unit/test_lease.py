"""One holder at a time: who is refused, who is taken over, and what a loser notices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bioembed_ray import lease, storage
from bioembed_ray.errors import LockedError, StorageError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)


def written(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / lease.LEASE_KEY).read_text())
    return found


def leave(output: Path, **values: Any) -> None:
    """Leave the lease of another run."""
    mine = {
        "id": "other",
        "command": "run",
        "host": "elsewhere",
        "boot": "b",
        "pid": 77,
        "pid_start": "1",
        "taken": time.time(),
        "beat": time.time(),
    }
    output.mkdir(exist_ok=True)
    (output / lease.LEASE_KEY).write_text(json.dumps({**mine, **values}))


def wait_for(event: threading.Event) -> bool:
    return event.wait(5)


def test_a_lease_is_held_and_given_back(tmp_path: Path) -> None:
    assert lease.holder(str(tmp_path)) is None
    with lease.hold(str(tmp_path), "run") as lost:
        found = lease.holder(str(tmp_path))
        assert found is not None
        assert (found["command"], found["pid"]) == ("run", os.getpid())
        assert not lost.is_set()
    assert lease.holder(str(tmp_path)) is None
    assert not (tmp_path / lease.LEASE_KEY).exists()


def test_the_heart_beats(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "run"):
        first = written(tmp_path)
        deadline = time.monotonic() + 5
        while written(tmp_path)["beat"] == first["beat"] and time.monotonic() < deadline:
            time.sleep(0.01)
        last = written(tmp_path)
    assert last["beat"] > first["beat"]
    assert {**last, "beat": 0} == {**first, "beat": 0}


def test_a_second_run_on_the_same_output_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        lease.hold(str(tmp_path), "run"),
        pytest.raises(LockedError) as caught,
        lease.hold(str(tmp_path), "prune"),
    ):
        pass
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}: another run holds it (run, pid {os.getpid()} on ")
    assert text.endswith("s ago); wait for it to end, or 60 s after its death")
    assert caught.value.exit_code == 4


def test_a_run_elsewhere_is_waited_for_until_its_lease_expires(tmp_path: Path) -> None:
    leave(tmp_path, beat=time.time() - lease.EXPIRY_S + 5)
    with pytest.raises(LockedError, match="pid 77 on elsewhere"), lease.hold(str(tmp_path), "run"):
        pass
    leave(tmp_path, beat=time.time() - lease.EXPIRY_S - 5)
    assert lease.holder(str(tmp_path)) is None
    with lease.hold(str(tmp_path), "run"):
        assert written(tmp_path)["pid"] == os.getpid()


def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    here = {"host": socket.gethostname(), "boot": lease._boot_id()}
    leave(tmp_path, pid=int(child.stdout), pid_start="123", **here)
    with lease.hold(str(tmp_path), "run"):
        assert written(tmp_path)["command"] == "run"
    # A living process with the number of the dead one is another process.
    leave(tmp_path, pid=os.getpid(), pid_start="not mine", **here)
    assert lease.holder(str(tmp_path)) is None
    leave(tmp_path, pid=os.getpid(), pid_start=lease._process_start(os.getpid()), **here)
    assert lease.holder(str(tmp_path)) is not None
    # The same machine before it was started anew cannot be asked: wait.
    leave(tmp_path, pid=int(child.stdout), pid_start="123", host=here["host"], boot="earlier")
    assert lease.holder(str(tmp_path)) is not None


def test_a_torn_lease_is_nobodys(tmp_path: Path) -> None:
    for body in ("", "{", "[]", "null"):
        (tmp_path / lease.LEASE_KEY).write_text(body)
        with lease.hold(str(tmp_path), "run"):
            assert written(tmp_path)["command"] == "run"


def test_a_lease_that_is_taken_away_is_noticed_and_not_deleted(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "run") as lost:
        leave(tmp_path, id="thief")
        assert wait_for(lost)
    assert written(tmp_path)["id"] == "thief"


def test_a_lease_that_vanishes_is_lost(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "run") as lost:
        (tmp_path / lease.LEASE_KEY).unlink()
        assert wait_for(lost)
    assert not (tmp_path / lease.LEASE_KEY).exists()


def test_a_store_that_hiccups_is_no_loss_until_others_may_think_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("out of reach")

    with lease.hold(str(tmp_path), "run") as lost:
        monkeypatch.setattr(lease, "_read", refuse)
        assert not lost.wait(0.2)
        monkeypatch.setattr(lease, "EXPIRY_S", 0.05)
        assert wait_for(lost)
        monkeypatch.undo()


def test_of_many_that_meet_a_dead_lease_one_gets_it(tmp_path: Path) -> None:
    leave(tmp_path, beat=0)
    held, refused = [], []
    gate, done = threading.Barrier(8), threading.Event()

    def try_it() -> None:
        gate.wait()
        try:
            with lease.hold(str(tmp_path), "run"):
                held.append(1)
                done.wait(5)
        except LockedError:
            refused.append(1)
            if len(refused) == 7:
                done.set()

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_an_output_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError), lease.hold(str(tmp_path / "file"), "run"):
        pass
    assert storage.exists(str(tmp_path / "file"))
