"""Submit a job to a Ray cluster, show its log, and end as it ends: `ray job submit` for schedulers.

    python deploy/submit.py --address http://localhost:8265 -- python jobs/run.py jobs/examples/birds.yaml

`ray job submit` ends with 1 whatever the driver's exit code was, and leaves the job running when it
is killed itself. This ends with the driver's own code, so that a scheduler can tell 4, another run
holds the output, from 1, and it stops the job on SIGTERM and SIGINT, then ends with 130.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

ROOT = Path(__file__).parents[1]
PAUSE_S = 10.0
# A head that restarts its job server, or a network that drops, is waited for this long.
PATIENCE_S = 300.0
STOPPED = 130


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("--address", required=True, help="The head's job port, http://host:8265.")
    found.add_argument(
        "--working-dir", default=str(ROOT), help="What travels to the cluster; else this checkout."
    )
    found.add_argument(
        "--runtime-env", default=str(ROOT / "jobs/runtime_env.yaml"), help="Its environment."
    )
    found.add_argument("command", nargs="+", help="What runs there, after --.")
    return found


def follow(client: JobSubmissionClient, job: str, pause_s: float) -> JobDetails:
    """Print the job's log as it grows, until the job has ended; returns what became of it.

    Raises:
        RuntimeError, OSError: no answer for `PATIENCE_S`.
    """
    shown, heard = 0, time.monotonic()
    while True:
        try:
            # Asked in this order, the log is whole once the job has ended.
            details = client.get_job_info(job)
            log = client.get_job_logs(job)
        except (RuntimeError, OSError):
            if time.monotonic() - heard > PATIENCE_S:
                raise
        else:
            heard = time.monotonic()
            sys.stdout.write(log[shown:])
            sys.stdout.flush()
            shown = len(log)
            if details.status.is_terminal():
                return details
        time.sleep(pause_s)


def exit_code(details: JobDetails) -> int:
    """Return the driver's own exit code, 130 for a job that was stopped, 1 where Ray knows none."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED
    # A driver that a signal killed has a negative one.
    return max(details.driver_exit_code or 1, 1)


def submit(
    client: JobSubmissionClient, command: list[str], working_dir: str, runtime_env: str
) -> int:
    """Run a command on the cluster to its end; returns its exit code."""
    environment = yaml.safe_load(Path(runtime_env).read_text())
    with interruptible():
        job = client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={**environment, "working_dir": working_dir},
        )
        print(f"submitted {job}", file=sys.stderr, flush=True)
        try:
            details = follow(client, job, PAUSE_S)
        except KeyboardInterrupt:
            print(f"stopping {job}", file=sys.stderr, flush=True)
            client.stop_job(job)
            details = follow(client, job, 1.0)
    print(f"{job}: {details.status.value}. {details.message or ''}", file=sys.stderr)
    return exit_code(details)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: list[str]) -> int:
    """Submit what the command line names; returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        client = JobSubmissionClient(given.address)
        return submit(client, given.command, given.working_dir, given.runtime_env)
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
