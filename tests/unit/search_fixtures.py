"""Outputs to search in: one without sound, of three recordings and two parts, and one with sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bioembed_ray import parts, schema, storage
from bioembed_ray.datasets import Dataset
from tests import tables
from tests.commands import embed, tiny_encoder, without_ray
from tests.tables import put_table, shuffled
from tests.tiny import torchscript
from tests.unit.references import sound, write_wave

D = 6
PARTITION = Dataset("embeddings", "fake", "v1")
RECORDINGS = [
    {"recording": "a.wav", "site": "marsh", "recorded_at": "2024-05-12T04:30:00"},
    {
        "recording": "b/ü.wav",
        "site": "forest",
        "recorded_at": "2024-05-13T23:30:00+02:00",
        "latitude": 47.5,
    },
    {"recording": "c.wav"},
]
COMMON = {
    "status": "done",
    "stamp": "1-1",
    "size_bytes": 1,
    "offset": 0,
    "rate_hz": 48_000,
    "channels": 2,
    "duration_s": 20.25,
}


def window_rows(names: list[str], seed: int, n: int = 40) -> pa.Table:
    tracks = [(name, channel, n) for name in names for channel in (0, 1)]
    return shuffled(tables.window_rows(tracks, D, seed=seed), seed)


def write_output(root: str) -> None:
    """Put two parts and recordings/."""
    metadata = {
        "bioembed.outcome": "{}",
        "bioembed.placement": '{"rate_hz": 16000, "time_expansion": 1}',
        "bioembed.weights": "RANDOM, untrained (seed 0)",
    }
    for shard, names, seed in (("s1", ["a.wav", "c.wav"], 0), ("s2", ["b/ü.wav"], 1)):
        table = window_rows(names, seed).replace_schema_metadata(metadata)
        put_table(parts.part_uri(root, PARTITION, shard), table, row_group_size=50)
    rows = [{**COMMON, "uri": f"/in/{row['recording']}", **row} for row in RECORDINGS]
    table = pa.Table.from_pylist(rows, schema=schema.RECORDINGS)
    put_table(storage.join(root, "recordings", "recordings.parquet"), table)


def embed_archive(root: Path) -> Path:
    """Embed three recordings with a tiny network in this process; return the folder of their sound.

    `root / "out"` holds mixed channels, `root / "each"` every channel twice as slow, in float16.
    """
    folder = root / "in"
    folder.mkdir()
    write_wave(folder / "a.wav", sound(5 * 16_000 + 4000, 1), 16_000)
    write_wave(folder / "b.wav", sound(3 * 16_000, 2, channels=2), 16_000)
    write_wave(folder / "slow.wav", sound(4 * 22_050, 3), 22_050)
    entry = {"tiny": tiny_encoder(torchscript(root / "tiny.pt"))}
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        embed(folder, root / "out", entry)
        each = {"channels": "each", "time_expansion": 2}
        embed(folder, root / "each", entry, input=each, embedding_dtype="float16")
    return folder


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return (n,) cosines in float64, each row on its own."""
    wide, target = vectors.astype(np.float64), query.astype(np.float64)
    squares = (wide * wide).sum(axis=1) * (target * target).sum()
    found: np.ndarray = (wide * target).sum(axis=1) / np.sqrt(squares)
    return found
