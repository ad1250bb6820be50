"""New, changed and removed recordings, and ledgers that were lost: nothing is done twice or lost."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from bioembed_ray import inventory, plan, versions
from bioembed_ray.errors import ConfigError, InputError, Reason
from bioembed_ray.inputs.left_out import Kind
from bioembed_ray.inventory import Changes, recover
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.ledger.states import state_of
from bioembed_ray.outcomes import PartOutcome
from bioembed_ray.plan import Plan
from bioembed_ray.schema import RECORDINGS
from bioembed_ray.segments import Shard, Span, span_to_json
from tests.unit.made_up_archive import WINDOWS, Archive, long_and_short, names_of, spans, tiles
from tests.unit.references import FakeRegistry, header_of


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    registry = FakeRegistry({"fake": WINDOWS})
    monkeypatch.setattr(versions, "registry", registry)
    return Archive(tmp_path, registry)


def carried(found: Plan) -> dict[str, set[str]]:
    """Return which recordings' rows are carried over out of which shard."""
    return {
        one.source.key.removesuffix(".parquet"): spans(found, one.shard) for one in found.carries
    }


def test_a_changed_recording_leaves_its_shards_and_is_all_that_is_encoded(
    archive: Archive,
) -> None:
    first = long_and_short(archive)
    archive.run(first)
    old = {shard for shard in first.shards if "short.wav" in spans(first, shard)}
    beside = {shard: spans(first, shard) - {"short.wav"} for shard in old}
    assert list(beside.values()) == [{"long.wav", "z.wav"}]
    archive.add("short.wav", body="another sound")
    found = archive.plan(shard_minutes=5.5)
    assert found.changes == Changes(n_changed=1)
    assert archive.probed == ["short.wav"]
    assert not old & set(found.shards)
    assert set(first.shards) - old <= set(found.shards)
    assert names_of(found) == {"short.wav"}
    assert carried(found) == beside
    superseded = [entry.key for entries in found.superseded.values() for entry in entries]
    assert {key.removesuffix(".parquet") for key in superseded} == old
    tiles(found)
    archive.run(found)
    again = archive.plan(shard_minutes=5.5)
    assert (again.todo, again.carries, any(again.superseded.values())) == ([], [], False)
    tiles(again)


def test_a_removed_recording_leaves_its_shard_and_nothing_is_encoded(archive: Archive) -> None:
    first = long_and_short(archive)
    archive.run(first)
    old = {shard for shard in first.shards if "short.wav" in spans(first, shard)}
    (archive.input / "short.wav").unlink()
    found = archive.plan(shard_minutes=5.5, max_removed_fraction=0.5)
    assert found.changes == Changes(n_removed=1)
    assert "short.wav" not in found.ledger.known
    assert "short.wav" not in {name for shard in found.shards for name in spans(found, shard)}
    assert (found.todo, set(carried(found))) == ([], old)
    tiles(found)


def test_a_shard_that_all_recordings_left_is_gone(archive: Archive) -> None:
    first = long_and_short(archive)
    archive.run(first)
    own = {shard for shard in first.shards if spans(first, shard) == {"first.wav"}}
    (archive.input / "first.wav").unlink()
    found = archive.plan(shard_minutes=5.5, max_removed_fraction=0.5)
    assert own and set(found.shards) == set(first.shards) - own
    assert (found.todo, found.carries) == ([], [])
    archive.run(found)
    left = {path.stem for path in (archive.output / "embeddings").rglob("*.parquet")}
    assert left == set(first.shards) - own


def test_one_after_the_other_leaves_a_shard_and_rows_are_carried_from_what_stands(
    archive: Archive,
) -> None:
    for name in "abcd":
        archive.add(f"{name}.wav", header_of(16_000))
    (old,) = archive.plan().shards
    archive.run(archive.plan())
    gone = {"max_removed_fraction": 1}
    (archive.input / "a.wav").unlink()
    # The shard is entered, and its part is never put: the next plan finds the old part again.
    ledger_file.save(str(archive.output), archive.plan(**gone).ledger)
    assert carried(archive.plan(**gone)) == {old: {"b.wav", "c.wav", "d.wav"}}
    (archive.input / "b.wav").unlink()
    found = archive.plan(**gone)
    assert (found.todo, carried(found)) == ([], {old: {"c.wav", "d.wav"}})
    archive.run(found)
    (middle,) = found.shards
    (archive.input / "c.wav").unlink()
    found = archive.plan(**gone)
    assert (found.todo, carried(found)) == ([], {middle: {"d.wav"}})
    tiles(found)


