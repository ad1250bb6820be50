"""An output as a run leaves it, small enough to check by hand: vectors, tokens, recordings, failures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from bioembed_ray import parts, schema, storage
from bioembed_ray.datasets import Dataset
from tests.tables import put_table, shuffled, window_rows

D = 6
ENCODER = Dataset("embeddings", "fake", "v1")
WIDE = Dataset("embeddings", "fake.9", "w1")
TOKENS = Dataset("tokens", "book-4", "t1")
WEIGHTS = "RANDOM, untrained (seed 0)"
# (recording, channels, windows per channel, manifest's species)
RECORDINGS: list[tuple[str, int, int, list[str] | None]] = [
    ("forest/20240501_040000.wav", 1, 7, ["wren"]),
    ("marsh/20240501_040000.wav", 2, 5, ["bittern", "rail"]),
    ("ü – 鳥.wav", 1, 4, None),
]
PLACES = {"forest": (47.5, 8.25), "marsh": (None, None)}


def known(root: str) -> pa.Table:
    """Return recordings/: a site with a position, one without, a recording without a site."""
    rows: list[dict[str, Any]] = []
    for name, channels, n_windows, species in RECORDINGS:
        site = name.split("/")[0] if "/" in name else None
        latitude, longitude = PLACES.get(site or "", (None, None))
        row = {
            "recording": name,
            "status": "embedded",
            "uri": f"{root}/archive/{name}",
            "stamp": "1-1",
            "size_bytes": 1,
            "offset": 0,
            "rate_hz": 32_000,
            "channels": channels,
            "duration_s": (n_windows + 1) / 2,
            "recorded_at": "2024-05-01T04:00:00+00:00" if site else None,
            "site": site,
            "latitude": latitude,
            "longitude": longitude,
            "species": species,
            "Dawn chorus?": n_windows,
            "x": name[0],
        }
        rows.append(row)
    wanted = pa.schema(
        [
            *schema.RECORDINGS,
            pa.field("species", pa.list_(pa.string())),
            pa.field("Dawn chorus?", pa.int64()),
            pa.field("x", pa.string()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=wanted)


def windows(dim: int = D, dtype: str = "float32", seed: int = 0) -> pa.Table:
    """Return the windows of all recordings, a second every half second, in random order."""
    tracks = [
        (name, channel, n_windows)
        for name, channels, n_windows, _ in RECORDINGS
        for channel in range(channels)
    ]
    return shuffled(window_rows(tracks, dim, seed=seed, dtype=dtype, last_valid_s=0.5), seed)


def tokens() -> pa.Table:
    """Return tokens: a run across two segments, a gap, two channels."""
    first, second = RECORDINGS[0][0], RECORDINGS[1][0]
    row = {"recording": first, "channel": 0, "start_s": 0.0, "hop_s": 0.1, "per_step": 1}
    rows = [
        row | {"tokens": [3, 3, 1, None, None, 0, 2]},
        row | {"start_s": 0.7, "tokens": [2, 2, 0]},
        row | {"recording": second, "tokens": [1, 1]},
        row | {"recording": second, "channel": 1, "tokens": [1, 0]},
    ]
    return pa.Table.from_pylist(rows, schema=schema.tokens("int16"))


def put_part(root: str, dataset: Dataset, shard: str, table: pa.Table) -> None:
    said = {"bioembed.outcome": "{}", "bioembed.weights": WEIGHTS}
    put_table(parts.part_uri(root, dataset, shard), table.replace_schema_metadata(said))


def write_output(root: str, dtype: str = "float32") -> pa.Table:
    """Write an output of two encoders and a codebook; return the first one's windows, sorted."""
    table = windows(dtype=dtype)
    put_part(root, ENCODER, "s1", table.slice(0, 9))
    put_part(root, ENCODER, "s2", table.slice(9))
    put_part(root, ENCODER, "s3", table.slice(0, 0))
    put_part(root, WIDE, "s1", windows(3, seed=1))
    put_part(root, TOKENS, "s1", tokens())
    current = {
        "encoders": {
            "fake": {"embeddings": "v1", "frames": None},
            "fake.9": {"embeddings": "w1", "frames": None},
        },
        "codebooks": {"book-4": {"encoder": "fake", "codebook": "c1", "tokens": "t1"}},
    }
    storage.put(storage.join(root, "current.json"), json.dumps(current).encode())
    put_table(storage.join(root, "recordings/recordings.parquet"), known(root))
    failed = {
        "recording": "notes.wav",
        "reason": "unsupported",
        "detail": "text",
        "is_transient": False,
        "reader_version": 1,
    }
    table_failed = pa.Table.from_pylist([failed], schema=schema.FAILURES)
    put_table(storage.join(root, "failures/failures.parquet"), table_failed)
    order = [(name, "ascending") for name in ("recording", "channel", "start_s")]
    return table.sort_by(order)


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table.column("embedding").to_pylist(), np.float32)


def keys_of(table: pa.Table) -> list[tuple[str, int, float]]:
    """Return what tells windows apart."""
    columns = [table.column(name).to_pylist() for name in ("recording", "channel", "start_s")]
    return list(zip(*columns, strict=True))
