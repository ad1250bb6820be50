"""Windows with hardly any sound stay out of searches, probes and maps; no recording is lost by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

import bioembed_ray
from bioembed_ray import parts, schema, storage
from bioembed_ray.cli import commands
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.labels.samples import count_rows, read_windows
from bioembed_ray.report.sampling import sample_windows
from bioembed_ray.rows import Rows
from bioembed_ray.search import index as search_index
from bioembed_ray.search.exact import Wanted, scan
from tests.tables import put_table

PARTITION = Dataset("embeddings", "bird", "v1")
D, WINDOW_S = 8, 3.0
# As an encoder hears zeros: the same vector, nearly, whatever the rest of the window.
SILENCE = np.full(D, 3.0, np.float32)
# name -> seconds of the recording; windows of 3 s without overlap.
LENGTHS = {"a.wav": 9.0004, "b.wav": 7.5, "c.wav": 7.4999, "short.wav": 1.2, "exact.wav": 6.0}
# (recording, start) of windows with half a window of sound or more, and of the short recording's first.
ENOUGH = {
    *((name, 3.0 * k) for name in ("a.wav", "b.wav") for k in range(3)),
    *((name, 3.0 * k) for name in ("c.wav", "exact.wav") for k in range(2)),
    ("short.wav", 0.0),
}


def write_output(root: Path, kinds: tuple[pa.DataType, ...] = (pa.float64(),)) -> Rows:
    """Put an archive; `valid_s` of its parts is of these types in turn."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for name, length in LENGTHS.items():
        for k in range(int(np.ceil(length / WINDOW_S))):
            valid = min(WINDOW_S, length - 3.0 * k)
            noise = rng.standard_normal(D) * (0.02 if valid < 0.1 else 1)
            vector = SILENCE * (1 - valid / WINDOW_S) + noise
            rows.append(
                {
                    "recording": name,
                    "channel": 0,
                    "start_s": 3.0 * k,
                    "end_s": 3.0 * k + 3,
                    "valid_s": valid,
                    "embedding": vector.astype(np.float32),
                }
            )
    metadata = {
        "bioembed.outcome": "{}",
        "bioembed.placement": json.dumps({"rate_hz": 48_000, "time_expansion": 1}),
        "bioembed.weights": "local, sha256 0",
    }
    whole = pa.Table.from_pylist(rows, schema=schema.embeddings(D, "float32"))
    place = whole.schema.get_field_index("valid_s")
    for number, name in enumerate(LENGTHS):
        own = whole.filter(pc.field("recording") == name)
        kind = kinds[number % len(kinds)]
        own = own.set_column(place, pa.field("valid_s", kind), own.column("valid_s").cast(kind))
        uri = parts.part_uri(str(root), PARTITION, f"s{number}")
        put_table(uri, own.replace_schema_metadata(metadata))
    known = [
        {
            "recording": name,
            "status": "embedded",
            "uri": f"/in/{name}",
            "stamp": "1-1",
            "size_bytes": 1,
            "offset": 0,
            "rate_hz": 48_000,
            "channels": 1,
            "duration_s": length,
            "site": name[0],
        }
        for name, length in LENGTHS.items()
    ]
    table = pa.Table.from_pylist(known, schema=schema.RECORDINGS)
    put_table(storage.join(str(root), "recordings/recordings.parquet"), table)
    return bioembed_ray.open(str(root)).windows("bird")


