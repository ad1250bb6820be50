"""Tiny encoders for tests of whole runs: quick to load, and different for every sound.

Workers import this module by name (`tests.tiny:slow`), so PYTHONPATH must hold the repository.
"""

from __future__ import annotations

import os
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

RATE_HZ = 16_000
WINDOW_S = 1.0
DIM = 8
# A sample this loud kills the worker that encodes it with `deadly`.
KILLING_LEVEL = 6.0
SLOW_S_PER_WINDOW = 0.02
# `slow` takes BIOEMBED_TESTS_PAUSE_S per window instead, as long as the file BIOEMBED_TESTS_RELEASE
# does not exist, and adds "node windows" to the file BIOEMBED_TESTS_LOG for every batch it is given.


class LogEnergy(torch.nn.Module):
    """Log energy behind eight random filters: (B, N) -> (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.register_buffer("filters", torch.randn(DIM, 1, 64, generator=draw))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        banded = torch.nn.functional.conv1d(windows.unsqueeze(1), self.filters, stride=32)
        return torch.log(banded.square().mean(dim=2) + 1e-6)  # (B, 8)


def torchscript(path: Path) -> Path:
    """Save the network as a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script: Any = torch.jit.script(LogEnergy().eval())
        torch.jit.save(script, str(path))
    return path


def alone(window: np.ndarray) -> np.ndarray:
    """Return the vector of one window (N,), from the network called directly."""
    with torch.inference_mode():
        vectors = LogEnergy()(torch.from_numpy(np.ascontiguousarray(window, np.float32))[None])
    return vectors[0].numpy()


def log(n_windows: int) -> None:
    """Say where windows are encoded; one line is one write, so that nothing is torn."""
    import ray

    path = os.environ.get("BIOEMBED_TESTS_LOG")
    if path is not None:
        node = ray.get_runtime_context().get_node_id()
        with open(path, "a") as file:
            file.write(f"{node} {n_windows}\n")


class _Slow:
    def __init__(self) -> None:
        self._network = LogEnergy().eval()

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        log(len(windows))
        pause_s = float(os.environ.get("BIOEMBED_TESTS_PAUSE_S", SLOW_S_PER_WINDOW))
        release = os.environ.get("BIOEMBED_TESTS_RELEASE")
        for _ in windows:
            if release is None or not Path(release).exists():
                time.sleep(pause_s)
        vectors: torch.Tensor = self._network(windows)
        return vectors


class _Thirsty(_Slow):
    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors = super().embed(windows)
        faults = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(8 << 20)  # 64 MB, as activations are
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        # The heap may grow for the first. Anew from the system: 16 384 pages, or 32 huge ones and some.
        vectors[:, 0] = float(min(faults[1:]) >= 16)
        return vectors


class _Deadly(_Slow):
    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        if float(windows.abs().max()) > KILLING_LEVEL:
            # No signal to itself: another thread may take it, and this one would go on for a while.
            os._exit(139)
        return self._network(windows)


class _Raising(_Slow):
    def __init__(self) -> None:
        raise RuntimeError("no such weights on this machine")


def slow(config: object, device: str) -> _Slow:
    """Take 20 ms per window, so that there is time to kill something."""
    return _Slow()


def thirsty(config: object, device: str) -> _Thirsty:
    """Take large blocks of memory; vectors begin with 1.0 where the system had to give each anew."""
    return _Thirsty()


def deadly(config: object, device: str) -> _Deadly:
    """Take the process down where a sample is above `KILLING_LEVEL`."""
    return _Deadly()


def raising(config: object, device: str) -> _Raising:
    """Fail when it is built."""
    return _Raising()


for factory in (slow, thirsty, deadly, raising):
    factory.rate_hz = RATE_HZ  # type: ignore[attr-defined]
    factory.window_s = WINDOW_S  # type: ignore[attr-defined]
