"""The output against its own promises: every window once, where it belongs, every second accounted for.

Nothing of the stream is reused to count: expected windows, frames and tokens come from the ledger's
decoded lengths and the rule that each part states (`verify_rows.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import parts, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import BrokenOutput, InputError, StorageError
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.outcomes import PartOutcome
from bioembed_ray.partitions import list_datasets
from bioembed_ray.segments import Shard, Span
from bioembed_ray.verify_rows import (
    Heard,
    Positions,
    Rule,
    complaints,
    lacks,
    owed,
    positions,
)


def verify(output: str) -> Iterator[str]:
    """Yield every broken promise, one line each.

    Raises:
        InputError: there is no ledger, so nothing to check against.
    """
    ledger = ledger_file.load(output)
    if ledger is None:
        raise InputError(f"{output}: no recordings/; run `bioembed run` first")
    yield from _tiling(ledger)
    shards = ledger.shards()
    datasets = [
        d for table in ("embeddings", "frames", "tokens") for d in list_datasets(output, table)
    ]
    accounted = ledger.accounted()
    for dataset in datasets:
        standing = parts.list_parts(output, dataset)
        is_current = any(known == dataset for known, _ in accounted)
        for shard in sorted(set(standing) - set(shards)):
            if is_current:
                yield f"{standing[shard].uri}: belongs to no shard; the next complete run removes it"
        for shard in sorted(set(shards) & set(standing)):
            if (dataset, shard) not in accounted:
                yield f"{standing[shard].uri}: the ledger does not know it; run again"
            try:
                yield from _check_part(ledger, shards[shard], dataset, standing[shard])
            except (BrokenOutput, StorageError, pa.ArrowInvalid, OSError) as error:
                yield f"{standing[shard].uri}: cannot be read ({' '.join(str(error).split())[:200]})"
        for shard in sorted(shard for known, shard in accounted if known == dataset):
            if shard not in standing:
                yield f"{dataset.prefix}/{shard}.parquet: the ledger has it, the store does not; run again"


def _tiling(ledger: Ledger) -> Iterator[str]:
    """Check that the pieces of every recording lie end to end from 0 to the end."""
    for name, entry in ledger.known.items():
        if entry.header is None:
            continue
        at: int | None = 0
        for piece in entry.pieces:
            if piece.start != at:
                yield f"{name}: pieces do not meet at sample {piece.start}"
            at = piece.stop
        if at is not None:
            yield f"{name}: pieces end at sample {at}, before the recording does"


def _check_part(
    ledger: Ledger, shard: Shard, dataset: Dataset, entry: storage.ObjectInfo
) -> Iterator[str]:
    metadata = parts.read_metadata(entry)
    outcome, _ = parts.read_outcome(entry)
    rule = json.loads(metadata["placement"])
    where = f"{dataset.prefix}/{shard.id}.parquet"
    for span, found in zip(shard.spans, outcome.spans, strict=True):
        lacking = span.missing(found.n_extent)
        expected = (found.n_extent + lacking) * _n_channels(span, rule)
        if found.coverage.total != expected:
            yield f"{where}: {span.recording}: {found.coverage.total} samples accounted for of {expected}"
    table = parts.read_table(entry)
    if dataset.table == "tokens":
        yield from _check_tokens(table, where)
    else:
        values = table.column("embedding").combine_chunks().flatten()
        if not np.isfinite(values.to_numpy(zero_copy_only=False)).all():
            yield f"{where}: holds vectors that are not finite"
    # Parts of before say neither how many frames and tokens they hold, nor where these lie.
    if dataset.table == "embeddings" or "frames_per_step" in rule:
        problems = list(_check_rows(ledger, shard, outcome, rule, table, where))
        yield from problems or _check_counts(table, outcome, where)


def _n_channels(span: Span, rule: Rule) -> int:
    return span.header.channels if rule["channels"] == "each" else 1


def _check_counts(table: pa.Table, outcome: PartOutcome, where: str) -> Iterator[str]:
    """Check that the rows are as many as the part's own account says."""
    said: Counter[str] = Counter()
    for span in outcome.spans:
        said[span.recording] += span.n_rows
    for found in table.column("recording").value_counts().to_pylist():
        said[found["values"]] -= found["counts"]
    for name, more in said.items():
        if more:
            yield f"{where}: {name}: {abs(more)} rows {'fewer' if more > 0 else 'more'} than the part accounts for"


def _check_rows(
    ledger: Ledger, shard: Shard, outcome: PartOutcome, rule: Rule, table: pa.Table, where: str
) -> Iterator[str]:
    """Check that what a span owes stands once and nothing else does, less what failures account for."""
    kind = outcome.dataset.table
    starts: dict[tuple[str, int], list[Positions]] = {}
    unknown = set()
    for span, found in zip(shard.spans, outcome.spans, strict=True):
        n_native = ledger.known[span.recording].n_extent
        for channel in range(_n_channels(span, rule) if found.n_extent else 0):
            if n_native is None:
                unknown.add((span.recording, channel))
                continue
            holes = found.holes[channel if len(found.holes) > 1 else 0] if found.holes else ()
            heard = Heard(rule, span.header.rate_hz, n_native, span.start, span.stop, holes)
            starts.setdefault((span.recording, channel), []).append(owed(kind, heard))
    there = positions(kind, table, rule)
    for (name, channel), owing in starts.items():
        got = there.pop((name, channel), np.zeros(0, np.int64))
        lost = lacks(outcome.failures, name, channel)
        for text in complaints(kind, got, np.concatenate(owing), lost, rule):
            yield f"{where}: {name} channel {channel}: {text}"
    for name, channel in sorted(there.keys() - unknown):
        yield f"{where}: {name} channel {channel} does not belong here"


def _check_tokens(table: pa.Table, where: str) -> Iterator[str]:
    """Check that ids are ids, and whole time steps."""
    lists = table.column("tokens").combine_chunks()
    counts, per_step = pc.list_value_length(lists), table.column("per_step").combine_chunks()
    is_odd = pc.not_equal(pc.multiply(pc.divide(counts, per_step), per_step), counts)
    rows = pc.list_parent_indices(lists).filter(pc.less(lists.flatten(), 0))
    for row in sorted({*pc.indices_nonzero(is_odd).to_pylist(), *rows.to_pylist()}):
        name, channel, start_s = (table.column(c)[row] for c in ("recording", "channel", "start_s"))
        yield f"{where}: {name} channel {channel}: not tokens at {start_s} s"
