"""Joining a cluster: whether anybody answers, and whether a local one finds room for its files."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from bioembed_ray.cluster import check_address, connect
from bioembed_ray.errors import BioembedError, ConfigError
from bioembed_ray.store import stores
from tests import tiny
from tests.commands import complaint, environment


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "no-such-host.invalid"])
def test_an_address_where_nobody_listens_is_one_line_at_once(host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{host}:{free.getsockname()[1]}"
    with pytest.raises(ConfigError) as caught:
        check_address(address)
    assert str(caught.value).startswith(f"RAY_ADDRESS={address}: cannot join the cluster (")
    assert "unset RAY_ADDRESS" in str(caught.value)


def test_an_address_where_somebody_listens_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:1", "http://a:1/b"])
def test_other_kinds_of_address_are_left_to_ray(address: str) -> None:
    check_address(address)


def test_a_folder_for_temporary_files_that_ray_cannot_use_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    code = "from bioembed_ray.cli import main; main()"
    sound = tmp_path / "a.wav"
    soundfile.write(sound, np.zeros(16_000, np.float32), 16_000)
    model = tiny.torchscript(tmp_path / "t.pt")
    settings = (f"encoders.t.model={model}", "encoders.t.rate_hz=16000", "encoders.t.window_s=1.0")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "run",
            "--input",
            str(sound),
            "--output",
            str(tmp_path / "out"),
        ]
        + [word for one in settings for word in ("--set", one)],
        capture_output=True,
        text=True,
        env=environment(TMPDIR=str(folder)),
        check=False,
    )
    assert done.returncode == 2
    line = complaint(done)
    assert f"cannot put its files below {folder}" in line and "set TMPDIR" in line


def starts(monkeypatch: pytest.MonkeyPatch, answers: list[BaseException | None]) -> list[str]:
    """Let Ray's start meet these in turn; return the addresses it was started with."""
    import ray

    met: list[str] = []

    def init(address: str, **_: object) -> None:
        met.append(address)
        answer = answers[len(met) - 1]
        if answer is not None:
            raise answer

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    return met


SLOW = Exception("The current node timed out during startup. This could happen because")


def test_a_start_that_took_too_long_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    met = starts(monkeypatch, [SLOW, SLOW, None])
    connect()
    assert met == ["local"] * 3


def test_a_machine_too_busy_to_start_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    starts(monkeypatch, [SLOW, SLOW, SLOW])
    with pytest.raises(BioembedError, match=r"did not start in 3 attempts .* run again later"):
        connect()


def test_another_error_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    met = starts(monkeypatch, [RuntimeError("no"), None])
    with pytest.raises(ConfigError, match=r"cannot join the cluster \(no\)"):
        connect()
    assert met == ["local"]


@pytest.mark.parametrize("told", [None, "of another job"])
def test_options_that_workers_of_a_running_ray_would_not_know_are_refused(
    monkeypatch: pytest.MonkeyPatch, told: str | None
) -> None:
    import ray

    known = {} if told is None else {"env_vars": {stores.OPTIONS_VARIABLE: told}}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=known))
    monkeypatch.setenv(stores.OPTIONS_VARIABLE, "of this job")
    with pytest.raises(ConfigError, match="storage: Ray runs in this process already"):
        connect()
    if told is not None:
        monkeypatch.setenv(stores.OPTIONS_VARIABLE, told)
        connect()
