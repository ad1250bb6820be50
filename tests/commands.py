"""Running the package in tests: inside this process on the session's Ray, or as a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bioembed_ray import cluster, probing, run
from bioembed_ray.config import Job
from bioembed_ray.encode_actor import load_codes
from bioembed_ray.encoders import registry
from bioembed_ray.job_file import parse_job
from bioembed_ray.plan import Work
from bioembed_ray.pools import PoolPlan
from bioembed_ray.run import Result, run_job
from bioembed_ray.shard_audio import decode_shard, transient
from bioembed_ray.work import Receipt, encode_shard
from tests.processes import named
from tests.tiny import RATE_HZ

ROOT = Path(__file__).parents[1]
# Far above what anything takes: a test that meets it has found something that hangs.
TIMEOUT_S = 180.0


def tiny_encoder(model: Path | str, **options: Any) -> dict[str, Any]:
    """Return the job-file entry of a tiny encoder: 1 s windows every 0.5 s."""
    return {"model": str(model), "rate_hz": RATE_HZ, "window_s": 1.0, "hop_s": 0.5, **options}


def embed(source: Path | str, output: Path | str, encoders: dict[str, Any], **job: Any) -> Result:
    """Run a job in this process with one actor."""
    job.setdefault("pools", {"default": {"actors": 1}})
    raw = {"input": {"uri": str(source), **job.pop("input", {})}, "output": str(output)}
    return run_job(parse_job({**raw, "encoders": encoders, **job}, "test"), lambda text: None)


def command(*arguments: str) -> list[str]:
    """Return the command line of `bioembed ...`."""
    return [sys.executable, "-m", "bioembed_ray.cli", *arguments]


def environment(**changed: str) -> dict[str, str]:
    """Return the environment of a command: workers find the tests' modules, Ray is local."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changed}


def bioembed(
    *arguments: str, timeout: float = TIMEOUT_S, **changed: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**changed),
        check=False,
    )


@contextlib.contextmanager
def started(*arguments: str, **changed: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and kill what is left of it afterwards."""
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**changed),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def wait_for(
    condition: Callable[[], Any],
    what: str,
    process: subprocess.Popen[str] | None = None,
    timeout: float = TIMEOUT_S,
) -> Any:
    """Return the condition's first true answer; a process that ends before it is a failure."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        if process is not None and process.poll() is not None and process.stdout is not None:
            raise AssertionError(f"ended before {what}: {process.stdout.read()}")
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout:.0f} s for {what}")


def wait_for_the_end_of_actors() -> None:
    """Return when no stream of a run in this process has an actor left."""
    wait_for(
        lambda: not named(os.getpid(), "ray::InFlight", "EncodeActor"), "the end of its actors"
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a failed command says, after checking that it is one."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return lines[0]


def without_ray(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Take Ray out of runs in this process: shards go through the same functions, one by one.

    Returns:
        Counts "parts" as they are put.
    """
    loaded: dict[str, Any] = {}
    counts: Counter[str] = Counter()

    def stream(
        job: Job, pools: Sequence[PoolPlan], todo: Sequence[Work], watch: object
    ) -> Iterator[Receipt]:
        planned_encoders = [planned for pool in pools for planned in pool.encoders]
        codes = load_codes(planned_encoders, "cpu")
        for work in todo:
            receipt = Receipt(work.shard.id)
            audios = decode_shard(work, planned_encoders, job)
            receipt.failures = transient(work, audios)
            for planned in planned_encoders if not receipt.failures else []:
                version = planned.outputs[0].embeddings.version
                if version not in loaded:
                    loaded[version] = registry.load(
                        planned.name, planned.config, planned.checkpoint, "cpu"
                    )
                encode_shard(
                    work, audios, planned, loaded[version], "cpu", job, receipt, codes=codes
                )
            counts["parts"] += len(receipt.outcomes)
            yield receipt

    patch.setattr(run.stream, "run_stream", stream)
    patch.setattr(cluster, "connect", lambda: None)
    patch.setattr(cluster, "cluster_resources", lambda: {"CPU": 2.0})
    patch.setattr(probing, "probe_recordings", lambda found: map(probing._probe_one, found))
    return counts