def places(table: pa.Table) -> set[tuple[str, float]]:
    columns = (table.column(name).to_pylist() for name in ("recording", "start_s"))
    return set(zip(*columns, strict=True))


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(commands, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


TYPES = [
    (pa.float64(),),
    (pa.float32(),),
    (pa.float32(), pa.float64()),
    (pa.float64(), pa.float32()),
]


@pytest.mark.parametrize("kinds", TYPES, ids=str)
def test_half_a_window_of_sound_is_enough(tmp_path: Path, kinds: tuple[pa.DataType, ...]) -> None:
    rows = write_output(tmp_path, kinds)
    assert rows.arrow.schema.field("valid_s").type == pa.float64()
    assert places(rows.table(min_valid_s=None)) == ENOUGH
    assert rows.count(min_valid_s=None) == len(ENOUGH)
    assert rows.count() == rows.table().num_rows == 13
    vectors, index = rows.numpy(min_valid_s=None, where=pc.field("start_s") >= 3)
    assert len(vectors) == len([one for one in ENOUGH if one[1] >= 3])
    assert places(index) == {one for one in ENOUGH if one[1] >= 3}


@pytest.mark.parametrize(
    ("min_valid_s", "left_out"),
    [
        (0.0, set()),
        (0.0001, set()),
        (1.0, {("a.wav", 9.0)}),
        (1.3, {("a.wav", 9.0)}),
        # Nobody asks for more than a window holds: what is full passes.
        (3.0, {("a.wav", 9.0), ("b.wav", 6.0), ("c.wav", 6.0)}),
        (60.0, {("a.wav", 9.0), ("b.wav", 6.0), ("c.wav", 6.0)}),
    ],
)
def test_another_least_may_be_given(
    tmp_path: Path, min_valid_s: float, left_out: set[tuple[str, float]]
) -> None:
    rows = write_output(tmp_path)
    assert places(rows.table()) - places(rows.table(min_valid_s=min_valid_s)) == left_out


def best_by_numpy(rows: Rows, query: np.ndarray, allowed: set[tuple[str, float]]) -> list[Any]:
    frame = rows.pandas()
    vectors = np.stack(list(frame.embedding)).astype(np.float64)
    frame["score"] = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    frame = frame[[key in allowed for key in zip(frame.recording, frame.start_s, strict=True)]]
    frame = frame.sort_values(["score", "recording"], ascending=[False, True])
    return list(zip(frame.recording, frame.start_s, strict=True))


@pytest.mark.parametrize("kinds", TYPES, ids=str)
def test_a_search_and_the_index_leave_the_same_out(
    tmp_path: Path, kinds: tuple[pa.DataType, ...]
) -> None:
    rows = write_output(tmp_path, kinds)
    list(search_index.build(rows))
    everything = places(rows.table())
    for min_valid_s, allowed in ((None, ENOUGH), (0.0, everything)):
        wanted = Wanted(SILENCE[None], 20, min_valid_s=min_valid_s)
        exact, near = scan(rows, wanted), search_index.look_up(rows, wanted)
        assert exact.hits.equals(near.hits)
        hits = exact.hits
        found = list(
            zip(*(hits.column(n).to_pylist() for n in ("recording", "start_s")), strict=True)
        )
        assert found == best_by_numpy(rows, SILENCE, allowed)
        assert exact.n_left_out == near.n_left_out == len(everything) - len(allowed)
        assert exact.n_compared == len(allowed)
    # Without the rule, hardly any sound is what is nearest.
    assert found[0] == ("a.wav", 9.0)
    narrow = Wanted(SILENCE[None], 3, where=pc.field("start_s") > 0)
    assert scan(rows, narrow).n_left_out == search_index.look_up(rows, narrow).n_left_out == 2
    some = Wanted(SILENCE[None], 3, among=pc.field("site") == "c")
    assert scan(rows, some).n_left_out == search_index.look_up(rows, some).n_left_out == 1


def test_an_index_of_before_is_built_anew(tmp_path: Path) -> None:
    rows = write_output(tmp_path)
    list(search_index.build(rows))
    uri = storage.join(search_index.folder_of(rows), search_index.ROWS_KEY)
    old = pa.parquet.read_table(uri).drop_columns(["valid_s"])
    put_table(uri, old)
    with pytest.raises(
        InputError, match=r"an index of an earlier kind; build it anew with --build"
    ):
        search_index.look_up(rows, Wanted(SILENCE[None], 3))


def test_the_command_says_what_it_left_out(tmp_path: Path) -> None:
    write_output(tmp_path)
    np.save(tmp_path / "query.npy", SILENCE)
    query = ("search", "--output", str(tmp_path), "--vector", str(tmp_path / "query.npy"))
    done = run(*query)
    assert "a.wav" in done.stdout
    assert "        9 " not in done.stdout
    assert (
        "2 windows with less than 1.5 s of sound are left out; --min-valid-s 0 takes them in"
        in done.stderr
    )
    assert "compared with 11 windows" in done.stderr
    done = run(*query, "--min-valid-s", "1")
    assert "1 windows with less than 1 s of sound" in done.stderr
    done = run(*query, "--min-valid-s", "0")
    assert "left out" not in done.stderr
    assert "compared with 13 windows" in done.stderr


def test_a_probe_asks_windows_with_enough_sound(tmp_path: Path) -> None:
    rows = write_output(tmp_path)
    names = sorted(LENGTHS)
    assert dict(zip(names, count_rows(rows, names), strict=True)) == {
        "a.wav": 3, "b.wav": 3, "c.wav": 2, "exact.wav": 2, "short.wav": 1,
    }  # fmt: skip
    samples, _ = read_windows(rows, names, 100)
    allowed = rows.pandas(min_valid_s=None).sort_values(["recording", "start_s"])
    assert np.array_equal(samples.vectors, np.stack(list(allowed.embedding)))
    samples, _ = read_windows(rows, names, 100, 0.0)
    assert len(samples.vectors) == 13
    labels = tmp_path / "labels.csv"
    labels.write_text("uri,kind\na.wav,x\nb.wav,x\nc.wav,y\nexact.wav,y\nshort.wav,y\n")
    asked = ("probe", "--output", str(tmp_path), "--labels", f"{labels}:kind", "--folds", "2")
    assert "left out   bird: 2 windows with less than half of sound" in run(*asked).stdout
    text = run(*asked, "--min-valid-s", "1").stdout
    assert "left out   bird: 1 windows with less than 1 s of sound" in text
    assert "left out   bird" not in run(*asked, "--min-valid-s", "0").stdout
    told = json.loads((tmp_path / "probe" / "kind.json").read_text())
    assert told["question"]["min_valid_s"] == 0
    assert told["left_out"]["windows"] == {"bird": 0}


def test_maps_show_windows_with_enough_sound(tmp_path: Path) -> None:
    rows = write_output(tmp_path)
    found = sample_windows(rows, list(LENGTHS), 100, ("a.wav", 0.0), min_valid_s=None)
    points = found.windows
    shown = {(points.name(k), float(points.start_s[k])) for k in range(len(points))}
    assert shown == ENOUGH
    assert (found.n_windows, found.n_lacking) == (13, 2)
    # What is shown in full is shown in full, and a mean is of what is on the map.
    assert len(found.followed) == 4
    frame = rows.pandas(min_valid_s=None)
    wanted = np.stack(list(frame.embedding[frame.recording == "a.wav"])).mean(axis=0)
    at = found.recordings.names.index("a.wav")
    np.testing.assert_allclose(found.recordings.vectors[at], wanted, rtol=1e-6)


def test_an_export_takes_all_unless_it_is_told(tmp_path: Path) -> None:
    write_output(tmp_path)
    asked = (
        "export",
        "--output",
        str(tmp_path),
        "--format",
        "csv,npy",
        "--to",
        str(tmp_path / "to"),
    )
    run(*asked)
    assert len(pandas.read_csv(tmp_path / "to" / "bird_window_vectors.csv")) == 13
    assert np.load(tmp_path / "to" / "bird_window.npy").shape == (13, D)
    run(*asked, "--min-valid-s", "1.5")
    found = pandas.read_csv(tmp_path / "to" / "bird_window_vectors.csv")
    assert set(zip(found.recording, found.start_s, strict=True)) == ENOUGH
    assert np.load(tmp_path / "to" / "bird_window.npy").shape == (len(ENOUGH), D)
    run(*asked, "--min-valid-s", "1.5", "--level", "recording")
    found = pandas.read_csv(tmp_path / "to" / "bird_window.csv")
    pooled = pandas.read_csv(tmp_path / "to" / "bird_recording_mean_vectors.csv")
    counts = found.groupby("recording").size()
    assert pooled.set_index("recording").n_windows.to_dict() == counts.to_dict()


def test_tokens_have_no_such_rule(tmp_path: Path) -> None:
    write_output(tmp_path)
    tokens = Dataset("tokens", "book", "t1")
    put_table(parts.part_uri(str(tmp_path), tokens, "s"), schema.tokens("int16").empty_table())
    rows = Rows(str(tmp_path), tokens, lambda: pa.table({"recording": pa.array([], pa.string())}))
    with pytest.raises(InputError, match="min_valid_s is for windows"):
        rows.count(min_valid_s=1.0)
