"""One shard decoded, encoded and put in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bioembed_ray import parts, versions
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.outcomes import PartOutcome
from bioembed_ray.plan import Work
from bioembed_ray.segments import Shard, Span
from bioembed_ray.versions import plan_encoder
from bioembed_ray.work import Receipt
from tests.unit.audio_samples import wav
from tests.unit.references import (
    FakeFrames,
    FakeRegistry,
    FakeWindows,
    done,
    job_of,
    sound,
    span_of,
    write_wave,
)

torch.set_num_threads(1)
RATE = 1000


def settle(
    monkeypatch: pytest.MonkeyPatch, encoder: FakeWindows | FakeFrames, output: Path, **values: Any
) -> tuple[PlannedEncoder, Any]:
    monkeypatch.setattr(versions, "registry", FakeRegistry({"fake": encoder.facts}))
    job = job_of(output, **values)
    return plan_encoder("fake", job), job


def one_shard(
    monkeypatch: pytest.MonkeyPatch,
    output: Path,
    spans: list[Span],
    encoder: FakeWindows | FakeFrames,
    crashed: tuple[int, ...] = (),
    **values: Any,
) -> tuple[Receipt, PlannedEncoder, Any]:
    planned, job = settle(monkeypatch, encoder, output, **values)
    work = Work(Shard(tuple(spans)), planned.datasets, crashed)
    return done(work, job, planned, encoder), planned, job


def part_of(output: Path, outcome: PartOutcome) -> Path:
    return Path(parts.part_uri(str(output), outcome.dataset, outcome.shard))


def spans_of(archive: Path) -> list[Span]:
    return [span_of(path) for path in sorted(archive.iterdir())]


def small_archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    write_wave(folder / "a.wav", sound(3300), RATE)
    write_wave(folder / "ä – 鳥.wav", sound(5000, 1, channels=2), 2500)
    write_wave(folder / "short.wav", sound(7, 2), RATE)
    body = wav(sound(4000, 3).astype("<i2").tobytes() * 0 + b"\x01\x20" * 4000, rate_hz=RATE)
    (folder / "cut.wav").write_bytes(body[: 44 + 2 * 1500])
    return folder
