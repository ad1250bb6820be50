"""What a run did, shard by shard."""

from __future__ import annotations

from dataclasses import replace

from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason
from bioembed_ray.outcomes import Failure, PartOutcome
from bioembed_ray.plan import Work
from bioembed_ray.segments import Shard, Span
from bioembed_ray.summary import Tally
from bioembed_ray.work import Receipt
from tests.unit.references import header_of, source_named

WINDOWS = Dataset("embeddings", "fake", "v")
WORK = Work(Shard((Span("a.wav", source_named("a.wav"), header_of(16_000), 0, None),)), (WINDOWS,))
FAILED = Receipt(
    WORK.shard.id, failures=[Failure("a.wav", Reason.STORAGE, "no answer", shard=WORK.shard.id)]
)
DONE = Receipt(WORK.shard.id, [PartOutcome(WINDOWS, WORK.shard.id, (), ())])


def test_a_shard_that_succeeds_after_it_failed_is_committed() -> None:
    tally = Tally()
    tally.add(WORK, FAILED, 1.0)
    assert (list(tally.uncommitted), tally.transient) == (
        [WORK.shard.id],
        ["a.wav: storage: no answer"],
    )
    tally.add(WORK, DONE, 1.0)
    assert (tally.uncommitted, tally.transient) == ({}, [])
    # Gone through twice, and yet as much sound as it holds.
    assert (tally.n_shards, tally.audio_s) == (1, 1.0)


def test_a_shard_that_fails_again_says_why_it_did_last() -> None:
    tally = Tally()
    tally.add(WORK, FAILED, 1.0)
    tally.add(WORK, replace(FAILED, failures=[], put_error="disk full"), 1.0)
    tally.waiting = ["b.wav: storage: no answer"]
    assert tally.transient == ["disk full", "b.wav: storage: no answer"]


def test_a_shard_whose_workers_died_names_its_recordings() -> None:
    tally = Tally()
    tally.add(WORK, Receipt(WORK.shard.id, is_poisoned=True), 1.0)
    assert tally.transient == ["workers kept dying on the shard with a.wav"]
