"""Processes below another one, by their titles."""

from __future__ import annotations

import contextlib

import ray  # noqa: F401, isort: skip  (it brings psutil along, and puts it on the path)
import psutil  # isort: skip


def named(pid: int, *titles: str) -> list[psutil.Process]:
    """Return the processes below one whose title holds one of these."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(part in " ".join(process.cmdline()) for part in titles):
                    found.append(process)
    return found
