"""Bare kernels against one-window-at-a-time calls of avex, in one process on one thread.

The peer is what a researcher does by hand: load the avex model, cut 1.0 s windows every 0.5 s,
call the model on one window after the other, take the mean of its features. Ours are the same
networks with the same weights, run as the job runs them. Rounds alternate; medians are printed.

    python benchmarks/kernels.py [--windows 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from bioembed_ray.config import EncoderConfig, LocalWeights, RandomWeights
from bioembed_ray.encoders import efficientnet, registry
from bioembed_ray.encoders.avex_models import build, model_of
from bioembed_ray.encoders.precision import is_emulated

RATE_HZ = 16_000
MODELS = {"beats": "esp_aves2_sl_beats_all", "efficientnet": "esp_aves2_effnetb0_all"}


def soundscape(n_windows: int) -> torch.Tensor:
    """Return (W, 16000) windows of noise with chirps, every 0.5 s."""
    rng = np.random.default_rng(0)
    n = RATE_HZ * (n_windows + 1) // 2
    t = np.arange(n) / RATE_HZ
    wave = 0.05 * rng.standard_normal(n) + 0.3 * np.sin(
        2 * np.pi * (1500 + 1200 * np.sin(3 * t)) * t
    )
    return torch.from_numpy(wave.astype(np.float32)).unfold(0, RATE_HZ, RATE_HZ // 2)[:n_windows]


def network_and_file(name: str, folder: Path) -> tuple[torch.nn.Module, Path]:
    """Return an untrained avex network and the checkpoint file it was saved to."""
    config = EncoderConfig(model=MODELS[name], weights=RandomWeights())
    network = build(model_of(config), registry.checkpoint(name, config), allow="$^").eval()
    if name == "efficientnet":
        efficientnet._settle(network, RATE_HZ, seed=0)
        network.eval()
    path = folder / f"{name}.safetensors"
    save_file(
        {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()},
        path,
    )
    return network, path


def naive(network: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Return one vector per window, one call per window."""
    vectors = []
    with torch.no_grad():
        for window in windows:
            features = network(window[None], padding_mask=None)
            vectors.append(features.mean(dim=(2, 3) if features.ndim == 4 else 1)[0])
    return torch.stack(vectors)


def batched(encoder: object, windows: torch.Tensor) -> torch.Tensor:
    """Return one vector per window, as the job computes them."""
    with torch.inference_mode():
        size = encoder.batch_size  # type: ignore[attr-defined]
        parts = [encoder.embed(batch)[0] for batch in windows.split(size)]  # type: ignore[attr-defined]
        return torch.cat(parts).clone()


def median_times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return median seconds per call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number:  # the first round warms up
                times[name].append(time.process_time() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    windows = soundscape(options.windows)
    audio_s = options.windows / 2
    print("encoder       kernel                audio-s/cpu-s  ratio  largest relative difference")
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            network, path = network_and_file(name, Path(folder))
            kernels = {}
            for precision in ("float32", "bfloat16"):
                if is_emulated(precision):
                    print(f"{name:<13} batched {precision}: this CPU has no instructions for it")
                    continue
                config = EncoderConfig(
                    model=MODELS[name], weights=LocalWeights(path=str(path)), precision=precision
                )
                kernels[precision] = registry.load(
                    name, config, registry.checkpoint(name, config), "cpu"
                )
        calls: dict[str, Callable[[], object]] = {
            "one window at a time": lambda n=network: naive(n, windows)
        }
        for precision, encoder in kernels.items():
            calls[f"batched {precision}"] = lambda e=encoder: batched(e, windows)
        times = median_times(calls, options.rounds)
        wanted = naive(network, windows)
        for title, seconds in times.items():
            got = wanted if title.startswith("one") else batched(kernels[title.split()[1]], windows)
            error = ((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item()
            ratio = times["one window at a time"] / seconds
            print(f"{name:<13} {title:<22} {audio_s / seconds:>12.2f} {ratio:>6.2f}  {error:.1e}")


if __name__ == "__main__":
    main()
