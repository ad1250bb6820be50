"""Outputs written by releases of before: every later one reads, verifies, updates and prunes them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import duckdb
import pytest
import soundfile

import bioembed_ray
from bioembed_ray.config import Job
from bioembed_ray.job_file import parse_job
from bioembed_ray.prune import leftovers
from bioembed_ray.verify import verify
from tests import oracles
from tests.commands import embed
from tests.data import make_frozen

FROZEN = sorted(Path(make_frozen.__file__).parent.glob("frozen-*.tar.gz"))
ENCODERS = {"energy", "speech"}


@pytest.fixture(params=FROZEN, ids=[path.name for path in FROZEN])
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    make_frozen.set_times(tmp_path / "in")
    return tmp_path


def job_of(folder: Path) -> Job:
    raw = make_frozen.job(folder)
    raw["input"] = {"uri": str(raw.pop("source"))}
    return parse_job({**raw, "output": str(raw["output"])}, "test")


def counts(output: Path) -> dict[str, int]:
    with duckdb.connect() as database:
        return {
            table: database.execute(
                f"SELECT count(*) FROM '{output}/{table}/*/*/*.parquet'"
            ).fetchall()[0][0]
            for table in ("embeddings", "frames", "tokens")
        }


def test_it_is_read_as_it_stands(frozen: Path) -> None:
    results = bioembed_ray.open(str(frozen / "out"))
    windows = results.windows("energy")
    table = windows.to_pandas() if hasattr(windows, "to_pandas") else windows.pandas()
    rows = oracles.windows(frozen / "out", "energy")
    assert len(table) == len(rows) > 30
    assert set(table["recording"]) <= {path.name for path in (frozen / "in").iterdir()}
    with duckdb.connect() as database:
        failed = database.execute(
            f"SELECT recording, reason FROM '{frozen}/out/failures/*.parquet' ORDER BY ALL"
        ).fetchall()
    assert ("damaged.flac", "damaged") in failed and ("site1_5.wav", "truncated") in failed


def test_it_is_verified(frozen: Path) -> None:
    assert list(verify(str(frozen / "out"))) == []


@pytest.mark.ray
def test_it_is_updated_and_pruned(ray_cluster: None, frozen: Path) -> None:
    before, found = oracles.parts(frozen / "out"), counts(frozen / "out")
    assert embed(**make_frozen.job(frozen)).exit_code == 0
    after = oracles.parts(frozen / "out")
    is_same_version = before.items() <= after.items()
    # A release whose numbers are others writes new versions beside the old ones, and says so in CHANGELOG.
    assert is_same_version or len(after) > len(before)
    if is_same_version:
        assert counts(frozen / "out") == found

    wave = 0.1 * oracles.np.random.default_rng(9).standard_normal(3 * make_frozen.RATE_HZ)
    soundfile.write(frozen / "in" / "new.wav", wave, make_frozen.RATE_HZ, "PCM_16")
    (frozen / "in" / "site0_0.wav").unlink()
    assert embed(**make_frozen.job(frozen), max_removed_fraction=0.5).exit_code == 0
    names = {name for name, _, _ in oracles.windows(frozen / "out", "energy")}
    assert "new.wav" in names and "site0_0.wav" not in names
    assert list(verify(str(frozen / "out"))) == []

    changed = make_frozen.job(frozen)
    changed["encoders"]["energy"]["hop_s"] = 0.25
    assert embed(**changed, max_removed_fraction=0.5).exit_code == 0
    raw = {**changed, "input": {"uri": str(changed.pop("source"))}, "output": str(frozen / "out")}
    raw.pop("source", None)
    old = leftovers(parse_job(raw, "test"))
    assert [one.prefix.split("/version")[0] for one in old if "energy" in one.prefix] == [
        "embeddings/encoder=energy"
    ]
    for one in old:
        for uri in one.uris:
            Path(uri).unlink()
    assert list(verify(str(frozen / "out"))) == []
