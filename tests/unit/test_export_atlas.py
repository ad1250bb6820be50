"""The table for Embedding Atlas: its points and neighbours against scikit-learn and the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from sklearn.neighbors import NearestNeighbors

from bioembed_ray.exports import atlas as export_atlas
from bioembed_ray.exports.formats import Request, export_all
from bioembed_ray.umap_maps import umap_coordinates
from tests.unit.output_fixtures import ENCODER, put_part, vectors_of, windows, write_output


def write(root: Path, **options: object) -> Path:
    request = Request(str(root), str(root / "to"), ("atlas",), encoders=("fake",), **options)  # type: ignore[arg-type]
    [line] = export_all(request)
    return Path(line.split("  ")[0])


def test_every_window_is_a_point_with_its_neighbours(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    path = write(tmp_path, keep_vectors=True)
    assert path.name == "fake_window_atlas.parquet"
    found = pandas.read_parquet(path)
    assert len(found) == 21
    assert {"recording", "start_s", "site", "species", "recording_x"} <= set(found.columns)
    vectors = np.stack(list(found["embedding"]))
    assert np.array_equal(found[["x", "y"]], umap_coordinates(vectors))
    near = NearestNeighbors(n_neighbors=16, metric="cosine").fit(vectors)
    distances, ids = near.kneighbors(vectors)
    for row, one in enumerate(found["neighbors"]):
        assert list(one["ids"]) == ids[row, 1:].tolist()
        np.testing.assert_allclose(one["distances"], distances[row, 1:], atol=1e-6)


def test_rows_beyond_the_sample_are_placed_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_atlas, "N_FIT", 12)
    wanted = write_output(str(tmp_path))
    found = pq.read_table(write(tmp_path, keep_vectors=True))
    assert "neighbors" not in found.column_names
    assert np.isfinite(found.column("x").to_numpy()).all()
    order = [(name, "ascending") for name in ("recording", "channel", "start_s")]
    assert np.array_equal(vectors_of(found.sort_by(order)), vectors_of(wanted))
    drawn = np.sort(np.random.default_rng(0).permutation(21)[:12])
    points = np.stack([found.column(name).to_numpy() for name in ("x", "y")], axis=1)
    assert np.array_equal(points[drawn], umap_coordinates(vectors_of(found)[drawn]))
    again = pq.read_table(write(tmp_path))
    assert again.column("x").equals(found.column("x"))
    assert "embedding" not in again.column_names


def test_recordings_are_points_as_well(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    path = write(tmp_path, level="recording", pool="max")
    found = pandas.read_parquet(path)
    assert path.name == "fake_recording_max_atlas.parquet"
    assert found["n_windows"].tolist() == [7, 5, 5, 4]
    assert {"x", "y", "site"} <= set(found.columns)


def test_one_window_is_a_point_without_neighbours(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    put_part(str(tmp_path), ENCODER, "s1", windows().slice(0, 1))
    put_part(str(tmp_path), ENCODER, "s2", windows().slice(0, 0))
    found = pandas.read_parquet(write(tmp_path))
    assert len(found) == 1
    assert list(found["neighbors"][0]["ids"]) == []
