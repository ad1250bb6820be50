"""The index against comparing everything: recall, conditions, and when it is no longer true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import bioembed_ray
from bioembed_ray import parts, schema, storage
from bioembed_ray.errors import BrokenOutput, InputError
from bioembed_ray.job_file import parse_job
from bioembed_ray.prune import delete, leftovers
from bioembed_ray.results import Results
from bioembed_ray.rows import Rows
from bioembed_ray.search import index as search_index
from bioembed_ray.search.exact import Stretch, Wanted, scan
from bioembed_ray.verify import verify
from tests.commands import embed, tiny_encoder, without_ray
from tests.conftest import Bucket
from tests.unit.search_fixtures import (
    PARTITION,
    cosines,
    embed_archive,
    put_table,
    window_rows,
    write_output,
)

DIM, N = 32, 6000


def vectors(kind: str) -> np.ndarray:
    """Return (N, D): without any order, or in tight clusters of unequal size around one mean."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal((N, DIM)).astype(np.float32)
    if kind == "random":
        return own
    sounds = rng.standard_normal((40, DIM)).astype(np.float32)
    return 2 + sounds[rng.choice(40, N, p=rng.dirichlet(np.full(40, 0.5)))] + 0.05 * own


def put_vectors(root: str, found: np.ndarray) -> Rows:
    write_output(root)
    each = 1500
    for number, first in enumerate(range(0, len(found), each)):
        own = found[first : first + each]
        starts = np.arange(len(own)) / 2
        columns = [
            pa.repeat(f"{number}.wav", len(own)),
            pa.array(np.zeros(len(own), np.int16)),
            pa.array(starts),
            pa.array(starts + 1),
            pa.array(np.ones(len(own), np.float32)),
            pa.FixedSizeListArray.from_arrays(pa.array(own.reshape(-1)), own.shape[1]),
        ]
        table = pa.table(columns, schema=schema.embeddings(own.shape[1], "float32"))
        put_table(parts.part_uri(root, PARTITION, f"p{number}"), table, row_group_size=400)
    for shard in ("s1", "s2"):
        storage.delete(parts.part_uri(root, PARTITION, shard))
    return bioembed_ray.open(root).windows("fake")


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_recall_against_comparing_everything(tmp_path: Path, kind: str) -> None:
    found = vectors(kind)
    rows = put_vectors(str(tmp_path), found)
    list(search_index.build(rows))
    rng = np.random.default_rng(1)
    queries = found[rng.choice(N, 30)] + 0.02 * rng.standard_normal((30, DIM)).astype(np.float32)
    shared = []
    for query in queries:
        hits = search_index.look_up(rows, Wanted(query[None], 10)).hits
        scores = cosines(found, query)
        names = hits.column("recording").to_pylist()
        starts = hits.column("start_s").to_pylist()
        keys = [1500 * int(n[0]) + round(2 * s) for n, s in zip(names, starts, strict=True)]
        # The scores are exact, whatever the graph kept.
        np.testing.assert_array_equal(hits.column("score").to_numpy(), scores[keys])
        shared.append(len(set(keys) & set(np.argsort(-scores)[:10].tolist())) / 10)
    assert np.mean(shared) >= 0.95


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Results]:
    write_output(str(tmp_path))
    found = bioembed_ray.open(str(tmp_path))
    list(search_index.build(found.windows("fake")))
    yield found


def test_conditions_hold_for_what_the_index_proposes(results: Results) -> None:
    rows = results.windows("fake")
    queries = np.random.default_rng(2).standard_normal((3, 6)).astype(np.float32)
    for wanted in (
        Wanted(queries, 12),
        Wanted(queries[:1], 12, where=pc.field("channel") == 1),
        Wanted(queries[:1], 12, among=pc.field("site") == "marsh"),
        Wanted(queries[:1], 12, per_recording=2),
        Wanted(queries[:1], 12, besides=Stretch("a.wav", 0.0, 15.0)),
        Wanted(queries[:1], 300),
    ):
        assert search_index.look_up(rows, wanted).hits.equals(scan(rows, wanted).hits)


def test_windows_without_a_direction_are_left_out(tmp_path: Path) -> None:
    found = vectors("random")[:1000]
    found[10] = 0
    found[20] = np.nan
    found[30] *= 1e30
    rows = put_vectors(str(tmp_path), found)
    list(search_index.build(rows))
    wanted = Wanted(found[30][None], 5)
    hits = search_index.look_up(rows, wanted).hits
    assert hits.column("start_s")[0].as_py() == 15.0
    assert hits.equals(scan(rows, wanted).hits)


def test_an_index_of_other_parts_is_refused_and_built_anew(results: Results) -> None:
    rows = results.windows("fake")
    put_table(parts.part_uri(results.output, PARTITION, "s3"), window_rows(["d.wav"], 7))
    later = bioembed_ray.open(results.output).windows("fake")
    wanted = Wanted(np.ones((1, 6), np.float32), 5)
    with pytest.raises(
        InputError, match="its index is of 2 parts, now other 3 stand; build it anew"
    ):
        search_index.look_up(later, wanted)
    list(search_index.build(later))
    assert search_index.look_up(later, wanted).hits.equals(scan(later, wanted).hits)
    assert rows.version == later.version


def test_a_damaged_part_is_one_line(results: Results) -> None:
    rows = results.windows("fake")
    where = Path(parts.part_uri(results.output, PARTITION, "s1"))
    wanted = Wanted(np.ones((1, 6), np.float32), 200)
    where.write_bytes(b"PAR1")
    with pytest.raises(BrokenOutput, match=r"s1\.parquet: not a whole Parquet file"):
        search_index.look_up(rows, wanted)


def test_no_index_is_one_line(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    rows = bioembed_ray.open(str(tmp_path)).windows("fake")
    with pytest.raises(InputError, match="no index of version v1; build it with --build-index"):
        search_index.look_up(rows, Wanted(np.ones((1, 6), np.float32), 5))


def test_an_index_on_a_bucket(s3: Bucket) -> None:
    write_output(s3.uri)
    rows = bioembed_ray.open(s3.uri).windows("fake")
    list(search_index.build(rows))
    wanted = Wanted(np.ones((1, 6), np.float32), 5)
    assert search_index.look_up(rows, wanted).hits.equals(scan(rows, wanted).hits)
    assert any(key.startswith("indexes/encoder=fake/version=v1/") for key in s3.listing())


def test_an_index_leaves_with_its_windows(tmp_path: Path) -> None:
    folder = embed_archive(tmp_path)
    output = str(tmp_path / "out")
    old = bioembed_ray.open(output).windows("tiny")
    list(search_index.build(old))
    raw = {"tiny": tiny_encoder(tmp_path / "tiny.pt", tail="drop")}
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        embed(folder, output, raw)
    list(search_index.build(bioembed_ray.open(output).windows("tiny")))
    job = parse_job({"input": {"uri": str(folder)}, "output": output, "encoders": raw}, "test")
    found = leftovers(job)
    below = f"encoder=tiny/version={old.version}"
    assert {one.prefix for one in found} == {f"embeddings/{below}", f"indexes/{below}"}
    delete(output, found)
    assert list(verify(output)) == []
    rows = bioembed_ray.open(output).windows("tiny")
    query = rows.numpy()[0][:1]
    assert search_index.look_up(rows, Wanted(query, 3)).hits.equals(
        scan(rows, Wanted(query, 3)).hits
    )
