"""Torch on one compute thread, since another count moves the last bits; a store asked in several."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside the block, and on as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_turn(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], n_threads: int
) -> Iterator[Any]:
    """Yield the answers of calls in their order; at most two a thread are under way or not taken yet.

    Args:
        function: Called in threads; what it raises is raised here.
        calls: Arguments of each call, taken from here as threads get free.
        n_threads: Calls at a time.

    >>> list(in_turn(divmod, ((n, 3) for n in range(5)), 2))
    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for call in calls:
            if len(waiting) == 2 * n_threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, *call))
        while waiting:
            yield waiting.popleft().result()
