"""Twice as many windows and tokens take hardly more memory to export, in any format but hoplite's graph."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bioembed_ray import parts, schema, storage
from bioembed_ray.datasets import Dataset
from tests.tables import put_table

WINDOWS = Dataset("embeddings", "fake", "v1")
TOKENS = Dataset("tokens", "book", "t1")
DIM, PART_ROWS, ROW_TOKENS = 256, 4000, 15_000
# Of 80,000 windows there are 82 MB as float32; of 3,000,000 tokens 24 MB as pointers of Python alone.
MORE_WINDOWS, MORE_TOKENS = 80_000, 3_000_000
WINDOWS_ROOM_MB, TOKENS_ROOM_MB = 40, 20

EXPORT = """
import sys
from pathlib import Path
from bioembed_ray.exports.formats import Request, export_all

def peak_kb():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

warm, root, formats, level, codebooks = sys.argv[1:]
def export(output):
    books = tuple(codebooks.split())
    request = Request(output, output + "/to", tuple(formats.split()), level=level, codebooks=books)
    list(export_all(request))

# What is imported and set up once is no growth.
export(warm)
before = peak_kb()
export(root)
print((peak_kb() - before) // 1024)
"""


def write_output(root: Path, n_windows: int, n_tokens: int) -> str:
    rng = np.random.default_rng(0)
    names = [f"site/{k:04d}.wav" for k in range(40)]
    said = {"bioembed.outcome": "{}", "bioembed.weights": "made up"}
    for number, first in enumerate(range(0, n_windows, PART_ROWS)):
        index = np.arange(first, min(n_windows, first + PART_ROWS))
        starts = (index // 40) / 2
        numbers = rng.standard_normal(len(index) * DIM).astype(np.float16)
        columns = [
            pa.array(names).take(pa.array(index % 40)),
            pa.array(np.zeros(len(index), np.int16)),
            pa.array(starts),
            pa.array(starts + 1),
            pa.array(np.ones(len(index))),
            pa.FixedSizeListArray.from_arrays(pa.array(numbers), DIM),
        ]
        table = pa.table(columns, schema=schema.embeddings(DIM, "float16"))
        put_table(
            parts.part_uri(str(root), WINDOWS, f"{number * 7919 % 10_000:05d}"),
            table.replace_schema_metadata(said),
        )
    n_rows = max(1, n_tokens // ROW_TOKENS)
    for number in range(n_rows):
        row = {
            "recording": names[number % 3],
            "channel": 0,
            "start_s": number // 3 * 300.0,
            "hop_s": 0.02,
            "per_step": 1,
            "tokens": np.repeat(rng.integers(0, 500, ROW_TOKENS // 3), 3),
        }
        table = pa.Table.from_pylist([row], schema=schema.tokens("int16"))
        put_table(
            parts.part_uri(str(root), TOKENS, f"{number * 7919 % 10_000:05d}"),
            table.replace_schema_metadata(said),
        )
    known = [
        {"recording": n, "status": "embedded", "uri": f"/in/{n}", "stamp": "1", "size_bytes": 1, "offset": 0,
         "rate_hz": 48_000, "duration_s": 1e6, "site": "site"}
        for n in names
    ]  # fmt: skip
    put_table(
        storage.join(str(root), "recordings/recordings.parquet"),
        pa.Table.from_pylist(known, schema=schema.RECORDINGS),
    )
    current = {"encoders": {}, "codebooks": {"book": {"encoder": "fake", "tokens": "t1"}}}
    (root / "current.json").write_text(json.dumps(current))
    return str(root)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("exports")
    return [
        write_output(root / str(k), 100 + k * MORE_WINDOWS, 100 + k * MORE_TOKENS) for k in range(3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("formats", "level", "codebooks"),
    [
        ("npy", "window", ""),
        ("pt", "window", ""),
        ("csv", "window", ""),
        ("datasets", "window", ""),
        ("npy csv", "recording", ""),
        ("text", "window", "book"),
        ("runs", "window", "book"),
        ("raven", "window", "book"),
        ("audacity", "window", "book"),
    ],
)
def test_twice_as_much_takes_no_more_memory(
    outputs: list[str], formats: str, level: str, codebooks: str
) -> None:
    warm, one, two = outputs
    grown = []
    for root in (one, two):
        command = [sys.executable, "-c", EXPORT, warm, root, formats, level, codebooks]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown.append(int(done.stdout))
    room_mb = TOKENS_ROOM_MB if codebooks else WINDOWS_ROOM_MB
    assert grown[1] - grown[0] < room_mb, grown
