"""Shards under way: how often each was begun, how far it is, and what that is in audio seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

# Told after every batch what share of the work is done, 0 to 1.
Told = Callable[[float], None]
# Takes the shards that need no more watching; returns what share of every other begun is encoded, None
# where nobody answers in time.
Ask = Callable[[Sequence[str]], Mapping[str, float] | None]


def nobody(_share: float) -> None:
    """Take what is told and do nothing with it."""


def share_of_all(seconds: Sequence[float], number: int, share: float) -> float:
    """Return what share of a shard's work is done, 0 to 1, while one encoder after the other runs.

    Args:
        seconds: What each of them took before, in any unit.
        number: Which one is at work.
        share: How much of it is done, 0 to 1.

    >>> share_of_all([3.0, 1.0, 4.0], 2, 0.5)
    0.75
    """
    return (sum(seconds[:number]) + share * seconds[number]) / sum(seconds)


class InFlight:
    """Counts attempts, so that a shard that kills its worker is given up, and remembers shares.

    An actor of the stream's. `tell` comes from encoders, `shares` is asked by the driver.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun: dict[tuple[str, str], int] = {}
        self._shares: dict[str, float] = {}

    def begin(self, stage: str, shard: str) -> bool:
        """Count one attempt; return False where there were enough."""
        count = self._begun.get((stage, shard), 0) + 1
        self._begun[stage, shard] = count
        return count <= self._limit

    def tell(self, shard: str, share: float) -> None:
        """Remember what share of a shard is encoded, 0 to 1."""
        self._shares[shard] = share

    def shares(self, done: Sequence[str]) -> dict[str, float]:
        """Return the share of every shard that was told of, without those that are done."""
        for shard in done:
            self._shares.pop(shard, None)
        return self._shares


class UnderWay:
    """Audio seconds encoded of shards that are not done yet; asked by the progress line's thread.

    Args:
        seconds: Shard -> its audio seconds.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._left = dict(seconds)
        self._done: list[str] = []
        self._lock = threading.Lock()
        self._ask: Ask | None = None
        self._shares: Mapping[str, float] = {}

    def watch(self, ask: Ask) -> None:
        """Ask here from now on."""
        self._ask = ask

    def done(self, shard: str) -> None:
        """Take a shard off, which is now counted as a whole."""
        with self._lock:
            self._left.pop(shard, None)
            self._done.append(shard)

    def __call__(self) -> float:
        """Return the seconds, by the last answer where none comes now."""
        if self._ask is None:
            return 0.0
        with self._lock:
            done, self._done = self._done, []
        shares = self._ask(done)
        if shares is not None:
            self._shares = shares
        with self._lock:
            return sum(self._left.get(shard, 0.0) * share for shard, share in self._shares.items())
