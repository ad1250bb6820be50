"""A day at 384 kHz: exact positions at its end, and memory that does not grow with its length."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bioembed_ray.audio.spans import read_span
from bioembed_ray.segments import Cutting, segment_bounds
from bioembed_ray.windows import Clock, WindowRule, window_starts
from tests.unit.references import span_of, sparse_wave

RATE = 384_000
DAY = 86_400 * RATE
# 7 native samples beyond a whole second, an hour from the end, one before the end, the last.
MARKS = {(86_400 - 3600) * RATE + 7: 20_000, DAY - RATE: -15_000, DAY - 24: 10_000}


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """66 GB to look at, a few kilobytes on the disk."""
    path = tmp_path_factory.mktemp("day") / "day.wav"
    try:
        sparse_wave(path, RATE, DAY, MARKS)
    except OSError as error:
        pytest.skip(f"this file system holds no file of 66 GB: {error}")
    if path.stat().st_blocks * 512 > 1 << 20:
        path.unlink()
        pytest.skip("this file system has no sparse files")
    return path


def test_the_header_of_a_day_is_read(day: Path) -> None:
    header = span_of(day).header
    assert (header.container, header.n_samples, header.rate_hz) == ("RF64", DAY, RATE)


def test_the_last_span_of_a_day_is_exact(day: Path) -> None:
    bounds = segment_bounds(DAY, RATE, Cutting(300, 1800, 1, "mix"))
    span = replace(span_of(day), start=bounds[-1][0], stop=None)
    audio = read_span(span, (16_000,), (23.0, 33.0))
    assert (audio.n_native, audio.n_extent) == (DAY, 300 * RATE)
    track = audio.tracks[16_000][0]
    assert track.offset + len(track.samples) == 86_400 * 16_000
    loud = np.flatnonzero(np.abs(track.samples) > 0.25 / 24) + track.offset
    # Both marks fall on encoder samples: one second before the end, and the last.
    assert set(loud.tolist()) == {86_399 * 16_000, 86_400 * 16_000 - 1}
    clock, rule = Clock(RATE, 16_000), WindowRule(16_000, 8000)
    starts = window_starts(clock, rule, span.start, span.stop, audio.n_native)
    assert clock.seconds(int(starts[-1])) == 86_399.5
    assert len(starts) == 600


def test_a_span_at_its_own_rate_finds_the_sample(day: Path) -> None:
    at = (86_400 - 3600) * RATE
    audio = read_span(replace(span_of(day), start=at, stop=at + RATE), (RATE,), (0.0, 0.0))
    track = audio.tracks[RATE][0]
    assert (np.flatnonzero(track.samples) + track.offset).tolist() == [at + 7]
    assert audio.n_native is None


def test_memory_stays_flat(day: Path) -> None:
    """Half an hour of 384 kHz is 2.6 GB at its own rate, and is never held at once."""
    code = f"""
import resource, sys
from dataclasses import replace
from bioembed_ray.audio.spans import read_span
from tests.unit.references import span_of
from pathlib import Path
span = span_of(Path({str(day)!r}))
short = replace(span, start={DAY - 20 * RATE}, stop=None)
read_span(short, (16_000,), (0.0, 0.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
audio = read_span(replace(span, start={DAY - 600 * RATE}), (16_000,), (0.0, 0.0))
assert audio.n_extent == {600 * RATE}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr
    # 600 s at 16 kHz are 38 MB, held twice while they are joined.
    assert int(run.stdout) < 150
