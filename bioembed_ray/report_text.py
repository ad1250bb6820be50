"""What `run` and `status` print."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bioembed_ray import lease, parts
from bioembed_ray.current import read_current
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.inputs.left_out import from_json
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.partitions import list_datasets
from bioembed_ray.progress import duration, hours
from bioembed_ray.run import Result
from bioembed_ray.summary import dataset_seconds, last_record, rates, reasons


def describe_result(result: Result) -> Iterator[str]:
    """Yield what a run did and what became of the input, line by line."""
    plan, tally = result.plan, result.tally
    if tally.n_shards:
        rate = tally.audio_s / tally.wall_s if tally.wall_s else 0.0
        yield (
            f"done       {tally.n_shards} shards, {hours(tally.audio_s)} of audio in {duration(tally.wall_s)} "
            f"({rate:.3g} × real time), {tally.n_parts} parts, {tally.n_bytes / 1e6:.3g} MB"
        )
        measured = ", ".join(f"{name} {value:.3g}" for name, value in rates(tally).items())
        yield f"rates      {measured} audio seconds per actor second"
    else:
        what = "encode" if tally.n_carried else "do"
        yield f"done       nothing to {what}: all {len(plan.shards)} shards stand"
    if tally.n_carried:
        yield (
            f"carried    {tally.n_carried} parts made of rows that stood, beside what changed or was "
            f"removed; nothing of them was encoded"
        )
    yield from describe_coverage(plan.ledger, plan.datasets, plan.job.input.channels)
    yield from describe_failures(plan.ledger)
    if plan.listing.left_out:
        yield f"left out   {plan.listing.left_out}"
    for line in tally.suspicious():
        yield f"warning    {line}"
    untrained = ", ".join(encoder.name for encoder in plan.encoders if encoder.is_random)
    if untrained:
        yield f"warning    {untrained}: RANDOM weights, the vectors mean nothing"
    yield f"output     {plan.job.output}"


def describe_coverage(
    ledger: Ledger, datasets: tuple[Dataset, ...], channels: str
) -> Iterator[str]:
    """Yield one line per encoder: where every input second went."""
    for dataset in datasets:
        if dataset.table != "embeddings":
            continue
        sums = dataset_seconds(ledger, dataset, channels)
        yield (
            f"{dataset.encoder:<10} {sums.n_rows} windows; {sums.total:.3f} s = {sums.embedded:.3f} embedded"
            f" + {sums.padded:.3f} padded + {sums.skipped:.3f} skipped + {sums.failed:.3f} failed"
            f" + {sums.pending:.3f} pending  (version {dataset.version})"
        )


def describe_failures(ledger: Ledger) -> Iterator[str]:
    """Yield how many recordings failed, and why."""
    counts = reasons(ledger)
    text = ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "none"
    states = sorted(ledger.states().items())
    listed = ", ".join(f"{count} {state}" for state, count in states)
    yield f"recordings {len(ledger.known)}: {listed}"
    yield f"failures   {text}"


def describe_status(output: str) -> Iterator[str]:
    """Yield what stands in an output, line by line.

    Raises:
        InputError: nothing there.
    """
    ledger = ledger_file.load(output)
    holder = lease.holder(output)
    if holder is not None:
        age = max(0, round(time.time() - holder["beat"]))
        yield f"running    {holder['command']}, pid {holder['pid']} on {holder['host']}, alive {age} s ago"
    if ledger is None:
        if holder is None:
            raise InputError(f"{output}: no recordings/; run `bioembed run` first")
        return
    record = last_record(output)
    channels = (record or {}).get("job", {}).get("input", {}).get("channels", "mix")
    current = read_current(output).get("encoders", {})
    shards = ledger.shards()
    for dataset in list_datasets(output, "embeddings"):
        standing = parts.list_parts(output, dataset)
        accounted = ledger.accounted()
        # A run in progress has put parts that the ledger does not know yet.
        for shard, entry in standing.items():
            if shard in shards and (dataset, shard) not in accounted:
                ledger.absorb(parts.read_outcome(entry)[0])
        is_current = current.get(dataset.encoder, {}).get("embeddings") == dataset.version
        n_done = len(set(standing) & set(shards))
        state = "current" if is_current else "not current"
        yield f"parts      {dataset.prefix}: {n_done} of {len(shards)} shards, {state}"
        if n_done:
            yield from describe_coverage(ledger, (dataset,), channels)
    for dataset in list_datasets(output, "tokens"):
        n_done = len(set(parts.list_parts(output, dataset)) & set(shards))
        known = read_current(output).get("codebooks", {}).get(dataset.encoder, {})
        state = "current" if known.get("tokens") == dataset.version else "not current"
        yield f"parts      {dataset.prefix}: {n_done} of {len(shards)} shards, {state}"
    yield from describe_failures(ledger)
    left_out = from_json((last_record(output, has_worked=False) or {}).get("left_out", {}))
    if left_out:
        yield f"left out   {left_out}"
    if record is not None:
        yield f"last run   {record['run']}, exit code {record['exit_code']}"
