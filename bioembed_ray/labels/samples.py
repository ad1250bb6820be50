"""Windows of labelled recordings as rows for a probe, and tokens as bags of a recording.

Both are read batch by batch; what is kept is bounded by the sample and by the recordings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray.codebooks.frame_parts import row_hashes
from bioembed_ray.codebooks.sample import Hashes
from bioembed_ray.labels.even_sample import limits
from bioembed_ray.labels.scores import Samples
from bioembed_ray.labels.task import Ints
from bioembed_ray.rows import BATCH_ROWS, Rows, vectors_of

Level = Literal["recording", "window"]
KEY = ("recording", "channel", "start_s")


def count_rows(rows: Rows, recordings: Sequence[str], min_valid_s: float | None = None) -> Ints:
    """Return how many windows with enough sound each recording has: (R,)."""
    counts = np.zeros(len(recordings), np.int64)
    for batch in _batches(rows, recordings, ("recording",), min_valid_s):
        counts += np.bincount(_places(batch, recordings), minlength=len(recordings))
    return counts


def read_windows(
    rows: Rows, recordings: Sequence[str], n: int, min_valid_s: float | None = None
) -> tuple[Samples, Ints]:
    """Return at most n windows of these recordings, spread evenly over them, and their channels.

    The rows are sorted by recording, channel and start, so that nothing depends on how parts lie.

    Args:
        rows: A partition of embeddings/.
        recordings: (R,) names, sorted; each has windows.
        n: Most windows.
        min_valid_s: Least seconds of sound in a window; None for half a window.
    """

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return _batches(rows, recordings, columns, min_valid_s)

    kept_vectors, kept_keys = [], []
    highest = limits(
        lambda: (_hashed(batch, recordings) for batch in batches(KEY)),
        count_rows(rows, recordings, min_valid_s),
        n,
    )
    for batch in batches((*KEY, "embedding")):
        place, hashes = _hashed(batch, recordings)
        chosen = batch.filter(pa.array(hashes <= highest[place]))
        kept_vectors.append(vectors_of(chosen.column("embedding")))
        kept_keys.append(
            np.stack([_places(chosen, recordings), *(_column(chosen, k) for k in KEY[1:])])
        )
    keys = np.concatenate(kept_keys, axis=1)
    order = np.lexsort(keys[::-1])
    samples = Samples(np.concatenate(kept_vectors)[order], keys[0][order].astype(np.int64))
    return samples, keys[1][order].astype(np.int64)


def pool(samples: Samples, channel: Ints) -> Samples:
    """Return one row per recording and channel, the mean of its windows.

    Args:
        samples: Windows by recording and channel.
        channel: (n,) channel of every window.
    """
    key = np.stack([samples.recording, channel])
    edges = np.flatnonzero(np.any(np.diff(key, axis=1, prepend=-1) != 0, axis=0))
    sums = np.add.reduceat(samples.vectors, edges, axis=0, dtype=np.float64)
    means = sums / np.diff(np.append(edges, len(channel)))[:, None]
    return Samples(means.astype(np.float32), samples.recording[edges])


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokens that stand, gaps left out.

    Attributes:
        recording: (T,) index into the recordings asked for.
        hashes: (T,) what decides the sample.
        token: (T,) ids.
        start_s: (T,) seconds from the recording's start.
    """

    recording: Ints
    hashes: Hashes
    token: Ints
    start_s: npt.NDArray[np.float64]


def read_tokens(rows: Rows, recordings: Sequence[str]) -> Iterator[TokenBatch]:
    """Yield the tokens of these recordings.

    Args:
        rows: A partition of tokens/.
        recordings: Names.
    """
    columns = (*KEY, "hop_s", "per_step", "tokens")
    for batch in _batches(rows, recordings, columns, 0.0, 64):
        lists = batch.column("tokens")
        lengths = pc.list_value_length(lists).to_numpy()
        row = np.repeat(np.arange(len(lengths)), lengths)
        index = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
        step, patch = np.divmod(index, _column(batch, "per_step")[row])
        start_s = _column(batch, "start_s")[row] + step * _column(batch, "hop_s")[row]
        values = lists.flatten()
        stands = pc.is_valid(values).to_numpy(zero_copy_only=False)
        place = _places(batch, recordings)[row][stands]
        channel = _column(batch, "channel")[row][stands].astype(np.int64)
        hashes = row_hashes(recordings, place, channel, start_s[stands], patch[stands])
        token = values.drop_null().to_numpy().astype(np.int64)
        yield TokenBatch(place, hashes, token, start_s[stands])


def count_tokens(rows: Rows, recordings: Sequence[str]) -> tuple[Ints, int]:
    """Return how many tokens each recording has, (R,), and one more than the largest id."""
    counts, n_codes = np.zeros(len(recordings), np.int64), 0
    for batch in read_tokens(rows, recordings):
        counts += np.bincount(batch.recording, minlength=len(recordings))
        n_codes = max(n_codes, int(batch.token.max(initial=-1)) + 1)
    return counts, n_codes


def bags(rows: Rows, recordings: Sequence[str], n_codes: int) -> Samples:
    """Return the share of every code in every recording, (R, K): its tokens without their order.

    Args:
        rows: A partition of tokens/.
        recordings: (R,) names; each has tokens.
        n_codes: K.
    """
    counts = np.zeros((len(recordings), n_codes), np.float32)
    for batch in read_tokens(rows, recordings):
        np.add.at(counts, (batch.recording, batch.token), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return Samples(shares, np.arange(len(recordings), dtype=np.int64))


def _batches(
    rows: Rows,
    recordings: Sequence[str],
    columns: Sequence[str],
    min_valid_s: float | None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    inside = pc.field("recording").isin(pa.array(recordings, pa.string()))
    return rows.batches(
        columns=columns, where=inside, min_valid_s=min_valid_s, batch_rows=batch_rows
    )


def _hashed(batch: pa.RecordBatch, recordings: Sequence[str]) -> tuple[Ints, Hashes]:
    place = _places(batch, recordings)
    channel = _column(batch, "channel").astype(np.int64)
    return place, row_hashes(recordings, place, channel, _column(batch, "start_s"))


def _places(batch: pa.RecordBatch, recordings: Sequence[str]) -> Ints:
    known = pa.array(recordings, pa.string())
    found: Ints = pc.index_in(batch.column("recording"), known).to_numpy().astype(np.int64)
    return found


def _column(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = batch.column(name).to_numpy(zero_copy_only=False)
    return found
