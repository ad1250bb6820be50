"""Search over a million windows: the exact scan of Parquet parts against numpy, and the index.

Vectors are clusters of unequal size around a common mean, as an encoder's are. Every step runs in a
process of its own, so that its peak of memory is its own. The peer is numpy on a memory-mapped array
of the same vectors, block by block: scores, norms, argpartition.

    python benchmarks/search.py --folder DIR [--rows 1000000] [--dim 768] [--queries 5] [--index]

Unfair to us: the peer reads an uncompressed array that is in the page cache, has no names, times or
conditions to carry and returns row numbers; ours decompresses Parquet and breaks ties. Unfair to it:
BLAS has as many threads as there are cores in both, but Arrow decodes beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import schema, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.parts import part_uri
from bioembed_ray.rows import Rows
from bioembed_ray.search import index as search_index
from bioembed_ray.search.exact import Wanted, scan

PARTITION = Dataset("embeddings", "made", "v1")
PART_ROWS = 3600
TOP = 10


def vectors_of_part(number: int, n: int, dim: int) -> np.ndarray:
    """Return (n, D) float32: windows of a few hundred sounds, around one mean."""
    sounds = np.random.default_rng(0).standard_normal((500, dim), dtype=np.float32)
    rng = np.random.default_rng(number + 1)
    shares = np.random.default_rng(1).dirichlet(np.full(500, 0.5))
    own = rng.standard_normal((n, dim), dtype=np.float32)
    return 0.7 + sounds[rng.choice(500, n, p=shares)] + 0.8 * own


def make(folder: Path, n_rows: int, dim: int) -> None:
    """Put the parts and the peer's array."""
    array = np.lib.format.open_memmap(
        folder / "vectors.npy", "w+", dtype=np.float32, shape=(n_rows, dim)
    )
    for number, first in enumerate(range(0, n_rows, PART_ROWS)):
        n = min(PART_ROWS, n_rows - first)
        found = vectors_of_part(number, n, dim)
        array[first : first + n] = found
        starts = np.arange(n) / 2
        columns = [
            pa.repeat(f"site_{number % 40}/{number:05d}.wav", n),
            pa.array(np.zeros(n, np.int16)),
            pa.array(starts),
            pa.array(starts + 1),
            pa.array(np.ones(n, np.float32)),
            pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), dim),
        ]
        table = pa.table(columns, schema=schema.embeddings(dim, "float32"))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", use_dictionary=["recording"])
        storage.put(part_uri(str(folder), PARTITION, f"{number:020x}"), sink.getvalue())
    array.flush()


def rows_at(folder: Path) -> Rows:
    return Rows(str(folder), PARTITION, lambda: pa.table({"recording": pa.array([], pa.string())}))


def queries(folder: Path, n: int) -> np.ndarray:
    """Return (n, D): vectors of the archive, moved a little."""
    array = np.load(folder / "vectors.npy", mmap_mode="r")
    rng = np.random.default_rng(7)
    chosen = np.sort(rng.choice(len(array), n, replace=False))
    return array[chosen] + 0.3 * rng.standard_normal((n, array.shape[1]), dtype=np.float32)


def by_scan(folder: Path, targets: np.ndarray) -> list[list[int]]:
    return [keys_of(scan(rows_at(folder), Wanted(q[None], TOP)).hits) for q in targets]


def by_index(folder: Path, targets: np.ndarray) -> list[list[int]]:
    return [
        keys_of(search_index.look_up(rows_at(folder), Wanted(q[None], TOP)).hits) for q in targets
    ]


def by_numpy(folder: Path, targets: np.ndarray) -> list[list[int]]:
    array = np.load(folder / "vectors.npy", mmap_mode="r")
    found = []
    for q in targets:
        scores = np.empty(len(array), np.float32)
        for first in range(0, len(array), 50_000):
            block = array[first : first + 50_000]
            norms = np.sqrt(np.einsum("nd,nd->n", block, block))
            scores[first : first + len(block)] = block @ q / norms
        best = np.argpartition(-scores, TOP)[:TOP]
        found.append(best[np.argsort(-scores[best], kind="stable")].tolist())
    return found


def keys_of(hits: pa.Table) -> list[int]:
    """Return the row numbers of hits, from their names and times."""
    numbers = [int(name[-9:-4]) for name in hits.column("recording").to_pylist()]
    inside = [round(2 * start) for start in hits.column("start_s").to_pylist()]
    return [PART_ROWS * n + k for n, k in zip(numbers, inside, strict=True)]


def build(folder: Path, targets: np.ndarray) -> list[list[int]]:
    print(*search_index.build(rows_at(folder)), file=sys.stderr)
    return []


STEPS: dict[str, Callable[[Path, np.ndarray], list[list[int]]]] = {
    "scan": by_scan,
    "numpy": by_numpy,
    "build": build,
    "index": by_index,
}


def step(name: str, folder: Path, n_queries: int) -> None:
    """Run one step and print what it took; for queries, of each one after the first."""
    targets = queries(folder, n_queries)
    base = peak_mb()
    first_cpu, first_wall = time.process_time(), time.perf_counter()
    found = STEPS[name](folder, targets)
    took = {
        "wall_s": time.perf_counter() - first_wall,
        "cpu_s": time.process_time() - first_cpu,
        "peak_mb": peak_mb(),
        "base_mb": base,
        "load": os.getloadavg()[0],
        "found": found,
    }
    print(json.dumps(took))


def peak_mb() -> float:
    """Return the peak of this process; `ru_maxrss` would be its parent's, from before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def run_step(name: str, folder: Path, n_queries: int) -> dict[str, Any]:
    """Run a step in a process of its own."""
    arguments = [sys.executable, __file__, "--folder", str(folder), "--queries", str(n_queries)]
    done = subprocess.run([*arguments, "--step", name], check=True, stdout=subprocess.PIPE)
    took: dict[str, Any] = json.loads(done.stdout)
    n = 1 if name == "build" else n_queries
    print(
        f"{name:6s} {took['wall_s'] / n:8.2f} s wall, {took['cpu_s'] / n:8.2f} s CPU per "
        f"{'build' if name == 'build' else 'query'}, peak {took['peak_mb']:,.0f} MB "
        f"({took['base_mb']:,.0f} before), load {took['load']:.1f}",
        flush=True,
    )
    return took


def recall(found: list[list[int]], wanted: list[list[int]]) -> float:
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([len(set(one) & set(other)) / TOP for one, other in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--index", action="store_true")
    parser.add_argument("--step", choices=list(STEPS))
    options = parser.parse_args()
    if options.step:
        step(options.step, options.folder, options.queries)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "vectors.npy").exists():
        make(options.folder, options.rows, options.dim)
    size = sum(p.stat().st_size for p in options.folder.rglob("*.parquet"))
    print(f"{options.rows:,} windows x {options.dim}, {size / 1e9:.2f} GB of Parquet; top {TOP}")
    exact = run_step("scan", options.folder, options.queries)
    peer = run_step("numpy", options.folder, options.queries)
    print(f"scan and numpy agree on {recall(exact['found'], peer['found']):.3f} of the hits")
    if options.index:
        run_step("build", options.folder, options.queries)
        near = run_step("index", options.folder, options.queries)
        print(f"index: recall@{TOP} {recall(near['found'], exact['found']):.3f}")


if __name__ == "__main__":
    main()
