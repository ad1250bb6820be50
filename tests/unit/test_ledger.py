"""The ledger: what is entered, forgotten and counted; its two tables and back."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from bioembed_ray import schema, summary
from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.coverage import Coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason
from bioembed_ray.inputs.listing import Recording
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Known, Ledger, Piece
from bioembed_ray.ledger.states import state_of
from bioembed_ray.outcomes import Failure, PartOutcome, SpanOutcome
from bioembed_ray.segments import Shard, Span
from tests.unit.references import header_of, source_named

BEATS = Dataset("embeddings", "beats", "v1")
HUBERT = Dataset("embeddings", "hubert", "v2")
HUBERT_FRAMES = Dataset("frames", "hubert", "v3")


def known(name: str, **labels: object) -> Known:
    recording = Recording(name, source_named(name), labels)  # type: ignore[arg-type]
    return Known(recording, header_of(1000), Metadata())


def span(name: str, start: int = 0, stop: int | None = None, n: int = 1000) -> Span:
    return Span(name, source_named(name), header_of(n), start, stop)


def outcome(
    dataset: Dataset, shard: Shard, coverage: Coverage | None = None, *failures: Failure
) -> PartOutcome:
    coverage = Coverage(embedded=1000) if coverage is None else coverage
    spans = tuple(
        SpanOutcome(one.recording, one.planned, one.planned, 0, 3, coverage) for one in shard.spans
    )
    failures = tuple(replace(failure, shard=shard.id) for failure in failures)
    return PartOutcome(dataset, shard.id, spans, failures)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger({name: known(name) for name in ("a.wav", "b.wav", "c.wav")})


def test_shards_are_rebuilt_from_the_pieces_of_their_recordings(ledger: Ledger) -> None:
    both = Shard((span("a.wav", 0, 600), span("b.wav")))
    rest = Shard((span("a.wav", 600, None), span("c.wav")))
    ledger.assign(rest)
    ledger.assign(both)
    assert [(p.start, p.stop) for p in ledger.known["a.wav"].pieces] == [(0, 600), (600, None)]
    assert ledger.shards() == {both.id: both, rest.id: rest}
    assert all(shard.id == name for name, shard in ledger.shards().items())


def test_a_recording_that_leaves_takes_its_rows_along_and_renames_its_shards(
    ledger: Ledger,
) -> None:
    both = Shard((span("a.wav", 0, 600), span("b.wav")))
    rest = Shard((span("a.wav", 600, None),))
    other = Shard((span("c.wav"),))
    for shard in (both, rest, other):
        ledger.assign(shard)
        first = shard.spans[0].recording
        ledger.absorb(outcome(BEATS, shard, None, Failure(first, Reason.TRUNCATED, "x")))
    ledger.leave(["b.wav"])
    assert "b.wav" not in ledger.known
    alone = Shard((span("a.wav", 0, 600),))
    assert ledger.known["a.wav"].pieces == [Piece(alone.id, 0, 600), Piece(rest.id, 600, None)]
    # Its part does not stand yet, and what it says comes with it.
    assert list(ledger.known["a.wav"].outcomes) == [(BEATS, rest.id)]
    assert [failure.shard for failure in ledger.failures] == [rest.id, other.id]
    assert ledger.accounted() == {(BEATS, rest.id), (BEATS, other.id)}
    ledger.leave(["a.wav"])
    assert ledger.shards() == {other.id: other}
    assert [failure.shard for failure in ledger.failures] == [other.id]


def test_decoded_samples_are_known_once_every_piece_was_read(ledger: Ledger) -> None:
    first, second = Shard((span("a.wav", 0, 600),)), Shard((span("a.wav", 600, None),))
    for shard in (first, second):
        ledger.assign(shard)
    entry = ledger.known["a.wav"]
    assert (entry.n_decoded, state_of(entry, [BEATS])) == (None, "pending")
    ledger.absorb(outcome(BEATS, first))
    ledger.absorb(outcome(HUBERT, first))
    assert (entry.n_decoded, state_of(entry, [BEATS])) == (None, "pending")
    ledger.absorb(outcome(BEATS, second))
    assert (entry.n_decoded, state_of(entry, [BEATS])) == (1000, "embedded")
    # Of another encoder's windows the second piece has none.
    assert state_of(entry, [BEATS, HUBERT]) == state_of(entry, [HUBERT]) == "pending"
    assert state_of(entry, []) == "pending"


@pytest.mark.parametrize(
    ("coverage", "status"),
    [
        (Coverage(embedded=10), "embedded"),
        (Coverage(padded=10), "embedded"),
        (Coverage(embedded=5, skipped=5), "embedded"),
        (Coverage(skipped=10), "embedded"),
        (Coverage(embedded=5, failed=5), "partial"),
        (Coverage(failed=10), "failed"),
        (Coverage(failed=5, skipped=5), "failed"),
    ],
)
def test_status_says_what_became_of_the_samples(
    ledger: Ledger, coverage: Coverage, status: str
) -> None:
    shard = Shard((span("a.wav"),))
    ledger.assign(shard)
    ledger.absorb(outcome(BEATS, shard, coverage))
    assert state_of(ledger.known["a.wav"], [BEATS]) == status


def read_back(folder: Path) -> list[tuple[str, str | None]]:
    """Return (status, reason) of every recording, as DuckDB reads them."""
    table = f"'{folder}/{ledger_file.RECORDINGS_KEY}'"
    return duckdb.sql(f"SELECT status, reason FROM {table} ORDER BY recording").fetchall()


def test_a_recording_that_a_new_version_mended_is_whole(ledger: Ledger, tmp_path: Path) -> None:
    shards = [Shard((span(name),)) for name in ledger.known]
    bad = Failure("a.wav", Reason.NONFINITE_VECTOR, "NaN", encoder="beats", version="v1")
    mended = replace(BEATS, version="v2")
    for shard in shards:
        ledger.assign(shard)
        is_bad = shard.spans[0].recording == "a.wav"
        partly = Coverage(embedded=600, failed=400) if is_bad else None
        ledger.absorb(outcome(BEATS, shard, partly, *([bad] if is_bad else [])))
    ledger.want([BEATS])
    ledger_file.save(str(tmp_path), ledger)
    assert read_back(tmp_path) == [
        ("partial", "nonfinite_vector"),
        ("embedded", None),
        ("embedded", None),
    ]
    # The new version is wanted and not there yet; rows that rest are judged like objects.
    resting = ledger_file.load(str(tmp_path))
    assert resting is not None
    assert resting.wanted == (BEATS,)
    assert resting.states() == {"partial": 1, "embedded": 2}
    assert summary.reasons(resting) == {"nonfinite_vector": 1}
    resting.want([mended])
    assert resting.states() == {"pending": 3}
    ledger_file.save(str(tmp_path), resting)
    assert resting.known.active == {}
    assert read_back(tmp_path) == [("pending", None)] * 3
    found = ledger_file.load(str(tmp_path))
    assert found is not None
    for shard in shards:
        found.absorb(outcome(mended, shard))
    ledger_file.save(str(tmp_path), found)
    assert read_back(tmp_path) == [("embedded", None)] * 3
    assert (found.states(), summary.reasons(found)) == ({"embedded": 3}, {})
    # What became of the old version is kept beside it.
    assert [failure.version for failure in found.failures] == ["v1"]
    again = ledger_file.load(str(tmp_path))
    assert again is not None
    again.want([BEATS])
    assert again.states() == {"partial": 1, "embedded": 2}


def test_a_recording_that_one_of_two_encoders_failed_on_is_partly_there(ledger: Ledger) -> None:
    shard = Shard((span("a.wav"),))
    ledger.assign(shard)
    ledger.absorb(outcome(BEATS, shard, Coverage(failed=1000)))
    ledger.absorb(outcome(HUBERT, shard))
    # Frames and tokens come of the same samples.
    ledger.absorb(outcome(HUBERT_FRAMES, shard, Coverage(failed=1000)))
    entry = ledger.known["a.wav"]
    assert state_of(entry, [BEATS]) == "failed"
    assert state_of(entry, [HUBERT, HUBERT_FRAMES]) == "embedded"
    assert state_of(entry, [BEATS, HUBERT]) == "partial"


def test_a_recording_that_never_opened_failed_or_waits(ledger: Ledger) -> None:
    entry = ledger.known["a.wav"]
    entry.header = None
    entry.failure = Failure("a.wav", Reason.UNSUPPORTED, "no")
    assert state_of(entry, [BEATS]) == "failed"
    entry.failure = Failure("a.wav", Reason.STORAGE, "no")
    assert state_of(entry, [BEATS]) == "pending"
    assert [failure.recording for failure in ledger.all_failures()] == ["a.wav"]


def test_a_failure_that_every_encoder_reports_stands_once(ledger: Ledger) -> None:
    shard = Shard((span("a.wav"), span("b.wav")))
    ledger.assign(shard)
    cut_off = Failure("a.wav", Reason.TRUNCATED, "header promises more")
    unheard = Failure("b.wav", Reason.NONFINITE_VECTOR, "NaN", encoder="hubert", version="v2")
    # The frames and the embeddings of an encoder both tell of its failures, in any order and again.
    for dataset in (BEATS, HUBERT, HUBERT_FRAMES, HUBERT, BEATS, HUBERT_FRAMES):
        own = (unheard,) if dataset.encoder == "hubert" else ()
        ledger.absorb(outcome(dataset, shard, None, cut_off, *own))
    found = [(f.recording, f.reason, f.encoder) for f in ledger.failures]
    assert sorted(found, key=str) == [
        ("a.wav", Reason.TRUNCATED, None),
        ("b.wav", Reason.NONFINITE_VECTOR, "hubert"),
    ]


def test_a_second_outcome_replaces_the_first(ledger: Ledger) -> None:
    shard = Shard((span("a.wav"),))
    ledger.assign(shard)
    failure = Failure("a.wav", Reason.ENCODER_ERROR, "x", encoder="beats", version="v1")
    other = Failure("a.wav", Reason.ENCODER_ERROR, "x", encoder="hubert", version="v2")
    ledger.absorb(outcome(BEATS, shard, Coverage(failed=1000), failure))
    ledger.absorb(outcome(HUBERT, shard, Coverage(failed=1000), other))
    ledger.absorb(outcome(BEATS, shard))
    assert [f.encoder for f in ledger.failures] == ["hubert"]
    assert ledger.known["a.wav"].outcomes[BEATS, shard.id].coverage == Coverage(embedded=1000)


def test_only_wanted_datasets_make_a_shard_outdated(ledger: Ledger) -> None:
    shard = Shard((span("a.wav"),))
    ledger.assign(shard)
    old = Failure("a.wav", Reason.TOO_SHORT, "x", encoder="beats", version="v1", reader_version=0)
    ledger.absorb(outcome(BEATS, shard, None, old))
    assert ledger.outdated(1, [BEATS, HUBERT]) == {shard.id}
    assert ledger.outdated(0, [BEATS]) == set()
    # Nobody would ever report on the old version again, so it would be redone for ever.
    assert ledger.outdated(1, [HUBERT, replace(BEATS, version="v9")]) == set()
    everyone = replace(old, encoder=None, version=None)
    ledger.absorb(outcome(HUBERT, shard, None, everyone))
    assert ledger.outdated(1, [HUBERT]) == {shard.id}


def full(name: str, **labels: object) -> Known:
    recording = Recording(
        name,
        replace(source_named(name, "etag-1"), offset=512, row=7, column="audio.bytes"),
        labels,  # type: ignore[arg-type]
    )
    header = header_of(
        None,
        384_000,
        2,
        n_promised=5,
        patches=((4, b"\x00\xff"), (40, b"ab")),
        slack=7,
        flaw="no end-of-stream page",
        container="FLAC",
    )
    at = datetime(2023, 5, 12, 4, 30, 0, 123000, tzinfo=timezone(timedelta(hours=-4)))
    metadata = Metadata(at, "AudioMoth 1", "Straße 1", -12.5, 130.25, 10.0)
    pieces = [Piece("s1", 0, 100), Piece("s2", 100, None)]
    outcomes = {
        (BEATS, "s1"): SpanOutcome(name, 95, 100, 1, 2, Coverage(90, 5, 3, 2)),
        (HUBERT_FRAMES, "s2"): SpanOutcome(name, 50, 50, 0, 0, Coverage(0, 0, 50, 0)),
    }
    return Known(recording, header, metadata, None, pieces, outcomes)


def again(ledger: Ledger, folder: Path) -> Ledger:
    ledger_file.save(str(folder), ledger)
    found = ledger_file.load(str(folder))
    assert found is not None
    return found


def test_everything_comes_back(tmp_path: Path) -> None:
    ledger = Ledger({name: full(name, site="reef") for name in ("a.wav", "été/ä – 鳥.flac")})
    failed = Known(Recording("z.wav", source_named("z.wav"), {"site": None}))
    failed.failure = Failure("z.wav", Reason.UNSUPPORTED, "not audio: <html>", reader_version=3)
    ledger.known["z.wav"] = failed
    ledger.failures = [
        Failure("a.wav", Reason.TRUNCATED, "ends", None, None, None, 0.5, 1.5, 10, "s2"),
        Failure("a.wav", Reason.ENCODER_ERROR, "no", "beats", "v1", 1, 0.0, 1.0, 5, "s1", 2),
    ]
    assert again(ledger, tmp_path) == ledger


def test_naive_and_aware_times_stay_what_they_are(tmp_path: Path) -> None:
    naive, aware = known("a.wav"), known("b.wav")
    naive.metadata = Metadata(recorded_at=datetime(2024, 2, 29, 23, 59, 59))
    aware.metadata = Metadata(recorded_at=datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC))
    ledger = Ledger({"a.wav": naive, "b.wav": aware})
    assert again(ledger, tmp_path).known == ledger.known
    rows = pq.read_table(tmp_path / "recordings/recordings.parquet").to_pylist()
    assert [(row["recorded_at"], row["recorded_at_has_zone"]) for row in rows] == [
        ("2024-02-29T23:59:59", False),
        ("2024-02-29T23:59:59+00:00", True),
    ]


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([{"n": 1}, {"n": 2}], [{"n": 1}, {"n": 2}]),
        ([{"n": 1}, {"n": 2.5}], [{"n": 1}, {"n": 2.5}]),
        ([{"n": True}, {"n": False}], [{"n": True}, {"n": False}]),
        ([{"n": 1}, {"n": "ab"}], [{"n": "1"}, {"n": "ab"}]),
        ([{"n": "ab"}, {"n": 1.5}], [{"n": "ab"}, {"n": "1.5"}]),
        ([{"n": True}, {"n": 3}], [{"n": "True"}, {"n": "3"}]),
        ([{"n": 2**63}, {"n": 1}], [{"n": str(2**63)}, {"n": "1"}]),
        ([{"n": None}, {"n": None}], [{"n": None}, {"n": None}]),
        ([{"art": "Meise 🐦"}, {"art": ""}], [{"art": "Meise 🐦"}, {"art": ""}]),
        ([{"a": 1}, {"b": "x"}], [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
    ],
)
def test_labels_come_back_as_one_type_per_column(
    tmp_path: Path, labels: list[dict[str, object]], wanted: list[dict[str, object]]
) -> None:
    names = [f"{number}.wav" for number in range(len(labels))]
    ledger = Ledger({n: known(n, **own) for n, own in zip(names, labels, strict=True)})
    found = again(ledger, tmp_path)
    assert [found.known[name].recording.labels for name in names] == wanted
    # A label that came back once stays the same.
    assert again(found, tmp_path) == found


def test_labels_named_like_columns_of_ours_are_kept_apart(tmp_path: Path) -> None:
    labels = {
        "site": "mine", "label_site": 1, "label_label_site": 2, "label_x": 3, "uri": "u",
        "status": 4.5, "x": "y", "label_": "z",
    }  # fmt: skip
    ledger = Ledger({"a.wav": known("a.wav", **labels)})
    metadata = Metadata(site="recorder's")
    ledger.known["a.wav"].metadata = metadata
    found = again(ledger, tmp_path).known["a.wav"]
    assert found.recording.labels == labels
    assert found.metadata == metadata
    table = pq.read_table(tmp_path / "recordings/recordings.parquet")
    assert len(set(table.schema.names)) == len(table.schema.names)
    assert table.column("label_site").to_pylist() == ["mine"]
    assert table.column("site").to_pylist() == ["recorder's"]


def test_duckdb_reads_both_tables(tmp_path: Path) -> None:
    ledger = Ledger({"ä.wav": full("ä.wav", site="reef")})
    ledger.failures = [Failure("ä.wav", Reason.STORAGE, "no", shard="s1")]
    ledger_file.save(str(tmp_path), ledger)
    sql = f"select recording, label_site, len(spans), len(outcomes) from '{tmp_path}/recordings/*.parquet'"
    assert duckdb.sql(sql).fetchall() == [("ä.wav", "reef", 2, 2)]
    sql = f"select recording, reason, is_transient from '{tmp_path}/failures/*.parquet'"
    assert duckdb.sql(sql).fetchall() == [("ä.wav", "storage", True)]


def test_tables_have_the_documented_types() -> None:
    empty = Ledger()
    assert ledger_file.recordings_table(empty).schema.equals(schema.RECORDINGS)
    assert ledger_file.failures_table([]).schema.equals(schema.FAILURES)


def test_no_ledger_and_a_broken_one_are_none(tmp_path: Path) -> None:
    assert ledger_file.load(str(tmp_path)) is None
    ledger = Ledger({"a.wav": full("a.wav")})
    ledger.failures = [Failure("a.wav", Reason.STORAGE, "no", shard="s1")]
    ledger_file.save(str(tmp_path), ledger)
    path = tmp_path / "recordings/recordings.parquet"
    body = path.read_bytes()
    for broken in (b"", b"garbage", body[: len(body) // 2], body[:-200] + body[-8:]):
        path.write_bytes(broken)
        assert ledger_file.load(str(tmp_path)) is None
    path.write_bytes(body)
    assert ledger_file.load(str(tmp_path)) == ledger


@pytest.mark.parametrize(
    ("column", "value"),
    [("header", '{"rate_hz": 1}'), ("header", "{"), ("recorded_at", "yesterday")],
)
def test_a_ledger_of_another_layout_is_none(tmp_path: Path, column: str, value: str) -> None:
    ledger_file.save(str(tmp_path), Ledger({"a.wav": full("a.wav")}))
    path = tmp_path / "recordings/recordings.parquet"
    table = pq.read_table(path)
    number = table.schema.get_field_index(column)
    path.write_bytes(_with_column(table, number, value))
    assert ledger_file.load(str(tmp_path)) is None


def _with_column(table: object, number: int, value: str) -> bytes:
    import pyarrow as pa

    assert isinstance(table, pa.Table)
    changed = table.set_column(number, table.schema.field(number), pa.array([value]))
    sink = io.BytesIO()
    pq.write_table(changed, sink)
    return sink.getvalue()


def test_a_reason_that_only_a_later_release_knows_is_another_layout(tmp_path: Path) -> None:
    ledger = Ledger({"a.wav": full("a.wav")})
    ledger.failures = [Failure("a.wav", Reason.STORAGE, "no", shard="s1")]
    ledger_file.save(str(tmp_path), ledger)
    path = tmp_path / "failures/failures.parquet"
    table = pq.read_table(path)
    path.write_bytes(_with_column(table, table.schema.get_field_index("reason"), "eaten"))
    assert ledger_file.load(str(tmp_path)) is None


@pytest.mark.parametrize("change", ["nothing", "uri", "size", "label", "new label", "look"])
def test_recordings_are_written_again_only_where_something_is_another(
    tmp_path: Path, change: str
) -> None:
    names = ("a.wav", "b.wav")
    ledger_file.save(str(tmp_path), Ledger({name: known(name, site=name) for name in names}))
    path = tmp_path / "recordings/recordings.parquet"
    before = path.stat().st_mtime_ns
    found = ledger_file.load(str(tmp_path))
    assert found is not None
    one = known("b.wav", site="b.wav").recording
    changed = {
        "uri": replace(one, source=replace(one.source, uri="/moved/b.wav")),
        "size": replace(one, source=replace(one.source, size_bytes=7)),
        "label": replace(one, labels={"site": "elsewhere"}),
        "new label": replace(one, labels={"site": "b.wav", "year": 2024}),
    }
    found.known.follow(
        {"a.wav": known("a.wav", site="a.wav").recording, "b.wav": changed.get(change, one)}
    )
    if change == "look":
        assert state_of(found.known["a.wav"], [BEATS]) == "pending"
    ledger_file.save(str(tmp_path), found)
    assert (path.stat().st_mtime_ns == before) == (change == "nothing")
    again = ledger_file.load(str(tmp_path))
    assert again is not None
    recording = again.known["b.wav"].recording
    assert recording.source == changed.get(change, one).source
    assert recording.labels == changed.get(change, one).labels
