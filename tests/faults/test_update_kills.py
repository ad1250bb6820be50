"""A driver killed in the middle of an update, again and again: readers see the old version whole until the end."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bioembed_ray.verify import verify
from tests.commands import TIMEOUT_S, bioembed, started, wait_for, without_ray
from tests.hub import loopback_hub
from tests.machines import Machines, machines_up
from tests.moving_model import Archive, source_version
from tests.update_driver import drive

# How often, on a real cluster; without one it is ten times.
N_KILLS = int(os.environ.get("BIOEMBED_KILLS", "2"))
N_KILLS_HERE = 10
# A command on a cluster of this machine imports a gigabyte of packages in every process.
RUN_S = 900.0


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with loopback_hub() as hub:
        for name in [one for one in os.environ if one.startswith(("HF_", "TRANSFORMERS_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        hub.use(monkeypatch, tmp_path / "cache")
        without_ray(monkeypatch)
        yield Archive(tmp_path, hub)


@pytest.fixture
def machines(archive: Archive) -> Iterator[Machines]:
    with machines_up(archive.folder) as up:
        up.add(n_cpus=2)
        yield up


class Update:
    """An output whose encoder has moved on the hub, and what stood before."""

    def __init__(self, archive: Archive, seed: int = 1) -> None:
        archive.check_whole()
        self.archive = archive
        self.before, self.stood = archive.current(), archive.parts()
        second = archive.publish(seed)
        archive.fitted_on[second] = source_version(archive.job())
        self.n_new: list[int] = []

    def n_objects(self) -> int:
        return sum(path.is_file() for path in self.archive.output.rglob("[!.]*"))

    def check_old(self) -> None:
        """All that is current is the old version: listed, readable, untouched; and nothing put is lost."""
        assert self.archive.current() == self.before
        self.archive.check_whole()
        now = self.archive.parts()
        assert {path: now[path] for path in self.stood} == self.stood
        # Frames kept for a fit are deleted before the end, once their tokens stand.
        lasting = {path for path in now if "fit_frames" not in path.parts}
        self.n_new.append(len(lasting - set(self.stood)))
        assert self.n_new == sorted(self.n_new)

    def check_new(self) -> None:
        """The new version is current and whole, and the old one still stands beside it."""
        after = self.archive.current()
        self.archive.check_whole()
        assert after["encoders"]["w"] != self.before["encoders"]["w"]
        assert after["codebooks"]["w-6"] != self.before["codebooks"]["w-6"]
        assert after["encoders"]["t"] == self.before["encoders"]["t"]
        now = self.archive.parts()
        assert {path: now[path] for path in self.stood} == self.stood
        assert list(verify(str(self.archive.output))) == []
        assert not (self.archive.output / "lease.json").exists()


@pytest.mark.slow
def test_a_driver_killed_ten_times_in_the_course_of_an_update_never_shows_a_mix(
    archive: Archive,
) -> None:
    archive.fitted_on[archive.first] = source_version(archive.job())
    told = (archive.raw(), archive.hub.url, archive.folder / "cache")
    assert drive(*told).exit_code == 0
    update = Update(archive)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.update_driver"])
    draw = random.Random(5)
    n_kills = n_midway = n_updates = 0
    while n_kills < N_KILLS_HERE:
        process = context.Process(target=drive, args=told)
        begun_with = update.n_objects()
        process.start()
        # From the first look at the hub to the last part: some objects more than there were, and a moment.
        goal = draw.randint(0, 3)
        deadline = time.monotonic() + TIMEOUT_S
        while update.n_objects() < begun_with + goal and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join(30)
        assert process.exitcode in {0, -9}
        if archive.current() != update.before:
            # It came to its end first, or to what follows the move: the model moves once more.
            archive.check_whole()
            assert process.exitcode == 0 or drive(*told).exit_code == 0
            update.check_new()
            n_updates += 1
            update = Update(archive, seed=1 + n_updates)
            continue
        assert process.exitcode == -9
        update.check_old()
        n_kills += 1
        n_midway += update.n_new[-1] > 0
    # Not only before anything was put.
    assert n_midway >= N_KILLS_HERE // 3
    assert drive(*told).exit_code == 0
    update.check_new()


@pytest.mark.ray
@pytest.mark.slow
def test_a_command_killed_on_a_cluster_in_the_course_of_an_update_never_shows_a_mix(
    archive: Archive, machines: Machines
) -> None:
    job = archive.folder / "job.yaml"
    job.write_text(yaml.safe_dump(archive.raw()))
    address = machines.cluster.address

    def run_whole() -> Any:
        return bioembed("run", str(job), RAY_ADDRESS=address, timeout=RUN_S)

    archive.fitted_on[archive.first] = source_version(archive.job())
    done = run_whole()
    assert done.returncode == 0, done.stderr
    update = Update(archive)
    draw = random.Random(5)
    for number in range(N_KILLS):
        with started("run", str(job), RAY_ADDRESS=address) as process:
            lease = archive.output / "lease.json"
            wait_for(lease.exists, "the lease", process, RUN_S)
            goal = update.n_objects() + (0 if number == 0 else draw.randint(0, 3))
            wait_for(lambda goal=goal: update.n_objects() >= goal, "objects", process, RUN_S)
            time.sleep(draw.uniform(0, 1.5))
            process.kill()
            process.wait(30)
        update.check_old()
    done = run_whole()
    assert done.returncode == 0, done.stderr
    update.check_new()
