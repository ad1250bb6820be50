"""The words of the progress line, on a terminal and in a log."""

from __future__ import annotations

import io
import threading

import pytest

from bioembed_ray import progress
from bioembed_ray.progress import Progress, duration, hours


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def strftime(self, form: str) -> str:
        assert form == "%H:%M:%S"
        return "12:34:56"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 0 h"),
        (10**6, "11 d 13 h"),
    ],
)
def test_durations_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0000 h"),
        (3.6, "0.0010 h"),
        (5400, "1.50 h"),
        (36_000, "10.0 h"),
        (3.6e7, "10000.0 h"),
    ],
)
def test_hours_with_the_digits_that_matter(seconds: float, text: str) -> None:
    assert hours(seconds) == text


def test_the_line_from_start_to_end(clock: Clock) -> None:
    line = Progress(36_000, 20, stream=io.StringIO())
    clock.now += 12
    assert line.line() == (
        "0.0000 h of 10.0 h of audio, 0 of 20 shards, loading models and encoding the first (12 s so far)"
    )
    clock.now += 88
    line.add(9000, 0)
    line.add(0, 2)
    assert line.line() == (
        "2.50 h of 10.0 h of audio, 2 of 20 shards, 90 × real time, 5 min 00 s left, 2 failures"
    )
    clock.now += 100
    for _ in range(18):
        line.add(1500, 0)
    assert line.line() == (
        "10.0 h of 10.0 h of audio, 20 of 20 shards, 180 × real time, took 3 min 20 s, 2 failures"
    )


def test_shards_without_audio_do_not_divide_by_nothing(clock: Clock) -> None:
    line = Progress(0, 2, stream=io.StringIO())
    line.add(0, 1)
    assert (
        line.line()
        == "0.0000 h of 0.0000 h of audio, 1 of 2 shards, 0 × real time, 0 s left, 1 failures"
    )


def test_what_is_under_way_counts_before_its_shard_is_done(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_S", 0.01)
    begun = [0.0]
    log = io.StringIO()
    asked = threading.Event()

    def under_way() -> float:
        asked.set()
        return begun[0]

    def ask_again() -> None:
        asked.clear()
        assert asked.wait(10)
        asked.clear()
        assert asked.wait(10)  # the line after the first answer is written now

    with Progress(7200, 2, under_way, log) as line:
        clock.now += 100
        ask_again()
        assert (
            "0 of 2 shards, loading models and encoding the first (1 min 40 s so far)"
            in line.line()
        )
        begun[0] = 900.0
        ask_again()
        assert line.line() == (
            "0.2500 h of 2.00 h of audio, 0 of 2 shards, 9 × real time, 11 min 40 s left, 0 failures"
        )
        line.add(3600, 0)
        begun[0] = 3700.0  # asked before the first shard was counted, and so too much
        ask_again()
        assert line.line().startswith("2.00 h of 2.00 h of audio, 1 of 2 shards")
    # Nothing is under way any more: the last line tells what was done.
    last = log.getvalue().splitlines()[-1]
    assert last.startswith("12:34:56 1.00 h of 2.00 h of audio, 1 of 2 shards")


def test_a_terminal_is_rewritten_and_a_log_gets_lines(clock: Clock) -> None:
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        with Progress(3600, 1, stream=stream) as line:
            clock.now += 10
            line.add(3600, 0)
    text = "1.00 h of 1.00 h of audio, 1 of 1 shards, 360 × real time, took 10 s, 0 failures"
    assert log.getvalue() == f"12:34:56 {text}\n"
    assert terminal.getvalue() == f"\r\x1b[2K{text}\n"
