"""What an encoder makes of options that the job file leaves to it."""

from __future__ import annotations

import pytest

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders.options import batch_of_stretches, batch_of_windows


@pytest.mark.parametrize(
    ("device", "windows", "stretches"), [("cpu", 16, 1), ("cuda", 128, 16), ("cuda:1", 128, 16)]
)
def test_a_batch_suits_the_device_and_the_length_of_what_is_read(
    device: str, windows: int, stretches: int
) -> None:
    config = EncoderConfig(model="m")
    assert batch_of_windows(config, device) == windows
    assert batch_of_stretches(config, device) == stretches
    assert batch_of_windows(config, device, on_cpu=8) == (8 if device == "cpu" else windows)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_job_file_has_the_last_word(device: str) -> None:
    config = EncoderConfig(model="m", batch_size=5)
    assert batch_of_windows(config, device, on_cpu=8) == batch_of_stretches(config, device) == 5
