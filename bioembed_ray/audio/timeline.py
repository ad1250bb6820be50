"""Decoded blocks at their true positions: timestamps that jump are holes, mistakes or drift."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.float32]

# Blocks that must agree with a timestamp out of line before it is believed.
CONFIRMATIONS = 2


class Timeline:
    """Places blocks one behind the other, and behind a hole where packets were lost.

    Attributes:
        expected: Where the next block lies if nothing is lost before it.

    Args:
        tolerance: Samples that a timestamp may be off without meaning anything.
        most: Samples that the file can hold; a timestamp beyond it is a mistake.
        is_trusted: Whether timestamps are exact and guarded by a checksum or an index, so that one
            out of line is believed at once.
    """

    def __init__(self, tolerance: int, most: int, is_trusted: bool) -> None:
        self._tolerance, self._most, self._is_trusted = tolerance, most, is_trusted
        self.expected = 0
        # What is added to timestamps: a stream that starts again, a clock that drifts.
        self._shift = 0
        self._waiting: list[tuple[int, Block]] = []
        # Where the last block ended whose timestamp agreed, and its length: packets lie on that grid.
        self._agreed, self._length = 0, 1

    def skip(self, n_lost: int) -> None:
        """Leave a hole before the next block."""
        self.expected = min(self.expected + n_lost, max(self.expected, self._most))

    def add(self, position: int | None, block: Block) -> Iterator[tuple[int, Block]]:
        """Yield (position, block) as far as positions are settled.

        Args:
            position: What the timestamp says, samples from the recording's start; None where there
                is none.
            block: (n, channels).
        """
        if position is None:
            yield from self._settle()
            yield self._put(block)
            return
        position += self._shift
        if not self._waiting and abs(position - self.expected) <= self._tolerance:
            yield self._put(block)
            self._agreed, self._length = self.expected, max(1, len(block))
            return
        if self._waiting:
            last, before = self._waiting[-1]
            if abs(position - last - len(before)) <= self._tolerance:
                self._waiting.append((position, block))
                if len(self._waiting) > CONFIRMATIONS:
                    yield from self._believe()
                return
            yield from self._settle()
            if abs(position - self.expected) <= self._tolerance:
                yield self._put(block)
                return
        self._waiting.append((position, block))
        if self._is_trusted:
            yield from self._believe()

    def finish(self) -> Iterator[tuple[int, Block]]:
        """Yield what waits for blocks that do not come."""
        if len(self._waiting) > 1:
            yield from self._believe()
        yield from self._settle()

    def _believe(self) -> Iterator[tuple[int, Block]]:
        """Take the first waiting timestamp for true: a hole, or another clock."""
        position, block = self._waiting[0]
        late = n_lost = position - self.expected
        if not self._is_trusted:
            # A coarse timestamp of whole packets: the place on their grid that it means.
            stop = position + len(block) - self._agreed
            on_grid = round(stop / self._length) * self._length
            if abs(stop - on_grid) <= self._tolerance:
                n_lost = self._agreed + on_grid - len(block) - self.expected
            # Less than half a packet is not lost: clocks drift.
            n_lost = n_lost if 2 * late >= self._length else 0
        if not 0 < n_lost <= self._most - self.expected - len(block):
            n_lost = 0
        self.expected += n_lost
        if n_lost == 0:
            self._shift -= late
        yield from self._settle()

    def _settle(self) -> Iterator[tuple[int, Block]]:
        for _, block in self._waiting:
            yield self._put(block)
        self._waiting.clear()

    def _put(self, block: Block) -> tuple[int, Block]:
        position, self.expected = self.expected, self.expected + len(block)
        return position, block
