"""Turn an archive of animal sound into embeddings, frames and tokens on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bioembed_ray.results import Results

__version__ = "0.1.0"


def open(output: str) -> Results:  # noqa: A001 - `bioembed_ray.open` says what it does
    """Open what a run wrote, for reading.

    Args:
        output: Folder or bucket prefix, as the job file names it.

    Raises:
        InputError: nothing that a run wrote stands there.
    """
    # Workers import the package too, and read no results.
    from bioembed_ray.results import open_output

    return open_output(output)