def test_a_recording_that_is_again_what_it_was_is_carried_over_where_its_rows_stand(
    archive: Archive,
) -> None:
    for name in "abc":
        archive.add(f"{name}.wav", header_of(16_000))
    archive.run(archive.plan())
    was = archive.input / "a.wav"
    at = was.stat().st_mtime_ns
    archive.add("a.wav", header_of(16_000), body="x.wav")
    ledger_file.save(str(archive.output), archive.plan().ledger)
    archive.add("a.wav", header_of(16_000))
    os.utime(was, ns=(at, at))
    found = archive.plan()
    assert found.changes.n_changed == 1
    assert found.todo == []
    assert sorted(spans(found, one.shard) for one in found.carries) == [
        {"a.wav"},
        {"b.wav", "c.wav"},
    ]
    tiles(found)


def test_a_part_that_never_stood_or_is_torn_is_work_and_no_source(archive: Archive) -> None:
    for number in range(30):
        archive.add(f"{number:02}.wav", header_of(16_000 * 10))
    first = archive.plan()
    archive.run(first, skip=1)
    absent, torn, *_ = first.todo
    for path in (archive.output / "embeddings").rglob(f"{torn.shard.id}.parquet"):
        path.write_bytes(path.read_bytes()[:-100])
    gone = {work.shard.spans[1].recording for work in first.todo[:3]}
    for name in gone:
        (archive.input / name).unlink()
    found = archive.plan(max_removed_fraction=1)
    encoded = (spans(first, absent.shard.id) | spans(first, torn.shard.id)) - gone
    assert len(encoded) == 4
    assert names_of(found) == encoded
    assert carried(found) == {
        first.todo[2].shard.id: spans(first, first.todo[2].shard.id) - gone,
    }
    archive.run(found)
    assert archive.plan().todo == []


def test_failures_stay_with_their_recordings_and_leave_with_them(archive: Archive) -> None:
    for name in "abc":
        archive.add(f"{name}.wav", header_of(16_000))
    found = archive.plan()
    # A failure of the first recording, in its part.
    archive.run(found, reason=Reason.TRUNCATED, detail="ends early")
    (archive.input / "b.wav").unlink()
    found = archive.plan(max_removed_fraction=1)
    archive.run(found)
    (shard,) = found.shards
    loaded = ledger_file.load(str(archive.output))
    assert loaded is not None
    assert [(f.recording, f.shard) for f in loaded.failures] == [("a.wav", shard)]
    assert loaded.known["c.wav"].pieces[0].shard == shard
    assert {name for _, name in loaded.accounted()} == {shard}
    (archive.input / "a.wav").unlink()
    found = archive.plan(max_removed_fraction=1)
    archive.run(found)
    loaded = ledger_file.load(str(archive.output))
    assert loaded is not None
    assert (list(loaded.known), loaded.failures) == (["c.wav"], [])


