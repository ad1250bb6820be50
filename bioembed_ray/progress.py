"""The progress line: audio-hours done, × real time, time left, failures; the same in a plain log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

TERMINAL_S = 1.0
LOG_S = 15.0


def duration(seconds: float) -> str:
    """Return a length of time in the two units that matter.

    >>> [duration(s) for s in (4.2, 75, 3700, 200_000)]
    ['4 s', '1 min 15 s', '1 h 01 min', '2 d 7 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def hours(seconds: float) -> str:
    """Return audio time as hours, with the digits that a short archive needs.

    >>> hours(36), hours(72_000)
    ('0.0100 h', '20.0 h')
    """
    value = seconds / 3600
    digits = 4 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f} h"


class Progress:
    """Says where a run is: rewrites one line on a terminal, adds a line now and then to a log.

    Args:
        total_s: Audio seconds to do.
        n_shards: Shards to do.
        under_way: Asked for the audio seconds encoded of shards that are not counted yet.
        stream: Where to write, stderr by default.
    """

    def __init__(
        self,
        total_s: float,
        n_shards: int,
        under_way: Callable[[], float] = lambda: 0.0,
        stream: TextIO | None = None,
    ) -> None:
        self._total_s, self._n_shards = total_s, n_shards
        self._under_way = under_way
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._done_s, self._begun_s, self._n_done, self._n_failures = 0.0, 0.0, 0, 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._ticker.join()
        self._begun_s = 0.0
        self._write(self.line(), is_last=True)

    def add(self, audio_s: float, n_failures: int) -> None:
        """Count one shard."""
        with self._lock:
            self._done_s += audio_s
            self._n_done += 1
            self._n_failures += n_failures

    def line(self) -> str:
        """Return the state in one line."""
        with self._lock:
            done, n_done, n_failures = self._done_s, self._n_done, self._n_failures
            # A shard may have been counted since the others were asked about.
            done = min(done + self._begun_s, max(done, self._total_s))
        elapsed = time.monotonic() - self._started
        text = (
            f"{hours(done)} of {hours(self._total_s)} of audio, {n_done} of {self._n_shards} shards"
        )
        if not n_done and not done:
            return f"{text}, loading models and encoding the first ({duration(elapsed)} so far)"
        rate = done / elapsed if elapsed else 0.0
        left = (self._total_s - done) / rate if rate else 0.0
        text += f", {rate:.3g} × real time"
        text += (
            f", {duration(left)} left" if n_done < self._n_shards else f", took {duration(elapsed)}"
        )
        return f"{text}, {n_failures} failures"

    def _tick(self) -> None:
        pause = TERMINAL_S if self._is_terminal else LOG_S
        while not self._stop.wait(pause):
            self._begun_s = self._under_way()
            self._write(self.line())

    def _write(self, text: str, is_last: bool = False) -> None:
        if self._is_terminal:
            self._stream.write(f"\r\x1b[2K{text}" + ("\n" if is_last else ""))
        else:
            self._stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._stream.flush()
