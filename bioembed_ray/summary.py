"""Sums over the ledger: what became of every input second, per encoder; the run's record."""

from __future__ import annotations

import json
import platform
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from bioembed_ray import storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import NotFoundError
from bioembed_ray.ledger.at_rest import AtRest
from bioembed_ray.ledger.columns import Mask
from bioembed_ray.ledger.ledger import Known, Ledger
from bioembed_ray.parts import weights_stamp
from bioembed_ray.plan import Plan, Work, audio_seconds
from bioembed_ray.work import Receipt

RECORDED_PACKAGES = (
    "bioembed_ray",
    "avex",
    "numpy",
    "obstore",
    "pyarrow",
    "ray",
    "soundfile",
    "soxr",
    "torch",
    "transformers",
)


@dataclass(slots=True)
class Seconds:
    """Audio seconds of all channels encoded; the first five add up to `total`.

    Attributes:
        total: What headers promise, or decoding gave where that is more.
        embedded: Inside a window full of sound.
        padded: Only inside padded windows.
        skipped: Inside no window.
        failed: Lost, with a reason in failures/.
        pending: Not done yet.
        n_rows: Rows written.
    """

    total: float = 0.0
    embedded: float = 0.0
    padded: float = 0.0
    skipped: float = 0.0
    failed: float = 0.0
    pending: float = 0.0
    n_rows: int = 0


def dataset_seconds(ledger: Ledger, dataset: Dataset, channels: str) -> Seconds:
    """Return what became of the input under one dataset."""
    sums = Seconds()
    for entry in ledger.known.active.values():
        if entry.header is not None:
            _add(sums, entry, dataset, channels)
    if ledger.known.rows is not None:
        _add_resting(sums, ledger.known.rows, ledger.known.rests, dataset, channels)
    return sums


def _add_resting(sums: Seconds, rows: AtRest, rests: Mask, dataset: Dataset, channels: str) -> None:
    """Add what `_add` adds, for all rows of the table at once."""
    at, found, n_shards = rows.pieces, rows.outcomes, max(1, len(rows.shards))
    has_header = rests & (rows.rate_hz > 0)
    pieces = np.flatnonzero(has_header[at.row])
    is_asked = np.array([one == dataset for one in rows.datasets], bool)
    outcomes = np.flatnonzero(is_asked[found.dataset] & has_header[found.row])
    # A recording and a shard together name a piece, and the outcome of that piece.
    piece_of = at.row[pieces].astype(np.int64) * n_shards + at.shard[pieces]
    outcome_of = found.row[outcomes].astype(np.int64) * n_shards + found.shard[outcomes]
    outcomes = outcomes[np.isin(outcome_of, piece_of)]
    waiting = pieces[~np.isin(piece_of, outcome_of)]
    rate_hz = rows.rate_hz[found.row[outcomes]]
    for key in ("embedded", "padded", "skipped", "failed"):
        seconds = float((rows.outcome_values(key)[outcomes] / rate_hz).sum())
        setattr(sums, key, getattr(sums, key) + seconds)
        sums.total += seconds
    sums.n_rows += int(rows.outcome_values("n_rows")[outcomes].sum())
    row = at.row[waiting]
    end = np.where(at.stop[waiting] == -1, np.maximum(rows.n_samples[row], 0), at.stop[waiting])
    n_channels = rows.channels[row] if channels == "each" else 1
    promised = np.maximum(0, end - at.start[waiting]) * n_channels / rows.rate_hz[row]
    sums.pending += float(promised.sum())
    sums.total += float(promised.sum())


def _add(sums: Seconds, entry: Known, dataset: Dataset, channels: str) -> None:
    header = entry.header
    if header is None:
        return
    n_channels = header.channels if channels == "each" else 1
    per_second = float(header.rate_hz)
    for piece in entry.pieces:
        outcome = entry.outcomes.get((dataset, piece.shard))
        if outcome is None:
            end = header.n_samples if piece.stop is None else piece.stop
            waiting = max(0, (end or piece.start) - piece.start) * n_channels / per_second
            sums.pending += waiting
            sums.total += waiting
            continue
        for key in ("embedded", "padded", "skipped", "failed", "total"):
            seconds = getattr(outcome.coverage, key) / per_second
            setattr(sums, key, getattr(sums, key) + seconds)
        sums.n_rows += outcome.n_rows


def failed_fraction(ledger: Ledger, datasets: tuple[Dataset, ...], channels: str) -> float:
    """Return the share of the input that failed for good: of seconds, or of recordings if that is more.

    A recording whose header cannot be read has no seconds to count, so it counts as a recording.
    """
    if not ledger.known:
        return 0.0
    unreadable = sum(not failure.reason.is_transient for failure in ledger.unopened())
    worst = unreadable / len(ledger.known)
    for dataset in datasets:
        sums = dataset_seconds(ledger, dataset, channels)
        if sums.total:
            worst = max(worst, sums.failed / sums.total)
    return worst


def reasons(ledger: Ledger) -> dict[str, int]:
    """Return how many recordings failed, wholly or in part, for each reason, in what is wanted."""
    pairs = {(failure.recording, failure.reason.value) for failure in ledger.wanted_failures()}
    return dict(Counter(reason for _, reason in pairs).most_common())


