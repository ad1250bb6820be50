"""What one worker does with one decoded shard: apply the encoders, put the parts.

Plain functions, no Ray: the stream calls them in its tasks and actors, a test calls them directly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from bioembed_ray import storage
from bioembed_ray.accounting import judge
from bioembed_ray.alike import compare
from bioembed_ray.audio.spans import SpanAudio
from bioembed_ray.config import Job
from bioembed_ray.datasets import Dataset, Output, PlannedEncoder
from bioembed_ray.encoders.base import Encoder
from bioembed_ray.errors import StorageError
from bioembed_ray.in_flight import Told, nobody
from bioembed_ray.outcomes import Failure, PartOutcome
from bioembed_ray.part_outcomes import block_failures, counted, gap_failures, of_part
from bioembed_ray.parts import (
    frames_table,
    part_bytes,
    part_uri,
    storable_frames,
    storable_windows,
    windows_table,
)
from bioembed_ray.plan import Work
from bioembed_ray.segments import Shard
from bioembed_ray.transport import Audio
from bioembed_ray.windows import Clock

if TYPE_CHECKING:
    from bioembed_ray.apply import LostBlock, LostWindow, Place, Windows
    from bioembed_ray.assigned import TokenTable
    from bioembed_ray.codebooks.nearest import Codes


@dataclass(slots=True)
class Receipt:
    """What the driver hears of one shard.

    Attributes:
        shard: Shard id.
        outcomes: One per part that now stands.
        failures: Why parts do not stand: transient failures.
        put_error: What the store said to a put, None where it said nothing.
        n_bytes: Bytes put.
        seconds: Where the time went: "decode", "write", and each encoder by name.
        is_poisoned: The worker died on the shard too often; nothing was done.
        load_error: Why the encoders could not be loaded; nothing was done.
        node: Ray's id of the machine that encoded it last, "" without Ray.
    """

    shard: str
    outcomes: list[PartOutcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    put_error: str | None = None
    n_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    is_poisoned: bool = False
    load_error: str | None = None
    node: str = ""


def encode_shard(
    work: Work,
    audios: Sequence[Audio],
    planned: PlannedEncoder,
    encoder: Encoder,
    device: str,
    job: Job,
    receipt: Receipt,
    busy: AbstractContextManager[object] | None = None,
    is_trial: bool = False,
    codes: Mapping[str, Codes] = MappingProxyType({}),
    tell: Told = nobody,
) -> None:
    """Apply one encoder to a decoded shard and put its parts; the receipt says what happened.

    Args:
        work: The shard and the datasets it lacks.
        audios: What decoding gave.
        planned: The encoder's settings.
        encoder: The loaded network.
        device: Torch device.
        job: The job.
        receipt: Filled in.
        busy: Held while the network runs, so that writing overlaps with the next shard.
        is_trial: Compute, but put nothing.
        codes: Codebook name -> centroids, for the codebooks applied to this encoder.
        tell: Hears after every batch what share of the encoder's work is done.
    """
    # Only here torch is needed: a process that decodes starts in a third of the time without.
    from bioembed_ray.encode import encode

    wanted = [o for o in planned.outputs if set(o.all_datasets) & set(work.datasets)]
    if not wanted:
        return
    shard = work.shard
    places = places_of(shard, audios, planned, job)
    frame_sets = {d for o in wanted for d in (o.frames, o.fit_frames) if d is not None}
    keep_frames = bool(frame_sets & set(work.datasets))
    applied = [
        (number, tokens)
        for number, output in enumerate(planned.outputs)
        for tokens in output.tokens
        if tokens.dataset in work.datasets
    ]
    with busy or nullcontext():
        started = time.perf_counter()
        windows, frames, named = encode(
            encoder,
            planned.rule,
            places,
            device,
            len(planned.outputs),
            keep_frames,
            [(number, codes[tokens.name]) for number, tokens in applied],
            job.embedding_dtype,
            tell,
        )
        took = time.perf_counter() - started
    receipt.seconds[planned.name] = receipt.seconds.get(planned.name, 0.0) + took
    lost: list[LostWindow | LostBlock] = [*windows.lost, *windows.lost_blocks]
    waiting = [entry for entry in lost if entry.error.reason.is_transient]
    if waiting:
        span = shard.spans[places[waiting[0].place].span]
        error = waiting[0].error
        receipt.failures.append(
            Failure(span.recording, error.reason, error.detail, planned.name, shard=shard.id)
        )
        return
    blocks = block_failures(shard, places, windows.lost_blocks)
    started = time.perf_counter()
    for number, output in enumerate(planned.outputs):
        if output not in wanted:
            continue
        outcome = _outcome(shard, audios, places, planned, output, windows, number, job)
        tables: list[tuple[PartOutcome, pa.Table]] = []
        for dataset in (output.frames, output.fit_frames):
            if dataset is not None and frames is not None:
                dtype = job.frame_dtype if dataset.table == "frames" else "float32"
                receptive = 0 if planned.facts.grid is None else planned.facts.grid.receptive
                kept, beyond = storable_frames(
                    shard, places, frames, number, receptive, dtype, dataset
                )
                table = frames_table(shard, places, kept, number, receptive, dtype, encoder.dim)
                told = of_part(outcome, dataset, (*blocks, *beyond), is_of_windows=False)
                tables.append((told, table))
        for (_, tokens), found in zip(applied, named, strict=True):
            if tokens in output.tokens:
                n_codes = len(codes[tokens.name].centroids)
                table, gaps = _tokens(work, places, planned, found, n_codes, job)
                is_of_windows = planned.facts.grid is None
                told = of_part(outcome, tokens.dataset, (*blocks, *gaps), is_of_windows)
                tables.append((told, table))
        dtype = job.embedding_dtype
        kept_windows = storable_windows(windows, number, dtype)
        if kept_windows is not windows:
            outcome = _outcome(shard, audios, places, planned, output, kept_windows, number, job)
        table = windows_table(
            shard, places, kept_windows, number, planned.rule.window, dtype, encoder.dim
        )
        tables.append((outcome, table))
        for told, table in tables:
            if told.dataset in work.datasets and not is_trial:
                _put(table, planned, shard, counted(told, shard, table), job, receipt)
    receipt.seconds["write"] = receipt.seconds.get("write", 0.0) + time.perf_counter() - started


def _tokens(
    work: Work,
    places: Sequence[Place],
    planned: PlannedEncoder,
    found: TokenTable,
    n_codes: int,
    job: Job,
) -> tuple[pa.Table, tuple[Failure, ...]]:
    from bioembed_ray.tokens import TokenPlaces, tokens_table

    rate, grid = planned.facts.rate_hz, planned.facts.grid
    about = TokenPlaces(
        [work.shard.spans[place.span].recording for place in places],
        [place.track.channel for place in places],
        rate * job.input.time_expansion,
    )
    stride = planned.rule.hop if grid is None else grid.stride
    table = tokens_table(about, found, stride, job.segment_s * rate, n_codes)
    return table, gap_failures(about, found, stride, work.shard.id)


def _put(
    table: object,
    planned: PlannedEncoder,
    shard: Shard,
    outcome: PartOutcome,
    job: Job,
    receipt: Receipt,
) -> None:
    body = part_bytes(table, planned, shard, outcome, job)
    try:
        storage.put(part_uri(job.output, outcome.dataset, outcome.shard), body)
    except StorageError as error:
        receipt.put_error = str(error)
        return
    receipt.n_bytes += len(body)
    receipt.outcomes.append(outcome)


def _outcome(
    shard: Shard,
    audios: Sequence[Audio],
    places: Sequence[Place],
    planned: PlannedEncoder,
    output: Output,
    windows: Windows,
    layer: int,
    job: Job,
) -> PartOutcome:
    n_channels = [
        span.header.channels if job.input.channels == "each" else 1 for span in shard.spans
    ]
    dataset: Dataset = output.embeddings
    judged = judge(shard, audios, places, planned.rule, windows, dataset, n_channels)
    n_checked, n_distinct = compare(places, windows, layer, planned.rule)
    return PartOutcome(
        dataset, shard.id, tuple(judged.spans), tuple(judged.failures), n_checked, n_distinct
    )


def places_of(
    shard: Shard, audios: Sequence[Audio], planned: PlannedEncoder, job: Job
) -> list[Place]:
    """Return the tracks that an encoder hears, in order of spans and channels."""
    from bioembed_ray.apply import Place

    rate = planned.facts.rate_hz
    return [
        Place(
            number,
            Clock(span.header.rate_hz, rate, job.input.time_expansion),
            span.start,
            span.stop,
            audio.n_native,
            track,
            audio.holes[track.channel],
        )
        for number, (span, audio) in enumerate(zip(shard.spans, audios, strict=True))
        if isinstance(audio, SpanAudio) and audio.n_extent > 0
        for track in audio.tracks.get(rate, [])
    ]
