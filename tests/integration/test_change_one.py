"""One recording of two hundred is changed, removed, renamed: only it is computed, its neighbours' rows move."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pytest
import soundfile

from bioembed_ray.run import Result
from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import embed, tiny_encoder, without_ray

RATE_HZ = 16_000
N_RECORDINGS = 200
PER_SHARD = 8
SECONDS = 1.5
N_WINDOWS = 3


def write(path: Path, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    sound = (0.1 * draw.standard_normal(round(SECONDS * RATE_HZ))).astype(np.float32)
    soundfile.write(path, sound, RATE_HZ, subtype="FLOAT")
    return sound


class Lab:
    """An archive that is run over again and again, and what stood before."""

    def __init__(self, folder: Path, counts: Counter[str]) -> None:
        self.source, self.output, self.counts = folder / "in", folder / "out", counts
        self.encoders = {"energy": tiny_encoder(tiny.torchscript(folder / "energy.pt"))}
        self.source.mkdir()
        self.sounds = {f"{n:03d}.wav": write(self.source / f"{n:03d}.wav", n) for n in range(200)}

    def run(self) -> Result:
        minutes = PER_SHARD * SECONDS / 60
        return embed(self.source, self.output, self.encoders, shard_minutes=minutes)

    def shard_of(self, name: str) -> str:
        [span] = oracles.recordings(self.output)[name]["spans"]
        shard: str = span["shard"]
        return shard

    def check(self) -> None:
        """Each window of each recording stands once, as the network called directly makes it."""
        wanted = {
            (name, 0, start / RATE_HZ): tiny.alone(oracles.cut(sound, start, RATE_HZ))
            for name, sound in self.sounds.items()
            for start in oracles.window_starts(len(sound), RATE_HZ, RATE_HZ // 2)
        }
        oracles.assert_same(oracles.windows(self.output, "energy"), wanted, within=1e-5)
        assert set(oracles.recordings(self.output)) == set(self.sounds)
        assert list(verify(str(self.output))) == []

    def check_rerun(
        self, before: oracles.Standing, old: oracles.Rows, left: str, encoded: set[str]
    ) -> None:
        """The run just done encoded these recordings, replaced one part, and moved its other rows."""
        record = oracles.run_records(self.output)[-1]
        assert record["audio_s"] == pytest.approx(SECONDS * len(encoded))
        assert (record["parts"], record["parts_carried_over"]) == (len(encoded), 1)
        now = oracles.parts(self.output)
        gone = {part for part in before if part not in now}
        assert [Path(part).stem for part in gone] == [left]
        assert {part: now[part] for part in before if part not in gone} == {
            part: before[part] for part in before if part not in gone
        }
        new = [str(self.output / part) for part in now if part not in before]
        rows = duckdb.sql(f"SELECT recording, count(*) FROM read_parquet({new}) GROUP BY 1")
        moved = {row[0] for row in old} & {name for name, _ in rows.fetchall()} - encoded
        assert len(moved) == PER_SHARD - 1
        standing = oracles.windows(self.output, "energy")
        stay = {key for key in old if key[0] in self.sounds and key[0] not in encoded}
        oracles.assert_same({key: standing[key] for key in stay}, {key: old[key] for key in stay})
        self.check()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, without_ray(monkeypatch))


def test_only_what_changed_is_computed_again(lab: Lab) -> None:
    assert lab.run().exit_code == 0
    n_shards = lab.counts["parts"]
    assert n_shards >= N_RECORDINGS // PER_SHARD
    lab.check()

    # Changed: the same name, another sound.
    before, left = oracles.parts(lab.output), lab.shard_of("077.wav")
    old = oracles.windows(lab.output, "energy")
    lab.sounds["077.wav"] = write(lab.source / "077.wav", 1077)
    result = lab.run()
    assert (result.exit_code, result.plan.changes.n_changed) == (0, 1)
    lab.check_rerun(before, old, left, {"077.wav"})

    # Removed: its rows go, the others of its shard stay, and nothing is computed.
    before, left = oracles.parts(lab.output), lab.shard_of("123.wav")
    old = oracles.windows(lab.output, "energy")
    (lab.source / "123.wav").unlink()
    del lab.sounds["123.wav"]
    result = lab.run()
    assert (result.exit_code, result.plan.changes.n_removed) == (0, 1)
    lab.check_rerun(before, old, left, set())

    # Renamed: for the archive a removed one and a new one.
    before, left = oracles.parts(lab.output), lab.shard_of("010.wav")
    old = oracles.windows(lab.output, "energy")
    (lab.source / "010.wav").rename(lab.source / "site_010.wav")
    lab.sounds["site_010.wav"] = lab.sounds.pop("010.wav")
    result = lab.run()
    changes = result.plan.changes
    assert (result.exit_code, changes.n_new, changes.n_removed) == (0, 1, 1)
    lab.check_rerun(before, old, left, {"site_010.wav"})

    # Nothing happened: nothing is done.
    before = oracles.parts(lab.output)
    assert lab.run().tally.n_parts == 0
    assert oracles.parts(lab.output) == before
