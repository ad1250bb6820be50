"""`ray job submit` to a head that the test starts, as the README says: logs, exit code, stop."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from bioembed_ray.verify import verify
from tests import tiny
from tests.commands import ROOT, environment, tiny_encoder, wait_for

import ray  # noqa: F401, isort: skip  (it brings psutil along, and puts it on the path)
import psutil  # isort: skip

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
N_RECORDINGS = 12
# A job's own `python` is the first on the path.
PATH = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A head with a job port, alone on its ports; its address."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    port, jobs, agent, client = free_ports(4)
    start = [
        *RAY, "start", "--head", f"--port={port}", "--num-cpus=2", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={jobs}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    subprocess.run(start, env=environment(**PATH), check=True, capture_output=True, timeout=120)
    try:
        yield f"http://127.0.0.1:{jobs}"
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if folder in " ".join(process.info["cmdline"] or ()):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def call(head: str, *words: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    command = [*RAY, "job", words[0], "--address", head, *words[1:]]
    return subprocess.run(
        command, env=environment(**PATH), capture_output=True, text=True, timeout=300, check=check
    )


def submit(head: str, job: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Submit as the README does; again while the head is not ready to take jobs."""
    for _ in range(20):
        done = call(
            head, "submit", "--working-dir", str(ROOT), "--runtime-env", "jobs/runtime_env.yaml",
            *options, "--", "python", "jobs/run.py", str(job),
        )  # fmt: skip
        if "No available agent" not in done.stdout + done.stderr:
            return done
        time.sleep(1)
    raise AssertionError(done.stderr)


def write_job(folder: Path, encoder: dict[str, Any], n_recordings: int) -> Path:
    (folder / "in").mkdir()
    for number in range(n_recordings):
        sound = 0.1 * np.random.default_rng(number).standard_normal(10 * tiny.RATE_HZ)
        soundfile.write(folder / "in" / f"{number:02d}.wav", sound, tiny.RATE_HZ, subtype="FLOAT")
    job = {
        "input": {"uri": str(folder / "in")},
        "output": str(folder / "out"),
        "encoders": {"e": encoder},
        "pools": {"default": {"actors": 1}},
        "shard_minutes": 0.2,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def test_a_submitted_job_shows_its_log_and_passes_success_and_failure_on(
    head: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path, tiny_encoder(tiny.torchscript(tmp_path / "e.pt")), 3)
    done = submit(head, job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout and "recordings 3: 3 embedded" in done.stdout
    assert list(verify(str(tmp_path / "out"))) == []
    failed = submit(head, tmp_path / "none.yaml")
    assert failed.returncode == 1
    said = failed.stdout + failed.stderr
    assert "none.yaml: no such job file" in said
    assert "exit code 2" in said and "Traceback" not in said


def test_a_stopped_job_gives_its_lease_back_and_the_next_goes_on(head: str, tmp_path: Path) -> None:
    job = write_job(tmp_path, {"model": "tests.tiny:slow", "hop_s": 0.1}, N_RECORDINGS)
    submit(head, job, "--no-wait", "--submission-id", "stopped")
    parts = tmp_path / "out/embeddings"
    wait_for(lambda: list(parts.rglob("*.parquet")), "a first part")
    call(head, "stop", "stopped", check=True)
    assert "was stopped" in call(head, "status", "stopped", check=True).stdout
    assert not (tmp_path / "out/lease.json").exists()
    stood = {path: path.stat().st_mtime_ns for path in parts.rglob("*.parquet")}
    assert 0 < len(stood) < N_RECORDINGS
    done = submit(head, job)
    assert done.returncode == 0, done.stdout + done.stderr
    now = {path: path.stat().st_mtime_ns for path in parts.rglob("*.parquet")}
    assert {path: now[path] for path in stood} == stood
    [record] = [json.loads(path.read_text()) for path in (tmp_path / "out/runs").iterdir()]
    assert record["parts"] == len(now) - len(stood)
    assert list(verify(str(tmp_path / "out"))) == []
