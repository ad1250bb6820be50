"""`plan` says per encoder and codebook what is new, why, how many bytes, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bioembed_ray import current, storage, versions
from bioembed_ray.codebooks.card import CODEBOOK_KEY, Codebook, codebook_bytes
from bioembed_ray.codebooks.wanted import codebook_reasons, wanted_codebooks, with_tokens
from bioembed_ray.plan import Plan, list_again
from bioembed_ray.plan_text import describe_plan
from tests.unit.made_up_archive import WINDOWS, Archive
from tests.unit.references import FakeRegistry

CODEBOOK = {"encoder": "fake", "clusters": 4}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    registry = FakeRegistry({"fake": WINDOWS})
    monkeypatch.setattr(versions, "registry", registry)
    return Archive(tmp_path, registry)


def planned(archive: Archive, **codebook: Any) -> tuple[Plan, list[str]]:
    """Return the plan with a codebook, and what is printed of it."""
    found = archive.plan(codebooks={"c": {**CODEBOOK, **codebook}})
    wanted = wanted_codebooks(found.job, found.encoders)
    encoders, missing = with_tokens(found.encoders, wanted)
    list_again(found, encoders)
    return found, list(describe_plan(found, missing, wanted))


def fitted(archive: Archive, **codebook: Any) -> Plan:
    """Make a codebook stand, do all work with it, and make both current."""
    found, _ = planned(archive, **codebook)
    for one in wanted_codebooks(found.job, found.encoders):
        centroids = np.eye(4, dtype=np.float32)
        book = Codebook(one.fit.name, one.fit.version, "fake", "v", "euclidean", centroids)
        storage.put(storage.join(one.fit.folder, CODEBOOK_KEY), codebook_bytes(book))
    found, _ = planned(archive, **codebook)
    archive.run(found)
    current.move_current(found.job.output, list(found.encoders), ())
    return found


def anew(lines: list[str], name: str) -> list[str]:
    start = f"{name:<10} anew: "
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def test_a_codebook_that_stands_has_nothing_to_say(archive: Archive) -> None:
    archive.add("a.wav")
    fitted(archive)
    found, lines = planned(archive)
    assert found.todo == []
    assert anew(lines, "c") == anew(lines, "fake") == []


def test_every_setting_of_a_codebook_that_moved_is_named(archive: Archive) -> None:
    archive.add("a.wav")
    fitted(archive)
    _, lines = planned(archive, clusters=40_000, edition=2, metric="cosine", seed=3)
    assert anew(lines, "c") == [
        "clusters moved from 4 to 40000",
        "edition moved from 1 to 2",
        "metric moved from euclidean to cosine",
        "seed moved from 0 to 3",
    ]
    assert anew(lines, "fake") == []


def test_a_codebook_follows_its_encoder(archive: Archive) -> None:
    archive.add("a.wav")
    before = fitted(archive).encoders[0].outputs[0].embeddings.version
    archive.registry.digests["fake"] = "w1"
    found, lines = planned(archive)
    after = found.encoders[0].outputs[0].embeddings.version
    assert anew(lines, "fake") == ["weights moved from w0 to w1 in /weights"]
    assert anew(lines, "c") == [f"follows fake (version {before} to {after})"]


def test_a_codebook_of_another_encoder_says_only_that(archive: Archive) -> None:
    archive.add("a.wav")
    archive.registry.facts["other"] = WINDOWS
    archive.registry.digests["other"] = archive.registry.shapes["other"] = "o"
    fitted(archive)
    found = archive.plan()
    values = {"encoders": {"fake": {"model": "fake"}, "other": {"model": "fake"}}}
    job = found.job.model_validate(
        {**found.job.model_dump(), **values, "codebooks": {"c": {**CODEBOOK, "encoder": "other"}}}
    )
    encoders = tuple(versions.plan_encoder(name, job) for name in job.encoders)
    told = codebook_reasons(job.output, wanted_codebooks(job, encoders), encoders)
    assert list(told) == [("c", "encoder moved from fake to other")]


def test_a_codebook_that_nobody_described_is_another_one(archive: Archive) -> None:
    archive.add("a.wav")
    found = fitted(archive)
    (tokens,) = found.encoders[0].outputs[0].tokens
    (archive.output / f"versions/tokens/c/{tokens.dataset.version}.json").unlink()
    _, lines = planned(archive, edition=2)
    version = tokens.folder.rpartition("=")[2]
    assert anew(lines, "c") == [f"version {version} is another one"]


def test_the_difference_is_told_per_encoder_and_codebook(archive: Archive) -> None:
    for number in range(4):
        archive.add(f"{number}.wav")
    fitted(archive)
    archive.add("new.wav")
    archive.add("0.wav", body="another sound")
    found, lines = planned(archive)
    n_all = len({span.recording for work in found.todo for span in work.shard.spans})
    hours = n_all * 60 / 3600
    about = f"{n_all} recordings (1 new, 1 changed, {n_all - 2} that stood), {hours:.4f} h of audio"
    assert lines.count(f"           {about}") == 2
    # A minute holds 120 windows, and as many tokens of two bytes.
    (named,) = (line for line in lines if line.startswith("c  "))
    assert named.endswith(
        f"{len(found.todo)} shards to name, about {n_all * 240 / 1e6:.3g} MB to write"
    )
    (vectors,) = (line for line in lines if line.startswith("fake  "))
    assert f"{n_all * 120} to compute, about {n_all * 120 * 16 / 1e6:.3g} MB to write" in vectors


@pytest.mark.parametrize(
    ("gpus", "cost"), [(1.0, "0.1 GPU-hours"), (0.5, "0.05 GPU-hours"), (0.0, "0.1 CPU-hours")]
)
def test_what_was_measured_tells_the_cost(archive: Archive, gpus: float, cost: str) -> None:
    for number in range(6):
        archive.add(f"{number}.wav")
    record = {
        "run": "r1",
        "parts": 3,
        "audio_s_per_worker_s": {"fake": 1.0},
        "gpus_per_worker": {"fake": gpus},
    }
    storage.put(f"{archive.output}/runs/r1.json", json.dumps(record).encode())
    lines = list(describe_plan(archive.plan()))
    assert any(line.endswith(f"0.1000 h of audio, about {cost}") for line in lines)
    assert any(line.startswith("estimate ") and line.endswith("of run r1") for line in lines)


def test_tokens_alone_are_no_vectors_to_compute(archive: Archive) -> None:
    archive.add("a.wav")
    archive.run(archive.plan())
    found = archive.plan()
    found.encoders = tuple(replace(encoder) for encoder in found.encoders)
    _, lines = planned(archive)
    assert any("120 windows, 0 to compute" in line for line in lines)
    assert any("codebook to fit: 4 clusters of fake" in line for line in lines)
