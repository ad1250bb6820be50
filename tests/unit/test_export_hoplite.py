"""The hoplite database: what perch-hoplite's own classes read from it, and find in it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bioembed_ray import schema, storage
from bioembed_ray.errors import InputError
from bioembed_ray.exports.formats import Request, export_all
from tests.tables import put_table
from tests.unit.output_fixtures import (
    ENCODER,
    RECORDINGS,
    known,
    put_part,
    vectors_of,
    write_output,
)

hoplite = pytest.importorskip("perch_hoplite.db.sqlite_usearch_impl")


def write(root: str, to: str, **options: Any) -> list[str]:
    request = Request(root, to, ("hoplite",), encoders=("fake",), **options)
    return list(export_all(request))


def opened(folder: Path, readonly: bool = True) -> Any:
    return hoplite.SQLiteUSearchDB.create(str(folder), readonly=readonly)


def test_tables_are_those_that_hoplite_creates(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    write(str(tmp_path), str(tmp_path / "to"))
    config = hoplite.get_default_usearch_config(6)
    own = hoplite.SQLiteUSearchDB.create(str(tmp_path / "own"), config)
    own.add_extra_table_column("windows", "channel", int)
    own.add_extra_table_column("windows", "valid_s", float)
    for name in ("rate_hz:int", "duration_s:float", "device:str", "time_expansion:float"):
        title, _, kind = name.partition(":")
        own.add_extra_table_column("recordings", title, {"float": float, "int": int}.get(kind, str))
    for title, kind in (("species", str), ("Dawn_chorus_", int), ("x", str)):
        own.add_extra_table_column("recordings", title, kind)
    own.commit()

    def shape(path: Path) -> dict[str, Any]:
        with sqlite3.connect(path) as database:
            tables = [
                row[0]
                for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            columns = {t: database.execute(f"PRAGMA table_info({t})").fetchall() for t in tables}
            keys = {t: database.execute(f"PRAGMA foreign_key_list({t})").fetchall() for t in tables}
            indexes = {
                (t, row[2], tuple(c[2] for c in database.execute(f"PRAGMA index_info({row[1]})")))
                for t in tables
                for row in database.execute(f"PRAGMA index_list({t})")
            }
            names = set(
                database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
                )
            )
        return {"columns": columns, "keys": keys, "indexes": indexes, "names": names}

    assert shape(tmp_path / "to/fake_hoplite/hoplite.sqlite") == shape(
        tmp_path / "own/hoplite.sqlite"
    )


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    wanted = write_output(str(tmp_path))
    lines = write(str(tmp_path), str(tmp_path / "to"), labels="species")
    assert lines[0].endswith("hoplite.sqlite  21 windows")
    database = opened(tmp_path / "to" / "fake_hoplite")
    assert database.count_embeddings() == 21
    assert database.get_all_projects() == ["archive"]
    places = {d.id: (d.name, d.latitude, d.longitude) for d in database.get_all_deployments()}
    assert sorted(places.values(), key=str) == [
        ("archive", None, None),
        ("forest", 47.5, 8.25),
        ("marsh", None, None),
    ]
    recordings = {r.id: r for r in database.get_all_recordings()}
    assert sorted(r.filename for r in recordings.values()) == sorted(r[0] for r in RECORDINGS)
    for one in recordings.values():
        site = one.filename.split("/")[0] if "/" in one.filename else "archive"
        assert places[one.deployment_id][0] == site
        told = None if one.datetime is None else one.datetime.isoformat()
        assert told == (None if site == "archive" else "2024-05-01T04:00:00+00:00")
        assert one.rate_hz == 32_000
    rows = {
        (recordings[w.recording_id].filename, w.channel, *w.offsets, w.valid_s): w.embedding
        for w in database.get_all_windows(include_embedding=True)
    }
    columns = ("recording", "channel", "start_s", "end_s", "valid_s")
    keys = list(zip(*(wanted.column(name).to_pylist() for name in columns), strict=True))
    assert set(rows) == set(keys)
    half = vectors_of(wanted).astype(np.float16)
    assert np.array_equal(np.stack([rows[key] for key in keys]).astype(np.float16), half)
    labels = {
        (recordings[a.recording_id].filename, a.label, *a.offsets)
        for a in database.get_all_annotations()
    }
    assert labels == {
        ("forest/20240501_040000.wav", "wren", 0.0, 4.0),
        ("marsh/20240501_040000.wav", "bittern", 0.0, 3.0),
        ("marsh/20240501_040000.wav", "rail", 0.0, 3.0),
    }
    assert dict(database.count_each_label()) == {"bittern": 1, "rail": 1, "wren": 1}
    sources = database.get_metadata("audio_sources")["audio_globs"][0]
    assert sources["base_path"] == f"{tmp_path}/archive"
    first = recordings[1].filename
    assert (Path(sources["base_path"]) / first) == tmp_path / "archive" / first


def test_search_finds_the_neighbours_that_brute_force_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    root, n, dim = str(tmp_path), 600, 24
    write_output(root)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        {
            "recording": RECORDINGS[k % 3][0],
            "channel": 0,
            "start_s": k / 2,
            "end_s": k / 2 + 1,
            "valid_s": 1.0,
            "embedding": vectors[k],
        }
        for k in range(n)
    ]
    table = pa.Table.from_pylist(rows, schema=schema.embeddings(dim, "float32"))
    for shard in ("s1", "s2", "s3"):
        put_part(root, ENCODER, shard, table.slice(0, 0))
    put_part(root, ENCODER, "s2", table)
    write(root, root + "/to")
    database = opened(tmp_path / "to" / "fake_hoplite")
    place = {w.id: round(w.offsets[0] * 2) for w in database.get_all_windows()}
    half = vectors.astype(np.float16).astype(np.float32)
    found = 0
    for query in rng.standard_normal((20, dim)).astype(np.float32):
        wanted = half @ query
        exact = database.search(query, 10, approximate=False)
        ranked = sorted(exact.search_results, key=lambda one: -one.sort_score)
        best = np.argsort(-wanted)[:10]
        assert [place[one.window_id] for one in ranked] == best.tolist()
        scores = [one.sort_score for one in ranked]
        np.testing.assert_allclose(scores, wanted[best], atol=2e-3)
        near = database.search(query, 10, approximate=True).search_results
        found += len({place[one.window_id] for one in near} & set(best.tolist()))
    assert found / 200 > 0.95


def test_hoplite_goes_on_writing_where_the_export_ended(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    write(str(tmp_path), str(tmp_path / "to"))
    database = opened(tmp_path / "to" / "fake_hoplite", readonly=False)
    new = np.full(6, 0.5, np.float32)
    key = database.insert_window(1, [90.0, 91.0], new)
    database.insert_annotation(1, [90.0, 91.0], "owl", 1, "me")
    database.commit()
    assert key == 22
    again = opened(tmp_path / "to" / "fake_hoplite")
    assert again.count_embeddings() == 22
    assert np.array_equal(again.get_embedding(22), new)
    # A second export replaces all of it, whatever the reader left beside it.
    write(str(tmp_path), str(tmp_path / "to"))
    assert opened(tmp_path / "to" / "fake_hoplite").count_embeddings() == 21
    assert opened(tmp_path / "to" / "fake_hoplite").get_all_annotations() == []


def test_side_files_are_what_hoplite_reads(tmp_path: Path) -> None:
    metadata = pytest.importorskip("perch_hoplite.agile.metadata")
    write_output(str(tmp_path))
    write(str(tmp_path), str(tmp_path / "to"), labels="species")
    found = metadata.AgileMetadata.from_directory(str(tmp_path / "to" / "fake_hoplite"))
    assert found.get_deployment_metadata("forest") == {
        "deployment": "forest",
        "latitude": 47.5,
        "longitude": 8.25,
    }
    told = found.get_recording_metadata("marsh/20240501_040000.wav")
    assert (told["duration_s"], told["rate_hz"], told["Dawn_chorus_"]) == (3.0, 32_000, 5)
    labels = found.get_recording_annotations("marsh/20240501_040000.wav")
    assert [(one.label, one.offsets, one.label_type) for one in labels] == [
        ("bittern", [0.0, 3.0], 1),
        ("rail", [0.0, 3.0], 1),
    ]


def test_a_bucket_gets_the_same_database(tmp_path: Path, s3: Any) -> None:
    write_output(s3.uri)
    write(s3.uri, f"{s3.uri}/to")
    for name in ("hoplite.sqlite", "usearch.index"):
        body = storage.read(f"{s3.uri}/to/fake_hoplite/{name}")
        (tmp_path / name).write_bytes(body)
    assert opened(tmp_path).count_embeddings() == 21


def test_what_hoplite_cannot_hold_is_refused(tmp_path: Path) -> None:
    root = str(tmp_path)
    table = write_output(root)
    with pytest.raises(InputError) as caught:
        write(root, root + "/to", labels="specie")
    assert str(caught.value) == (
        "--labels: recordings/ has no column 'specie'; the manifest's are species, Dawn chorus?, x"
    )
    put_table(f"{root}/recordings/recordings.parquet", known(root).slice(0, 2))
    with pytest.raises(InputError, match=r"ü – 鳥\.wav: recordings/ does not know it yet"):
        write(root, root + "/to")
    put_table(f"{root}/recordings/recordings.parquet", known(root))
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.full(21 * 6, 7e4, np.float32)), 6)
    put_part(root, ENCODER, "s2", table.set_column(5, table.schema.field("embedding"), column))
    with pytest.raises(InputError, match="fake: a number of 70000 is beyond float16"):
        write(root, root + "/to")
    assert not list((tmp_path / "to").rglob("*.*"))
