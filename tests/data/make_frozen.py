"""Writes the archive that later versions have to read: recordings, models, and the output of a job.

    python tests/data/make_frozen.py

writes tests/data/frozen-<version>.tar.gz. It is run once for each release whose output has another
layout or other numbers; the ones of before stay.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

FOLDER = Path(__file__).parent
RATE_HZ = 4_000
SECONDS = 3
# Recordings are known by size and time.
WRITTEN_AT_S = 1_700_000_000


def write_recordings(folder: Path) -> None:
    """Write seven recordings: WAV, a FLAC with a damaged frame, an Ogg, and one that is cut off."""
    folder.mkdir(parents=True)
    time = np.arange(RATE_HZ * SECONDS) / RATE_HZ
    for number in range(6):
        noise = np.random.default_rng(number).standard_normal(len(time))
        wave = 0.3 * np.sin(2 * np.pi * (300 + 200 * number) * time) + 0.004 * noise
        soundfile.write(folder / f"site{number % 2}_{number}.wav", wave, RATE_HZ, "PCM_16")
    soundfile.write(folder / "damaged.flac", wave, RATE_HZ, "PCM_16")
    soundfile.write(folder / "compressed.ogg", wave, RATE_HZ)
    body = bytearray((folder / "damaged.flac").read_bytes())
    body[len(body) // 2] ^= 0x55
    (folder / "damaged.flac").write_bytes(bytes(body))
    cut = (folder / "site1_5.wav").read_bytes()
    (folder / "site1_5.wav").write_bytes(cut[: len(cut) * 2 // 3])


def set_times(folder: Path) -> None:
    """Give every recording the time at which the frozen output knew it."""
    for path in folder.iterdir():
        os.utime(path, (WRITTEN_AT_S, WRITTEN_AT_S))


def job(folder: Path, **changed: Any) -> dict[str, Any]:
    """Return the arguments of `tests.commands.embed` for the frozen job."""
    window = {"rate_hz": 16_000, "window_s": 1.0, "hop_s": 0.5}
    return {
        "source": folder / "in",
        "output": folder / "out",
        "encoders": {
            "energy": {"model": str(folder / "models" / "energy.pt"), **window},
            "speech": {"model": str(folder / "models" / "speech"), "frames": "all"},
        },
        "codebooks": {"units": {"encoder": "speech", "clusters": 8, "fit_frames": 500}},
        "shard_minutes": 0.2,
        "max_failed_fraction": 0.5,
        **changed,
    }


def main() -> None:
    """Write the archive."""
    sys.path.insert(0, str(FOLDER.parents[1]))
    from tests import tiny
    from tests.commands import embed
    from tests.unit.transformers_fixtures import speech_folder

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder / "in")
        set_times(folder / "in")
        (folder / "models").mkdir()
        tiny.torchscript(folder / "models" / "energy.pt")
        small = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
        speech_folder(folder / "models" / "speech", conv_dim=(4,) * 7, **small)
        result = embed(**job(folder))
        assert result.exit_code == 0, result.tally.transient
        target = FOLDER / f"frozen-{version('bioembed_ray')}.tar.gz"
        with tarfile.open(target, "w:gz") as tar:
            for part in ("in", "models", "out"):
                tar.add(folder / part, part)
        print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
