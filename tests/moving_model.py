"""An archive whose encoder moves on a hub, and what readers of its output must see at any moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import soundfile

from bioembed_ray import probing
from bioembed_ray.config import Job
from bioembed_ray.job_file import parse_job
from bioembed_ray.plan import make_plan
from tests.commands import tiny_encoder
from tests.hub import Hub
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

    def raw(self, **changed: Any) -> dict[str, Any]:
        return {
            "input": {"uri": str(self.folder / "in")},
            "output": str(self.output),
            "encoders": {"w": {"model": REPO, "layer": 2}, "t": tiny_encoder(self.folder / "t.pt")},
            "codebooks": {"w-6": {"encoder": "w", "clusters": 6, "fit_frames": 200}},
            "pools": {"default": {"actors": 1}},
            "shard_minutes": 0.1,
            **changed,
        }

    def job(self, **changed: Any) -> Job:
        return parse_job(self.raw(**changed), "test")

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


def source_version(job: Job) -> str:
    """Return the version of the frames that the job's codebook is fitted on."""
    plan = make_plan(job, probing.probe_recordings, probing.list_members)
    frames = plan.encoders[0].outputs[0].fit_frames
    assert frames is not None
    return frames.version
