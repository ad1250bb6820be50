"""How tokens of two versions differ on the same frames, whatever their ids are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray.compare.vectors import common_rows

MOST_MOVES = 30


@dataclass(slots=True)
class TokenChange:
    """What became of tokens, summed over parts.

    Attributes:
        n_old, n_new: Tokens whose row stands in one version only or has another grid there.
        n_gaps: Tokens without an id in one of them.
        moves: (K, K') how often an old id became a new one; grows as ids are met.
    """

    n_old: int = 0
    n_new: int = 0
    n_gaps: int = 0
    moves: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def add(self, old: pa.Table, new: pa.Table) -> None:
        """Enter the rows of a shard."""
        old, new = (_same_grid(table) for table in (old, new))
        rows_old, rows_new = common_rows(old, new)
        before = old.column("tokens").take(pa.array(rows_old)).to_pylist()
        after = new.column("tokens").take(pa.array(rows_new)).to_pylist()
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if len(a) == len(b)]
        n_paired = sum(len(a) for a, _ in pairs)
        self.n_old += _n_tokens(old) - n_paired
        self.n_new += _n_tokens(new) - n_paired
        ids = np.array(
            [(x, y) for a, b in pairs for x, y in zip(a, b, strict=True) if None not in (x, y)],
            np.int64,
        ).reshape(-1, 2)
        self.n_gaps += n_paired - len(ids)
        if len(ids):
            shape = tuple(np.maximum(self.moves.shape, ids.max(axis=0) + 1))
            moves = np.zeros(shape, np.int64)
            moves[: self.moves.shape[0], : self.moves.shape[1]] = self.moves
            np.add.at(moves, (ids[:, 0], ids[:, 1]), 1)
            self.moves = moves

    def figures(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it; `moves` in full is a file of its own."""
        partner = matched(self.moves)
        total = int(self.moves.sum())
        same = sum(int(self.moves[i, j]) for i, j in partner.items())
        stayed = int(np.trace(self.moves))
        apart = [
            (int(self.moves[i, j]), int(i), int(j))
            for i, j in zip(*np.nonzero(self.moves), strict=True)
            if partner.get(int(i)) != j
        ]
        return {
            "tokens": {
                "both": total,
                "old_only": self.n_old,
                "new_only": self.n_new,
                "gaps": self.n_gaps,
            },
            "agreement": same / total if total else None,
            "agreement_without_alignment": stayed / total if total else None,
            "alignment": {str(i): j for i, j in partner.items()},
            "most_frequent_moves": [
                {"old": i, "new": j, "tokens": count}
                for count, i, j in sorted(apart, reverse=True)[:MOST_MOVES]
            ],
        }


def _same_grid(table: pa.Table) -> pa.Table:
    """Return token rows with their grid in the key: rows of another step are not the same."""
    grid = pc.binary_join_element_wise(
        table.column("recording"),
        table.column("hop_s").cast(pa.string()),
        table.column("per_step").cast(pa.string()),
        "\0",
    )
    return table.set_column(table.schema.get_field_index("recording"), "recording", grid)


def _n_tokens(table: pa.Table) -> int:
    return int(pc.sum(pc.list_value_length(table.column("tokens"))).as_py() or 0)


def matched(moves: npt.NDArray[np.int64]) -> dict[int, int]:
    """Return old id -> new id, each once, that keeps the most tokens (the Hungarian method).

    >>> matched(np.array([[0, 9], [8, 1]]))
    {0: 1, 1: 0}
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(moves, maximize=True)
    return {int(i): int(j) for i, j in zip(rows, columns, strict=True) if moves[i, j]}
