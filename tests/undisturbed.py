"""An archive, and what a run gives that nobody disturbs: what every disturbed one has to give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bioembed_ray.verify import verify
from tests import oracles
from tests.commands import embed, without_ray

HOP_S = 0.2
SECONDS = 10
SHARD_MINUTES = 0.15
WINDOWS_PER_SHARD = round(SECONDS / HOP_S)


@dataclass(frozen=True)
class Undisturbed:
    """An archive, and what a run gives that nobody disturbs."""

    source: Path
    rows: oracles.Rows
    parts: frozenset[str]

    def arguments(self, output: Path) -> list[str]:
        settings = ["model=tests.tiny:slow", f"hop_s={HOP_S}"]
        more = [word for one in settings for word in ("--set", f"encoders.slow.{one}")]
        more += ["--set", f"shard_minutes={SHARD_MINUTES}"]
        return ["run", "--input", str(self.source), "--output", str(output), *more]

    def check(self, output: Path) -> None:
        """The output holds what an undisturbed run gives, bit for bit, and nothing else."""
        assert set(oracles.parts(output)) == self.parts
        oracles.assert_same(oracles.windows(output, "slow"), self.rows)
        assert list(verify(str(output))) == []
        assert not (output / "lease.json").exists()
        assert oracles.failures(output) == []


def run_undisturbed(folder: Path, n_shards: int) -> Undisturbed:
    """Make an archive of one recording per shard, and run over it without Ray."""
    (folder / "in").mkdir()
    for number in range(n_shards):
        sound = 0.1 * np.random.default_rng(number).standard_normal(SECONDS * 16_000)
        soundfile.write(folder / f"in/{number:02d}.wav", sound, 16_000)
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setenv("BIOEMBED_TESTS_PAUSE_S", "0")
        encoders = {"slow": {"model": "tests.tiny:slow", "hop_s": HOP_S}}
        result = embed(folder / "in", folder / "out", encoders, shard_minutes=SHARD_MINUTES)
    assert (result.exit_code, result.tally.n_parts) == (0, n_shards)
    parts = frozenset(oracles.parts(folder / "out"))
    return Undisturbed(folder / "in", oracles.windows(folder / "out", "slow"), parts)


def n_standing(output: Path) -> int:
    return len(oracles.parts(output)) if output.exists() else 0
