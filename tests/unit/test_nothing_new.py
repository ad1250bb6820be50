"""A run that finds nothing to do starts no cluster, and writes no more than its record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bioembed_ray import cluster
from bioembed_ray.job_file import parse_job
from bioembed_ray.report_text import describe_result
from bioembed_ray.run import run_job
from tests import tiny
from tests.commands import tiny_encoder, without_ray
from tests.unit.references import write_wave


def test_nothing_new_ends_without_a_cluster_and_leaves_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        wave = np.random.default_rng(number).uniform(-0.1, 0.1, 32_000)
        write_wave(source / f"{number}.wav", wave, 16_000)
    raw = {
        "input": {"uri": str(source)},
        "output": str(tmp_path / "out"),
        "encoders": {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))},
    }
    job = parse_job(raw, "test")
    with monkeypatch.context() as patch:
        without_ray(patch)
        assert run_job(job, lambda text: None).exit_code == 0
    table = tmp_path / "out/recordings/recordings.parquet"
    before = table.stat()

    def refuse() -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(cluster, "connect", refuse)
    result = run_job(job, lambda text: None)
    assert (result.exit_code, result.tally.n_parts) == (0, 0)
    assert result.plan.ledger.known.active == {}
    lines = list(describe_result(result))
    assert lines[0].startswith("done       nothing to do: all ")
    assert "recordings 3: 3 embedded" in lines
    assert table.stat().st_mtime_ns == before.st_mtime_ns
    # Moved as a whole, the archive has other URIs, and the ledger says so.
    moved = source.rename(tmp_path / "moved")
    job = parse_job({**raw, "input": {"uri": str(moved)}}, "test")
    result = run_job(job, lambda text: None)
    assert (result.exit_code, result.tally.n_parts) == (0, 0)
    assert table.stat().st_mtime_ns != before.st_mtime_ns
    assert result.plan.ledger.known["0.wav"].recording.source.uri == str(moved / "0.wav")
