"""What stands, opened for Python: rows against DuckDB, pandas and numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import bioembed_ray
from bioembed_ray import parts, schema, storage
from bioembed_ray.codebooks.card import Codebook, codebook_bytes
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from tests.tables import put_table, shuffled, window_rows

WINDOWS = Dataset("embeddings", "fake", "v1")
TOKENS = Dataset("tokens", "book", "t1")
D = 4
SITES = {"a.wav": "marsh", "b/ü.wav": "forest", "c.wav": None}


def rows_of(names: list[str], seed: int = 0) -> pa.Table:
    tracks = [(name, channel, 40) for name in names for channel in (0, 1)]
    return shuffled(window_rows(tracks, D, seed=seed), seed)


def write_output(root: str) -> None:
    """Two parts of vectors, one of tokens, a codebook, recordings/ and failures/."""
    put_table(parts.part_uri(root, WINDOWS, "s1"), rows_of(["a.wav", "c.wav"]))
    put_table(parts.part_uri(root, WINDOWS, "s2"), rows_of(["b/ü.wav", "unknown.wav"], 1))
    tokens = {"recording": "a.wav", "channel": 0, "start_s": 0.0, "hop_s": 0.02, "per_step": 1}
    rows = [tokens | {"tokens": [3, None, 1]}]
    put_table(
        parts.part_uri(root, TOKENS, "s1"),
        pa.Table.from_pylist(rows, schema=schema.tokens("int16")),
    )
    book = Codebook("book", "c1", "fake", "v1", "euclidean", np.eye(D, dtype=np.float32))
    folder = storage.join(root, "codebooks/book/version=c1")
    storage.put(storage.join(folder, "codebook.safetensors"), codebook_bytes(book))
    storage.put(storage.join(folder, "card.json"), b'{"verdict": "healthy"}')
    current = {
        "encoders": {"fake": {"embeddings": "v1", "frames": None}},
        "codebooks": {"book": {"encoder": "fake", "codebook": "c1", "tokens": "t1"}},
    }
    storage.put(storage.join(root, "current.json"), json.dumps(current).encode())
    known = pa.table(
        {
            "recording": list(SITES),
            "site": list(SITES.values()),
            "channel": ["left", "right", "left"],
            "stamp": ["x"] * 3,
        }
    )
    put_table(storage.join(root, "recordings/recordings.parquet"), known)
    failed = pa.table({"recording": ["d.wav"], "reason": ["truncated"]})
    put_table(storage.join(root, "failures/failures.parquet"), failed)


@pytest.fixture
def output(tmp_path: Path) -> str:
    write_output(str(tmp_path))
    return str(tmp_path)


def by_duckdb(output: str, rest: str) -> pandas.DataFrame:
    rows = f"read_parquet('{output}/embeddings/encoder=fake/version=v1/*.parquet')"
    known = f"read_parquet('{output}/recordings/recordings.parquet')"
    query = (
        f"SELECT w.*, r.site, r.channel AS side FROM {rows} w LEFT JOIN {known} r USING (recording)"
    )
    return duckdb.sql(f"{query} {rest} ORDER BY w.recording, w.channel, w.start_s").df()


def test_rows_are_joined_with_their_recordings(output: str) -> None:
    found = bioembed_ray.open(output).windows("fake").pandas(join=["site", "channel"])
    wanted = by_duckdb(output, "")
    assert len(found) == 4 * 2 * 40
    assert list(found.columns) == [*rows_of([]).column_names, "site", "recording_channel"]
    for name in ("recording", "channel", "start_s", "end_s", "valid_s"):
        assert found[name].tolist() == wanted[name].tolist()
    assert np.array_equal(np.stack(found["embedding"]), np.stack(wanted["embedding"]))
    assert found["site"].fillna("").tolist() == wanted["site"].fillna("").tolist()
    assert found["recording_channel"].fillna("").tolist() == wanted["side"].fillna("").tolist()


def test_conditions_on_rows_and_on_recordings_hold_together(output: str) -> None:
    rows = bioembed_ray.open(output).windows("fake")
    where, among = pc.field("start_s") < 3, pc.field("site") == "forest"
    wanted = by_duckdb(output, "WHERE w.start_s < 3 AND r.site = 'forest'")
    found = rows.pandas(columns=["start_s", "channel"], where=where, among=among)
    assert list(found.columns) == ["start_s", "channel"]
    assert len(found) == 2 * 6
    assert found["start_s"].tolist() == wanted["start_s"].tolist()
    assert rows.count(where=where, among=among) == len(wanted)
    nothing = rows.table(among=pc.field("site") == "desert", join=["site"])
    assert len(nothing) == 0
    assert nothing.column_names[-1] == "site"


def test_vectors_come_as_arrays_with_their_rows(output: str) -> None:
    rows = bioembed_ray.open(output).windows("fake")
    wanted = by_duckdb(output, "")
    vectors, index = rows.numpy(join=["site"])
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.stack(list(wanted["embedding"])))
    assert index.column("start_s").to_pylist() == wanted["start_s"].tolist()
    assert "embedding" not in index.column_names
    tensor, _ = rows.torch(columns=["start_s"])
    assert torch.equal(tensor, torch.from_numpy(vectors))


def test_rows_come_in_batches_of_the_size_asked_for(output: str) -> None:
    rows = bioembed_ray.open(output).windows("fake")
    batches = list(rows.batches(columns=["embedding"], batch_rows=50, join=["site"]))
    assert max(len(batch) for batch in batches) <= 50
    assert sum(len(batch) for batch in batches) == rows.count() == 320
    assert batches[0].schema.names == ["embedding", "site"]


def test_arrow_dataset_is_one_that_duckdb_queries(output: str) -> None:
    with duckdb.connect() as database:
        database.register("windows", bioembed_ray.open(output).windows("fake").arrow)
        found = database.sql("SELECT count(*), max(start_s) FROM windows").fetchall()
    assert found == [(320, 19.5)]


def test_tokens_and_their_codebook_are_the_current_ones(output: str) -> None:
    results = bioembed_ray.open(output)
    assert results.encoders == ["fake"]
    assert results.codebooks == ["book"]
    assert results.tokens("book").table().column("tokens").to_pylist() == [[3, None, 1]]
    assert np.array_equal(results.codebook("book").centroids, np.eye(D))
    assert results.card("book") == {"verdict": "healthy"}
    assert results.failures().to_pylist() == [{"recording": "d.wav", "reason": "truncated"}]


def test_what_is_not_there_is_named_with_what_is(output: str, tmp_path: Path) -> None:
    results = bioembed_ray.open(output)
    with pytest.raises(InputError, match="no encoder 'beats'; there is fake"):
        results.windows("beats")
    with pytest.raises(InputError, match="no column 'sight'; there is recording, site, channel"):
        results.windows("fake").table(join=["sight"])
    with pytest.raises(InputError, match="no column 'vector'; there is recording"):
        results.windows("fake").table(columns=["vector"])
    with pytest.raises(InputError, match="no tokens of codebook 'hubert'; there is book"):
        results.codebook("hubert")
    with pytest.raises(InputError, match=r"set encoders\.fake\.frames: all"):
        results.frames("fake")
    with pytest.raises(InputError, match="holds tokens, no vectors"):
        results.tokens("book").numpy()
    with pytest.raises(InputError, match="no embeddings; run `bioembed run` first"):
        bioembed_ray.open(str(tmp_path / "nowhere"))


def test_an_output_on_s3_reads_like_one_on_disk(output: str, s3: object) -> None:
    write_output(s3.uri)  # type: ignore[attr-defined]
    remote = bioembed_ray.open(s3.uri)  # type: ignore[attr-defined]
    among = pc.field("site") == "marsh"
    local = bioembed_ray.open(output)
    assert (
        remote.windows("fake")
        .table(among=among, join=["site"])
        .equals(local.windows("fake").table(among=among, join=["site"]))
    )
    assert remote.recordings().equals(local.recordings())


STALLED = """
import sys
import time
import pyarrow as pa
from bioembed_ray.datasets import Dataset
from bioembed_ray.rows import Rows

