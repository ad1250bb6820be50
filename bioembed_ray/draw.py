"""Which shards a fit draws on, and the groups that share its sample."""

from __future__ import annotations

from collections.abc import Mapping

from bioembed_ray.codebooks.sample import SampleRule
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.errors import ConfigError
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.plan import Plan

# A fit draws on whole shards; twice the rows it takes leaves it a choice between them.
SURPLUS = 2


def drawn_shards(
    plan: Plan, encoder: PlannedEncoder, sample: SampleRule, groups: Mapping[str, str] | None
) -> list[str]:
    """Return the ids of the shards that a fit draws on, ascending.

    They are taken in that order until they hold `SURPLUS` times the rows of the fit, and every
    group its share. Ids are digests, so the order is none of place or time.

    Args:
        plan: Knows the shards.
        encoder: Whose frames, or windows where it has none, are the rows.
        sample: How many rows.
        groups: Recording -> group; None takes all alike.
    """
    grid = encoder.facts.grid
    step = encoder.rule.hop if grid is None else grid.stride / grid.per_step
    per_second = encoder.facts.rate_hz * plan.job.input.time_expansion / step
    goal = sample.frames * SURPLUS / (1 - sample.held_out)
    names: set[str | None] = {None} if groups is None else set(groups.values())
    shares = dict.fromkeys(names, goal / len(names))
    drawn = []
    for shard in sorted(plan.shards):
        if not any(share > 0 for share in shares.values()):
            break
        rows: dict[str | None, float] = {}
        for span in plan.shards[shard].spans:
            group = None if groups is None else groups[span.recording]
            n_channels = span.header.channels if plan.job.input.channels == "each" else 1
            seconds = span.planned / span.header.rate_hz
            rows[group] = rows.get(group, 0.0) + seconds * per_second * n_channels
        if not any(shares[group] > 0 for group in rows):
            continue
        drawn.append(shard)
        for group, count in rows.items():
            shares[group] -= count
    return drawn


def groups_of(ledger: Ledger, column: str | None, key: str) -> dict[str, str] | None:
    """Return recording -> value of the column to balance by, None where none is asked for.

    Args:
        ledger: Knows the manifest's columns.
        column: The column.
        key: The setting that asks for it, for messages.

    Raises:
        ConfigError: the manifest has no such column.
    """
    if column is None:
        return None
    labels = {recording.name: recording.labels for recording in ledger.known.recordings()}
    if not any(column in found for found in labels.values()):
        known = sorted({label for found in labels.values() for label in found})
        raise ConfigError(
            f"{key}: got {column!r}; the manifest has {', '.join(known) or 'no columns'}"
        )
    return {name: str(found.get(column)) for name, found in labels.items()}
