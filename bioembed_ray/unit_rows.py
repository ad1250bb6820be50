"""Vectors as directions: the one place where rows are divided by their lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unit_rows(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return (n, D) rows scaled to length 1; a row of zeros stays one.

    Worked in float64: in float32 the squares of numbers below 1e-23 vanish, so that a row has no
    length, and those of numbers above 1e19 are infinite.

    >>> unit_rows(np.array([[3e-40, 4e-40], [3e30, 4e30], [0, 0]], np.float32)).round(4).tolist()
    [[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]
    """
    exact = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = exact / np.where(lengths > 0, lengths, 1.0)
    return unit
