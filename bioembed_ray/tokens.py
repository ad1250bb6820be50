"""Token sequences: positions, gaps, run lengths, text.

A token is the nearest centroid of one frame. A row holds the tokens of one segment and channel,
evenly spaced: token i starts at `start_s + (i // per_step) · hop_s`. Where a stretch failed, its
tokens are null, so that positions stay exact.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bioembed_ray import schema
from bioembed_ray.assigned import TokenTable

Labels = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Evenly spaced tokens of one place.

    Attributes:
        place: Index into the places.
        start: Encoder sample at which the first token starts.
        labels: (T · per_step,) int32.
        is_gap: (T · per_step,) bool, true where there is no token.
    """

    place: int
    start: int
    labels: Labels
    is_gap: npt.NDArray[np.bool_]


def token_rows(
    place: int,
    starts: Positions,
    labels: Labels,
    stride: int,
    per_step: int,
    segment: int | None,
) -> list[TokenRow]:
    """Cut the tokens of one place into evenly spaced rows of at most a segment.

    Args:
        place: Index of the place.
        starts: (T,) encoder samples of the time steps that have tokens, ascending.
        labels: (T · per_step,) int32, time-major.
        stride: Encoder samples from one time step to the next.
        per_step: Tokens per time step.
        segment: Encoder samples per segment, counted from the recording's start; None never cuts.

    Returns:
        Rows in order. A hole that is a whole number of steps becomes a gap of nulls; any other
        irregularity (BEATs blocks end with a part of a step) begins a new row.
    """
    if not len(starts):
        return []
    steps = np.diff(starts)
    is_new = steps % stride != 0
    if segment is not None:
        number = starts // segment
        is_new |= number[1:] != number[:-1]
    edges = [0, *(np.flatnonzero(is_new) + 1).tolist(), len(starts)]
    grouped = labels.reshape(len(starts), per_step)
    rows = []
    for low, high in itertools.pairwise(edges):
        index = (starts[low:high] - starts[low]) // stride
        filled = np.zeros((int(index[-1]) + 1, per_step), np.int32)
        is_gap = np.ones(filled.shape, bool)
        filled[index], is_gap[index] = grouped[low:high], False
        rows.append(TokenRow(place, int(starts[low]), filled.reshape(-1), is_gap.reshape(-1)))
    return rows


def token_type(n_clusters: int) -> str:
    """Return the smallest of int16 and int32 that holds every id: int16 up to 32,767 centroids."""
    return "int16" if n_clusters <= 32_767 else "int32"


@dataclass(frozen=True, slots=True)
class TokenPlaces:
    """What `tokens_table` needs to know of the places of a shard, one entry per place.

    Attributes:
        recordings: Names.
        channels: Channels.
        scale: Encoder samples per second of the original recording.
    """

    recordings: list[str]
    channels: list[int]
    scale: int


def tokens_table(
    places: TokenPlaces,
    table: TokenTable,
    stride: int,
    segment: int | None,
    n_clusters: int,
) -> pa.Table:
    """Return one row per segment and channel, in the order of places and positions.

    Args:
        places: Names, channels and the clock of the places.
        table: Tokens and where they are.
        stride: Encoder samples from one time step to the next.
        segment: Encoder samples per segment, None to never cut.
        n_clusters: K, which decides the type of a token.
    """
    kind = schema.tokens(token_type(n_clusters))
    per_step = table.labels.shape[1]
    rows = []
    for place in np.unique(table.place):
        steps = np.flatnonzero(table.place == place)
        labels = table.labels[steps].reshape(-1)
        rows += token_rows(int(place), table.start[steps], labels, stride, per_step, segment)
    lists = [
        pa.array(row.labels, kind.field("tokens").type.value_type, mask=row.is_gap) for row in rows
    ]
    offsets = np.cumsum([0, *(len(row) for row in lists)]).astype(np.int32)
    values = (
        pa.concat_arrays(lists) if lists else pa.array([], kind.field("tokens").type.value_type)
    )
    return pa.table(
        [
            pa.array([places.recordings[row.place] for row in rows], pa.string()),
            pa.array([places.channels[row.place] for row in rows], pa.int16()),
            pa.array([row.start / places.scale for row in rows], pa.float64()),
            pa.array([stride / places.scale] * len(rows), pa.float64()),
            pa.array([per_step] * len(rows), pa.int16()),
            pa.ListArray.from_arrays(pa.array(offsets), values),
        ],
        schema=kind,
    )
