"""Runs of equal tokens, and tokens as text."""

from __future__ import annotations

from collections.abc import Sequence


def run_lengths(tokens: Sequence[int | None]) -> tuple[list[int | None], list[int]]:
    """Return units and durations: equal neighbours become one unit with its number of tokens.

    >>> run_lengths([5, 5, 7, None, None, 5])
    ([5, 7, None, 5], [2, 1, 2, 1])
    """
    units: list[int | None] = []
    durations: list[int] = []
    for token in tokens:
        if units and units[-1] == token:
            durations[-1] += 1
        else:
            units.append(token)
            durations.append(1)
    return units, durations


def as_text(units: Sequence[int | None], durations: Sequence[int] | None = None) -> str:
    """Return units as words for a language model: `u17`, with durations `u17x3`; gaps are `<gap>`.

    >>> as_text([5, 7, None], [2, 1, 2])
    'u5x2 u7x1 <gap>x2'
    """
    words = ["<gap>" if unit is None else f"u{unit}" for unit in units]
    if durations is None:
        return " ".join(words)
    return " ".join(f"{word}x{count}" for word, count in zip(words, durations, strict=True))
