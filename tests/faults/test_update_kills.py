"""A driver killed in the middle of an update, again and again: readers see the old version whole until the end.

BIOEMBED_KILLS says how often (2 by default; 10 in the long form).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bioembed_ray.verify import verify
from tests.commands import bioembed, started, wait_for, without_ray
from tests.hub import loopback_hub
from tests.machines import Machines, machines_up
from tests.moving_model import Archive, source_version

pytestmark = [pytest.mark.ray, pytest.mark.slow]

N_KILLS = int(os.environ.get("BIOEMBED_KILLS", "2"))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with loopback_hub() as hub:
        for name in [one for one in os.environ if one.startswith(("HF_", "TRANSFORMERS_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        hub.use(monkeypatch, tmp_path / "cache")
        # Only for what this process asks; the runs are commands, and their Ray is a real one.
        without_ray(monkeypatch)
        yield Archive(tmp_path, hub)


@pytest.fixture
def machines(archive: Archive) -> Iterator[Machines]:
    with machines_up(archive.folder) as up:
        up.add(n_cpus=2)
        yield up


def test_a_driver_killed_in_the_course_of_an_update_never_shows_a_mix(
    archive: Archive, machines: Machines
) -> None:
    job = archive.folder / "job.yaml"
    job.write_text(yaml.safe_dump(archive.raw()))
    address = machines.cluster.address
    archive.fitted_on[archive.first] = source_version(archive.job())
    done = bioembed("run", str(job), RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    archive.check_whole()
    before, stood = archive.current(), archive.parts()
    second = archive.publish(1)
    archive.fitted_on[second] = source_version(archive.job())

    def written() -> int:
        return sum(path.is_file() for path in archive.output.rglob("[!.]*"))

    draw = random.Random(5)
    places = []
    for number in range(N_KILLS):
        with started("run", str(job), RAY_ADDRESS=address) as process:
            wait_for((archive.output / "lease.json").exists, "the lease", process)
            # Anywhere between the plan and the last part: a few more objects than now, and a moment.
            goal = written() + (0 if number == 0 else draw.randint(0, 3))
            wait_for(lambda goal=goal: written() >= goal, f"{goal} objects", process)
            time.sleep(draw.uniform(0, 1.5))
            process.kill()
            process.wait(30)
        # All that the current version names is listed, readable and untouched; nothing else is named.
        assert archive.current() == before
        archive.check_whole()
        now = archive.parts()
        assert {path: now[path] for path in stood} == stood
        places.append(len(now) - len(stood))
    assert places == sorted(places)  # what a killed run has put is never done again
    done = bioembed("run", str(job), RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    after = archive.current()
    archive.check_whole()
    assert after["encoders"]["w"] != before["encoders"]["w"]
    assert after["codebooks"]["w-6"] != before["codebooks"]["w-6"]
    assert after["encoders"]["t"] == before["encoders"]["t"]
    now = archive.parts()
    assert {path: now[path] for path in stood} == stood
    assert list(verify(str(archive.output))) == []
    assert not (archive.output / "lease.json").exists()
