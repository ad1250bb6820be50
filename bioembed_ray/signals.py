"""SIGINT and SIGTERM end a run as Ctrl-C does, so that its lease is given back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Inside, end on SIGTERM as on Ctrl-C, so that the lease is given back; afterwards as before."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_here()
    try:
        yield
    finally:
        for number, handler in before:
            _handle(number, handler)


def stop_here() -> None:
    """Put our handlers; once more after joining a cluster, since Ray puts its own."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    _handle(signal.SIGINT, stop)
    _handle(signal.SIGTERM, stop)


def _handle(number: signal.Signals, handler: Any) -> None:
    # Only the main thread may; and one that was put from C reads as None and cannot be put back.
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(number, handler)
