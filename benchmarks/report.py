"""How large is a report of 100,000 windows, how long does it take to make, and to open?

    python benchmarks/report.py [--windows 100000] [--dim 256] [--layout first-two] [--to FOLDER]

Writes an output of made-up vectors (eight groups) over 20 recordings of noise, makes the report of
it, and opens the page in Chromium: the time until the map is painted, and what one repaint and one
search for the nearest point take. UMAP takes nearly all of the time; `--layout first-two` puts the
windows at two of their numbers instead, for figures of everything else. Nothing to compare with is installed here; what is held against the
figures is what the report promises: below 30 MB, and open in less than 3 s.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from bioembed_ray import parts, schema, storage
from bioembed_ray.audio.probe import probe
from bioembed_ray.coverage import Coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.inputs.listing import Recording, Source
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Known, Ledger, Piece
from bioembed_ray.outcomes import SpanOutcome
from bioembed_ray.report import maps
from bioembed_ray.report.build import ReportOptions, write_report

DATASET = Dataset("embeddings", "made_up", "v1")
RECORDINGS, GROUPS, RATE_HZ = 20, 8, 16_000
HOP_S = 0.05
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def write_output(root: Path, n_windows: int, dim: int) -> Path:
    """Write recordings, vectors and a ledger; return the output."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((GROUPS, dim))
    ledger = Ledger()
    each = -(-n_windows // RECORDINGS)
    (root / "audio").mkdir(parents=True)
    for k in range(RECORDINGS):
        name = f"site_{k % 4}_20240512_{k:02d}0000.wav"
        path = root / "audio" / name
        n_samples = int((each * HOP_S + 1) * RATE_HZ)
        soundfile.write(path, 0.1 * rng.standard_normal(n_samples), RATE_HZ, subtype="PCM_16")
        info = storage.stat_object(str(path))
        known = Known(Recording(name, Source(str(path), info.stamp, info.size_bytes)))
        known.header, known.metadata = probe(known.recording.source, name)
        known.pieces = [Piece(f"s{k}", 0, None)]
        done = SpanOutcome(name, n_samples, n_samples, 0, each, Coverage(n_samples))
        known.outcomes[DATASET, f"s{k}"] = done
        ledger.known[name] = known
        vectors = centres[rng.integers(0, GROUPS, each)] + rng.standard_normal((each, dim))
        _put_part(root / "out", f"s{k}", name, vectors.astype(np.float32))
    ledger_file.save(str(root / "out"), ledger)
    current = {"encoders": {"made_up": {"embeddings": "v1", "frames": None}}, "codebooks": {}}
    storage.put(str(root / "out" / "current.json"), json.dumps(current).encode())
    return root / "out"


def _put_part(output: Path, shard: str, name: str, vectors: np.ndarray) -> None:
    n, dim = vectors.shape
    starts = np.arange(n) * HOP_S
    columns = [
        pa.array([name] * n),
        pa.array(np.zeros(n, np.int16)),
        pa.array(starts),
        pa.array(starts + 1),
        pa.array(np.ones(n, np.float32)),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
    ]
    table = pa.table(columns, schema=schema.embeddings(dim, "float32"))
    table = table.replace_schema_metadata(
        {"bioembed.weights": "RANDOM, made up", "bioembed.outcome": "{}"}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.put(parts.part_uri(str(output), DATASET, shard), sink.getvalue())


def first_two(vectors: np.ndarray, **_: object) -> np.ndarray:
    """Return the first two numbers of every vector."""
    return vectors[:, :2]


def open_page(page: Path) -> None:
    """Open the page three times in Chromium and print what that took."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        for _ in range(3):
            view = browser.new_page()
            started = time.perf_counter()
            view.goto(page.as_uri())
            view.evaluate("() => new Promise((done) => requestAnimationFrame(done))")
            opened = time.perf_counter() - started
            repaint = view.evaluate(
                """() => { const t = performance.now();
                  for (let k = 0; k < 5; k++) soundMap.paint();
                  return (performance.now() - t) / 5; }"""
            )
            search = view.evaluate(
                """() => { const t = performance.now();
                  for (let k = 0; k < 200; k++) soundMap.nearest(3 * k, 2 * k);
                  return (performance.now() - t) / 200; }"""
            )
            print(f"open {opened:.2f} s, repaint {repaint:.1f} ms, nearest point {search:.3f} ms")
            view.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layout", choices=["umap", "first-two"], default="umap")
    parser.add_argument("--to", type=Path)
    given = parser.parse_args()
    if given.layout == "first-two":
        maps.umap_coordinates = first_two  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as scratch:
        root = given.to or Path(scratch)
        output = write_output(root, given.windows, given.dim)
        before = time.process_time()
        wall = time.perf_counter()
        options = ReportOptions(max_windows=min(100_000, given.windows))
        for line in write_report(str(output), options, str(output / "report"), print):
            print(line)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"made in {time.perf_counter() - wall:.1f} s, {time.process_time() - before:.1f} CPU s, "
            f"peak {peak:,.0f} MiB; load {os.getloadavg()[0]:.1f}"
        )
        open_page(output / "report" / "index.html")


if __name__ == "__main__":
    main()
