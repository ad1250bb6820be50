"""Runs on an archive that changes: only the difference is computed, and what stood is not touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bioembed_ray.errors import ConfigError
from bioembed_ray.run import Result
from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import embed, tiny_encoder, without_ray

RATE_HZ = 16_000


class Archive:
    """A folder of recordings of 10 s, and its output; shards hold three of them."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output = folder / "in", folder / "out"
        self.encoders = {"energy": tiny_encoder(tiny.torchscript(folder / "energy.pt"))}
        self.source.mkdir()

    def write(self, name: str, seed: int) -> None:
        sound = 0.1 * np.random.default_rng(seed).standard_normal(10 * RATE_HZ)
        soundfile.write(self.source / name, sound, RATE_HZ, subtype="FLOAT")

    def run(self, **job: Any) -> Result:
        return embed(
            self.source,
            self.output,
            self.encoders,
            shard_minutes=0.5,
            max_removed_fraction=0.2,
            **job,
        )

    def check(self) -> None:
        """Every window of every recording stands once, with the vector of the model called alone."""
        expected = {}
        for path in self.source.iterdir():
            samples, _ = soundfile.read(path, dtype="float32")
            for start in oracles.window_starts(len(samples), RATE_HZ, RATE_HZ // 2):
                window = oracles.cut(samples, start, RATE_HZ)
                expected[path.name, 0, start / RATE_HZ] = tiny.alone(window)
        oracles.assert_same(oracles.windows(self.output, "energy"), expected, within=1e-5)
        assert list(verify(str(self.output))) == []


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Six recordings in two shards, embedded without Ray."""
    without_ray(monkeypatch)
    return embedded(tmp_path)


def embedded(folder: Path) -> Archive:
    archive = Archive(folder)
    for number in range(6):
        archive.write(f"{number}.wav", number)
    result = archive.run()
    assert (result.exit_code, result.tally.n_parts) == (0, 2)
    return archive


@pytest.mark.ray
def test_only_recordings_added_and_changed_are_encoded_and_neighbours_are_carried_over(
    ray_cluster: None, tmp_path: Path
) -> None:
    archive = embedded(tmp_path)
    stood, rows = oracles.parts(archive.output), oracles.windows(archive.output, "energy")
    for number in range(6, 9):
        archive.write(f"{number}.wav", number)
    # One more, in the same run: the other two of its shard stay what they are.
    archive.write("0.wav", 100)
    result = archive.run()
    assert result.exit_code == 0
    assert (result.plan.changes.n_new, result.plan.changes.n_changed) == (3, 1)
    assert (result.tally.audio_s, result.tally.n_carried) == (40.0, 1)
    now = oracles.parts(archive.output)
    [untouched] = stood.keys() & now.keys()
    assert now[untouched] == stood[untouched]
    kept = {key: vector for key, vector in rows.items() if key[0] != "0.wav"}
    now_rows = oracles.windows(archive.output, "energy")
    oracles.assert_same({key: now_rows[key] for key in kept}, kept)
    archive.check()


def test_a_lost_ledger_is_read_back_from_the_parts_without_computing(
    archive: Archive,
) -> None:
    before, known = oracles.parts(archive.output), oracles.recordings(archive.output)
    shutil.rmtree(archive.output / "recordings")
    shutil.rmtree(archive.output / "failures")
    result = archive.run()
    assert (result.exit_code, result.tally.n_parts) == (0, 0)
    assert oracles.parts(archive.output) == before
    assert oracles.recordings(archive.output) == known
    archive.check()


def test_only_a_part_that_was_deleted_is_computed_again(archive: Archive) -> None:
    before = oracles.parts(archive.output)
    gone = sorted(before)[0]
    (archive.output / gone).unlink()
    result = archive.run()
    assert (result.exit_code, result.tally.n_parts) == (0, 1)
    now = oracles.parts(archive.output)
    assert now.keys() == before.keys()
    assert {name for name in now if now[name] != before[name]} == {gone}
    archive.check()


def test_a_removed_recording_takes_its_rows_along(archive: Archive) -> None:
    names = sorted(archive.source.iterdir())
    names[0].unlink()
    result = archive.run()
    assert (result.exit_code, result.plan.changes.n_removed) == (0, 1)
    assert (result.tally.n_parts, result.tally.n_carried) == (0, 1)
    assert names[0].name not in oracles.recordings(archive.output)
    archive.check()


def test_a_run_refuses_when_much_of_what_it_knows_is_not_in_the_input(
    archive: Archive, tmp_path: Path
) -> None:
    before = oracles.parts(archive.output)
    (tmp_path / "other").mkdir()
    shutil.copy(sorted(archive.source.iterdir())[-1], tmp_path / "other")
    n_known = len(list(archive.source.iterdir()))
    with pytest.raises(
        ConfigError, match=rf"{n_known - 1} of {n_known} recordings known"
    ) as caught:
        embed(tmp_path / "other", archive.output, archive.encoders, shard_minutes=0.5)
    assert caught.value.exit_code == 2
    assert "max_removed_fraction: 1" in str(caught.value)
    assert oracles.parts(archive.output) == before
    # The refused run left nothing behind that would stop the next one.
    assert archive.run().exit_code == 0


def test_new_settings_are_a_new_version_beside_the_old_one(archive: Archive) -> None:
    before = oracles.parts(archive.output)
    encoders = {"energy": {**archive.encoders["energy"], "tail": "drop"}}
    result = embed(
        archive.source, archive.output, encoders, shard_minutes=0.5, max_removed_fraction=0.2
    )
    assert result.exit_code == 0
    now = oracles.parts(archive.output)
    assert {name: now[name] for name in before} == before
    [version] = {output.embeddings.version for e in result.plan.encoders for output in e.outputs}
    rows = oracles.windows(archive.output, "energy", version)
    n_full = len(oracles.window_starts(10 * RATE_HZ, RATE_HZ, RATE_HZ // 2, "drop"))
    assert len(rows) == n_full * len(list(archive.source.iterdir()))
