"""The folder for `datasets`: what the real package loads from it, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bioembed_ray.exports import datasets as export_datasets
from bioembed_ray.exports.formats import Request, export_all
from tests.unit.output_fixtures import WEIGHTS, D, keys_of, vectors_of, write_output


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, with a cache of its own and without a network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    return lambda *names, **options: datasets.load_dataset(
        *map(str, names), split="train", cache_dir=str(tmp_path / "cache"), **options
    )


def write(root: Path, **options: Any) -> Path:
    request = Request(str(root), str(root / "export"), ("datasets",), **options)
    assert list(export_all(request))
    return root / "export" / "datasets"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_windows_load_with_their_recordings(
    tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(export_datasets, "ROWS_PER_FILE", 12)
    wanted = write_output(str(tmp_path), dtype)
    folder = write(tmp_path)
    assert len(list((folder / "fake").iterdir())) == 2
    found = loaded(folder, "fake").with_format("arrow")[:]
    found = found.sort_by([(n, "ascending") for n in ("recording", "channel", "start_s")])
    assert keys_of(found) == keys_of(wanted)
    assert np.array_equal(vectors_of(found), vectors_of(wanted))
    assert found.schema.field("embedding").type.list_size == D
    row = found.to_pylist()[0]
    assert row["recording"] == "forest/20240501_040000.wav"
    assert (row["site"], row["latitude"], row["species"]) == ("forest", 47.5, ["wren"])
    assert (row["rate_hz"], row["duration_s"], row["Dawn chorus?"]) == (32_000, 4.0, 7)
    assert loaded(folder, "fake.9").num_rows == 21
    # The first configuration is the default one.
    assert loaded(folder).num_rows == 21


def test_the_card_says_what_the_package_finds(tmp_path: Path, loaded: Any) -> None:
    write_output(str(tmp_path))
    folder = write(tmp_path)
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert [one["config_name"] for one in header["configs"]] == ["fake", "fake.9"]
    assert WEIGHTS in text
    bare = loaded("parquet", data_files=str(folder / "fake" / "*.parquet"))
    described = loaded(folder, "fake")
    assert bare.features == described.features
    assert bare.features._to_yaml_list() == header["dataset_info"][0]["features"]
    assert header["dataset_info"][0]["splits"][0]["num_examples"] == described.num_rows == 21


def test_recordings_stand_beside_windows_and_are_written_anew(
    tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = vectors_of(write_output(str(tmp_path)))
    monkeypatch.setattr(export_datasets, "ROWS_PER_FILE", 5)
    write(tmp_path, encoders=("fake",))
    monkeypatch.setattr(export_datasets, "ROWS_PER_FILE", 500)
    write(tmp_path, encoders=("fake",))
    folder = write(tmp_path, encoders=("fake",), level="recording", pool="mean")
    assert [path.name for path in (folder / "fake").iterdir()] == ["part-00000.parquet"]
    assert loaded(folder, "fake").num_rows == 21
    found = loaded(folder, "fake_recording_mean").with_format("numpy")
    assert found["n_windows"][:].tolist() == [7, 5, 5, 4]
    assert found["channel"][:].tolist() == [0, 0, 1, 0]
    bounds = [(0, 7), (7, 12), (12, 17), (17, 21)]
    means = [wanted[low:high].mean(axis=0) for low, high in bounds]
    np.testing.assert_allclose(found["embedding"][:], means, rtol=1e-5)
    assert list(found["site"][:]) == ["forest", "marsh", "marsh", None]
