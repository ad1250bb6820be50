"""What other programs get: vectors against numpy, files against their own readers."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray import parts, schema, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.exports.formats import Request, export_all
from bioembed_ray.exports.in_order import in_order
from bioembed_ray.exports.pooling import Pool, pooled, tracks_of
from bioembed_ray.exports.rows import Level
from bioembed_ray.exports.torch_file import write_tensor
from bioembed_ray.partitions import find_dataset, list_datasets
from bioembed_ray.results import Results
from tests.tables import window_rows

DATASET = Dataset("embeddings", "fake", "v1")
ORDER = [(name, "ascending") for name in ("recording", "channel", "start_s")]


def table_of(counts: dict[tuple[str, int], int], dtype: str = "float32", seed: int = 0) -> pa.Table:
    """Return windows for (recording, channel) -> count, times half a second apart."""
    return window_rows([(*track, n) for track, n in counts.items()], 3, seed=seed, dtype=dtype)


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table.column("embedding").to_pylist(), np.float32).reshape(len(table), -1)


def put_part(output: Path, shard: str, table: pa.Table, dataset: Dataset = DATASET) -> None:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    storage.put(parts.part_uri(str(output), dataset, shard), bytes(sink.getvalue()))


COUNTS = {("a.wav", 0): 3, ("a.wav", 1): 2, ("ä – 鳥.wav", 0): 1}


def export(table: pa.Table, folder: Path, level: Level = "window", pool: Pool = "mean") -> Path:
    """Export a table that lies in three parts in any order; return where, without an ending."""
    rows = table.take(np.random.default_rng(1).permutation(len(table)))
    for number in range(3):
        put_part(folder, f"{number}", rows.slice(number * 2, 2 if number < 2 else None))
    request = Request(str(folder), str(folder / "to"), ("npy", "pt"), level=level, pool=pool)
    lines = list(export_all(request))
    uri = folder / "to" / ("fake_window" if level == "window" else f"fake_recording_{pool}")
    vectors = np.load(f"{uri}.npy", allow_pickle=False)
    assert lines == [f"{uri}.npy  {vectors.shape}", f"{uri}.pt  {vectors.shape}", f"{uri}.csv"]
    return uri


def index_of(uri: Path) -> list[list[str]]:
    with open(f"{uri}.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_windows_come_out_as_they_stand_and_in_order(tmp_path: Path) -> None:
    table = table_of(COUNTS)
    uri = export(table, tmp_path)
    header, *rows = index_of(uri)
    assert header == ["recording", "channel", "start_s", "end_s", "valid_s"]
    names = ("recording", "channel", "start_s")
    assert [tuple(row[:3]) for row in rows] == [
        tuple(map(str, key))
        for key in zip(*(table.column(n).to_pylist() for n in names), strict=True)
    ]
    found = np.load(f"{uri}.npy")
    assert np.array_equal(found, vectors_of(table))
    assert found.dtype == np.float32


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recordings_are_pooled_per_channel(tmp_path: Path, pool: Pool, dtype: str) -> None:
    table = table_of(COUNTS, dtype)
    uri = export(table, tmp_path, "recording", pool)
    assert index_of(uri)[1:] == [["a.wav", "0", "3"], ["a.wav", "1", "2"], ["ä – 鳥.wav", "0", "1"]]
    rows = vectors_of(table)
    apply = np.mean if pool == "mean" else np.max
    wanted = [apply(rows[low:high], axis=0) for low, high in ((0, 3), (3, 5), (5, 6))]
    found = np.load(f"{uri}.npy")
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert found.dtype == np.float32


def test_concat_puts_windows_in_a_row(tmp_path: Path) -> None:
    table = table_of({("a", 0): 4, ("b", 0): 4})
    found = np.load(f"{export(table, tmp_path, 'recording', 'concat')}.npy")
    assert np.array_equal(found, vectors_of(table).reshape(2, 12))


def test_concat_of_unequal_counts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        export(table_of(COUNTS), tmp_path, "recording", "concat")
    assert str(caught.value) == (
        "--pool concat: recordings have 1 to 3 windows; use mean or max, or --level window"
    )
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.parametrize("level", ["window", "recording"])
def test_an_output_without_windows_is_refused(tmp_path: Path, level: Level) -> None:
    with pytest.raises(InputError, match="fake: not one window stands"):
        export(table_of({}), tmp_path, level)
    assert not list((tmp_path / "to").iterdir())


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_pooling_does_not_depend_on_how_rows_lie_in_parts(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=25))
    counts = {
        (f"{name}.wav", channel): names.count(name) for name in set(names) for channel in (0, 1)
    }
    table = table_of(counts)
    order = data.draw(st.permutations(range(len(table))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(table)))))
    rows = table.take(pa.array(order))
    edges = [0, *cuts, len(table)]
    parts_of = [rows.slice(a, b - a) for a, b in itertools.pairwise(edges) if b > a]
    batches = [part.combine_chunks().to_batches()[0] for part in parts_of]
    frame = table.to_pandas()
    with tempfile.TemporaryDirectory() as near:
        for pool in ("mean", "max"):
            found = pa.Table.from_batches(pooled(batches, pool, near)).to_pandas()
            groups = frame.groupby(["recording", "channel"])["embedding"]
            wanted = groups.agg(lambda own, pool=pool: getattr(np, pool)(np.stack(own), axis=0))
            keys = list(zip(found.recording, found.channel, strict=True))
            assert keys == sorted(counts)
            np.testing.assert_allclose(
                np.stack(found.embedding), np.stack([wanted[key] for key in keys]), rtol=1e-5
            )
            assert found.n_windows.tolist() == [counts[key] for key in keys]
        assert tracks_of(batches) == counts
        again = pa.Table.from_batches(in_order(batches, "embedding", near, 64))
        assert again.select(table.column_names).equals(table.sort_by(ORDER))


def test_tokens_come_in_order_with_their_gaps(tmp_path: Path) -> None:
    rows = [
        {
            "recording": name,
            "channel": 0,
            "start_s": start,
            "hop_s": 0.1,
            "per_step": 1,
            "tokens": t,
        }
        for name, start, t in [
            ("b", 1.0, [1, None, 2]),
            ("b", 0.0, []),
            ("a", 0.0, [None, None]),
            ("a", 0.2, [300, 7]),
        ]
    ]
    for kind in ("int16", "int32"):
        table = pa.Table.from_pylist(rows, schema=schema.tokens(kind))
        batches = [batch for k in range(4) for batch in table.slice(k, 1).to_batches()]
        found = pa.Table.from_batches(in_order(batches, "tokens", str(tmp_path), 4))
        assert found.equals(table.sort_by(ORDER))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70_001, 3)])
def test_a_tensor_file_is_one_that_torch_would_have_written(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    numbers = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    write_tensor(tmp_path / "ours.pt", shape, io.BytesIO(numbers.tobytes()))
    torch.save(torch.from_numpy(numbers), tmp_path / "theirs.pt")
    for mapped in (False, True):
        found = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=mapped)
        assert torch.equal(found, torch.from_numpy(numbers))
    # Whole to other programs too: every member has its checksum.
    with (
        zipfile.ZipFile(tmp_path / "ours.pt") as ours,
        zipfile.ZipFile(tmp_path / "theirs.pt") as theirs,
    ):
        assert ours.testzip() is None
        for one in ("data.pkl", "data/0", "version", "byteorder"):
            assert ours.read(f"ours/{one}") == theirs.read(f"theirs/{one}")


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
    uri = export(table_of(COUNTS), tmp_path, "recording", "mean")
    found = np.load(f"{uri}.npy", allow_pickle=False)
    assert torch.equal(torch.load(f"{uri}.pt", weights_only=True), torch.from_numpy(found))
    assert index_of(uri) == [
        ["recording", "channel", "n_windows"],
        ["a.wav", "0", "3"],
        ["a.wav", "1", "2"],
        ["ä – 鳥.wav", "0", "1"],
    ]


def test_names_with_commas_and_quotes_survive_the_index(tmp_path: Path) -> None:
    name = 'a, "b"\n.wav'
    assert index_of(export(table_of({(name, 0): 1}), tmp_path))[1][0] == name


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
