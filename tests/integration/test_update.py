"""A model moves on the hub: why, what is computed anew, and what readers see meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import soundfile

from bioembed_ray import cluster, run, stream
from bioembed_ray.config import Job
from bioembed_ray.job_file import parse_job
from bioembed_ray.plan import make_plan
from bioembed_ray.plan_text import describe_plan
from bioembed_ray.prune import delete, leftovers
from bioembed_ray.run import run_job
from bioembed_ray.verify import verify
from tests.commands import tiny_encoder, without_ray
from tests.hub import Hub, loopback_hub
from tests.tiny import RATE_HZ, torchscript
from tests.unit.transformers_fixtures import speech_folder

REPO = "org/speech"


class Archive:
    """Recordings, a job with an encoder from the hub and one from a file, and its output."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub, self.output = folder, hub, folder / "out"
        # Commit -> version of the frames that a codebook of that model is fitted on.
        self.fitted_on: dict[str, str] = {}
        (folder / "in").mkdir()
        for number in range(12):
            rng = np.random.default_rng(number)
            t = np.arange(5 * RATE_HZ) / RATE_HZ
            wave = 0.3 * np.sin(2 * np.pi * rng.integers(200, 6000) * t * (1 + 0.2 * np.sin(2 * t)))
            wave += 0.05 * rng.standard_normal(len(t))
            path = folder / "in" / f"{number}.wav"
            soundfile.write(path, wave.astype(np.float32), RATE_HZ, subtype="FLOAT")
        torchscript(folder / "t.pt")
        self.first = self.publish(0)

    def publish(self, seed: int) -> str:
        return self.hub.publish_folder(
            REPO, speech_folder(self.folder / f"model-{seed}", seed=seed)
        )

    def job(self, **changed: Any) -> Job:
        raw = {
            "input": {"uri": str(self.folder / "in")},
            "output": str(self.output),
            "encoders": {"w": {"model": REPO, "layer": 2}, "t": tiny_encoder(self.folder / "t.pt")},
            "codebooks": {"w-6": {"encoder": "w", "clusters": 6, "fit_frames": 200}},
            "pools": {"default": {"actors": 1}},
            "shard_minutes": 0.1,
        }
        return parse_job({**raw, **changed}, "test")

    def current(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / "current.json").read_text())
        return found

    def parts(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.output.glob("*/*/*/*.parquet")}

    def check_whole(self) -> None:
        """What is current stands whole, and tokens name the codebook of the vectors beside them."""
        current = self.current()
        for name, one in current["encoders"].items():
            rows = duckdb.sql(
                f"SELECT count(DISTINCT (recording, start_s)), count(*) FROM '{self.output}/embeddings/"
                f"encoder={name}/version={one['embeddings']}/*.parquet'"
            ).fetchall()
            assert rows == [(120, 120)]
        for name, one in current["codebooks"].items():
            rows = duckdb.sql(
                f"SELECT count(DISTINCT recording), sum(len(tokens)) FROM '{self.output}/tokens/"
                f"codebook={name}/version={one['tokens']}/*.parquet'"
            ).fetchall()
            assert rows == [(12, 12 * ((5 * RATE_HZ - 400) // 320 + 1))]
            card = self.output / "codebooks" / name / f"version={one['codebook']}" / "card.json"
            version = current["encoders"][one["encoder"]]["embeddings"]
            described = self.output / "versions/embeddings" / one["encoder"] / f"{version}.json"
            commit = json.loads(described.read_text())["checkpoint"]["commit"]
            assert json.loads(card.read_text())["encoder_version"] == self.fitted_on[commit]


@pytest.fixture
def archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> Iterator[Archive]:
    with loopback_hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        found = Archive(tmp_path, hub)
        without_ray(monkeypatch)
        # Codebooks are fitted on the session's Ray; shards go through the same functions one by one.
        monkeypatch.setattr(cluster, "connect", lambda: None)
        yield found


def source_version(job: Job) -> str:
    """Return the version of the frames that the job's codebook is fitted on."""
    plan = make_plan(job, cluster.probe_recordings, cluster.list_members)
    frames = plan.encoders[0].outputs[0].fit_frames
    assert frames is not None
    return frames.version


@pytest.mark.ray
def test_an_update_interrupted_anywhere_never_shows_a_mix(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = archive.job()
    archive.fitted_on[archive.first] = source_version(job)
    assert run_job(job, lambda text: None).exit_code == 0
    archive.check_whole()
    before, stood = archive.current(), archive.parts()
    second = archive.publish(1)
    archive.fitted_on[second] = source_version(job)
    plan = make_plan(job, cluster.probe_recordings, cluster.list_members)
    why = f"weights moved from {archive.first[:7]} to {second[:7]} on the hub"
    assert any(line.startswith("w ") and why in line for line in describe_plan(plan))
    assert not any("t " in line and "anew" in line for line in describe_plan(plan))

    whole_stream = run.stream.run_stream
    said: list[str] = []
    n_broken = 0
    for n_shards in (0, 1, 0, 1, 2, 0, 1, 1, 2, 3, 9):

        def broken(*arguments: Any, n_shards: int = n_shards) -> Iterator[Any]:
            for done, receipt in enumerate(whole_stream(*arguments)):
                if done == n_shards:
                    raise InterruptedError
                yield receipt

        monkeypatch.setattr(stream, "run_stream", broken)
        try:
            run_job(job, said.append)
        except InterruptedError:
            n_broken += 1
            assert archive.current() == before
            archive.check_whole()
        else:
            break
    assert n_broken >= 6
    monkeypatch.setattr(stream, "run_stream", whole_stream)
    assert run_job(job, said.append).exit_code == 0
    after = archive.current()
    archive.check_whole()
    assert any(why in line for line in said)
    assert after["encoders"]["t"] == before["encoders"]["t"]
    assert after["encoders"]["w"] != before["encoders"]["w"]
    assert after["codebooks"]["w-6"] != before["codebooks"]["w-6"]
    # The old version is untouched, and nothing of the other encoder was computed again.
    now = archive.parts()
    assert {path: now[path] for path in stood} == stood
    assert list(verify(str(archive.output))) == []

    found = leftovers(job)
    assert {one.prefix.split("/")[0] for one in found} == {"embeddings", "tokens", "codebooks"}
    old = {before["encoders"]["w"]["embeddings"], *before["codebooks"]["w-6"].values()} - {"w"}
    assert {one.prefix.rpartition("=")[2] for one in found} == old
    delete(job.output, found)
    archive.check_whole()
    assert list(verify(str(archive.output))) == []
    assert leftovers(job) == []
    assert run_job(job, said.append).tally.n_parts == 0


@pytest.mark.ray
def test_embed_alone_leaves_an_encoder_where_its_codebooks_are(archive: Archive) -> None:
    job = archive.job()
    archive.fitted_on[archive.first] = source_version(job)
    assert run_job(job, lambda text: None).exit_code == 0
    before = archive.current()
    second = archive.publish(1)
    archive.fitted_on[second] = source_version(job)
    assert run_job(job, lambda text: None, "embeddings").exit_code == 0
    assert archive.current() == before
    archive.check_whole()
    # Without the codebook in the job, nothing holds the encoder back, and its old tokens leave.
    alone = archive.job(codebooks={})
    assert run_job(alone, lambda text: None).tally.n_parts == 0
    assert archive.current()["encoders"]["w"] != before["encoders"]["w"]
    assert archive.current()["codebooks"] == {}
