"""The whole job against its bare kernels, on the same cores, on 30 minutes of audio.

Bare: one process per core, one thread each, waveforms already in memory at 16 kHz, malloc set as in
the job; only the encoders' own calls are timed, from the first to the last, each process with an equal
share of the recordings. Job: `bioembed run` on the files, from the command to its exit: Ray's start,
imports, loading, decoding, Parquet and ledger included. Unfair to the job by all of these. About half
of the recordings are bare before the job, the others after it, since a machine's speed may drift.

    python benchmarks/job_rate.py [--minutes 30] [--encoders beats,efficientnet,wav2vec2,hubert,ast]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from bioembed_ray.stream import KEEP_MEMORY

RATE_HZ = 48_000
RECORDING_S = 300


def write_recordings(folder: Path, minutes: int) -> list[Path]:
    """Write 5-minute recordings of noise with chirps, 48 kHz FLAC."""
    rng = np.random.default_rng(0)
    paths = []
    t = np.arange(RECORDING_S * RATE_HZ) / RATE_HZ
    for number in range(minutes * 60 // RECORDING_S):
        chirp = 0.3 * np.sin(2 * np.pi * (2500 + 100 * number + 1500 * np.sin(2 * t)) * t)
        wave = (0.05 * rng.standard_normal(len(t)) + chirp).astype(np.float32)
        paths.append(folder / f"rec_{number:02d}.flac")
        soundfile.write(paths[-1], wave, RATE_HZ)
    return paths


def bare(paths: list[Path], names: list[str], start: object, results: object) -> None:
    """Apply the encoders' kernels to recordings in memory; report when it began and ended."""
    import soxr
    import torch

    from bioembed_ray.apply import Place
    from bioembed_ray.audio.spans import Track
    from bioembed_ray.config import DEFAULT_MODELS, EncoderConfig, RandomWeights
    from bioembed_ray.encode import encode
    from bioembed_ray.encoders import registry
    from bioembed_ray.windows import Clock, WindowRule

    torch.set_num_threads(1)
    clock = Clock(RATE_HZ, 16_000)
    places = []
    for number, path in enumerate(paths):
        wave, _ = soundfile.read(path, dtype="float32")
        track = Track(0, 0, soxr.resample(wave, 3, 1, quality="HQ"))
        places.append(Place(number, clock, 0, None, len(wave), track))
    loaded = []
    for name in names:
        config = EncoderConfig(model=DEFAULT_MODELS[name], weights=RandomWeights())
        encoder = registry.load(name, config, registry.checkpoint(name, config), "cpu")
        rule = WindowRule(
            round(encoder.facts.window_s * 16_000), round(encoder.facts.hop_s * 16_000), "pad"
        )
        loaded.append((encoder, rule))
    start.wait()  # type: ignore[attr-defined]
    began = time.time()
    for place in places:
        for encoder, rule in loaded:
            encode(encoder, rule, [place], "cpu", 1, False)
    results.put((began, time.time()))  # type: ignore[attr-defined]


def bare_seconds(paths: list[Path], names: list[str]) -> float:
    """Return wall seconds of the kernels alone on all cores."""
    context = multiprocessing.get_context("spawn")
    cores = os.cpu_count() or 1
    start, results = context.Barrier(cores), context.Queue()
    workers = [
        context.Process(target=bare, args=(paths[core::cores], names, start, results))
        for core in range(cores)
    ]
    # Read by malloc when a process starts; the job gives them to its actors itself.
    os.environ.update(KEEP_MEMORY)
    for worker in workers:
        worker.start()
    for variable in KEEP_MEMORY:
        del os.environ[variable]
    times = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return max(end for _, end in times) - min(began for began, _ in times)


def job_seconds(folder: Path, output: Path, names: list[str]) -> float:
    """Return wall seconds of `bioembed run`, from the command to its exit."""
    settings = [part for name in names for part in ("--set", f"encoders.{name}.weights=random")]
    command = [sys.executable, "-m", "bioembed_ray.cli", "run", "--input", str(folder)]
    command += ["--output", str(output), "--encoders", ",".join(names), *settings]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def halves(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return recordings to measure before and after the job, each a multiple of the cores."""
    cores = os.cpu_count() or 1
    middle = max(1, round(len(paths) / cores / 2)) * cores
    return paths[:middle], paths[middle:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--encoders", default="beats,efficientnet,wav2vec2,hubert,ast")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = options.encoders.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "audio"
        folder.mkdir()
        paths = write_recordings(folder, options.minutes)
        audio_s = len(paths) * RECORDING_S
        before, after = halves(paths)
        alone = bare_seconds(before, names)
        whole = job_seconds(folder, Path(scratch) / "out", names)
        alone += bare_seconds(after, names) if after else 0.0
        print(f"bare kernels  {alone:8.1f} s  {audio_s / alone:7.2f} × real time")
        print(f"whole job     {whole:8.1f} s  {audio_s / whole:7.2f} × real time")
        print(
            f"ratio         {alone / whole:8.3f}  ({audio_s / 60:g} min of audio, {options.encoders})"
        )


if __name__ == "__main__":
    main()
