"""Stretches as WAV against soundfile; what cannot be heard is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import bioembed_ray
from bioembed_ray.audio.listen import write_stretch
from bioembed_ray.cli import commands
from bioembed_ray.errors import InputError
from bioembed_ray.results import Results
from tests.report_output import write_output

BATS, STEREO = "soundscape/20240512_220000.WAV", "soundscape/forest_stereo.wav"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("listen")
    write_output(root / "audio", root / "out")
    return bioembed_ray.open(str(root / "out"))


def original(results: Results, name: str) -> tuple[np.ndarray, int]:
    return soundfile.read(Path(results.output).parent / "audio" / name, always_2d=True)


def test_stretch_is_the_mean_of_the_channels_at_their_own_rate(
    results: Results, tmp_path: Path
) -> None:
    target = str(tmp_path / "a.wav")
    line = write_stretch(results, STEREO, 0, 2.5, 3.0, 1, target)
    found, rate = soundfile.read(target)
    whole, own_rate = original(results, STEREO)
    assert rate == own_rate
    wanted = whole.mean(axis=1)[round(2.5 * rate) : round(5.5 * rate)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert line == f"{target}: 3.000 s from 2.500 s"


def test_slowed_stretch_has_the_same_samples_at_a_lower_rate(
    results: Results, tmp_path: Path
) -> None:
    target = str(tmp_path / "a.wav")
    write_stretch(results, BATS, 0, 1.0, 0.5, 10, target)
    found, rate = soundfile.read(target)
    whole, own_rate = original(results, BATS)
    assert (rate, len(found)) == (38_400, own_rate // 2)
    np.testing.assert_allclose(found, whole[own_rate : own_rate * 3 // 2, 0], atol=1e-6)


def test_stretch_ends_with_the_recording(results: Results, tmp_path: Path) -> None:
    line = write_stretch(results, BATS, 0, 4.5, 60.0, 1, str(tmp_path / "a.wav"))
    assert line.endswith("0.500 s from 4.500 s")


@pytest.mark.parametrize(
    ("name", "channel", "start_s", "message"),
    [
        ("none.wav", 0, 0.0, "no recording 'none.wav'"),
        ("soundscape/notes.wav", 0, 0.0, "never opened; failures/ says why"),
        (STEREO, 2, 0.0, "got channel 2, there are 2, from 0"),
        (BATS, 0, 9.0, "no sound from 9 s on"),
    ],
)
def test_what_cannot_be_heard_is_named(
    results: Results, tmp_path: Path, name: str, channel: int, start_s: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_stretch(results, name, channel, start_s, 1.0, 1, str(tmp_path / "a.wav"))
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_a_length_of_nothing(results: Results) -> None:
    arguments = ["listen", "--output", results.output, "--recording", BATS, "--seconds", "0"]
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 2
    assert "--seconds" in done.output
