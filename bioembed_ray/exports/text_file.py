"""A text file, written line by line and put in one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

from bioembed_ray import storage


@contextlib.contextmanager
def text_file(uri: str) -> Iterator[TextIO]:
    """Give a file to write UTF-8 to, ends of lines as they are; put at `uri` when the block ends well.

    Raises:
        StorageError: writing failed.
    """
    with storage.writing(uri) as path, open(path, "w", encoding="utf-8", newline="") as file:
        yield file
