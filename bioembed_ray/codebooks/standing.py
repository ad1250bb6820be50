"""Tokens from vectors that stand already, so that nothing is encoded twice. Uses Ray for its tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bioembed_ray import parts, storage
from bioembed_ray.config import Job
from bioembed_ray.datasets import Output, PlannedEncoder, Tokens
from bioembed_ray.outcomes import PartOutcome, outcome_from_json
from bioembed_ray.part_outcomes import counted, gap_failures, of_part
from bioembed_ray.plan import Plan
from bioembed_ray.rows import vectors_of
from bioembed_ray.segments import Shard


@dataclass(frozen=True, slots=True)
class Naming:
    """One part of vectors whose tokens are missing."""

    shard: Shard
    source: storage.ObjectInfo
    encoder: PlannedEncoder
    output: Output
    tokens: Tokens


def name_parts(job: Job, namings: Sequence[Naming]) -> Iterator[PartOutcome]:
    """Put the tokens of standing vectors, in parallel on the cluster; yields what each part says."""
    from bioembed_ray.tasks import spread

    yield from spread(_name_batch, [(job, naming) for naming in namings], 1)


def _name_batch(batch: Sequence[tuple[Job, Naming]]) -> list[PartOutcome]:
    return [name_part(job, naming) for job, naming in batch]


def name_part(job: Job, naming: Naming) -> PartOutcome:
    """Assign the tokens of one part and put them.

    Raises:
        StorageError: reading or writing failed.
    """
    import torch

    from bioembed_ray.assigned import Assigned
    from bioembed_ray.codebooks.card import read_codebook
    from bioembed_ray.codebooks.nearest import make_codes
    from bioembed_ray.tokens import TokenPlaces, tokens_table

    torch.set_num_threads(1)
    codebook = read_codebook(naming.tokens.folder)
    metadata = parts.read_metadata(naming.source)
    table = parts.read_table(naming.source)
    rate = naming.encoder.facts.rate_hz
    scale = rate * job.input.time_expansion
    grid = naming.encoder.facts.grid
    per_step = 1 if grid is None else grid.per_step
    keys, place, start, vectors = _columns(table, scale)
    named = Assigned([(0, make_codes(codebook.centroids, codebook.metric))])
    for number in range(len(keys)):
        rows = np.flatnonzero(place == number)
        named.add(number, start[rows][::per_step], [torch.from_numpy(vectors[rows])])
    about = TokenPlaces([key[0] for key in keys], [key[1] for key in keys], scale)
    stride = naming.encoder.rule.hop if grid is None else grid.stride
    (found,) = named.tables()
    tokens = tokens_table(about, found, stride, job.segment_s * rate, len(codebook.centroids))
    outcome = outcome_from_json(json.loads(metadata["outcome"]))
    gaps = gap_failures(about, found, stride, naming.shard.id)
    # Frames lack what their own part says.
    lost = () if grid is None else (f for f in outcome.failures if f.encoder is not None)
    outcome = of_part(outcome, naming.tokens.dataset, (*lost, *gaps), is_of_windows=grid is None)
    outcome = counted(outcome, naming.shard, tokens)
    body = parts.part_bytes(tokens, naming.encoder, naming.shard, outcome, job)
    storage.put(parts.part_uri(job.output, naming.tokens.dataset, naming.shard.id), body)
    return outcome


def _columns(table: pa.Table, scale: int) -> tuple[list[tuple[str, int]], Any, Any, Any]:
    """Return places, the place and first sample of every row, and the vectors."""
    names = table.column("recording").to_pylist()
    channels = table.column("channel").to_pylist()
    numbers: dict[tuple[str, int], int] = {}
    place = np.array(
        [numbers.setdefault(key, len(numbers)) for key in zip(names, channels, strict=True)],
        np.int64,
    )
    if "sample" in table.column_names:
        start = table.column("sample").to_numpy()
    else:
        start = np.rint(table.column("start_s").to_numpy() * scale).astype(np.int64)
    return list(numbers), place, start, vectors_of(table.column("embedding"))


def namings(plan: Plan) -> list[Naming]:
    """Return the parts whose tokens are missing while float32 vectors for them stand."""
    found = []
    for encoder in plan.encoders:
        for output in encoder.outputs:
            source = output.embeddings if output.fit_frames is None else output.fit_frames
            for tokens in output.tokens:
                named = plan.standing(tokens.dataset)
                for shard, entry in plan.standing(source).items():
                    if shard in plan.shards and shard not in named:
                        found.append(Naming(plan.shards[shard], entry, encoder, output, tokens))
    return found