def test_what_an_older_reader_failed_on_is_not_carried_over(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        archive.add(f"{name}.wav", header_of(16_000))
    archive.run(archive.plan(), reason=Reason.TRUNCATED, detail="ends early")
    monkeypatch.setattr(plan, "READER_VERSION", plan.READER_VERSION + 1)
    gone = {"max_removed_fraction": 1}
    (archive.input / "b.wav").unlink()
    found = archive.plan(**gone)
    assert (names_of(found), found.carries) == ({"a.wav", "c.wav"}, [])
    # What failed is the one that left.
    (archive.input / "a.wav").unlink()
    found = archive.plan(**gone)
    assert (found.todo, [spans(found, one.shard) for one in found.carries]) == ([], [{"c.wav"}])


def test_too_many_removed_recordings_are_a_mistake_of_the_input(archive: Archive) -> None:
    for number in range(10):
        archive.add(f"{number}.wav")
    archive.run(archive.plan())
    for number in (3, 7):
        (archive.input / f"{number}.wav").unlink()
    with pytest.raises(ConfigError) as caught:
        archive.plan()
    assert str(caught.value) == (
        f"2 of 10 recordings known to {archive.output} are not in this input (first: 3.wav), and "
        "their rows would go; use another output, or set max_removed_fraction: 1"
    )
    assert archive.plan(max_removed_fraction=0.2).changes.n_removed == 2


def test_names_of_a_manifest_that_lead_nowhere_count_as_removed(archive: Archive) -> None:
    for number in range(10):
        archive.add(f"{number}.wav")
    manifest = archive.input.parent / "table.csv"
    manifest.write_text("\n".join(["uri", *(f"{number}.wav" for number in range(10))]))
    listed = {"manifest": str(manifest)}
    archive.run(archive.plan(input=listed))
    for number in (3, 7):
        (archive.input / f"{number}.wav").unlink()
    with pytest.raises(ConfigError, match=r"2 of 10 recordings .* are not in this input"):
        archive.plan(input=listed)
    assert archive.plan(input=listed, max_removed_fraction=0.2).changes.n_changed == 2


def test_one_of_ten_may_go_without_a_word(archive: Archive) -> None:
    for number in range(10):
        archive.add(f"{number}.wav")
    archive.run(archive.plan())
    (archive.input / "3.wav").unlink()
    assert archive.plan().changes == Changes(n_removed=1)


def test_a_part_that_somebody_deleted_is_made_again(archive: Archive) -> None:
    for number in range(20):
        archive.add(f"{number:02}.wav")
    archive.run(archive.plan())
    gone = sorted((archive.output / "embeddings").rglob("*.parquet"))[0]
    gone.unlink()
    found = archive.plan()
    assert [work.shard.id for work in found.todo] == [gone.stem]
    assert gone.stem not in {shard for _, shard in found.ledger.accounted()}


def test_parts_put_by_a_run_that_was_killed_are_entered(archive: Archive) -> None:
    for number in range(20):
        archive.add(f"{number:02}.wav")
    first = archive.plan()
    ledger_file.save(first.job.output, first.ledger)
    archive.run(first, skip=1, save=False)
    found = archive.plan()
    assert [work.shard.id for work in found.todo] == [first.todo[0].shard.id]
    assert len(found.ledger.accounted()) == len(first.todo) - 1


def test_a_lost_ledger_is_rebuilt_from_the_parts(archive: Archive) -> None:
    for number in range(12):
        archive.add(f"{number:02}.wav", header_of(16_000 * 500))
    first = archive.plan()
    archive.run(first, skip=2, reason=Reason.NONFINITE_VECTOR, detail="NaN")
    for name in (ledger_file.RECORDINGS_KEY, ledger_file.FAILURES_KEY):
        (archive.output / name).unlink()
    found = archive.plan()
    assert len(archive.probed) == 12
    kept = {work.shard.id for work in first.todo[2:]}
    assert kept <= set(found.shards)
    assert not kept & {work.shard.id for work in found.todo}
    assert {shard for _, shard in found.ledger.accounted()} == kept
    assert {failure.shard for failure in found.ledger.failures} == kept
    assert not any(found.superseded.values())
    tiles(found)


def test_a_lost_ledger_does_not_take_parts_of_recordings_that_changed(archive: Archive) -> None:
    first = long_and_short(archive)
    archive.run(first)
    (archive.output / ledger_file.RECORDINGS_KEY).unlink()
    archive.add("short.wav", body="another sound")
    old = {shard for shard in first.shards if "short.wav" in spans(first, shard)}
    found = archive.plan(shard_minutes=5.5)
    assert not old & set(found.shards)
    # Nor does it forget the rows of the others in them.
    assert names_of(found) == {"short.wav"}
    assert carried(found) == {shard: spans(first, shard) - {"short.wav"} for shard in old}
    superseded = [entry.key for entries in found.superseded.values() for entry in entries]
    assert {key.removesuffix(".parquet") for key in superseded} == old
    tiles(found)


def test_overlapping_parts_are_taken_once_when_the_ledger_is_lost(archive: Archive) -> None:
    first = long_and_short(archive)
    archive.run(first)
    (archive.output / ledger_file.RECORDINGS_KEY).unlink()
    # Other shards of the same recordings: a successor's parts before the old ones were deleted.
    other = archive.plan(shard_minutes=5.5)
    for name in (ledger_file.RECORDINGS_KEY, ledger_file.FAILURES_KEY):
        (archive.output / name).unlink(missing_ok=True)
    for entry in other.ledger.known.values():
        entry.pieces, entry.outcomes = [], {}
    job = other.job.model_copy(update={"shard_minutes": 20.0})
    fresh = Plan(job, other.encoders, other.ledger, other.listing)
    plan._form_new_shards(fresh)
    fresh.shards = fresh.ledger.shards()
    fresh.todo = [plan.Work(shard, fresh.datasets) for shard in fresh.shards.values()]
    archive.run(fresh, save=False)
    found = archive.plan(shard_minutes=5.5)
    tiles(found)
    taken = set(found.shards) & (set(first.shards) | set(fresh.shards))
    assert taken
    n_superseded = sum(len(entries) for entries in found.superseded.values())
    assert n_superseded == len(set(first.shards) | set(fresh.shards)) - len(taken)


def test_unreadable_recordings_are_not_read_again(archive: Archive) -> None:
    archive.add("a.wav")
    archive.add("notes.wav", Reason.UNSUPPORTED)
    archive.add("far.wav", Reason.STORAGE)
    found = archive.plan()
    assert state_of(found.ledger.known["notes.wav"], found.datasets) == "failed"
    assert state_of(found.ledger.known["far.wav"], found.datasets) == "pending"
    assert names_of(found) == {"a.wav"}
    archive.run(found)
    archive.headers["far.wav"] = header_of(16_000)
    found = archive.plan()
    # A store that did not answer may answer now; a text file stays one.
    assert archive.probed == ["far.wav"]
    assert names_of(found) == {"far.wav"}
    assert found.ledger.known["far.wav"].failure is None


def test_a_newer_reader_looks_again_at_what_an_older_one_refused(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add("a.wav")
    archive.add("odd.wav", Reason.UNSUPPORTED)
    archive.run(archive.plan())
    monkeypatch.setattr(inventory, "READER_VERSION", inventory.READER_VERSION + 1)
    archive.headers["odd.wav"] = header_of(16_000)
    found = archive.plan()
    assert archive.probed == ["odd.wav"]
    assert names_of(found) == {"odd.wav"}


def test_a_header_whose_reading_kills_the_worker_is_a_failure(archive: Archive) -> None:
    archive.add("a.wav")
    archive.add("bomb.wav")
    archive.silent.add("bomb.wav")
    found = archive.plan()
    failure = found.ledger.known["bomb.wav"].failure
    assert failure is not None
    assert (failure.reason, failure.detail) == (
        Reason.CRASHED,
        "reading its header killed the worker",
    )
    assert names_of(found) == {"a.wav"}


def test_containers_are_opened_once(archive: Archive) -> None:
    (archive.input / "a.tar").write_text("one")
    (archive.input / "b.tar").write_text("two")
    archive.inside = {"a.tar": ["x.wav", "y.wav"], "b.tar": ["x.wav"]}
    found = archive.plan()
    assert sorted(archive.opened) == ["a.tar", "b.tar"]
    assert list(found.ledger.known) == ["a.tar/x.wav", "a.tar/y.wav", "b.tar/x.wav"]
    archive.run(found)
    assert (archive.plan().todo, archive.opened) == ([], [])
    (archive.input / "b.tar").write_text("three")
    found = archive.plan()
    assert archive.opened == ["b.tar"]
    assert found.changes == Changes(n_changed=1)


def stands(archive: Archive) -> dict[str, dict[str, object]]:
    """Return name -> labels of what recordings/ says, through DuckDB."""
    table = f"'{archive.output}/recordings/recordings.parquet'"
    rows = duckdb.sql(f"SELECT * FROM {table} ORDER BY recording").fetchall()
    titles = [one[0] for one in duckdb.sql(f"DESCRIBE {table}").fetchall()]
    own = [place for place, title in enumerate(titles) if title not in RECORDINGS.names]
    return {
        row[titles.index("recording")]: {titles[place]: row[place] for place in own} for row in rows
    }


def test_exclude_reaches_into_containers_that_did_not_change(archive: Archive) -> None:
    archive.add("z.wav")
    (archive.input / "a.tar").write_text("one")
    (archive.input / "b.tar").write_text("two")
    archive.inside = {"a.tar": ["x.wav", "night/y.wav", "night/z.wav"], "b.tar": ["x.wav"]}
    archive.run(archive.plan())
    night = {"input": {"exclude": ["*/night/*"]}, "max_removed_fraction": 0.5}
    found = archive.plan(**night)
    assert (found.changes, archive.opened) == (Changes(n_removed=2), [])
    assert found.listing.left_out.count(Kind.NOT_SELECTED) == 2
    archive.run(found)
    assert list(stands(archive)) == ["a.tar/x.wav", "b.tar/x.wav", "z.wav"]
    # What was left out is known without opening it again.
    found = archive.plan(**night)
    assert (found.changes, found.todo, archive.opened) == (Changes(), [], [])
    assert found.listing.left_out.examples[Kind.NOT_SELECTED] == [
        "a.tar/night/y.wav",
        "a.tar/night/z.wav",
    ]
    more = {"input": {"exclude": ["*/night/*", "b.tar/*"]}, "max_removed_fraction": 0.5}
    found = archive.plan(**more)
    assert (found.changes, archive.opened) == (Changes(n_removed=1), [])
    # Without the globs what they hid is back; nothing was hidden in the other container.
    found = archive.plan()
    assert (found.changes, archive.opened) == (Changes(n_new=2), ["a.tar"])
    archive.run(found)
    assert len(stands(archive)) == 5


def test_include_chooses_containers_as_a_whole(archive: Archive) -> None:
    for name in ("a.tar", "b.tar"):
        (archive.input / name).write_text(name)
    archive.inside = {"a.tar": ["x.wav", "y.flac"], "b.tar": ["x.wav"]}
    archive.run(archive.plan())
    found = archive.plan(input={"include": ["a.*"]}, max_removed_fraction=0.5)
    assert (found.changes, archive.opened) == (Changes(n_removed=1), [])
    assert list(found.ledger.known) == ["a.tar/x.wav", "a.tar/y.flac"]
    assert found.listing.left_out.examples[Kind.NOT_SELECTED] == ["b.tar"]
    archive.run(found)
    assert (archive.plan().changes, archive.opened) == (Changes(n_new=1), ["b.tar"])


def test_other_globs_open_a_container_of_which_something_was_excluded(archive: Archive) -> None:
    (archive.input / "a.tar").write_text("one")
    archive.inside = {"a.tar": ["night/y.wav", "day/x.wav", "dusk/x.wav"]}
    archive.run(archive.plan(input={"exclude": ["*/night/*"]}))
    found = archive.plan(input={"exclude": ["*/day/*"]}, max_removed_fraction=1)
    assert archive.opened == ["a.tar"]
    assert list(found.ledger.known) == ["a.tar/dusk/x.wav", "a.tar/night/y.wav"]


def test_new_labels_of_a_container_reach_its_members(archive: Archive) -> None:
    for name in ("a.tar", "b.tar"):
        (archive.input / name).write_text(name)
    archive.inside = {"a.tar": ["x.wav", "y.wav"], "b.tar": ["x.wav"]}
    archive.beside = {"a.tar/y.wav": {"reef": "own", "call": "whistle"}}
    table = archive.input.parent / "table.csv"
    listed = {"input": {"manifest": str(table)}}
    table.write_text("uri,reef,depth\na.tar,north,3\nb.tar,south,4\n")
    archive.run(archive.plan(**listed))
    assert stands(archive) == {
        "a.tar/x.wav": {"reef": "north", "depth": 3, "call": None},
        "a.tar/y.wav": {"reef": "own", "depth": 3, "call": "whistle"},
        "b.tar/x.wav": {"reef": "south", "depth": 4, "call": None},
    }
    table.write_text("uri,reef,crew\na.tar,west,me\nb.tar,south,you\n")
    found = archive.plan(**listed)
    assert (found.changes, found.todo, archive.opened) == (Changes(), [], [])
    ledger_file.save(found.job.output, found.ledger)
    expected = {
        "a.tar/x.wav": {"reef": "west", "crew": "me", "call": None},
        # What stands beside a member counts more than what stands beside its container.
        "a.tar/y.wav": {"reef": "own", "crew": "me", "call": "whistle"},
        "b.tar/x.wav": {"reef": "south", "crew": "you", "call": None},
    }
    assert stands(archive) == expected
    again = archive.plan(**listed)
    assert (again.changes, archive.opened) == (Changes(), [])
    ledger_file.save(again.job.output, again.ledger)
    assert stands(archive) == expected


def test_members_are_listed_again_where_the_root_of_their_names_moved(archive: Archive) -> None:
    (archive.input / "sub").mkdir()
    (archive.input / "sub" / "a.tar").write_text("one")
    archive.inside = {"sub/a.tar": ["x.wav"], "a.tar": ["x.wav"]}
    archive.run(archive.plan())
    found = archive.plan(input={"uri": str(archive.input / "sub")}, max_removed_fraction=1)
    assert archive.opened == ["a.tar"]
    assert list(found.ledger.known) == ["a.tar/x.wav"]


def test_containers_without_audio_are_an_error(archive: Archive) -> None:
    (archive.input / "a.tar").write_text("one")
    with pytest.raises(InputError, match="1 tar or Parquet objects hold none; left out: nothing"):
        archive.plan()


def test_moved_copies_of_the_same_objects_are_not_done_again(archive: Archive) -> None:
    archive.add("a.wav")
    archive.run(archive.plan())
    moved = archive.input.with_name("moved")
    archive.input.rename(moved)
    archive.input = moved
    found = archive.plan()
    assert (found.todo, found.changes) == ([], Changes())
    assert found.ledger.known["a.wav"].recording.source.uri == str(moved / "a.wav")


def test_a_lost_ledger_takes_no_shard_that_overlaps_one_it_has(archive: Archive) -> None:
    archive.add("a.wav", header_of(16_000 * 60))
    found = archive.plan()
    source = found.ledger.known["a.wav"].recording.source
    header = header_of(16_000 * 60)
    bounds: list[list[tuple[int, int | None]]] = [
        [(0, 600), (700, None)],
        [(500, 700)],
        [(600, 700)],
    ]
    shards = [Shard(tuple(Span("a.wav", source, header, *b) for b in own)) for own in bounds]
    dataset = found.datasets[0]
    read = [
        (PartOutcome(dataset, shard.id, (), ()), [span_to_json(span) for span in shard.spans])
        for shard in shards
    ]
    for order in (read, read[::-1]):
        ledger = Ledger({"a.wav": replace(found.ledger.known["a.wav"], pieces=[])})
        recover(ledger, order)
        taken = {piece.shard for piece in ledger.known["a.wav"].pieces}
        # Of two that overlap the first in name order stands, and what fits beside it.
        overlapping = [shard.id for shard in shards[:2]]
        assert len(taken & set(overlapping)) == 1
        edges = sorted((p.start, p.stop or 10**9) for p in ledger.known["a.wav"].pieces)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(edges))


def test_a_lost_ledger_takes_no_part_under_a_wrong_name(archive: Archive) -> None:
    archive.add("a.wav")
    found = archive.plan()
    (shard,) = found.shards.values()
    listed = [span_to_json(span) for span in shard.spans]
    ledger = Ledger({"a.wav": replace(found.ledger.known["a.wav"], pieces=[])})
    recover(ledger, [(PartOutcome(found.datasets[0], "0" * 20, (), ()), listed)])
    assert ledger.known["a.wav"].pieces == []
    recover(ledger, [(PartOutcome(found.datasets[0], shard.id, (), ()), listed)])
    assert [piece.shard for piece in ledger.known["a.wav"].pieces] == [shard.id]
