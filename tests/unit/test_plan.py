"""Wanted minus standing, with headers and parts that are made up: no audio, no Ray."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bioembed_ray import parts, plan, storage, versions
from bioembed_ray.datasets import Dataset
from bioembed_ray.encoders.base import FrameGrid
from bioembed_ray.errors import ConfigError, Reason
from bioembed_ray.inventory import Changes
from bioembed_ray.plan import list_again, make_plan
from bioembed_ray.plan_text import describe_plan
from bioembed_ray.segments import span_stamp
from tests.unit.made_up_archive import WINDOWS, Archive, names_of, tiles
from tests.unit.references import FakeRegistry, header_of


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    registry = FakeRegistry({"fake": WINDOWS})
    monkeypatch.setattr(versions, "registry", registry)
    return Archive(tmp_path, registry)


def test_a_first_plan_wants_everything(archive: Archive) -> None:
    for number in range(5):
        archive.add(f"site/{number}.wav", header_of(16_000 * 1000 * (number + 1)))
    found = archive.plan()
    assert found.changes == Changes(n_new=5)
    assert sorted(archive.probed) == [f"site/{number}.wav" for number in range(5)]
    assert len(found.todo) == len(found.shards)
    tiles(found)
    lengths = [plan.work_seconds(work, found.job) for work in found.todo]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(lengths) == 15_000
    assert not archive.output.exists(), "planning writes nothing"


def test_tables_of_an_output_inside_the_input_are_not_read(archive: Archive) -> None:
    archive.output = archive.input / "out"
    archive.add("a.wav")
    archive.run(archive.plan())
    include = {"input": {"include": ["**/*.wav", "**/*.parquet"]}}
    found = archive.plan(**include)
    assert (found.todo, found.changes, archive.opened) == ([], Changes(), [])
    archive.add("embeddings/own.parquet")
    archive.inside["embeddings/own.parquet"] = ["0"]
    archive.plan(**include)
    assert archive.opened == ["embeddings/own.parquet"], (
        "only what lies below the output is left out"
    )


def test_the_order_of_answers_does_not_matter(archive: Archive) -> None:
    for name in "dbac":
        archive.add(f"{name}.wav")
    found = archive.plan()
    assert list(found.ledger.known) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    backwards = make_plan(
        found.job, lambda todo: reversed(list(archive.probe(todo))), archive.members
    )
    assert set(backwards.shards) == set(found.shards)


def test_after_a_run_nothing_is_left(archive: Archive) -> None:
    for name in "abc":
        archive.add(f"{name}.wav")
    archive.run(archive.plan())
    found = archive.plan()
    assert (found.todo, found.changes, archive.probed) == ([], Changes(), [])
    assert not any(found.superseded.values())


def test_a_partition_is_listed_once_while_nothing_is_put(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add("a.wav")
    listed = []
    really = parts.list_parts

    def watched(output: str, dataset: Dataset) -> Any:
        listed.append(dataset)
        return really(output, dataset)

    monkeypatch.setattr(parts, "list_parts", watched)
    found = archive.plan()
    list_again(found, found.encoders)
    assert listed == list(found.datasets)
    archive.run(found)
    found.listed.clear()
    list_again(found, found.encoders)
    assert found.todo == []


def test_what_was_not_done_is_left_and_only_that(archive: Archive) -> None:
    for number in range(20):
        archive.add(f"{number:02}.wav")
    first = archive.plan()
    assert len(first.todo) > 4
    archive.run(first, skip=3)
    found = archive.plan()
    assert {work.shard.id for work in found.todo} == {work.shard.id for work in first.todo[:3]}
    assert set(found.shards) == set(first.shards)


def test_new_recordings_form_new_shards(archive: Archive) -> None:
    for name in "bd":
        archive.add(f"{name}.wav")
    first = archive.plan()
    archive.run(first)
    for name in "ac":
        archive.add(f"{name}.wav")
    found = archive.plan()
    assert found.changes == Changes(n_new=2)
    assert sorted(archive.probed) == ["a.wav", "c.wav"]
    assert names_of(found) == {"a.wav", "c.wav"}
    assert set(first.shards) < set(found.shards)
    assert not any(found.superseded.values())
    tiles(found)


def test_a_new_encoder_version_wants_everything_in_the_same_shards(archive: Archive) -> None:
    for number in range(20):
        archive.add(f"{number:02}.wav")
    first = archive.plan()
    archive.run(first)
    archive.registry.digests["fake"] = "w1"
    found = archive.plan()
    assert archive.probed == []
    assert set(found.shards) == set(first.shards)
    assert len(found.todo) == len(first.todo)
    assert found.datasets != first.datasets
    archive.run(found)
    # Both versions stand, and neither is touched again.
    assert archive.plan().todo == []
    archive.registry.digests["fake"] = "w0"
    assert archive.plan().todo == []


@pytest.mark.parametrize("encoder", [None, "fake"])
def test_a_newer_reader_does_failed_shards_again_and_then_no_more(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, encoder: str | None
) -> None:
    for number in range(20):
        archive.add(f"{number:02}.wav")
    first = archive.plan()
    version = first.encoders[0].outputs[0].embeddings.version
    about: dict[str, Any] = {
        "encoder": encoder,
        "version": version if encoder else None,
        "detail": "x",
    }
    archive.run(first, reason=Reason.TRUNCATED, **about)
    assert archive.plan().todo == []
    monkeypatch.setattr(plan, "READER_VERSION", versions.READER_VERSION + 1)
    found = archive.plan()
    assert len(found.todo) == len(first.todo)
    archive.run(found, reason=Reason.TRUNCATED, reader_version=versions.READER_VERSION + 1, **about)
    assert archive.plan().todo == []


def test_failures_of_an_encoder_that_nobody_wants_any_more_start_nothing(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add("a.wav")
    first = archive.plan()
    version = first.encoders[0].outputs[0].embeddings.version
    about: dict[str, Any] = {"encoder": "fake", "version": version, "detail": "x"}
    archive.run(first, reason=Reason.NONFINITE_VECTOR, **about)
    archive.registry.digests["fake"] = "w1"
    archive.run(archive.plan())
    monkeypatch.setattr(plan, "READER_VERSION", versions.READER_VERSION + 1)
    assert archive.plan().todo == []


def test_a_recording_of_unknown_length_is_one_open_segment(archive: Archive) -> None:
    archive.add("stream.ogg", header_of(None))
    found = archive.plan()
    (work,) = found.todo
    assert [(span.start, span.stop) for span in work.shard.spans] == [(0, None)]


def test_ultrasound_that_the_encoder_cannot_hear_is_noted(archive: Archive) -> None:
    archive.add("bird.wav", header_of(48_000 * 5, 48_000))
    archive.add("bat.wav", header_of(384_000 * 5, 384_000))
    archive.add("bat2.wav", header_of(250_000 * 5, 250_000))
    assert archive.plan().notes == [
        "fake: up to 8 kHz is heard, 3 recordings hold up to 192 kHz; set "
        "input.time_expansion: 24 to keep all of it"
    ]
    assert archive.plan(input={"time_expansion": 10}).notes == [
        "fake: up to 80 kHz is heard, 1 recordings hold up to 192 kHz; set "
        "input.time_expansion: 24 to keep all of it"
    ]
    assert archive.plan(input={"time_expansion": 24}).notes == []


def test_random_weights_and_lossy_precision_are_noted(archive: Archive) -> None:
    archive.add("a.wav", header_of(16_000))
    archive.registry.facts["fake"] = replace(WINDOWS, keeps={"bfloat16": 0.98, "float16": 0.9999})
    assert archive.plan(encoder_weights="random").notes == [
        "fake: RANDOM weights, the vectors mean nothing"
    ]
    assert archive.plan(encoder_precision="bfloat16").notes == [
        "fake keeps a cosine of only 0.98 to float32 in bfloat16; use float32"
    ]
    assert archive.plan(encoder_precision="float16").notes == []


def test_whole_recordings_are_never_cut_and_do_not_mix_with_cut_ones(archive: Archive) -> None:
    whole = FrameGrid(None, 0, joins_tail=True, stride=320, receptive=400)
    archive.add("a.wav", header_of(16_000 * 4000))
    first = archive.plan()
    archive.run(first)
    archive.registry.facts["fake"] = replace(WINDOWS, grid=whole, embeds=False)
    with pytest.raises(
        ConfigError, match="block_s: got 'whole', but 1 recordings already stand in pieces"
    ):
        archive.plan()
    archive.output = archive.output.with_name("other")
    found = archive.plan()
    assert [(s.start, s.stop) for work in found.todo for s in work.shard.spans] == [(0, None)]


def test_another_time_expansion_keeps_shards_and_gets_a_version_of_its_own(
    archive: Archive,
) -> None:
    archive.add("a.wav", header_of(16_000 * 1000))
    first = archive.plan()
    archive.run(first)
    found = archive.plan(input={"time_expansion": 10})
    assert set(found.shards) == set(first.shards)
    assert len(found.todo) == len(first.todo)
    assert found.datasets != first.datasets


def test_stamps_in_parts_are_those_of_the_listing(archive: Archive) -> None:
    archive.add("a.wav")
    found = archive.plan()
    archive.run(found)
    (entry,) = parts.list_parts(str(archive.output), found.datasets[0]).values()
    _, listed = parts.read_outcome(entry)
    source = found.ledger.known["a.wav"].recording.source
    assert [span["stamp"] for span in listed] == [span_stamp(source)]


def test_nothing_new_takes_the_same_requests_and_no_object_whatever_the_number_of_recordings(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        really = getattr(storage, name)

        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return really(*arguments)

        return call

    for name in ("read", "read_range", "stat_object", "list_objects", "put"):
        monkeypatch.setattr(storage, name, counted(name))
    seen = []
    for n_recordings in (3, 60):
        for number in range(n_recordings):
            archive.add(f"{number:02}.wav")
        archive.run(archive.plan())
        counts.clear()
        found = archive.plan()
        list_again(found, found.encoders)
        list(describe_plan(found))
        assert (found.todo, found.changes, archive.probed) == ([], Changes(), [])
        assert len(found.ledger.known) == n_recordings
        assert found.ledger.known.active == {}
        seen.append(dict(counts))
    assert len(found.shards) > 10
    # The ledger's two tables, and current.json; the input, and the one partition.
    assert seen == [{"read": 3, "list_objects": 2}] * 2
    for number in range(2):
        archive.add(f"new{number}.wav")
    counts.clear()
    found = archive.plan()
    assert archive.probed == ["new1.wav", "new0.wav"]
    assert set(found.ledger.known.active) == names_of(found) == {"new0.wav", "new1.wav"}
    assert counts == {"read": 2, "list_objects": 2}
