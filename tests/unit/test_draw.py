"""Which shards a fit draws on: as many as hold its rows, counted by what came where that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bioembed_ray import versions
from bioembed_ray.codebooks.sample import SampleRule
from bioembed_ray.coverage import Coverage
from bioembed_ray.draw import drawn_shards, until_drawn
from bioembed_ray.outcomes import PartOutcome, SpanOutcome
from tests.unit.made_up_archive import Archive
from tests.unit.references import FakeRegistry, window_encoder

WINDOWS = replace(window_encoder().facts, rate_hz=16_000)
# A recording of a minute has 120 windows of half a second.
RULE = SampleRule(frames=100, held_out=0.0)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    registry = FakeRegistry({"fake": WINDOWS})
    monkeypatch.setattr(versions, "registry", registry)
    found = Archive(tmp_path, registry)
    for number in range(12):
        found.add(f"{number:02}.wav")
    return found


def test_shards_that_held_nothing_are_made_up_for_by_others(archive: Archive) -> None:
    plan = archive.plan()
    (encoder,) = plan.encoders
    expected = drawn_shards(plan, encoder, RULE, None)
    per_shard = 120 * len(plan.shards[expected[0]].spans) * 0.5 / (encoder.rule.hop / 16_000)
    assert len(expected) == -(-2 * RULE.frames // per_shard)
    by_id = {work.shard.id: work for work in plan.todo}
    rounds = []
    for todo in until_drawn(
        lambda: [by_id[shard] for shard in drawn_shards(plan, encoder, RULE, None)]
    ):
        rounds.append([work.shard.id for work in todo])
        for work in todo:
            # Headers promised a minute each, and nothing came of the first shards.
            n = 0 if len(rounds) == 1 else 16_000 * 60
            became = [
                SpanOutcome(span.recording, n, n, 0, 0, Coverage(failed=16_000 * 60))
                for span in work.shard.spans
            ]
            outcome = PartOutcome(encoder.datasets[0], work.shard.id, tuple(became), ())
            plan.ledger.absorb(outcome)
    assert rounds[0] == expected
    assert len(rounds) == 2
    assert len(rounds[1]) == len(expected)
    assert not set(rounds[0]) & set(rounds[1])
    assert drawn_shards(plan, encoder, RULE, None) == sorted(rounds[0] + rounds[1])


def test_an_archive_that_holds_too_little_ends_the_search(archive: Archive) -> None:
    plan = archive.plan()
    (encoder,) = plan.encoders
    rule = SampleRule(frames=10**9, held_out=0.0)
    by_id = {work.shard.id: work for work in plan.todo}
    rounds = list(
        until_drawn(lambda: [by_id[shard] for shard in drawn_shards(plan, encoder, rule, None)])
    )
    assert [len(todo) for todo in rounds] == [len(plan.shards)]
