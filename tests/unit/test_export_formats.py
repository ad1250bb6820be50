"""`bioembed export` as a command: what is refused, and what a name means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

from bioembed_ray import storage
from bioembed_ray.cli import commands
from bioembed_ray.errors import ConfigError
from bioembed_ray.exports.formats import TOKENS, VECTORS, Request, check, export_all, formats_of
from tests.conftest import Bucket
from tests.unit.output_fixtures import vectors_of, write_output

NOT_MIXED = [
    (
        Request("o", "f", ("raven",)),
        "--format raven: is for tokens; name a codebook with --codebook",
    ),
    (
        Request("o", "f", ("text", "npy"), codebooks=("b",)),
        "--format npy: is for vectors; with --codebook use text, runs, raven, audacity",
    ),
    (
        Request("o", "f", ("views",), codebooks=("b",)),
        "--codebook: nothing to write; use --format text, runs, raven, audacity",
    ),
    (
        Request("o", "f", ("views",), encoders=("beats",)),
        "--encoder: is for npy, pt, csv, datasets, hoplite, atlas",
    ),
    (
        Request("o", "f", ("text",), codebooks=("b",), version="v1"),
        "--version: is for npy, pt, csv, datasets, hoplite, atlas",
    ),
    (
        Request("o", "f", ("text",), codebooks=("b",), level="recording"),
        "--level recording: is for npy, pt, csv, datasets, hoplite, atlas",
    ),
    (
        Request("o", "f", ("npy", "hoplite"), level="recording"),
        "--format hoplite: holds windows; leave --level recording away",
    ),
    (
        Request("o", "f", ("npy",), labels="species"),
        "--labels: only hoplite holds annotations; add --format hoplite",
    ),
    (
        Request("o", "f", ("npy",), keep_vectors=True),
        "--keep-vectors: is for --format atlas; the others hold vectors anyway",
    ),
    (Request("o", "f", ("npy",), is_relative=True), "--relative: is for --format views"),
    (
        Request("o", "f", ("text",), codebooks=("b",), min_valid_s=1.0),
        "--min-valid-s: is for npy, pt, csv, datasets, hoplite, atlas",
    ),
]


@pytest.mark.parametrize(("request_", "text"), NOT_MIXED, ids=[text for _, text in NOT_MIXED])
def test_what_does_not_go_together_is_one_line(request_: Request, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(request_)
    assert str(caught.value) == text


def test_an_unknown_format_gets_its_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        formats_of("npy,hoplight", ())
    assert str(caught.value) == (
        "--format: got 'hoplight'; did you mean hoplite? there is npy, pt, csv, datasets, hoplite, "
        "atlas, text, runs, raven, audacity, views"
    )
    assert formats_of(None, ()) == ("npy",)
    assert formats_of(None, ("book",)) == ("text",)
    assert formats_of("npy, pt,npy", ()) == ("npy", "pt")


def test_the_command_writes_every_format(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    run = CliRunner().invoke(
        commands, ["export", "--output", str(tmp_path), "--format", ",".join([*VECTORS, "views"])]
    )
    assert run.exit_code == 0, run.output
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert {
        "fake_window.npy",
        "fake_window.pt",
        "fake_window.csv",
        "fake_window_vectors.csv",
        "datasets",
        "fake_hoplite",
        "fake_window_atlas.parquet",
        "fake.9_window.npy",
        "views.sql",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    run = CliRunner().invoke(
        commands,
        ["export", "--output", str(tmp_path), "--codebook", "book-4", "--format", ",".join(TOKENS)],
    )
    assert run.exit_code == 0, run.output
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert {"book-4_tokens.txt", "book-4_tokens.parquet", "book-4_raven"} <= names


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_csv_holds_the_vectors_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    wanted = write_output(str(tmp_path), dtype)
    request = Request(str(tmp_path), str(tmp_path / "to"), ("csv",), encoders=("fake",))
    assert list(export_all(request)) == [f"{tmp_path}/to/fake_window_vectors.csv  21 rows"]
    found = pandas.read_csv(tmp_path / "to" / "fake_window_vectors.csv")
    found = found.sort_values(["recording", "channel", "start_s"])
    assert list(found.columns) == [
        *("recording", "channel", "start_s", "end_s", "valid_s"),
        *(f"e{d}" for d in range(6)),
    ]
    numbers = found[[f"e{d}" for d in range(6)]].to_numpy(np.float32)
    assert np.array_equal(numbers, vectors_of(wanted))
    assert found["recording"].tolist() == wanted.column("recording").to_pylist()
    assert found["valid_s"].tolist() == wanted.column("valid_s").to_pylist()


def test_pooled_rows_are_the_same_in_every_format(tmp_path: Path) -> None:
    wanted = vectors_of(write_output(str(tmp_path)))
    request = Request(
        str(tmp_path), str(tmp_path / "to"), ("npy", "csv"), encoders=("fake",), level="recording"
    )
    list(export_all(request))
    bounds = [(0, 7), (7, 12), (12, 17), (17, 21)]
    means = np.array([wanted[low:high].mean(axis=0) for low, high in bounds])
    arrays = np.load(tmp_path / "to" / "fake_recording_mean.npy")
    np.testing.assert_allclose(arrays, means, rtol=1e-5)
    found = pandas.read_csv(tmp_path / "to" / "fake_recording_mean_vectors.csv")
    assert found["n_windows"].tolist() == [7, 5, 5, 4]
    assert np.array_equal(found[[f"e{d}" for d in range(6)]].to_numpy(np.float32), arrays)


def test_a_bucket_gets_what_a_folder_gets(tmp_path: Path, s3: Bucket) -> None:
    write_output(str(tmp_path))
    write_output(s3.uri)
    written = []
    for root in (str(tmp_path), s3.uri):
        for codebooks, formats in (((), ("npy", "csv", "datasets")), (("book-4",), TOKENS)):
            list(export_all(Request(root, f"{root}/to", formats, codebooks=codebooks)))
        # A second time, over what stands.
        list(export_all(Request(root, f"{root}/to", ("datasets",), level="recording")))
        found = {entry.key: storage.read(entry.uri) for entry in storage.list_objects(f"{root}/to")}
        # Selections name the recording's own place.
        written.append({key: body.replace(root.encode(), b"") for key, body in found.items()})
    assert written[0] == written[1]
    assert "datasets/fake_recording_mean/part-00000.parquet" in written[1]
    assert "book-4_raven/marsh/20240501_040000.wav.selections.txt" in written[1]
