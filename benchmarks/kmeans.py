"""K-means against scikit-learn's: same rows, same first centroids, same iterations, in turns.

Rows are pseudo-frames: correlated in time and over dimensions, with clusters of unequal size. Times
are per iteration; scikit-learn's is the difference of a long and a short fit, so that its set-up
does not count. CPU seconds in one process tell kernels apart even on a busy machine; with Ray only
wall seconds can be compared, and for two workers the CPU seconds of the busier one and the driver.

    python benchmarks/kmeans.py [--rows 200000] [--dim 768] [--clusters 128] [--rounds 3]

Unfair to us: scikit-learn writes nothing down; ours sends centroids and sums through Ray, but the
checkpoint is not counted. Unfair to it: nothing known.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from bioembed_ray.cluster import cluster_resources, connect, disconnect
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo, group_name, put_rows
from bioembed_ray.codebooks.fit import ActorPool, Workers, plan_workers
from bioembed_ray.codebooks.fit_steps import iteration, sample_folder
from bioembed_ray.codebooks.fit_worker import Head, Share, Worker
from bioembed_ray.codebooks.frame_parts import Rows
from bioembed_ray.codebooks.lloyd import State
from bioembed_ray.codebooks.rule import Fit, LloydRule
from bioembed_ray.codebooks.sample import SampleRule, group_rows
from bioembed_ray.codebooks.seeding import plus_plus

ITERATIONS = 10


def pseudo_frames(n_rows: int, dim: int) -> np.ndarray:
    """Return (N, D) float32: a few hundred sounds of unequal frequency, smeared over time."""
    rng = np.random.default_rng(0)
    sounds = rng.standard_normal((400, dim), dtype=np.float32)
    shares = rng.dirichlet(np.full(400, 0.5))
    scale = np.linspace(2.0, 0.2, dim, dtype=np.float32)
    rows = np.empty((n_rows, dim), np.float32)
    for start in range(0, n_rows, 20_000):
        n = min(20_000, n_rows - start)
        kind = rng.choice(400, n, p=shares)
        block = sounds[kind] + 1.2 * rng.standard_normal((n, dim), dtype=np.float32)
        rows[start : start + n] = (0.6 * block + 0.4 * np.roll(block, 1, axis=0)) * scale
    return rows


def put_sample(folder: str, rows: np.ndarray) -> SampleInfo:
    """Put rows as a sample in the order they have."""
    each = group_rows(len(rows))
    for group, start in enumerate(range(0, len(rows), each)):
        part = rows[start : start + each]
        n = len(part)
        zeros = np.zeros(n, np.int64)
        places = (zeros, zeros.astype(np.int16), np.arange(n), zeros.astype(np.int16))
        put_rows(
            folder, group_name(group), Rows(("r",), *places, np.arange(n, dtype=np.uint64), part)
        )
    info = SampleInfo(len(rows), 0, rows.shape[1], each, "", "", len(rows), {})
    blocks.put_info(folder, info)
    return info


def sklearn_fit(rows: np.ndarray, first: np.ndarray, iterations: int, threads: int) -> KMeans:
    """Return scikit-learn's fit after exactly so many iterations."""
    model = KMeans(
        len(first),
        init=first,
        n_init=1,
        max_iter=iterations,
        tol=0,
        algorithm="lloyd",
        copy_x=False,
    )
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(rows)
    if model.n_iter_ != iterations:
        raise RuntimeError("it converged before the end; take other rows")
    return model


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = pseudo_frames(options.rows, options.dim)
    # Both start from the same origin, so that their numbers can be compared.
    rows -= rows.mean(axis=0)
    first = plus_plus(torch.from_numpy(rows[:32_768]), options.clusters, seed=0)
    rule = LloydRule(options.clusters, tolerance=0.0, max_iterations=10**6)
    head = Head(None, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit("bench", "v", "e", "v", None, folder, rule, SampleRule(options.rows))
        info = put_sample(sample_folder(fit), rows)
        connect()
        share = Share(sample_folder(fit), info, 0, info.n_groups, 1 << 40)
        alone = Worker(share, rule, "cpu")
        alone.step(first, None)
        pools = {}
        for n in (1, 2):
            plan = plan_workers(Workers(n, memory_bytes=1 << 40, cpus=0.5), cluster_resources())
            pools[n] = ActorPool(fit, info, plan)
            pools[n].ask("check", None)

        def sklearn(threads: int, clock: Callable[[], float]) -> float:
            long = seconds(lambda: sklearn_fit(rows, first, ITERATIONS + 2, threads), clock)
            return (
                long - seconds(lambda: sklearn_fit(rows, first, 2, threads), clock)
            ) / ITERATIONS

        def ours(n: int) -> float:
            state = State(first)
            started = time.perf_counter()
            for _ in range(ITERATIONS):
                state = iteration(state, rule, head, pools[n])
            return (time.perf_counter() - started) / ITERATIONS

        def busier_of_two() -> float:
            """Return the critical path's CPU seconds: the busier worker, then the driver."""
            state, before, mine = State(first), worker_cpu_s(), time.process_time()
            for _ in range(ITERATIONS):
                state = iteration(state, rule, head, pools[2])
            after = worker_cpu_s()
            busiest = max(after[pid] - before[pid] for pid in before.keys() & after.keys())
            return (busiest + time.process_time() - mine) / ITERATIONS

        cpu, wall = time.process_time, time.perf_counter
        calls: dict[str, Callable[[], float]] = {
            "sklearn, 1 thread, CPU": lambda: sklearn(1, cpu),
            "1 worker in process, CPU": lambda: (
                sum(seconds(lambda: alone.step(first, None), cpu) for _ in range(5)) / 5
            ),
            "2 workers on Ray, CPU": busier_of_two,
            "sklearn, 1 thread, wall": lambda: sklearn(1, wall),
            "1 worker on Ray, wall": lambda: ours(1),
            "sklearn, 2 threads, wall": lambda: sklearn(2, wall),
            "2 workers on Ray, wall": lambda: ours(2),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(options.rounds):
            for name, call in calls.items():
                times[name].append(call())
            print(
                f"round {number + 1}: " + ", ".join(f"{times[n][-1]:.3f}" for n in calls),
                flush=True,
            )
        report(times, options)
        compare(rows, first, rule, head, pools)
        for pool in pools.values():
            pool.stop()
        disconnect()


def worker_cpu_s() -> dict[int, float]:
    """Return the CPU seconds that every k-means worker of this machine has used, by process."""
    ticks, found = os.sysconf("SC_CLK_TCK"), {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::Worker"):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = (int(fields[11]) + int(fields[12])) / ticks
        except OSError:
            continue
    return found


def report(times: dict[str, list[float]], options: argparse.Namespace) -> None:
    print(
        f"{options.rows:,} rows x {options.dim}, K = {options.clusters}; seconds per iteration, median"
    )
    middle = {name: float(np.median(values)) for name, values in times.items()}
    for name, value in middle.items():
        print(f"  {name:28s}{value:8.3f}  (lowest {min(times[name]):.3f})")
    for ours, theirs in (
        ("1 worker in process, CPU", "sklearn, 1 thread, CPU"),
        ("2 workers on Ray, CPU", "sklearn, 1 thread, CPU"),
        ("1 worker on Ray, wall", "sklearn, 1 thread, wall"),
        ("2 workers on Ray, wall", "sklearn, 1 thread, wall"),
        ("2 workers on Ray, wall", "sklearn, 2 threads, wall"),
    ):
        ratios = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
        print(f"  {ours} / {theirs}: {np.median(ratios):.2f}")


def compare(
    rows: np.ndarray, first: np.ndarray, rule: LloydRule, head: Head, pools: dict[int, ActorPool]
) -> None:
    """Print how far centres and labels are from scikit-learn's after the same iterations."""
    states = {}
    for n, pool in pools.items():
        state = State(first)
        for _ in range(ITERATIONS):
            state = iteration(state, rule, head, pool)
        states[n] = state.centroids
    theirs = sklearn_fit(rows, first, ITERATIONS, 1)
    same = np.array_equal(states[1], states[2])
    ours = states[1]
    scores = (ours**2).sum(axis=1) - 2 * rows @ ours.T
    agree = (scores.argmin(axis=1) == theirs.labels_).mean()
    print(
        f"  same bits with 1 and 2 workers: {same}; largest difference of a centre "
        f"{np.abs(ours - theirs.cluster_centers_).max():.1e}, same labels {agree:.4%}"
    )


if __name__ == "__main__":
    main()
