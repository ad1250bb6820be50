"""Processes killed for real at random moments: the next run leaves every window exactly once.

BIOEMBED_KILLS says how often each kind of process is killed (2 by default; more takes minutes).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests import oracles
from tests.commands import TIMEOUT_S, bioembed, started, wait_for
from tests.processes import named
from tests.undisturbed import Undisturbed, n_standing, run_undisturbed

import ray  # noqa: F401, isort: skip  (it brings psutil along, and puts it on the path)
import psutil  # isort: skip

pytestmark = [pytest.mark.ray, pytest.mark.slow]

N_KILLS = int(os.environ.get("BIOEMBED_KILLS", "2"))
N_SHARDS = 9


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"), N_SHARDS)


def untouched(before: oracles.Standing, output: Path) -> bool:
    now = oracles.parts(output)
    return {name: now.get(name) for name in before} == before


def test_a_killed_driver_is_followed_by_a_run_that_computes_only_what_is_missing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    draw = random.Random(1)
    output = tmp_path / "out"
    # Once while it plans and starts up, else while shards stream.
    wanted = [0, *(draw.randint(1, 4) for _ in range(N_KILLS - 1))]
    for more in wanted[:N_KILLS]:
        stood = oracles.parts(output) if output.exists() else {}
        goal = min(len(stood) + more, N_SHARDS - 2)
        with started(*undisturbed.arguments(output)) as process:
            wait_for((output / "lease.json").exists, "the lease", process)
            wait_for(lambda goal=goal: n_standing(output) >= goal, f"{goal} parts", process)
            time.sleep(draw.uniform(0, 8.0 if more == 0 else 0.6))
            # Ray's own agents take longer to notice, but do nothing.
            left_behind = named(process.pid, "raylet/raylet", "ray::Map", "ray::IDLE")
            process.kill()
            process.wait(30)
            # Nothing of a dead driver goes on working for long.
            _, alive = psutil.wait_procs(left_behind, timeout=60)
            assert not alive
        assert untouched(stood, output)
        assert (output / "lease.json").exists()
    stood = oracles.parts(output)
    done = bioembed(*undisturbed.arguments(output))
    assert done.returncode == 0, done.stderr
    assert untouched(stood, output)
    assert oracles.run_records(output)[-1]["parts"] == N_SHARDS - len(stood)
    undisturbed.check(output)


def test_a_driver_told_to_end_gives_its_lease_back(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with started(*undisturbed.arguments(output)) as process:
        wait_for(lambda: n_standing(output) >= 1, "a part", process)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what is committed stays, run again to go on" in said
    assert "Traceback" not in said
    assert not (output / "lease.json").exists()
    assert set(oracles.parts(output)) < undisturbed.parts


def test_killed_workers_are_replaced_within_the_run(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    draw = random.Random(2)
    output = tmp_path / "out"
    # An encoder, the one that counts attempts, and whatever decodes or idles.
    kinds = ["EncodeActor", "ray::InFlight", "ray::IDLE ray::MapBatches(decode"]
    with started(*undisturbed.arguments(output)) as process:
        for number in range(N_KILLS):
            goal = 1 + number * (N_SHARDS - 3) // N_KILLS
            wait_for(lambda goal=goal: n_standing(output) >= goal, f"{goal} parts", process)
            # All may be decoded and nobody idle by then: an encoder dies instead.
            victims = wait_for(
                lambda number=number: (
                    named(process.pid, *kinds[number % 3].split()) or named(process.pid, kinds[0])
                ),
                kinds[number % 3],
                process,
            )
            with contextlib.suppress(psutil.NoSuchProcess):
                draw.choice(victims).send_signal(signal.SIGKILL)
            time.sleep(draw.uniform(0, 0.5))
        said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    undisturbed.check(output)
    [record] = oracles.run_records(output)
    assert record["parts"] == N_SHARDS
