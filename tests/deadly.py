"""A store that kills the run in this process at one of its writes."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from bioembed_ray import storage
from bioembed_ray.segments import Span


class Killed(BaseException):
    """The process is gone."""


class Store:
    """Stands between the package and its store, and kills the run at the n-th write.

    Attributes:
        left: One more than the writes to live through; None lives for ever.
        is_dead: Whether the run was killed.
        counts: Of what the run did, by whoever counts.
        encoded: Spans that the run encoded, by whoever notes them.
    """

    def __init__(self, patch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
        self.left: int | None = None
        self.is_dead = False
        self.counts = counts
        self.encoded: list[Span] = []
        self.lock = threading.Lock()
        for name in ("put", "create", "delete", "replace"):
            patch.setattr(storage, name, self._deadly(getattr(storage, name)))

    def live(self, left: int | None) -> None:
        self.left, self.is_dead = left, False
        self.counts.clear()
        self.encoded.clear()

    def _deadly(self, write: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with self.lock:
                if self.is_dead:
                    raise Killed
                left = self.left = None if self.left is None else self.left - 1
                # Before the first write, or as soon as the last one took effect.
                self.is_dead = left == 0
                if self.is_dead:
                    raise Killed
                answer = write(*arguments)
                self.is_dead = left == 1
                if self.is_dead:
                    raise Killed
                return answer

        return call
