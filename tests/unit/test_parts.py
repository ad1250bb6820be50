"""Parts are the same bytes for the same shard, and others read them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bioembed_ray import parts, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import BrokenOutput
from bioembed_ray.segments import shard_id, span_to_json
from bioembed_ray.windows import WindowRule
from tests.unit.one_shard import RATE, one_shard, part_of, small_archive, spans_of
from tests.unit.references import (
    frame_encoder,
    frames_by_loop,
    means_by_loop,
    sound,
    span_of,
    starts_by_loop,
    window_encoder,
    write_wave,
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return small_archive(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_right_for_pyarrow_and_duckdb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path, dtype: str
) -> None:
    out = tmp_path / "out"
    spans = spans_of(archive)
    values: dict[str, Any] = {"input": {"channels": "each"}, "embedding_dtype": dtype}
    receipt, planned, _ = one_shard(monkeypatch, out, spans, window_encoder(), **values)
    (outcome,) = receipt.outcomes
    table = pq.read_table(part_of(out, outcome))
    kind = pa.float16() if dtype == "float16" else pa.float32()
    assert [(field.name, field.type) for field in table.schema] == [
        ("recording", pa.string()),
        ("channel", pa.int16()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("valid_s", pa.float64()),
        ("embedding", pa.list_(kind, 4)),
    ]
    wanted = []
    for span in spans:
        n, rate = span.header.n_samples or 0, span.header.rate_hz
        for channel in range(span.header.channels):
            for start, _ in starts_by_loop(rate, RATE, 1, 1000, 500, "pad", n):
                valid = min(Fraction(1000), Fraction(n * RATE, rate) - start)
                row = (span.recording, channel, start / 1000, start / 1000 + 1, float(valid / 1000))
                wanted.append(row)
    columns = [table.column(name).to_pylist() for name in table.schema.names[:5]]
    found = list(zip(*columns, strict=True))
    assert [row[:4] for row in found] == [row[:4] for row in wanted]
    np.testing.assert_allclose([row[4] for row in found], [row[4] for row in wanted], rtol=1e-15)
    is_full = [row[4] == 1 for row in wanted]
    assert [row[4] >= row[3] - row[2] for row in found] == is_full

    sql = f"select * from read_parquet('{out}/embeddings/**/*.parquet', hive_partitioning=true)"
    rows = duckdb.sql(f"{sql} order by recording, channel, start_s")
    types = dict(zip(rows.columns, map(str, rows.types), strict=True))
    assert types["channel"] == "SMALLINT"
    assert types["embedding"].startswith("FLOAT")
    assert (types["encoder"], len(rows.fetchall())) == ("VARCHAR", len(wanted))
    versions_there = duckdb.sql(f"select distinct encoder, version from ({sql})").fetchall()
    assert versions_there == [("fake", planned.outputs[0].embeddings.version)]
    vectors = np.array(duckdb.sql(f"select embedding from '{part_of(out, outcome)}'").fetchall())
    assert vectors.shape == (len(wanted), 1, 4)
    assert np.array_equal(vectors[:, 0], np.array(table.column("embedding").to_pylist()))


def test_time_expansion_leaves_times_in_the_recording(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    span = span_of(write_wave(tmp_path / "bat.wav", sound(9000), 3000))
    receipt, _, _ = one_shard(
        monkeypatch, tmp_path / "out", [span], window_encoder(), input={"time_expansion": 10}
    )
    table = pq.read_table(part_of(tmp_path / "out", receipt.outcomes[0]))
    starts = table.column("start_s").to_pylist()
    assert starts == [float(Fraction(k, 20)) for k in range(60)]
    assert table.column("end_s").to_pylist()[0] == 0.1
    assert table.column("valid_s").to_numpy()[-1] == 0.05


def test_frames_are_written_with_positions_and_means_with_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wave = sound(13_000)
    span = span_of(write_wave(tmp_path / "a.wav", wave, RATE))
    values: dict[str, Any] = {
        "encoder_frames": "all",
        "frame_dtype": "float32",
        "encoder_layer": [0, 1],
    }
    receipt, _, _ = one_shard(
        monkeypatch, tmp_path / "out", [span], frame_encoder(n_layers=2), **values
    )
    names = [(outcome.dataset.table, outcome.dataset.encoder) for outcome in receipt.outcomes]
    assert names == [
        ("frames", "fake.0"),
        ("embeddings", "fake.0"),
        ("frames", "fake.1"),
        ("embeddings", "fake.1"),
    ]
    frames, windows = (
        pq.read_table(part_of(tmp_path / "out", outcome)) for outcome in receipt.outcomes[2:]
    )
    reference = frames_by_loop(wave, 20, 25) * 2
    assert frames.column("sample").to_pylist() == list(range(0, 20 * len(reference), 20))
    assert frames.column("start_s").to_pylist()[150] == 3.0
    assert frames.column("end_s").to_pylist()[150] == 3.025
    assert str(frames.schema.field("patch").type) == "int16"
    found = np.array(frames.column("embedding").to_pylist())
    np.testing.assert_allclose(found, reference, atol=1e-6)
    starts = [round(s * 1000) for s in windows.column("start_s").to_pylist()]
    means = means_by_loop(wave, WindowRule(1000, 500), starts, 20, 25)
    found = np.array(windows.column("embedding").to_pylist())
    np.testing.assert_allclose(found, np.stack(list(means.values())) * 2, atol=1e-6)


def test_the_same_shard_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    spans = spans_of(archive)
    values: dict[str, Any] = {"encoder_frames": "all"}
    first, _, _ = one_shard(monkeypatch, tmp_path / "1", spans, frame_encoder(), **values)
    second, _, _ = one_shard(
        monkeypatch, tmp_path / "2", spans, frame_encoder(batch_size=1), **values
    )
    for one, two in zip(first.outcomes, second.outcomes, strict=True):
        body = part_of(tmp_path / "1", one).read_bytes()
        assert body == part_of(tmp_path / "2", two).read_bytes()
        assert part_of(tmp_path / "1", one).name == f"{one.shard}.parquet"


def test_a_part_tells_what_it_is_from_its_footer_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    out = tmp_path / "out"
    spans = spans_of(archive)
    receipt, planned, _ = one_shard(monkeypatch, out, spans, window_encoder())
    (outcome,) = receipt.outcomes
    entry = parts.list_parts(str(out), outcome.dataset)[outcome.shard]
    read: list[tuple[int, int]] = []
    whole = storage.read_range

    def watched(uri: str, start: int, stop: int, stamp: str | None = None) -> bytes:
        read.append((start, stop))
        return whole(uri, start, stop, stamp)

    monkeypatch.setattr(storage, "read_range", watched)
    metadata = parts.read_metadata(entry)
    assert read == [(max(0, entry.size_bytes - parts.FOOTER_BYTES), entry.size_bytes)]
    assert metadata["encoder"] == "fake"
    assert metadata["version"] == outcome.dataset.version
    assert metadata["shard"] == outcome.shard
    assert metadata["weights"] == "local, sha256 w0"
    assert json.loads(metadata["placement"])["hop"] == planned.rule.hop
    found, listed = parts.read_outcome(entry)
    assert found == outcome
    assert listed == [span_to_json(span) for span in spans]
    assert (
        shard_id((s["recording"], s["stamp"], s["start"], s["stop"]) for s in listed)
        == outcome.shard
    )


def test_a_footer_longer_than_the_first_read_is_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", spans_of(archive), window_encoder())
    (outcome,) = receipt.outcomes
    (entry,) = parts.list_parts(str(tmp_path / "out"), outcome.dataset).values()
    monkeypatch.setattr(parts, "FOOTER_BYTES", 100)
    assert parts.read_outcome(entry)[0] == outcome


def test_random_weights_are_stamped_into_the_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    values: dict[str, Any] = {"encoder_weights": "random:3"}
    receipt, _, _ = one_shard(
        monkeypatch, tmp_path / "out", spans_of(archive), window_encoder(), **values
    )
    (entry,) = parts.list_parts(str(tmp_path / "out"), receipt.outcomes[0].dataset).values()
    assert parts.read_metadata(entry)["weights"] == "RANDOM, untrained (seed 3)"


def test_what_is_no_part_of_ours_is_said_to_be_so(tmp_path: Path) -> None:
    for body in (b"", b"short", b"not a Parquet file at all"):
        (tmp_path / "x.parquet").write_bytes(body)
        with pytest.raises(BrokenOutput, match="not a whole Parquet file; delete it and run again"):
            parts.read_metadata(storage.stat_object(str(tmp_path / "x.parquet")))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(BrokenOutput, match="not written by bioembed; move it out of the output"):
        parts.read_metadata(storage.stat_object(str(tmp_path / "x.parquet")))
    body = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(body[:-8] + (10**6).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(BrokenOutput, match="not a whole Parquet file"):
        parts.read_metadata(storage.stat_object(str(tmp_path / "x.parquet")))
    (tmp_path / "x.parquet").write_bytes(b"x" * 100 + (50).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(BrokenOutput, match="not a whole Parquet file"):
        parts.read_metadata(storage.stat_object(str(tmp_path / "x.parquet")))


def test_the_listing_knows_parts_by_their_shard(tmp_path: Path) -> None:
    dataset = Dataset("embeddings", "fake", "v1")
    assert parts.list_parts(str(tmp_path), dataset) == {}
    folder = tmp_path / dataset.prefix
    folder.mkdir(parents=True)
    for name in ("abc.parquet", ".hidden.parquet", "notes.txt"):
        (folder / name).write_bytes(b"x")
    assert list(parts.list_parts(str(tmp_path), dataset)) == ["abc"]
