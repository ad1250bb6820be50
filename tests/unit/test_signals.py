"""What a run leaves behind in the process that called it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bioembed_ray import cluster
from bioembed_ray.errors import InputError
from tests.commands import embed, tiny_encoder, without_ray
from tests.tiny import RATE_HZ, torchscript

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def mine(number: int, frame: object) -> None:
    raise AssertionError("nobody sent a signal")


def in_force() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put handlers of the caller's own."""
    before = in_force()
    for number in SIGNALS:
        signal.signal(number, mine)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_a_run_leaves_signal_handlers_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    inside = []

    def connect() -> None:
        # As ray.init does.
        inside.extend(in_force())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setattr(cluster, "connect", connect)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.wav", np.full(RATE_HZ, 0.1), RATE_HZ)
    encoders = {"energy": tiny_encoder(torchscript(tmp_path / "energy.pt"))}
    assert embed(tmp_path / "in", tmp_path / "out", encoders).exit_code == 0
    assert inside and mine not in inside
    assert in_force() == [mine, mine]


def test_so_does_a_run_that_is_refused(tmp_path: Path) -> None:
    encoders = {"energy": tiny_encoder(torchscript(tmp_path / "energy.pt"))}
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no audio"):
        embed(tmp_path / "in", tmp_path / "out", encoders)
    assert in_force() == [mine, mine]
