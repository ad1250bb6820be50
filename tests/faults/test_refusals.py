"""Outputs that cannot be written and inputs that are not there: one line and the right exit code."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bioembed_ray import cluster
from bioembed_ray.cli import main
from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import bioembed, complaint, embed, without_ray


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, mounted; skips where that is not allowed."""
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
            check=True, capture_output=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        sound = 0.1 * np.random.default_rng(number).standard_normal(10 * 16_000)
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
    return folder


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process; it must fail before it asks for Ray. Returns code and stderr."""

    def never() -> None:
        raise AssertionError("Ray is not needed to refuse this")

    monkeypatch.setattr(cluster, "connect", never)

    def call(*arguments: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as caught:
            main(["run", *arguments])
        said = capsys.readouterr()
        assert said.out == ""
        [line] = said.err.splitlines()
        return caught.value.code, line

    return call


def model(tmp_path: Path) -> list[str]:
    path = tiny.torchscript(tmp_path / "energy.pt")
    settings = [f"model={path}", "rate_hz=16000", "window_s=1.0", "hop_s=0.5"]
    return [word for one in settings for word in ("--set", f"encoders.energy.{one}")]


def test_an_output_that_is_a_file(refused: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    code, line = refused(
        "--input", str(source), "--output", str(tmp_path / "out"), *model(tmp_path)
    )
    assert (code, line) == (
        2,
        f"error: {tmp_path / 'out'}: is a file; output must be a folder or a prefix",
    )
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_below_a_file(refused: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    where = tmp_path / "out/deeper"
    code, line = refused("--input", str(source), "--output", str(where), *model(tmp_path))
    assert code == 1
    assert line.startswith(f"error: {where}: ")


def test_an_output_on_a_disk_that_is_read_only(refused: Any, source: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "ro") as disk:
        where = disk / "out"
        code, line = refused("--input", str(source), "--output", str(where), *model(tmp_path))
    assert code == 1
    assert line == f"error: {where}: read-only file system"


def test_a_bucket_that_does_not_exist(refused: Any, s3: Any, source: Path, tmp_path: Path) -> None:
    code, line = refused(
        "--input", str(source), "--output", "s3://no-such-bucket/out", *model(tmp_path)
    )
    assert (code, line) == (1, "error: s3://no-such-bucket: no such bucket")


def test_an_unknown_encoder(refused: Any, source: Path, tmp_path: Path) -> None:
    code, line = refused(
        "--input", str(source), "--output", str(tmp_path / "out"), "--encoders", "beets"
    )
    assert code == 2
    assert line.startswith("error: ") and "beets" in line and "beats" in line


def test_a_misspelt_key(refused: Any, source: Path, tmp_path: Path) -> None:
    code, line = refused(
        "--input", str(source), "--output", str(tmp_path / "out"),
        *model(tmp_path), "--set", "segment=20",
    )  # fmt: skip
    assert code == 2
    assert "segment: unknown key; did you mean 'segment_s'?" in line


@pytest.mark.parametrize(("key", "longest"), [("window_s", 3600), ("hop_s", 86_400)])
def test_an_absurd_window_or_hop(
    refused: Any, source: Path, tmp_path: Path, key: str, longest: int
) -> None:
    code, line = refused(
        "--input", str(source), "--output", str(tmp_path / "out"),
        *model(tmp_path), "--set", f"encoders.energy.{key}=1e6",
    )  # fmt: skip
    assert code == 2
    assert line == f"error: encoders.energy.{key}: got 1e+06; use at most {longest} s"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('no licence')", "importing broken raises RuntimeError: no licence"),
        ("def make(config)", "importing broken raises SyntaxError: expected ':'"),
        ("def other(config, device): ...", "broken has no function or class make"),
        ("def make(config): ...", "cannot be called as make(config, device): too many positional"),
    ],
)
def test_a_broken_factory(
    refused: Any,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    said: str,
) -> None:
    (tmp_path / "broken.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    code, line = refused(
        "--input", str(source), "--output", str(tmp_path / "out"),
        "--set", "encoders.mine.model=broken:make", "--set", "encoders.mine.rate_hz=16000",
        "--set", "encoders.mine.window_s=1",
    )  # fmt: skip
    assert code == 2
    assert line.startswith("error: encoders.mine.model: ") and said in line


def test_an_input_without_audio_says_what_was_there(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / "in" / name).write_text("x")
    code, line = refused(
        "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *model(tmp_path)
    )
    assert code == 2
    assert f"no audio under {tmp_path / 'in'}: 3 not audio (2 .txt, 1 .csv);" in line
    # Nor is anything left of the refused run.
    assert not (tmp_path / "out/lease.json").exists()


def test_an_input_that_does_not_exist(refused: Any, tmp_path: Path) -> None:
    code, line = refused(
        "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *model(tmp_path)
    )
    assert code in {1, 2}
    assert str(tmp_path / "in") in line


@pytest.mark.ray
@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_the_next_run_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = {"model": "tests.tiny:slow", "hop_s": 0.02}
    with small_disk(tmp_path / "disk", "size=80k") as disk:
        output = disk / "out"
        done = bioembed(
            "run", "--input", str(source), "--output", str(output), "--set", "shard_minutes=0.1",
            "--set", "encoders.slow.model=tests.tiny:slow", "--set", "encoders.slow.hop_s=0.02",
        )  # fmt: skip
        assert done.returncode == 1
        assert "no space left on device" in complaint(done)
        stood = oracles.parts(output)
        assert 0 < len(stood) < 6
        assert not list(output.rglob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True, timeout=30)
        counts = without_ray(monkeypatch)
        monkeypatch.setattr(tiny, "SLOW_S_PER_WINDOW", 0.0)
        assert embed(source, output, {"slow": encoder}, shard_minutes=0.1).exit_code == 0
        now = oracles.parts(output)
        assert {name: now[name] for name in stood} == stood
        assert counts["parts"] == len(now) - len(stood)
        assert list(verify(str(output))) == []
        shutil.rmtree(output)
