"""views.sql, run by DuckDB: what each view holds."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from bioembed_ray import storage
from bioembed_ray.exports import views as export_views
from bioembed_ray.exports.formats import Request, export_all
from tests.unit.output_fixtures import D, keys_of, vectors_of, write_output


def run(root: Path, **options: object) -> duckdb.DuckDBPyConnection:
    request = Request(str(root), str(root / "to"), ("views",), **options)  # type: ignore[arg-type]
    assert list(export_all(request))
    database = duckdb.connect()
    database.execute((root / "to" / "views.sql").read_text())
    return database


@pytest.fixture(params=["out", "it's [1] * out"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An output whose folder means something else to SQL and to globs."""
    return tmp_path / request.param


def test_views_hold_what_stands(output: Path) -> None:
    wanted = write_output(str(output))
    with run(output) as database:
        names = {row[0] for row in database.sql("SHOW TABLES").fetchall()}
        assert names == {
            "recordings",
            "failures",
            "windows_fake",
            "windows_fake_described",
            "windows_fake_9",
            "windows_fake_9_described",
            "tokens_book_4",
            "tokens_book_4_timed",
        }
        counts = {
            name: database.sql(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in names
        }
        assert counts == {
            "recordings": 3,
            "failures": 1,
            "windows_fake": 21,
            "windows_fake_described": 21,
            "windows_fake_9": 21,
            "windows_fake_9_described": 21,
            "tokens_book_4": 4,
            "tokens_book_4_timed": 14,
        }
        found = database.sql(
            "SELECT * FROM windows_fake ORDER BY recording, channel, start_s"
        ).arrow()
        table = found.read_all() if hasattr(found, "read_all") else found
        assert keys_of(table) == keys_of(wanted)
        assert np.array_equal(vectors_of(table), vectors_of(wanted))
        near = database.sql(
            "SELECT count(*) FROM windows_fake a, windows_fake b "
            "WHERE array_cosine_similarity(a.embedding, b.embedding) > 0.9999"
        ).fetchall()
        assert near == [(21,)]
        assert f"FLOAT[{D}]" in str(database.sql("DESCRIBE windows_fake"))
        told = database.sql(
            "SELECT DISTINCT site, x FROM windows_fake_described ORDER BY site NULLS LAST"
        ).fetchall()
        assert told == [("forest", "f"), ("marsh", "m"), (None, "ü")]


def test_tokens_have_times(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    with run(tmp_path) as database:
        found = database.sql(
            "SELECT round(start_s, 6), round(end_s, 6), token, place FROM tokens_book_4_timed "
            "WHERE recording LIKE 'forest%' ORDER BY start_s"
        ).fetchall()
    tokens = [3, 3, 1, None, None, 0, 2, 2, 2, 0]
    assert found == [
        (round(k / 10, 6), round((k + 1) / 10, 6), token, 0) for k, token in enumerate(tokens)
    ]


def test_relative_paths_work_from_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_output(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with run(tmp_path, is_relative=True) as database:
        assert database.sql("SELECT count(*) FROM windows_fake").fetchall() == [(21,)]
    text = (tmp_path / "to" / "views.sql").read_text()
    body = [line for line in text.splitlines() if not line.startswith("--")]
    assert str(tmp_path) not in "\n".join(body)


def test_names_that_would_be_the_same_stay_as_they_are() -> None:
    names = export_views._plain_names(["hubert.9", "hubert_9", "beats"])
    assert names == {"hubert.9": "hubert.9", "hubert_9": "hubert_9", "beats": "beats"}


def test_an_output_on_a_bucket_is_named_by_its_uri(s3: object) -> None:
    root = s3.uri  # type: ignore[attr-defined]
    write_output(root)
    request = Request(root, f"{root}/to", ("views",))
    assert list(export_all(request)) == [
        f"{root}/to/views.sql  recordings, failures, windows_fake, windows_fake_described, "
        f"windows_fake_9, windows_fake_9_described, tokens_book_4, tokens_book_4_timed"
    ]
    text = storage.read(f"{root}/to/views.sql").decode()
    assert f"read_parquet('{root}/embeddings/encoder=fake/version=v1/*.parquet'" in text
    assert "CREATE SECRET" in text
