"""Arrow columns of the ledger's table as arrays of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray.datasets import Dataset

Ints = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PieceColumns:
    """Every piece of every row, in the order of rows and starts.

    Attributes:
        row: (P,) row of the recording.
        shard: (P,) index into `AtRest.shards`.
        start: (P,) first native sample.
        stop: (P,) one past the last; -1 to the end.
    """

    row: Ints
    shard: Ints
    start: Ints
    stop: Ints


@dataclass(frozen=True, slots=True)
class OutcomeColumns:
    """Every outcome of every row; what it says is read when it is asked for.

    Attributes:
        row: (O,) row of the recording.
        shard: (O,) index into `AtRest.shards`.
        dataset: (O,) index into `AtRest.datasets`.
    """

    row: Ints
    shard: Ints
    dataset: Ints


def datasets_of(codes: list[tuple[Ints, list[str]]]) -> tuple[list[Dataset], Ints]:
    """Return (distinct partitions, index of each outcome's) of coded tables, encoders and versions."""
    mixed = np.zeros(len(codes[0][0]), np.int32)
    sizes = [max(1, len(texts)) for _, texts in codes]
    for (code, _), size in zip(codes, sizes, strict=True):
        mixed = mixed * size + code
    found = np.flatnonzero(np.bincount(mixed))
    index = np.zeros(int(np.prod(sizes)), np.int32)
    index[found] = np.arange(len(found))
    digits = zip(*np.unravel_index(found, sizes), strict=True)
    datasets = [
        Dataset(*(texts[digit] for digit, (_, texts) in zip(place, codes, strict=True)))
        for place in digits
    ]
    return datasets, index[mixed]


def list_rows(lists: pa.ListArray) -> Ints:
    """Return, for every element of all lists, the row of its list."""
    return np.repeat(np.arange(len(lists), dtype=np.int32), ints_of(pc.list_value_length(lists)))


def codes_of(texts: pa.Array) -> tuple[Ints, list[str]]:
    """Return (index into the distinct texts, -1 for null; these texts)."""
    coded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    indices: Ints = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    return indices, coded.dictionary.to_pylist()


def ints_of(array: pa.Array, missing: int = 0) -> Ints:
    """Return int64, with `missing` for null."""
    found: Ints = pc.fill_null(array.cast(pa.int64()), missing).to_numpy(zero_copy_only=False)
    return found
