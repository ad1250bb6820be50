"""A model moves on the hub: why, what is computed anew, and what readers see meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bioembed_ray import cluster, probing, run, stream
from bioembed_ray.codebooks import archive as archive_use
from bioembed_ray.plan import make_plan
from bioembed_ray.plan_text import describe_plan
from bioembed_ray.prune import delete, leftovers
from bioembed_ray.run import run_job
from bioembed_ray.verify import verify
from tests.commands import without_ray
from tests.hub import loopback_hub
from tests.moving_model import Archive, source_version


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
    plan = make_plan(job, probing.probe_recordings, probing.list_members)
    why = f"weights moved from {archive.first[:7]} to {second[:7]} on the hub"
    assert any(line.startswith("w ") and why in line for line in describe_plan(plan))
    assert not any("t " in line and "anew" in line for line in describe_plan(plan))

    def interrupted(*_: Any) -> None:
        raise InterruptedError

    whole_stream, whole_end = run.stream.run_stream, archive_use.describe_archive
    # And at the very end, when all parts stand and only the codebook's card and `current.json` are left.
    monkeypatch.setattr(archive_use, "describe_archive", interrupted)
    said: list[str] = []
    for n_shards in (0, 1, 0, 1, 2, 0, 1, 1, 2, 3, 9):

        def broken(*arguments: Any, n_shards: int = n_shards) -> Iterator[Any]:
            for done, receipt in enumerate(whole_stream(*arguments)):
                if done == n_shards:
                    raise InterruptedError
                yield receipt

        monkeypatch.setattr(stream, "run_stream", broken)
        with pytest.raises(InterruptedError):
            run_job(job, said.append)
        assert archive.current() == before
        archive.check_whole()
    monkeypatch.setattr(stream, "run_stream", whole_stream)
    monkeypatch.setattr(archive_use, "describe_archive", whole_end)
    done = run_job(job, said.append)
    assert (done.exit_code, done.tally.n_parts) == (0, 0)
    after = archive.current()
    tokens, codebook = (after["codebooks"]["w-6"][key] for key in ("tokens", "codebook"))
    card = json.loads((archive.output / f"codebooks/w-6/version={codebook}/card.json").read_text())
    files = f"{archive.output}/tokens/codebook=w-6/version={tokens}/*.parquet"
    [(n_named,)] = duckdb.sql(f"SELECT sum(list_count(tokens)) FROM '{files}'").fetchall()
    assert (card["archive"]["tokens"], card["archive"]["frames"]) == (tokens, n_named)
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
