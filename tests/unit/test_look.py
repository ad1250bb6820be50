"""`init` writes a job file that loads; `plan` says what a run would do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bioembed_ray import versions
from bioembed_ray.config import InputConfig
from bioembed_ray.job_file import load_job
from bioembed_ray.look import write_job_file
from bioembed_ray.plan import make_plan
from bioembed_ray.plan_text import describe_plan
from tests.unit.references import FakeRegistry, job_of, sound, window_encoder, write_wave
from tests.unit.test_verify import probe_all, run

torch.set_num_threads(1)


def archive_at(folder: Path, *rates: int) -> Path:
    folder.mkdir()
    for number, rate_hz in enumerate(rates):
        write_wave(folder / f"{number}.wav", sound(rate_hz), rate_hz, "PCM_16")
    return folder


def job_text(tmp_path: Path, *rates: int) -> str:
    config = InputConfig(uri=str(archive_at(tmp_path / 'an "archive" – ä', *rates)))
    return write_job_file(config, str(tmp_path / "out: #1"), ("beats", "hubert"))


def test_init_writes_a_job_file_that_loads(tmp_path: Path) -> None:
    text = job_text(tmp_path, 16_000, 16_000, 48_000)
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    job = load_job(str(tmp_path / "job.yaml"))
    assert job.input.uri == str(tmp_path / 'an "archive" – ä')
    assert job.output == str(tmp_path / "out: #1")
    assert list(job.encoders) == ["beats", "hubert"]
    assert (job.input.time_expansion, job.segment_s) == (1, 300)
    assert "#   formats: WAV PCM_16 (3)" in text
    assert "#   rates: 16000 Hz (2), 48000 Hz (1)" in text
    assert "#   lengths: 1 s to 1 s, median 1 s" in text


def test_init_suggests_time_expansion_for_ultrasound(tmp_path: Path) -> None:
    text = job_text(tmp_path, 384_000, 250_000, 16_000)
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    assert load_job(str(tmp_path / "job.yaml")).input.time_expansion == 10
    assert "up to 192 kHz" in text


def test_init_says_what_it_could_not_read(tmp_path: Path) -> None:
    folder = archive_at(tmp_path / "a", 16_000)
    (folder / "x.wav").write_text("no sound")
    text = write_job_file(InputConfig(uri=str(folder)), "out", ("beats",))
    assert "after looking at 2 of 2 recordings" in text
    assert "#   1 could not be read" in text


def test_plan_says_what_is_there_and_what_is_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(2):
        write_wave(folder / f"{number}.wav", sound(36_000), 1000)
    (folder / "notes.wav").write_text("no sound")
    (folder / "._0.wav").write_text("hidden")
    encoder = window_encoder()
    monkeypatch.setattr(versions, "registry", FakeRegistry({"fake": encoder.facts}))
    job = job_of(tmp_path / "out", input={"uri": str(folder)})
    plan = make_plan(job, probe_all, lambda containers: [])
    version = plan.encoders[0].outputs[0].embeddings.version
    assert list(describe_plan(plan)) == [
        "input      3 recordings, 0.0200 h of audio, 1 unreadable",
        "           3 new, 0 changed, 0 removed",
        "left out   1 companions of macOS (._0.wav)",
        "to do      2 of 2 shards, 0.0200 h of audio",
        f"fake       version {version}: 144 windows, 144 to compute (local, sha256 w0)",
        "           2 recordings (2 new, 0 changed, 0 that stood), 0.0200 h of audio",
        "estimate   none yet: no run on this output has been measured",
        f"output     {tmp_path / 'out'}",
    ]
    run(monkeypatch, tmp_path, encoder)
    again = make_plan(job, probe_all, lambda containers: [])
    text = list(describe_plan(again))
    assert "to do      0 of 2 shards, 0.0000 h of audio" in text
    assert f"fake       version {version}: 144 windows, 0 to compute (local, sha256 w0)" in text
    assert not any(line.startswith("estimate") for line in text)
    np.testing.assert_equal(sum(1 for _ in (tmp_path / "out").rglob("*.parquet")), 4)
