"""Recordings and encoders that take their worker down with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from bioembed_ray.errors import WeightsError
from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import ROOT, bioembed, embed, wait_for_the_end_of_actors, without_ray

pytestmark = pytest.mark.ray

RATE_HZ = 16_000


def write(path: Path, seed: int, loudest: float | None = None, rate_hz: int = RATE_HZ) -> None:
    sound = 0.1 * np.random.default_rng(seed).standard_normal(3 * rate_hz)
    if loudest is not None:
        sound[20_000] = loudest
    soundfile.write(path, sound, rate_hz, subtype="FLOAT")


@pytest.mark.slow
def test_recordings_that_kill_their_worker_are_named_and_all_others_are_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(3):
        write(source / f"good_{number}.wav", number)
    write(source / "good_9_kills_encoder.wav", 20, loudest=7.0)
    write(source / "a_kills_decoder.wav", 21, loudest=5.0)
    write(source / "a_kills_header.wav", 22, rate_hz=12_345)
    settings = ["encoders.deadly.model=tests.tiny:deadly", "encoders.deadly.hop_s=0.5"]
    settings += ["shard_minutes=0.15"]
    arguments = ["run", "--input", str(source), "--output", str(output)]
    arguments += [word for one in settings for word in ("--set", one)]
    done = bioembed(*arguments, PYTHONPATH=f"{ROOT / 'tests/faults/poison'}:{ROOT}", timeout=300)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "more than max_failed_fraction 1.00%" in done.stderr
    reasons = {(row["recording"], row["reason"]) for row in oracles.failures(output)}
    assert reasons == {
        ("good_9_kills_encoder.wav", "crashed"),
        ("a_kills_decoder.wav", "crashed"),
        ("a_kills_header.wav", "crashed"),
    }
    rows = oracles.windows(output, "deadly")
    assert {name for name, _, _ in rows} == {f"good_{number}.wav" for number in range(3)}
    for (name, _, start_s), vector in rows.items():
        samples, _ = soundfile.read(source / name, dtype="float32")
        window = oracles.cut(samples, round(start_s * RATE_HZ), RATE_HZ)
        assert oracles.relative(vector, tiny.alone(window)) <= 1e-5
    assert list(verify(str(output))) == []
    # What crashed is done: it is not tried again, and only the limit decides the exit code.
    counts = without_ray(monkeypatch)
    encoders = {"deadly": {"model": "tests.tiny:deadly", "hop_s": 0.5}}
    again = embed(source, output, encoders, shard_minutes=0.15, max_failed_fraction=0.5)
    assert (again.exit_code, counts["parts"]) == (0, 0)


def test_an_encoder_that_cannot_be_built_ends_the_run_with_one_line(
    ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.wav", 1)
    with pytest.raises(WeightsError) as caught:
        embed(tmp_path / "in", tmp_path / "out", {"e": {"model": "tests.tiny:raising"}})
    assert str(caught.value) == (
        "e cannot be loaded on a worker: RuntimeError: no such weights on this machine"
    )
    assert not (tmp_path / "out/lease.json").exists()
    # Nothing of a stream that failed stays behind either.
    wait_for_the_end_of_actors()
