"""Two runs on one output: one has it, and a dead one does not keep it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bioembed_ray import lease, run, storage
from bioembed_ray.errors import LockedError
from tests import tiny
from tests.commands import bioembed, complaint, embed, environment, tiny_encoder, without_ray

CONTENDER = """
import sys, time
from bioembed_ray import lease
from bioembed_ray.errors import LockedError
print("ready", flush=True)
for line in sys.stdin:
    output, start = line.rsplit(" ", 1)
    time.sleep(max(0, float(start) - time.time()))
    try:
        with lease.hold(output, "race"):
            print("won", flush=True)
            sys.stdin.readline()
    except LockedError as error:
        print(error, flush=True)
        sys.stdin.readline()
    print("left", flush=True)
"""


@contextlib.contextmanager
def contenders(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are told an output and a moment, and then all try at once."""
    found = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment(),
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        for one in found:
            assert answer(one) == "ready"
        yield found
    finally:
        for one in found:
            one.kill()
            one.wait(30)
            for pipe in (one.stdin, one.stdout):
                pipe.close()  # type: ignore[union-attr]


def tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def foreign(**changed: Any) -> bytes:
    """Return the lease of a run on another machine, alive a moment ago."""
    entry = {
        "id": "x", "command": "bioembed run", "host": "elsewhere", "boot": "b", "pid": 4711,
        "pid_start": "1", "taken": time.time(), "beat": time.time(),
    }  # fmt: skip
    return json.dumps({**entry, **changed}).encode()


def test_of_eight_processes_exactly_one_has_the_lease(s3: Any, tmp_path: Path) -> None:
    expired = foreign(beat=time.time() - 2 * lease.EXPIRY_S)
    outputs = [f"{place}/{n}" for n in range(8) for place in (str(tmp_path), s3.uri)]
    with contenders(8) as processes:
        for number, output in enumerate(outputs):
            # Half of them fight over the lease of somebody long dead.
            if number % 4 >= 2:
                storage.put(f"{output}/lease.json", expired)
            start = time.time() + 0.1
            for one in processes:
                tell(one, f"{output} {start}")
            said = [answer(one) for one in processes]
            assert said.count("won") == 1, said
            assert all(
                "another run holds it" in text or "is taking the output over" in text
                for text in said
                if text != "won"
            )
            for one in processes:
                tell(one, "go on")
            assert {answer(one) for one in processes} == {"left"}
            assert not storage.exists(f"{output}/lease.json")


def test_a_second_run_ends_at_once_with_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.wav", np.zeros(16_000), 16_000)
    model = tiny.torchscript(tmp_path / "energy.pt")
    output = str(tmp_path / "out")
    with lease.hold(output, "bioembed run"):
        held = (tmp_path / "out/lease.json").read_bytes()
        done = bioembed(
            "run", "--input", str(tmp_path / "in"), "--output", output,
            "--set", f"encoders.energy.model={model}", timeout=60,
        )  # fmt: skip
        assert done.returncode == 4
        text = complaint(done)
        assert f"error: {output}: another run holds it (bioembed run, pid {os.getpid()} on" in text
        assert (
            json.loads((tmp_path / "out/lease.json").read_bytes())["id"] == json.loads(held)["id"]
        )


def test_the_lease_of_a_process_killed_on_this_machine_is_taken_over_at_once(
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")
    with contenders(1) as [process]:
        tell(process, f"{output} 0")
        assert answer(process) == "won"
        with pytest.raises(LockedError), lease.hold(output, "bioembed run"):
            pass
        process.kill()
        process.wait(30)
        assert (tmp_path / "out/lease.json").exists()
        with lease.hold(output, "bioembed run"):
            found = lease.holder(output)
            assert found is not None and found["pid"] == os.getpid()
    assert lease.holder(output) is None


def test_a_lease_from_elsewhere_is_respected_until_it_expires(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    path = tmp_path / "out/lease.json"
    storage.put(str(path), foreign(beat=time.time() - 0.9 * lease.EXPIRY_S))
    with pytest.raises(
        LockedError,
        match=r"pid 4711 on elsewhere, since 20\d\d-\d\d-\d\d \d\d:\d\d UTC, alive 5\d s ago",
    ):
        lease.hold(output, "bioembed run").__enter__()
    storage.put(str(path), foreign(beat=time.time() - 1.1 * lease.EXPIRY_S))
    with lease.hold(output, "bioembed run"):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()


def test_a_half_written_lease_does_not_lock_the_output_for_ever(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    storage.put(f"{output}/lease.json", b"")
    with lease.hold(output, "bioembed run"):
        pass


def test_a_holder_beats_and_gives_the_lease_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    path = tmp_path / "out/lease.json"
    with lease.hold(str(tmp_path / "out"), "bioembed run") as lost:
        first = json.loads(path.read_bytes())["beat"]
        time.sleep(0.3)
        assert json.loads(path.read_bytes())["beat"] > first
        assert not lost.is_set()
    assert not path.exists()


def test_a_run_whose_lease_was_taken_over_stops_and_leaves_it_to_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    (tmp_path / "in").mkdir()
    for name in "abc":
        soundfile.write(tmp_path / f"in/{name}.wav", np.random.rand(16_000) - 0.5, 16_000)
    path = tmp_path / "out/lease.json"
    stream = run.stream.run_stream
    receipts = []

    def overtaken(*arguments: Any) -> Iterator[Any]:
        for receipt in stream(*arguments):
            storage.put(str(path), foreign())
            time.sleep(0.3)
            receipts.append(receipt)
            yield receipt

    monkeypatch.setattr(run.stream, "run_stream", overtaken)
    encoders = {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))}
    with pytest.raises(LockedError, match="another run took the output over; stopping"):
        embed(tmp_path / "in", tmp_path / "out", encoders, shard_minutes=0.01, segment_s=1)
    assert len(receipts) == 1
    assert json.loads(path.read_bytes())["host"] == "elsewhere"
