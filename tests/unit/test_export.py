"""What other programs get: vectors against numpy, files against their own readers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from bioembed_ray import parts, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.exports.rows import Level, Pool, pool_windows
from bioembed_ray.exports.vectors import Exported, as_arrays, write
from bioembed_ray.partitions import find_dataset, list_datasets
from bioembed_ray.results import Results
from tests.tables import window_rows

DATASET = Dataset("embeddings", "fake", "v1")


def table_of(counts: dict[tuple[str, int], int], dtype: str = "float32", seed: int = 0) -> pa.Table:
    """Return windows for (recording, channel) -> count, times half a second apart."""
    return window_rows([(*track, n) for track, n in counts.items()], 3, seed=seed, dtype=dtype)


def export(table: pa.Table, level: Level, pool: Pool) -> Exported:
    return as_arrays(table if level == "window" else pool_windows([table], pool))


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table.column("embedding").to_pylist(), np.float32).reshape(-1, 3)


def put_part(output: Path, shard: str, table: pa.Table, dataset: Dataset = DATASET) -> None:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    storage.put(parts.part_uri(str(output), dataset, shard), bytes(sink.getvalue()))


COUNTS = {("a.wav", 0): 3, ("a.wav", 1): 2, ("ä – 鳥.wav", 0): 1}


def test_windows_come_out_as_they_stand() -> None:
    table = table_of(COUNTS)
    found = export(table, "window", "mean")
    assert found.columns == ("recording", "channel", "start_s", "end_s", "valid_s")
    assert np.array_equal(found.vectors, vectors_of(table))
    assert found.vectors.dtype == np.float32
    assert list(found.index)[1] == ("a.wav", 0, 0.5, 1.5, 1.0)


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recordings_are_pooled_per_channel(pool: str, dtype: str) -> None:
    table = table_of(COUNTS, dtype)
    found = export(table, "recording", pool)  # type: ignore[arg-type]
    assert found.index == [("a.wav", 0, 3), ("a.wav", 1, 2), ("ä – 鳥.wav", 0, 1)]
    rows = vectors_of(table)
    apply = np.mean if pool == "mean" else np.max
    wanted = [apply(rows[low:high], axis=0) for low, high in ((0, 3), (3, 5), (5, 6))]
    np.testing.assert_allclose(found.vectors, wanted, rtol=1e-6)
    assert found.vectors.dtype == np.float32


def test_concat_puts_windows_in_a_row() -> None:
    table = table_of({("a", 0): 2, ("b", 0): 2})
    found = export(table, "recording", "concat")
    assert np.array_equal(found.vectors, vectors_of(table).reshape(2, 6))


def test_concat_of_unequal_counts_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        export(table_of(COUNTS), "recording", "concat")
    assert str(caught.value) == (
        "--pool concat: recordings have 1 to 3 windows; use mean or max, or --level window"
    )


def test_no_windows_are_an_empty_array() -> None:
    for level in ("window", "recording"):
        found = export(table_of({}), level, "mean")
        assert found.vectors.shape == (0, 3)
        assert list(found.index) == []


def test_parts_are_read_in_order_of_recording_channel_and_start(tmp_path: Path) -> None:
    whole = table_of(COUNTS)
    shuffled = whole.take(np.random.default_rng(0).permutation(len(whole)))
    put_part(tmp_path, "zz", shuffled.slice(0, 2))
    put_part(tmp_path, "aa", shuffled.slice(2))
    put_part(tmp_path, "empty", whole.slice(0, 0))
    assert Results(str(tmp_path)).windows("fake").table().equals(whole)


def test_reading_needs_nothing_that_others_imported(tmp_path: Path) -> None:
    put_part(tmp_path, "aa", table_of(COUNTS))
    code = (
        "import bioembed_ray;"
        f"print(len(bioembed_ray.open({str(tmp_path)!r}).windows('fake').table()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "6"


def test_files_hold_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    found = export(table_of(COUNTS), "recording", "mean")
    uri = str(tmp_path / "deep" / "vectors")
    written = write(found, uri, ("npy", "pt"))
    assert written == [f"{uri}.npy", f"{uri}.pt", f"{uri}.csv"]
    assert np.array_equal(np.load(f"{uri}.npy", allow_pickle=False), found.vectors)
    assert torch.equal(torch.load(f"{uri}.pt", weights_only=True), torch.from_numpy(found.vectors))
    with open(f"{uri}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["recording", "channel", "n_windows"],
        ["a.wav", "0", "3"],
        ["a.wav", "1", "2"],
        ["ä – 鳥.wav", "0", "1"],
    ]


def test_names_with_commas_and_quotes_survive_the_index(tmp_path: Path) -> None:
    name = 'a, "b"\n.wav'
    write(export(table_of({(name, 0): 1}), "window", "mean"), str(tmp_path / "v"), ("npy",))
    with open(tmp_path / "v.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1][0] == name


def test_datasets_are_what_holds_a_part(tmp_path: Path) -> None:
    assert list_datasets(str(tmp_path), "embeddings") == []
    put_part(tmp_path, "aa", table_of(COUNTS))
    other = Dataset("embeddings", "hubert.9", "v2")
    put_part(tmp_path, "aa", table_of(COUNTS), other)
    (tmp_path / "embeddings" / "notes.parquet").write_bytes(b"x")
    assert list_datasets(str(tmp_path), "embeddings") == [DATASET, other]


def test_the_current_version_is_found_or_what_is_missing_is_named(tmp_path: Path) -> None:
    out = str(tmp_path)
    with pytest.raises(InputError) as caught:
        find_dataset(out, "fake", None)
    assert str(caught.value) == f"{out}: no embeddings; run `bioembed run` first"
    put_part(tmp_path, "aa", table_of(COUNTS))
    assert find_dataset(out, "fake", None) == DATASET
    with pytest.raises(InputError) as caught:
        find_dataset(out, "beats", None)
    assert str(caught.value) == f"{out}: no encoder 'beats'; there is fake"
    put_part(tmp_path, "aa", table_of(COUNTS), Dataset("embeddings", "fake", "v2"))
    with pytest.raises(InputError) as caught:
        find_dataset(out, "fake", None)
    assert str(caught.value) == "fake: no version is current yet; give --version, one of v1, v2"
    with pytest.raises(InputError) as caught:
        find_dataset(out, "fake", "v3")
    assert str(caught.value) == "fake: no version 'v3'; there is v1, v2"
    current = {"encoders": {"fake": {"embeddings": "v2"}}}
    (tmp_path / "current.json").write_text(json.dumps(current))
    assert find_dataset(out, "fake", None).version == "v2"
    assert find_dataset(out, "fake", "v1").version == "v1"
