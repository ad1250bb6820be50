"""Parts made of rows that stand: copied for the recordings that stay, nothing is decoded or encoded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import lease, parts, storage
from bioembed_ray.carry import Carry
from bioembed_ray.errors import BrokenOutput, StorageError
from bioembed_ray.outcomes import PartOutcome, outcome_from_json, outcome_to_json
from bioembed_ray.plan import Plan
from bioembed_ray.summary import Tally
from bioembed_ray.threads import in_turn

# A store takes longer to answer than a part takes to be copied.
THREADS = 16
# Of parts under way at once, unless one alone is larger; measured, memory grows by up to nine times as much.
BYTES_UNDER_WAY = 64 << 20


def carry_over(
    plan: Plan,
    carries: Sequence[Carry],
    tally: Tally,
    lost: lease.Lost,
    say: Callable[[str], None],
) -> None:
    """Put parts made of rows that stand, and enter them in ledger and tally.

    The old parts stay: they are deleted once all of their partition stands.

    Raises:
        BrokenOutput: an old part cannot be read.
        LockedError: another run took the output over.
        StorageError: reading or writing failed.
    """
    if carries:
        say(f"carrying rows that stand over into {len(carries)} parts; nothing of them is encoded")
    for dataset, group in itertools.groupby(carries, key=lambda carry: carry.dataset):
        alike = list(group)
        largest = max(carry.source.size_bytes for carry in alike)
        n_threads = max(1, min(THREADS, BYTES_UNDER_WAY // max(1, largest)))
        calls = (
            (plan.job.output, one, {span.recording for span in plan.shards[one.shard].spans})
            for one in alike
        )
        plan.listed.pop(dataset, None)
        try:
            for outcome in in_turn(carry_part, calls, n_threads):
                lost.check()
                plan.ledger.absorb(outcome)
                tally.n_carried += 1
        except StorageError as error:
            raise type(error)(f"{error}; what was put stays, run again") from error


def carry_part(output: str, carry: Carry, names: Collection[str]) -> PartOutcome:
    """Put one part made of the rows of some recordings of another; return what it says of itself.

    Args:
        output: The output.
        carry: From where to where.
        names: The recordings of the new part.

    Raises:
        BrokenOutput: the old part cannot be read, or holds other rows than it says.
        StorageError: reading or writing failed.
    """
    try:
        table = parts.read_table(carry.source)
    except (pa.ArrowInvalid, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise BrokenOutput(
            f"{carry.source.uri}: cannot be read ({text}); delete it and run again"
        ) from error
    facts = parts.metadata_of(carry.source, table.schema)
    outcome = without_others(outcome_from_json(json.loads(facts["outcome"])), carry.shard, names)
    spans = [span for span in json.loads(facts["spans"]) if span["recording"] in names]
    facts |= {
        "shard": carry.shard,
        "spans": json.dumps(spans),
        "outcome": json.dumps(outcome_to_json(outcome)),
    }
    stay = pc.is_in(table.column("recording"), pa.array(sorted(names), pa.string()))
    table = table.filter(stay)
    n_rows = sum(span.n_rows for span in outcome.spans)
    if table.num_rows != n_rows:
        raise BrokenOutput(
            f"{carry.source.uri}: holds {table.num_rows} rows of recordings that stay, and says "
            f"{n_rows}; delete it and run again"
        )
    body = parts.file_bytes(table, facts)
    storage.put(parts.part_uri(output, carry.dataset, carry.shard), body)
    return outcome


def without_others(outcome: PartOutcome, shard: str, names: Collection[str]) -> PartOutcome:
    """Return what became of some recordings of a shard, which now are a shard of their own.

    Which of them had their vectors compared nobody says, so none count as compared.
    """
    return replace(
        outcome,
        shard=shard,
        spans=tuple(span for span in outcome.spans if span.recording in names),
        failures=tuple(
            replace(failure, shard=shard)
            for failure in outcome.failures
            if failure.recording in names
        ),
        n_checked=0,
        n_distinct=0,
    )
