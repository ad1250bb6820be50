"""What a VQ-VAE is trained on: patches in order on storage, and how they are standardised. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.errors import InputError

Patches = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on: a sample that stands, and how its patches are standardised.

    Attributes:
        folder: The sample's folder.
        info: The sample.
        mean, std: Decibels.
        n_frames: T.
        n_mels: F.
    """

    folder: str
    info: SampleInfo
    mean: float
    std: float
    n_frames: int
    n_mels: int


def group_sums(folder: str, group: int) -> tuple[int, float, float]:
    """Return how many values a group of patches has, their sum and the sum of their squares.

    Raises:
        InputError: values that are not finite.
    """
    values = blocks.read_vectors(folder, blocks.group_name(group)).astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError("mel patches hold NaN or infinity; exclude the recordings they are of")
    return values.size, float(values.sum()), float(np.square(values).sum())


def statistics(sums: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Return mean and standard deviation of all values, from the sums of their groups.

    Raises:
        InputError: all values are the same.
    """
    n = sum(count for count, _, _ in sums)
    mean = sum(total for _, total, _ in sums) / n
    std = float(np.sqrt(max(0.0, sum(square for _, _, square in sums) / n - mean**2)))
    if std < 1e-3:
        raise InputError("the patches to train on are all alike, such as digital silence")
    return mean, std


def read_share(material: Material, names: list[str], rank: int, n_workers: int) -> Patches:
    """Return the standardised patches of some groups that are a worker's, (N, T, F) float16.

    Rounding to float16 moves a value by 2^-11 of itself, an error a thousandth of what codes lose.
    """
    shares = []
    first = 0
    for name in names:
        rows = blocks.read_vectors(material.folder, name)
        mine = rows[(rank - first) % n_workers :: n_workers]
        first += len(rows)
        scaled = (mine.astype(np.float32) - material.mean) / material.std
        shares.append(scaled.astype(np.float16))
    shape = (-1, material.n_frames, material.n_mels)
    return np.concatenate(shares).reshape(shape)