@dataclass(slots=True)
class Tally:
    """What one run did.

    Attributes:
        done: Shards done, and their audio seconds; one that is gone through again, first to train on
            and then to encode, counts once.
        n_parts: Parts put.
        n_bytes: Bytes put.
        n_carried: Parts put from rows that stood; in no other number here.
        seconds: Worker seconds by stage: "decode", "write", each encoder.
        encoder_s: Audio seconds each encoder went through.
        wall_s: From the first shard handed out to the last receipt.
        gpus: GPUs per actor of each encoder that ran.
        n_checked, n_distinct: Per encoder, different sounds compared and different vectors found.
        uncommitted: Shards that stay uncommitted, and why, one line each.
        waiting: Recordings whose header a later run has to read, and why.
        nodes: How many shards each machine of the cluster encoded.
    """

    done: dict[str, float] = field(default_factory=dict)
    n_parts: int = 0
    n_bytes: int = 0
    n_carried: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    encoder_s: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    gpus: dict[str, float] = field(default_factory=dict)
    n_checked: Counter[str] = field(default_factory=Counter)
    n_distinct: Counter[str] = field(default_factory=Counter)
    uncommitted: dict[str, list[str]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    nodes: Counter[str] = field(default_factory=Counter)

    @property
    def n_shards(self) -> int:
        """How many shards were done."""
        return len(self.done)

    @property
    def audio_s(self) -> float:
        """Audio seconds of the shards done."""
        return sum(self.done.values())

    @property
    def transient(self) -> list[str]:
        """Why something is left to a later run, one line each."""
        return [line for lines in self.uncommitted.values() for line in lines] + self.waiting

    def add(self, work: Work, receipt: Receipt, heard_s: float) -> None:
        """Enter what became of a shard; what was said of it before holds no more.

        Args:
            work: The shard and the parts it owed.
            receipt: What the workers say of it.
            heard_s: Encoder seconds in it, channels counted.
        """
        for outcome in receipt.outcomes:
            if outcome.dataset.table == "embeddings":
                self.n_checked[outcome.dataset.encoder] += outcome.n_checked
                self.n_distinct[outcome.dataset.encoder] += outcome.n_distinct
        self.n_parts += len(receipt.outcomes)
        self.n_bytes += receipt.n_bytes
        self.done[receipt.shard] = audio_seconds(work)
        if receipt.outcomes and receipt.node:
            self.nodes[receipt.node] += 1
        for stage, seconds in receipt.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            if stage not in {"decode", "write"}:
                self.encoder_s[stage] = self.encoder_s.get(stage, 0.0) + heard_s
        # A shard that failed before a codebook was fitted may succeed after it.
        self.uncommitted.pop(receipt.shard, None)
        if {outcome.dataset for outcome in receipt.outcomes} != set(work.datasets):
            self.uncommitted[receipt.shard] = list(_why(work, receipt))

    def suspicious(self) -> list[str]:
        """Return a warning for every encoder that gave one vector for different sounds."""
        return [
            f"{name}: {self.n_checked[name]} different sounds gave only {self.n_distinct[name]} different "
            f"vectors; the weights or the input level are probably wrong"
            for name in self.n_checked
            if self.n_checked[name] >= 8 and self.n_distinct[name] < 0.9 * self.n_checked[name]
        ]


def _why(work: Work, receipt: Receipt) -> Iterator[str]:
    """Yield why parts of a shard do not stand."""
    yield from (failure.line for failure in receipt.failures)
    if receipt.put_error:
        yield receipt.put_error
    if receipt.is_poisoned:
        names = ", ".join(sorted({span.recording for span in work.shard.spans})[:3])
        yield f"workers kept dying on the shard with {names}"


def write_record(plan: Plan, tally: Tally, run_id: str, exit_code: int) -> None:
    """Put the run's record: job, versions, environment, counts, timings, measured rates."""
    record = {
        "run": run_id,
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "exit_code": exit_code,
        "job": plan.job.model_dump(mode="json"),
        "versions": {
            dataset.prefix: weights_stamp(encoder)
            for encoder in plan.encoders
            for dataset in encoder.datasets
        },
        "environment": {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in RECORDED_PACKAGES},
        },
        "recordings": {
            "known": len(plan.ledger.known),
            "new": plan.changes.n_new,
            "changed": plan.changes.n_changed,
            "removed": plan.changes.n_removed,
        },
        "left_out": plan.listing.left_out.to_json(),
        "shards": {"done": tally.n_shards, "uncommitted": sorted(tally.uncommitted)},
        "shards_by_node": dict(tally.nodes),
        "parts": tally.n_parts,
        "bytes": tally.n_bytes,
        "parts_carried_over": tally.n_carried,
        "audio_s": tally.audio_s,
        "wall_s": tally.wall_s,
        "worker_s": dict(tally.seconds),
        "audio_s_per_worker_s": rates(tally),
        "gpus_per_worker": dict(tally.gpus),
        "failures": reasons(plan.ledger),
    }
    body = json.dumps(record, indent=2, sort_keys=True).encode()
    storage.put(storage.join(plan.job.output, "runs", f"{run_id}.json"), body)


def rates(tally: Tally) -> dict[str, float]:
    """Return encoder seconds of audio per second of one actor, for each encoder that ran."""
    return {
        name: audio_s / tally.seconds[name]
        for name, audio_s in tally.encoder_s.items()
        if tally.seconds[name]
    }


def last_record(output: str, has_worked: bool = True) -> dict[str, Any] | None:
    """Return the newest run record, of a run that did some work if there is one; None before the first."""
    try:
        found = list(storage.list_objects(storage.join(output, "runs")))
    except NotFoundError:
        return None
    newest = None
    for entry in sorted(found, key=lambda entry: entry.key, reverse=True)[:20]:
        record: dict[str, Any] = json.loads(storage.read(entry.uri))
        newest = newest or record
        if record.get("parts") or not has_worked:
            return record
    return newest
