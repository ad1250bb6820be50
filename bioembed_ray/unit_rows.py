"""Vectors as directions: the one place where rows are divided by their lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unit_rows(
    vectors: npt.NDArray[np.floating[Any]], dtype: npt.DTypeLike = np.float64
) -> npt.NDArray[Any]:
    """Return (n, D) rows scaled to length 1; a row of zeros stays one.

    Worked in float64, and rounded once to `dtype`: in float32 the squares of numbers below 1e-23
    vanish, so that a row has no length, and those of numbers above 1e19 are infinite. No copy is made
    besides the result.

    >>> unit_rows(np.array([[3e-40, 4e-40], [3e30, 4e30], [0, 0]], np.float32)).round(4).tolist()
    [[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
    unit: npt.NDArray[Any] = np.empty(vectors.shape, dtype)
    np.divide(vectors, np.where(lengths > 0, lengths, 1.0), out=unit, casting="same_kind")
    return unit
