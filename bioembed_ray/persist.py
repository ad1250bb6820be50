"""Requests to a store again, where obstore gives up at once but the next try may well succeed.

obstore itself repeats what a server refuses (5xx), and reads and plain writes that time out or break
off. It does not repeat a listing or a refusal whose answer breaks off, a create, conditional write or
delete whose answer never comes, nor a 404 for an object that the store itself lists.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 15.0


class Patience:
    """How often and how long a store may fail, by its own retry settings; counts the failures.

    Args:
        store: The store.
    """

    def __init__(self, store: ObjectStore) -> None:
        rule = store.retry_config or {}
        self._left: int = rule["max_retries"]
        self._until = time.monotonic() + rule["retry_timeout"].total_seconds()
        self._pause = FIRST_PAUSE_S

    def wait(self) -> bool:
        """Wait a while and return True; False where it has been enough."""
        # As obstore draws them: many workers should not come back in step.
        pause = self._pause * random.uniform(0.5, 1.5)
        if self._left <= 0 or time.monotonic() + pause > self._until:
            return False
        time.sleep(pause)
        self._left -= 1
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        return True


def again(store: ObjectStore, call: Callable[[], T], is_passing: Callable[[Exception], bool]) -> T:
    """Return what a call returns, called again after errors that may pass.

    Args:
        store: Its retry settings bound tries and time.
        call: One or more requests, which may be repeated.
        is_passing: Whether an error may pass.

    Raises:
        What the call raises, once it is enough or the error is no passing one.
    """
    from obstore import exceptions as obs

    patience = Patience(store)
    while True:
        try:
            return call()
        except (obs.BaseError, FileNotFoundError) as error:
            if not is_passing(error) or not patience.wait():
                raise


def is_broken(error: Exception) -> bool:
    """Return True where a request failed under way and obstore has not repeated it."""
    text = str(error).partition("Debug source")[0]
    # "... in 4.1s, after 5 retries, ..." has had its tries.
    is_over = re.search(r"after \d+ retries, max_retries", text) is not None
    # A body that broke off comes without the request; obstore has read it again from where it broke.
    is_request = "Error performing" in text or "Error getting list response body" in text
    return is_request and "HTTP error: " in text and not is_over


def is_spurious(error: Exception) -> bool:
    """Return True for a 404 to a listing that names no missing bucket: a prefix cannot be missing."""
    text = str(error)
    return "404 Not Found" in text and not names_no_bucket(text)


def names_no_bucket(text: str) -> bool:
    """Return True where a store says that the whole bucket is missing."""
    return "NoSuchBucket" in text or "ContainerNotFound" in text
