"""Processes killed for real at random moments: the next run leaves every window exactly once.

BIOEMBED_KILLS says how often each kind of process is killed (2 by default; more takes minutes).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import TIMEOUT_S, bioembed, embed, started, wait_for, without_ray

import ray  # noqa: F401, isort: skip  (it brings psutil along, and puts it on the path)
import psutil  # isort: skip

pytestmark = [pytest.mark.ray, pytest.mark.slow]

N_KILLS = int(os.environ.get("BIOEMBED_KILLS", "2"))
N_SHARDS = 9
HOP_S = 0.2
SHARD_MINUTES = 0.15


@dataclass(frozen=True)
class Undisturbed:
    """An archive, and what a run gives that nobody disturbs."""

    source: Path
    rows: oracles.Rows
    parts: frozenset[str]

    def arguments(self, output: Path) -> list[str]:
        settings = ["model=tests.tiny:slow", f"hop_s={HOP_S}"]
        more = [word for one in settings for word in ("--set", f"encoders.slow.{one}")]
        more += ["--set", f"shard_minutes={SHARD_MINUTES}"]
        return ["run", "--input", str(self.source), "--output", str(output), *more]

    def check(self, output: Path) -> None:
        """The output holds what an undisturbed run gives, bit for bit, and nothing else."""
        assert set(oracles.parts(output)) == self.parts
        oracles.assert_same(oracles.windows(output, "slow"), self.rows)
        assert list(verify(str(output))) == []
        assert not (output / "lease.json").exists()
        assert oracles.failures(output) == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "in").mkdir()
    for number in range(N_SHARDS):
        sound = 0.1 * np.random.default_rng(number).standard_normal(10 * 16_000)
        soundfile.write(folder / f"in/{number:02d}.wav", sound, 16_000)
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setattr(tiny, "SLOW_S_PER_WINDOW", 0.0)
        encoders = {"slow": {"model": "tests.tiny:slow", "hop_s": HOP_S}}
        result = embed(folder / "in", folder / "out", encoders, shard_minutes=SHARD_MINUTES)
    assert (result.exit_code, result.tally.n_parts) == (0, N_SHARDS)
    parts = frozenset(oracles.parts(folder / "out"))
    return Undisturbed(folder / "in", oracles.windows(folder / "out", "slow"), parts)


def n_standing(output: Path) -> int:
    return len(oracles.parts(output)) if output.exists() else 0


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all processes below a command: Ray's and its workers."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(process.pid).children(recursive=True))
    return []


def named(processes: list[psutil.Process], *titles: str) -> list[psutil.Process]:
    """Return the processes whose title holds one of these."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if any(part in title for part in titles):
                found.append(process)
    return found


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
            left_behind = named(family(process), "raylet/raylet", "ray::Map", "ray::IDLE")
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
    kinds = ["EncodeActor", "ray::Attempts", "ray::IDLE ray::MapBatches(decode"]
    with started(*undisturbed.arguments(output)) as process:
        for number in range(N_KILLS):
            goal = 1 + number * (N_SHARDS - 3) // N_KILLS
            wait_for(lambda goal=goal: n_standing(output) >= goal, f"{goal} parts", process)
            victims = wait_for(
                lambda number=number: named(family(process), *kinds[number % 3].split()),
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


@pytest.fixture
def cluster_of_two() -> Iterator[Any]:
    """A head without cores, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        cluster = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": folder},
        )
        yield cluster
        cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_machine_that_dies_does_not_stop_the_run(
    undisturbed: Undisturbed, tmp_path: Path, cluster_of_two: Any
) -> None:
    draw = random.Random(3)
    output = tmp_path / "out"
    nodes = [cluster_of_two.add_node(num_cpus=1) for _ in range(2)]
    with started(*undisturbed.arguments(output), RAY_ADDRESS=cluster_of_two.address) as process:
        for number in range(max(1, N_KILLS - 1)):
            goal = 2 + number * (N_SHARDS - 4) // N_KILLS
            wait_for(lambda goal=goal: n_standing(output) >= goal, f"{goal} parts", process)
            time.sleep(draw.uniform(0, 0.5))
            # SIGKILL to the raylet and all it holds, as when the power goes.
            victim = nodes.pop(draw.randrange(len(nodes)))
            cluster_of_two.remove_node(victim, allow_graceful=False)
            nodes.append(cluster_of_two.add_node(num_cpus=1))
        said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    undisturbed.check(output)
