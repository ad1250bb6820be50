"""Machines of a cluster that go away and come along in mid-run.

BIOEMBED_KILLS says how many are killed (2 by default, 5 in the long form).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oracles
from tests.commands import TIMEOUT_S, started, wait_for
from tests.machines import Machines, machines_up
from tests.undisturbed import WINDOWS_PER_SHARD, Undisturbed, n_standing, run_undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

N_KILLS = int(os.environ.get("BIOEMBED_KILLS", "2"))
N_SHARDS = 12
# What an actor has been given and not given back; all of it is lost with its machine.
IN_FLIGHT = 3
# 5 s per shard until the test has done what it wanted to do.
PAUSE_S = "0.1"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"), N_SHARDS)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with machines_up(tmp_path, BIOEMBED_TESTS_PAUSE_S=PAUSE_S) as up:
        yield up


def test_machines_killed_in_mid_run_cost_only_what_they_held(
    undisturbed: Undisturbed, tmp_path: Path, machines: Machines
) -> None:
    draw = random.Random(3)
    output = tmp_path / "out"
    for _ in range(3):
        machines.add()
    arguments = undisturbed.arguments(output)
    with started(*arguments, RAY_ADDRESS=machines.cluster.address) as process:
        wait_for(lambda: n_standing(output) >= 1, "a part", process)
        for number in range(N_KILLS):
            before = machines.encoded().total()
            wait_for(lambda n=before: machines.encoded().total() > n, "work", process)
            time.sleep(draw.uniform(0, 2))
            machines.kill(draw.choice(machines.nodes))
            if number < N_KILLS - 1:
                machines.add()
        # The last one is not replaced: two machines finish.
        assert n_standing(output) < N_SHARDS
        machines.release()
        said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    undisturbed.check(output)
    computed = machines.encoded().total()
    assert computed <= (N_SHARDS + N_KILLS * IN_FLIGHT) * WINDOWS_PER_SHARD
    [record] = oracles.run_records(output)
    assert record["parts"] == N_SHARDS


def test_a_machine_that_comes_along_in_mid_run_gets_work(
    undisturbed: Undisturbed, tmp_path: Path, machines: Machines
) -> None:
    output = tmp_path / "out"
    first = machines.add()
    arguments = undisturbed.arguments(output)
    with started(*arguments, RAY_ADDRESS=machines.cluster.address) as process:
        wait_for(lambda: n_standing(output) >= 1, "a part", process)
        assert set(machines.encoded()) == {first.node_id}
        second = machines.add()
        wait_for(lambda: machines.encoded()[second.node_id], "work on the new machine", process)
        machines.release()
        said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert "1 actor(s), more as the cluster grows" in said
    undisturbed.check(output)
    [record] = oracles.run_records(output)
    assert set(record["shards_by_node"]) == {first.node_id, second.node_id}
    assert sum(record["shards_by_node"].values()) == N_SHARDS
    # Nobody died, so no shard was computed twice; an actor tries its encoder on a few windows.
    assert machines.encoded().total() < (N_SHARDS + 1) * WINDOWS_PER_SHARD