rows = Rows(sys.argv[1], Dataset("embeddings", "big", "v"), lambda: pa.table({"recording": []}))
batches = rows.batches()
next(batches)
most, quiet = 0, 0
# Until nothing more is read.
while quiet < 10:
    time.sleep(0.1)
    now = pa.total_allocated_bytes()
    quiet = 0 if now > most else quiet + 1
    most = max(most, now)
print(most // 1_000_000, 1 + sum(1 for _ in batches))
"""


def test_a_reader_that_is_slow_holds_no_more(tmp_path: Path) -> None:
    """Parts are not read long before they are asked for: of 490 MB a few parts of 4 MB wait."""
    n_parts, n, dim = 120, 1000, 1024
    numbers = np.random.default_rng(0).standard_normal(n * dim, dtype=np.float32)
    starts = np.arange(n) / 2
    columns = [
        pa.repeat("a.wav", n),
        pa.array(np.zeros(n, np.int16)),
        *(pa.array(column) for column in (starts, starts + 1, np.ones(n))),
        pa.FixedSizeListArray.from_arrays(pa.array(numbers), dim),
    ]
    table = pa.table(columns, schema=schema.embeddings(dim, "float32"))
    partition = Dataset("embeddings", "big", "v")
    first = Path(parts.part_uri(str(tmp_path), partition, "0"))
    put_table(str(first), table)
    for number in range(1, n_parts):
        (first.parent / f"{number}.parquet").hardlink_to(first)
    command = [sys.executable, "-c", STALLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held_mb, n_batches = map(int, done.stdout.split())
    assert n_batches == n_parts
    assert held_mb < 150
