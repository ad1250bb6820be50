"""Calls in threads: in order, few at a time, and what one raises is raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from bioembed_ray.threads import in_turn


def test_calls_run_side_by_side_few_are_ahead_and_answers_come_in_order() -> None:
    asked: list[int] = []
    together = threading.Barrier(4, timeout=10)

    def calls() -> Iterator[tuple[int]]:
        for number in range(40):
            asked.append(number)
            yield (number,)

    def slow(number: int) -> int:
        # Four have to meet here, or none goes on.
        together.wait()
        time.sleep(0.001 * (number % 3))
        return number

    answers = in_turn(slow, calls(), 4)
    for number in range(40):
        assert next(answers) == number
        assert len(asked) <= number + 1 + 2 * 4
    assert list(answers) == []


def test_what_a_call_raises_is_raised_in_its_turn_and_ends_the_rest() -> None:
    begun: list[int] = []

    def fails(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise KeyError(number)
        return number

    answers = in_turn(fails, ((number,) for number in range(1000)), 2)
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(answers)
    assert len(begun) <= 3 + 2 * 2 + 1
