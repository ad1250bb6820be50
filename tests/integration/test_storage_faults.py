"""Runs on a store that fails: what passes leaves no trace, what stays is one line, and a rerun goes on."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import soundfile
import yaml

from bioembed_ray import lease, run
from bioembed_ray.errors import LockedError, StorageError
from bioembed_ray.job_file import parse_job
from bioembed_ray.run import run_job
from bioembed_ray.verify import verify
from tests import tiny
from tests.commands import bioembed, started, wait_for, without_ray
from tests.flaky import KINDS, Flaky

RATE_HZ = 16_000
N_SHARDS = 8
# Far below the defaults, so that a test need not wait for minutes; the keys are those of users.
PATIENT = {"timeout_s": 1.0, "retries": 10, "retry_s": 40}
HASTY = {"timeout_s": 1.0, "retries": 2, "retry_s": 3}


@dataclass(frozen=True)
class Archive:
    """Two short recordings per shard on S3, and what a run gives that nothing disturbs."""

    s3: Any
    folder: Path
    wanted: Path

    def job(self, output: str, endpoint: str | None, patience: dict[str, float]) -> dict[str, Any]:
        store = {**patience, **({} if endpoint is None else {"endpoint": endpoint})}
        return {
            "input": {"uri": f"{self.s3.uri}/in"},
            "output": f"{self.s3.uri}/{output}",
            "encoders": {"slow": {"model": "tests.tiny:slow", "hop_s": 0.5}},
            "shard_minutes": 0.1,
            "pools": {"default": {"actors": 1}},
            "storage": {"input": store, "output": store},
        }

    def job_file(self, **more: Any) -> str:
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(self.job(**more)))
        return str(path)

    def fetched(self, output: str) -> Path:
        """Return a copy of an output on the disk, made by boto3."""
        folder = self.folder / f"copy of {output}"
        for key in self.s3.listing():
            if key.startswith(f"{output}/"):
                path = folder / key.removeprefix(f"{output}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.s3.get(key))
        return folder

    def check(self, output: str) -> None:
        """All rows of embeddings/ and recordings/ are those of an undisturbed run, by DuckDB."""
        got = self.fetched(output)
        for table in ("embeddings/*/*/*.parquet", "recordings/*.parquet"):
            one, other = (
                f"SELECT * FROM read_parquet('{folder}/{table}', hive_partitioning = true)"
                for folder in (got, self.wanted)
            )
            counts = [duckdb.sql(f"SELECT count(*) FROM ({q})").fetchall() for q in (one, other)]
            assert counts[0] == counts[1] and counts[0] != [(0,)]
            assert duckdb.sql(f"({one}) EXCEPT ALL ({other})").fetchall() == []
        assert [key for key in self.s3.listing() if key == f"{output}/lease.json"] == []
        assert list(verify(f"{self.s3.uri}/{output}")) == []


@pytest.fixture
def archive(s3: Any, tmp_path: Path) -> Iterator[Archive]:
    for number in range(2 * N_SHARDS):
        sink = io.BytesIO()
        sound = 0.1 * np.random.default_rng(number).standard_normal(3 * RATE_HZ)
        soundfile.write(sink, sound, RATE_HZ, format="WAV", subtype="FLOAT")
        s3.put(f"in/{number:02d}.wav", sink.getvalue())
    found = Archive(s3, tmp_path, tmp_path / "copy of wanted")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setattr(tiny, "SLOW_S_PER_WINDOW", 0.0)
        result = run_job(parse_job(found.job("wanted", None, {}), "test"), lambda text: None)
    assert (result.exit_code, result.tally.n_parts) == (0, N_SHARDS)
    found.fetched("wanted")
    yield found


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_in_which_every_kind_of_fault_hits_one_request_in_twenty_gives_the_same_rows(
    archive: Archive, flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the job file names the proxy: what comes through it from workers, they were told.
    flaky.hold_s, flaky.missing_s = 1.5, 0.3
    flaky.rates, flaky.draw = dict.fromkeys(KINDS, 0.05), random.Random(20)
    path = archive.job_file(output="out", endpoint=flaky.url, patience=PATIENT)
    # Nobody listens on the discard port.
    done = bioembed("run", path, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert set(flaky.n_met) == set(KINDS)
    assert flaky.n_met.total() > 0.1 * len(flaky.log) > 10
    monkeypatch.setenv("AWS_ENDPOINT_URL", archive.s3.endpoint)
    archive.check("out")


@pytest.mark.ray
@pytest.mark.slow
def test_a_store_that_stops_listening_in_mid_run_ends_it_with_one_line_and_a_rerun_finishes(
    archive: Archive, flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive.job_file(output="out", endpoint=flaky.url, patience=HASTY)

    def n_standing() -> int:
        return sum(key.startswith("out/embeddings/") for key in archive.s3.listing())

    with started("run", path, PYTHONUNBUFFERED="1") as process:
        wait_for(lambda: n_standing() >= 2, "two parts", process)
        flaky.gone = "refused"
        start = time.monotonic()
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert time.monotonic() - start < 60
    [line] = [one for one in said.splitlines() if one.startswith("error: ")]
    assert f"no answer from {flaky.url}; check the endpoint and the network" in line
    assert "run again" in line and "Traceback" not in said
    stood = n_standing()
    assert 2 <= stood < N_SHARDS
    flaky.gone = None
    counts = without_ray(monkeypatch)
    result = again(archive, flaky)
    assert (result.exit_code, counts["parts"]) == (0, N_SHARDS - stood)
    archive.check("out")


def again(archive: Archive, flaky: Flaky) -> run.Result:
    return run_job(parse_job(archive.job("out", flaky.url, HASTY), "test"), lambda text: None)


@pytest.mark.parametrize("gone", ["bucket", "refused"])
@pytest.mark.parametrize("which", ["input", "output", "both"])
def test_a_bucket_that_vanishes_ends_the_run_soon_and_a_rerun_finishes(
    archive: Archive, flaky: Flaky, monkeypatch: pytest.MonkeyPatch, which: str, gone: str
) -> None:
    counts = without_ray(monkeypatch)
    whole_stream = run.stream.run_stream
    is_away = {"input": "/in/", "output": "/out/", "both": ""}[which]
    # A listing names its prefix in the query.
    is_hit = {"input": "prefix=in", "output": "prefix=out", "both": ""}[which]

    def broken(*arguments: Any) -> Iterator[Any]:
        for done, receipt in enumerate(whole_stream(*arguments)):
            yield receipt
            if done == 1:
                flaky.gone_where = lambda path: is_away in path or is_hit in path
                flaky.gone = gone

    with monkeypatch.context() as patch:
        patch.setattr(run.stream, "run_stream", broken)
        start = time.monotonic()
        with pytest.raises(StorageError) as caught:
            again(archive, flaky)
        assert time.monotonic() - start < 40
    text = str(caught.value)
    assert ("no such bucket" if gone == "bucket" else f"no answer from {flaky.url}") in text
    assert "run again" in text and "\n" not in text
    assert counts["parts"] == 2
    flaky.gone = None
    # Where it could not be given back this process, which lives on, waits like one elsewhere.
    is_left = "out/lease.json" in archive.s3.listing()
    assert is_left == (which != "input")
    if is_left:
        with pytest.raises(LockedError, match="another run holds it"):
            again(archive, flaky)
        monkeypatch.setattr(lease, "EXPIRY_S", 0.5)
        time.sleep(0.6)
    assert again(archive, flaky).exit_code == 0
    assert counts["parts"] == N_SHARDS
    archive.check("out")


def test_a_recording_deleted_in_mid_run_costs_its_shard_and_is_removed_by_the_next_run(
    archive: Archive, flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = without_ray(monkeypatch)
    whole_stream = run.stream.run_stream

    def emptied(*arguments: Any) -> Iterator[Any]:
        archive.s3.client.delete_object(Bucket=archive.s3.name, Key="in/05.wav")
        yield from whole_stream(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run.stream, "run_stream", emptied)
        result = again(archive, flaky)
    assert (result.exit_code, counts["parts"]) == (1, N_SHARDS - 1)
    assert result.tally.transient == [f"05.wav: changed: {archive.s3.uri}/in/05.wav: not found"]
    result = again(archive, flaky)
    assert (result.exit_code, result.plan.changes.n_removed) == (0, 1)
    assert counts["parts"] == N_SHARDS
    left = duckdb.sql(
        f"SELECT DISTINCT recording FROM '{archive.fetched('out')}/embeddings/*/*/*.parquet'"
    ).fetchall()
    assert {name for (name,) in left} == {f"{n:02d}.wav" for n in range(2 * N_SHARDS)} - {"05.wav"}


def test_a_recording_that_is_listed_but_never_there_is_a_fault_of_the_store(
    archive: Archive, flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = without_ray(monkeypatch)
    again(archive, flaky)
    archive.s3.put("in/05.wav", archive.s3.get("in/06.wav"))
    before = counts["parts"]
    # Its header can still be read; then it is gone, while all else stays.
    n_read = 0

    def later(method: str, path: str) -> bool:
        nonlocal n_read
        n_read += path.endswith("/in/05.wav")
        return path.endswith("/in/05.wav") and n_read > 1

    flaky.rates, flaky.only = {"missing": 1.0}, later
    start = time.monotonic()
    result = again(archive, flaky)
    assert time.monotonic() - start < 20
    assert (result.exit_code, counts["parts"]) == (1, before)
    assert result.tally.transient == [
        f"05.wav: storage: {archive.s3.uri}/in/05.wav: is listed, but cannot be read: the store answers 404"
    ]
    flaky.rates = {}
    assert again(archive, flaky).exit_code == 0
