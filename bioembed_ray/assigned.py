"""Tokens as they arise: every block's frames get their nearest centroids, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.codebooks.nearest import Codes, assign, has_nearest


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Tokens of a shard under one codebook, in the order of places and positions.

    Attributes:
        place: (T,) index into the places, per time step.
        start: (T,) first encoder sample of each time step.
        labels: (T, per_step) int32.
        gaps: (place, first encoder sample) of time steps with a frame that has no nearest centroid.
    """

    place: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    gaps: tuple[tuple[int, int], ...] = ()


class Assigned:
    """Collects tokens block by block.

    Args:
        codes: Codebooks, each with the number of the layer whose vectors it takes.
    """

    def __init__(self, codes: Sequence[tuple[int, Codes]]) -> None:
        self._codes = codes
        self._found: list[list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int32]]]] = [
            [] for _ in codes
        ]
        self._gaps: list[list[tuple[int, int]]] = [[] for _ in codes]

    def add(self, place: int, steps: npt.NDArray[np.int64], layers: Sequence[torch.Tensor]) -> None:
        """Name the frames of one block, (T · per_step, D) per layer.

        A time step is left out, and so becomes a gap, where one of its frames has no nearest centroid.
        """
        if not len(steps):
            return
        for (layer, codes), found, gaps in zip(self._codes, self._found, self._gaps, strict=True):
            dim = layers[layer].shape[1]
            grouped = layers[layer].float().reshape(len(steps), -1, dim)  # (T, per_step, D)
            has_token = has_nearest(grouped).all(dim=1)
            is_kept = has_token.cpu().numpy()
            kept = steps[is_kept]
            if len(kept) < len(steps):
                grouped = grouped[has_token]
                gaps += [(place, step) for step in steps[~is_kept].tolist()]
            if len(kept):
                labels, _ = assign(grouped.flatten(0, 1), codes)
                found.append((place, kept, labels.astype(np.int32).reshape(len(kept), -1)))

    def tables(self) -> list[TokenTable]:
        """Return one table per codebook."""
        tables = []
        for found, gaps in zip(self._found, self._gaps, strict=True):
            ordered = sorted(found, key=lambda entry: (entry[0], int(entry[1][0])))
            counts = [len(steps) for _, steps, _ in ordered]
            tables.append(
                TokenTable(
                    np.repeat([place for place, _, _ in ordered], counts).astype(np.int64),
                    np.concatenate([np.zeros(0, np.int64), *(steps for _, steps, _ in ordered)]),
                    np.concatenate([labels for _, _, labels in ordered])
                    if ordered
                    else np.zeros((0, 1), np.int32),
                    tuple(sorted(gaps)),
                )
            )
        return tables
