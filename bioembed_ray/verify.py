"""The output against its own promises: every window once, where it belongs, every second accounted for.

Nothing of the stream is reused to count: expected rows come from the ledger's decoded lengths and
the rule that each part states.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from bioembed_ray import parts, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import BrokenOutput, InputError, StorageError
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Known, Ledger
from bioembed_ray.partitions import list_datasets
from bioembed_ray.segments import Shard


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
        n_channels = span.header.channels if rule["channels"] == "each" else 1
        promised = 0 if span.header.is_estimate else span.promised
        expected = max(promised, found.n_decoded) * n_channels
        if found.coverage.total != expected:
            yield f"{where}: {span.recording}: {found.coverage.total} samples accounted for of {expected}"
    table = parts.read_table(entry)
    if dataset.table == "tokens":
        yield from _check_tokens(table, where)
        return
    vectors = table.column("embedding").combine_chunks().flatten()
    values = vectors.to_numpy(zero_copy_only=False)
    if not np.isfinite(values).all():
        yield f"{where}: holds vectors that are not finite"
    if dataset.table != "embeddings":
        return
    rows: dict[tuple[str, int], list[float]] = {}
    names = table.column("recording").to_pylist()
    channels = table.column("channel").to_pylist()
    for name, channel, start in zip(
        names, channels, table.column("start_s").to_pylist(), strict=True
    ):
        rows.setdefault((name, channel), []).append(start)
    lost = _lost(outcome.failures)
    for span, found in zip(shard.spans, outcome.spans, strict=True):
        n_channels = span.header.channels if rule["channels"] == "each" else 1
        for channel in range(n_channels if found.n_decoded else 0):
            wanted = _expected(ledger.known[span.recording], span.start, span.stop, rule)
            if wanted is None:
                continue
            gone = lost.get((span.recording, channel), [])
            owed = {s for s in wanted if not _is_lost(s, gone)}
            got = rows.pop((span.recording, channel), [])
            if len(got) != len(set(got)):
                yield f"{where}: {span.recording}: windows stand more than once"
            if not owed <= set(got) <= set(wanted):
                yield f"{where}: {span.recording} channel {channel}: {len(got)} windows, {len(owed)} expected"
    for name, channel in rows:
        yield f"{where}: {name} channel {channel} does not belong here"


def _check_tokens(table: pa.Table, where: str) -> Iterator[str]:
    """Check that rows of one channel do not overlap, and that ids are ids."""
    ends: dict[tuple[str, int], float] = {}
    columns = ("recording", "channel", "start_s", "hop_s", "per_step", "tokens")
    for name, channel, start, hop, per_step, tokens in zip(
        *(table.column(column).to_pylist() for column in columns), strict=True
    ):
        if start < ends.get((name, channel), 0.0) - 1e-9:
            yield f"{where}: {name} channel {channel}: rows of tokens overlap at {start} s"
        ends[name, channel] = start + len(tokens) / per_step * hop
        if len(tokens) % per_step or any(token is not None and token < 0 for token in tokens):
            yield f"{where}: {name} channel {channel}: not tokens at {start} s"


def _lost(failures: tuple[Any, ...]) -> dict[tuple[str, int], list[tuple[float, float]]]:
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for failure in failures:
        if failure.channel is not None:
            span = (failure.start_s or 0.0, failure.end_s or 0.0)
            found.setdefault((failure.recording, failure.channel), []).append(span)
    return found


def _is_lost(start_s: float, lost: list[tuple[float, float]]) -> bool:
    return any(low - 1e-9 <= start_s < high for low, high in lost)


def _expected(
    entry: Known, start: int, stop: int | None, rule: dict[str, Any]
) -> list[float] | None:
    """Return the window starts that a span owes, in seconds; None while the length is unknown."""
    n_decoded, header = entry.n_decoded, entry.header
    if n_decoded is None or header is None:
        return None
    scale = rule["rate_hz"] * rule["time_expansion"]
    ratio = Fraction(scale, header.rate_hz)
    length = n_decoded * ratio
    window, hop = rule["window"], rule["hop"]
    starts = []
    k = -(-(start * ratio) // hop)
    while k * hop < length and (stop is None or k * hop < stop * ratio):
        if k * hop + window <= length or _is_padded(k * hop, length, rule):
            starts.append(int(k * hop))
        k += 1
    if rule["tail"] == "shift":
        end = -(-length // 1)
        n_full = max(0, (length - window) // hop + 1)
        last_end = (n_full - 1) * hop + window if n_full else 0
        moved = max(0, int(end - window))
        if last_end < end and start <= moved / ratio and (stop is None or moved / ratio < stop):
            starts.append(moved)
    # Parts of before there was one have no least sound.
    least = max(rule["shortest"], rule.get("min_valid", 0))
    starts = [s for s in starts if min(window, -(-length // 1) - s) >= least]
    if not rule["embeds"]:
        starts = [s for s in starts if _has_frame(s, window, -(-length // 1), rule)]
    return sorted(float(Fraction(s, scale)) for s in starts)


def _is_padded(start: Fraction | int, length: Fraction, rule: dict[str, Any]) -> bool:
    """Return whether the tail rule makes a window that reaches past the end."""
    if rule["tail"] == "cover":
        return bool(start == 0 or start - rule["hop"] + rule["window"] < length)
    return rule["tail"] == "pad" or (rule["tail"] == "center" and start == 0)


def _has_frame(start: int, window: int, length: Fraction | int, rule: dict[str, Any]) -> bool:
    stride, receptive = rule["frames_stride"], rule["frames_receptive"]
    n_frames = (int(length) - receptive) // stride + 1
    first = max(0, -(-(start - receptive // 2) // stride))
    return bool(first < n_frames) and bool(first * stride + receptive // 2 < start + window)
