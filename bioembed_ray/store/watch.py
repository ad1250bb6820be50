"""Whether a store that fails again and again is there at all."""

from __future__ import annotations

from bioembed_ray import storage
from bioembed_ray.inputs.names import parent

# So many failures in a row may be damaged objects that lie side by side; then the store is asked.
ASKED_AFTER = 3


class StoreWatch:
    """Counts what could not be read in a row, and looks whether the store as such answers.

    Without it a store that goes away in mid-run would be waited for once per recording, for hours.
    """

    def __init__(self) -> None:
        self._n_failed = 0

    def note(self, failed_uri: str | None) -> None:
        """Take note of one more that was read, or of the URI of one that the store failed on.

        Raises:
            StorageError: the store does not list the folder either, so it is out of reach.
        """
        if failed_uri is None:
            self._n_failed = 0
            return
        self._n_failed += 1
        if self._n_failed % ASKED_AFTER == 0:
            next(iter(storage.list_objects(parent(failed_uri))), None)
