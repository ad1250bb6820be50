"""What an encoder's actor does besides encoding: says how far it is, and keeps freed memory on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bioembed_ray import progress
from tests import oracles, tiny
from tests.commands import embed, wait_for_the_end_of_actors

pytestmark = pytest.mark.ray


def test_a_shard_is_watched_while_it_is_encoded_and_its_batches_reuse_memory(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "LOG_S", 0.1)
    (tmp_path / "in").mkdir()
    sound = 0.1 * np.random.default_rng(0).standard_normal(4 * tiny.RATE_HZ)
    soundfile.write(tmp_path / "in/a.wav", sound, tiny.RATE_HZ, subtype="FLOAT")
    encoders = {"e": {"model": "tests.tiny:thirsty", "hop_s": 0.02}}
    assert embed(tmp_path / "in", tmp_path / "out", encoders).exit_code == 0
    said = capsys.readouterr().err
    shown = [
        float(hours) for hours in re.findall(r" ([\d.]+) h of 0\.0011 h of audio, 0 of 1", said)
    ]
    assert shown == sorted(shown)
    assert shown[0] == 0.0 and 0.0 < shown[-1] < 0.0011
    rows = oracles.windows(tmp_path / "out", "e")
    assert len(rows) == 200
    assert {vector[0] for vector in rows.values()} == {0.0}
    # Nothing of a stream stays behind, whoever still holds what could be asked.
    wait_for_the_end_of_actors()
