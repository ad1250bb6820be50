"""Which shards a codebook is fitted on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bioembed_ray import versions
from bioembed_ray.codebooks.wanted import Wanted, fit_work, shards_of, wanted_codebooks
from bioembed_ray.plan import Plan
from tests.unit.made_up_archive import WINDOWS, Archive
from tests.unit.references import FakeRegistry


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Twenty shards of one recording of a minute each: 120 windows."""
    registry = FakeRegistry({"fake": WINDOWS})
    monkeypatch.setattr(versions, "registry", registry)
    made = Archive(tmp_path, registry)
    for number in range(20):
        made.add(f"{number:02}.wav")
    return made


def planned(archive: Archive, **codebook: Any) -> tuple[Plan, Wanted]:
    settings = {"encoder": "fake", "clusters": 4, "held_out": 0.0, **codebook}
    found = archive.plan(codebooks={"c": settings})
    assert len(found.shards) == 20
    (wanted,) = wanted_codebooks(found.job, found.encoders)
    return found, wanted


@pytest.mark.parametrize(("frames", "n_drawn"), [(1, 1), (60, 1), (61, 2), (10_000, 20)])
def test_a_fit_draws_on_the_first_shards_that_hold_twice_its_frames(
    archive: Archive, frames: int, n_drawn: int
) -> None:
    found, wanted = planned(archive, fit_frames=frames)
    assert shards_of(found, wanted) == sorted(found.shards)[:n_drawn]


def test_every_group_gets_its_share(archive: Archive) -> None:
    found, wanted = planned(archive, fit_frames=60, balance="site")
    first, *_, last = sorted(found.shards)
    for shard, contents in found.shards.items():
        for span in contents.spans:
            entry = found.ledger.known[span.recording]
            entry.recording.labels["site"] = "rare" if shard == last else "common"
    assert shards_of(found, wanted) == [first, last]


def test_only_what_does_not_stand_is_encoded_for_the_fit(archive: Archive) -> None:
    found, wanted = planned(archive, fit_frames=180)
    drawn = shards_of(found, wanted)
    assert [work.shard.id for work in fit_work(found, [wanted])] == drawn[:3]
    found.todo = [work for work in found.todo if work.shard.id == drawn[1]]
    archive.run(found)
    again, wanted = planned(archive, fit_frames=180)
    assert {work.shard.id for work in fit_work(again, [wanted])} == {drawn[0], *drawn[2:]}
