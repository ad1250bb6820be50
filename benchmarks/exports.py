"""What every format of `bioembed export` holds in memory for a million windows and ten million tokens.

    python benchmarks/exports.py [--windows 1000000] [--dim 768] [--dtype float16] [--tokens 10000000]
                                 [--recordings 2000] [--formats npy,csv,…] [--folder DIR] [--again]

Writes an output of made-up vectors and tokens, then runs the command once per format, each in a process of
its own, and prints how long it took, its CPU time, the most memory that was resident, and how much of
that was its own: the rest are pages of files, which the system takes back when it needs them. Held against
them is 1 GB. Vectors are clusters of unequal size; tokens run for 1 to 40 steps. Windows lie in parts of half
an hour in no order, as runs leave them; D = 768 is what BEATs, HuBERT and AST give, float16 the type to
store that much in. The map of `atlas` is UMAP's of 20,000 rows, on which the others are placed.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import schema, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.exports.formats import TOKENS, VECTORS, Request, export_all
from bioembed_ray.parts import part_uri

WINDOWS = Dataset("embeddings", "made", "v1")
BOOK = Dataset("tokens", "book-500", "t1")
PART_ROWS, SEGMENT_TOKENS, STEP_S = 3600, 15_000, 0.02
LIMIT_MB = 1000
# Beside the formats: what is pooled first.
POOLED = ("npy of recordings",)


def vectors_of_part(number: int, n: int, dim: int, dtype: str) -> np.ndarray:
    sounds = np.random.default_rng(0).standard_normal((500, dim), dtype=np.float32)
    rng = np.random.default_rng(number + 1)
    shares = np.random.default_rng(1).dirichlet(np.full(500, 0.5))
    own = rng.standard_normal((n, dim), dtype=np.float32)
    return (0.7 + sounds[rng.choice(500, n, p=shares)] + 0.8 * own).astype(dtype)


def put(dataset: Dataset, root: Path, number: int, table: pa.Table) -> None:
    said = {"bioembed.outcome": "{}", "bioembed.weights": "made up"}
    sink = io.BytesIO()
    table = table.replace_schema_metadata(said)
    pq.write_table(table, sink, compression="zstd", use_dictionary=["recording"])
    # As of digests, the order of names tells nothing.
    name = f"{(number * 0x9E3779B97F4A7C15) % (1 << 80):020x}"
    storage.put(part_uri(str(root), dataset, name), sink.getvalue())


def names_of(n: int) -> list[str]:
    return [f"site_{k % 40:02d}/2024-05/{k:07d}.wav" for k in range(n)]


def make(root: Path, given: argparse.Namespace) -> None:
    """Write windows, tokens, recordings/ and what is current."""
    names = names_of(given.recordings)
    each = -(-given.windows // given.recordings)
    for number, first in enumerate(range(0, given.windows, PART_ROWS)):
        index = np.arange(first, min(given.windows, first + PART_ROWS))
        starts = (index % each) / 2
        found = vectors_of_part(number, len(index), given.dim, given.dtype)
        columns = [
            pa.array(names).take(pa.array(index // each)),
            pa.array(np.zeros(len(index), np.int16)),
            pa.array(starts),
            pa.array(starts + 1),
            pa.array(np.ones(len(index))),
            pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), given.dim),
        ]
        put(
            WINDOWS,
            root,
            number,
            pa.table(columns, schema=schema.embeddings(given.dim, given.dtype)),
        )
    rows = -(-given.tokens // SEGMENT_TOKENS)
    for number, first in enumerate(range(0, rows, 6)):
        put(BOOK, root, number, tokens_of(names, range(first, min(rows, first + 6)), rows))
    known = pa.table(
        {
            "recording": names,
            "uri": [f"/archive/{name}" for name in names],
            "duration_s": [each / 2 + 0.5] * len(names),
            "rate_hz": pa.array([48_000] * len(names), pa.int32()),
            "site": [name[:7] for name in names],
            "species": [f"species {k % 50}" for k in range(len(names))],
        }
    )
    nulls = [field for field in schema.RECORDINGS if field.name not in known.column_names]
    for field in nulls:
        known = known.append_column(field.name, pa.nulls(len(known), field.type))
    for key, table in (
        ("recordings/recordings", known),
        ("failures/failures", schema.FAILURES.empty_table()),
    ):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        storage.put(str(root / f"{key}.parquet"), sink.getvalue())
    current = {
        "encoders": {"made": {"embeddings": "v1", "frames": None}},
        "codebooks": {"book-500": {"encoder": "made", "codebook": "c1", "tokens": "t1"}},
    }
    (root / "current.json").write_text(json.dumps(current))


def tokens_of(names: list[str], numbers: range, n_rows: int) -> pa.Table:
    """Return rows of tokens: segments of 300 s, one recording's after the other."""
    each = -(-n_rows // len(names))
    rows = []
    for number in numbers:
        rng = np.random.default_rng(number)
        runs = rng.integers(1, 40, SEGMENT_TOKENS)
        labels = np.repeat(rng.integers(0, 500, SEGMENT_TOKENS), runs)[:SEGMENT_TOKENS]
        rows.append(
            {
                "recording": names[number // each],
                "channel": 0,
                "start_s": number % each * SEGMENT_TOKENS * STEP_S,
                "hop_s": STEP_S,
                "per_step": 1,
                "tokens": labels.astype(np.int16),
            }
        )
    return pa.Table.from_pylist(rows, schema=schema.tokens("int16"))


def status(name: str) -> int:
    """Return a figure of this process, in MB of 1,000,000 bytes."""
    found = Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]
    return int(found) * 1024 // 1_000_000


def measure(root: Path, kind: str) -> dict[str, float]:
    """Export one format in this process; return what it took."""
    own, over = 0, threading.Event()

    def watch() -> None:
        nonlocal own
        while not over.wait(0.02):
            own = max(own, status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    level, book = ("recording" if kind in POOLED else "window"), kind in TOKENS
    formats = (kind.partition(" ")[0],)
    folder = root / "to" / kind.replace(" ", "_")
    began = time.perf_counter()
    list(
        export_all(
            Request(
                str(root),
                str(folder),
                formats,
                level=level,  # type: ignore[arg-type]
                codebooks=("book-500",) if book else (),
            )
        )
    )
    took = time.perf_counter() - began
    over.set()
    watcher.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    return {
        "seconds": took,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * 1024 / 1e6,
        "own": own,
        "written": size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--recordings", type=int, default=2000)
    parser.add_argument("--formats", default=",".join([*VECTORS, *POOLED, *TOKENS, "views"]))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--again", action="store_true", help="The output stands in --folder.")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.folder, given.measure)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder and given.folder.parent) as scratch:
        root = given.folder or Path(scratch)
        if not given.again:
            make(root, given)
        print(
            f"{given.windows:,} windows of {given.dim} {given.dtype}, {given.tokens:,} tokens, "
            f"{given.recordings:,} recordings"
        )
        print("format             seconds  CPU s  peak MB  of these own  written MB")
        for kind in given.formats.split(","):
            command = [sys.executable, __file__, "--folder", str(root), "--measure", kind]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            mark = "" if found["peak"] <= LIMIT_MB else f"  over {LIMIT_MB} MB"
            print(
                f"{kind:17}  {found['seconds']:7.1f}  {found['cpu']:5.0f}  {found['peak']:7.0f}  "
                f"{found['own']:12.0f}  {found['written']:10.0f}{mark}",
                flush=True,
            )


if __name__ == "__main__":
    main()
