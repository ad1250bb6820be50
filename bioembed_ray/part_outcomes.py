"""What a part of frames or tokens says of itself: its rows, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason
from bioembed_ray.outcomes import Failure, PartOutcome
from bioembed_ray.segments import Shard

if TYPE_CHECKING:
    # They bring torch along.
    from bioembed_ray.apply import LostBlock, Place
    from bioembed_ray.assigned import TokenTable
    from bioembed_ray.tokens import TokenPlaces


def gap_failures(
    about: TokenPlaces, found: TokenTable, stride: int, shard: str
) -> tuple[Failure, ...]:
    """Return a failure per place whose frames have no nearest centroid somewhere."""
    starts: dict[int, list[int]] = {}
    for place, start in found.gaps:
        starts.setdefault(place, []).append(start)
    return tuple(
        Failure(
            about.recordings[place],
            Reason.NONFINITE_VECTOR,
            f"{len(steps)} time steps without a token: no centroid is nearest to such large values",
            channel=about.channels[place],
            start_s=steps[0] / about.scale,
            end_s=(steps[-1] + stride) / about.scale,
            shard=shard,
        )
        for place, steps in starts.items()
    )


def block_failures(
    shard: Shard, places: Sequence[Place], lost: Sequence[LostBlock]
) -> tuple[Failure, ...]:
    """Return a failure for each run of neighbouring blocks that failed for one reason."""
    runs: list[LostBlock] = []
    for block in sorted(lost, key=lambda block: (block.place, block.start)):
        last = runs[-1] if runs else None
        if last and (last.place, last.stop, str(last.error)) == (
            block.place,
            block.start,
            str(block.error),
        ):
            runs[-1] = replace(last, stop=block.stop)
        else:
            runs.append(block)
    failures = []
    for one in runs:
        place = places[one.place]
        start, stop = place.clock.native(one.start), place.clock.native(one.stop)
        failure = Failure(
            shard.spans[place.span].recording,
            one.error.reason,
            f"frames: {one.error.detail}",
            channel=place.track.channel,
            start_s=place.clock.seconds(one.start),
            end_s=place.clock.seconds(one.stop),
            n_samples=stop - start,
            shard=shard.id,
        )
        failures.append(failure)
    return tuple(failures)


def of_part(
    outcome: PartOutcome, dataset: Dataset, lost: Iterable[Failure], is_of_windows: bool
) -> PartOutcome:
    """Return what a part of frames or tokens says: what it lacks, which is not always what windows lack.

    Args:
        outcome: What became of the shard's windows.
        dataset: Where the part goes.
        lost: What the part itself lacks.
        is_of_windows: Its tokens are of windows, so that it lacks theirs too.
    """
    own = (replace(f, encoder=dataset.encoder, version=dataset.version) for f in lost)
    kept = (f for f in outcome.failures if is_of_windows or f.encoder is None)
    return replace(outcome, dataset=dataset, failures=(*kept, *own))


def counted(outcome: PartOutcome, shard: Shard, table: pa.Table) -> PartOutcome:
    """Return the outcome with the rows that a table has of every span, whatever its rows are."""
    names = pa.array([span.recording for span in shard.spans], pa.string())
    index = pc.index_in(table.column("recording"), value_set=names).to_numpy()
    counts = np.bincount(index, minlength=len(names)).tolist()
    spans = zip(outcome.spans, counts, strict=True)
    return replace(outcome, spans=tuple(replace(span, n_rows=n) for span, n in spans))
