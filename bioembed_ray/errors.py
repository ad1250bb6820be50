"""Every error the package raises, the exit codes, and why a recording can fail.

    BioembedError                 exit 1
    ├── UsageError                exit 2   the caller can put it right
    │   ├── ConfigError                    job file or option
    │   ├── InputError                     nothing to read, or not what was promised
    │   └── WeightsError                   missing, unreachable or foreign checkpoint
    ├── TooManyFailures           exit 3
    ├── LockedError               exit 4   another run holds the output
    ├── StorageError              exit 1   the store said no, or nothing at all
    │   ├── NotFoundError
    │   ├── NoBucketError                  not even the bucket: nothing is said of its objects
    │   ├── DeniedError
    │   └── ChangedError                   the object is no longer the one that was listed
    ├── BrokenOutput              exit 1   `verify` found rows that should not be
    └── RecordingError                     one recording; becomes a row in failures/

Messages are one line: the thing, the value got, what is accepted, the way out.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Why input seconds were not embedded. A closed list: the column `reason`."""

    DAMAGED = "damaged"
    """A stretch that cannot be decoded, or a recording of which nothing can."""
    UNSUPPORTED = "unsupported"
    """No decoder knows the format, or it is not audio."""
    EMPTY = "empty"
    """The recording decodes to no samples."""
    MISSING = "missing"
    """The manifest names it, and nothing stands there."""
    TRUNCATED = "truncated"
    """The header promises more samples than decoding gave; what came is embedded."""
    TOO_SHORT = "too_short"
    """Too few samples for one frame of this encoder."""
    TOO_LONG = "too_long"
    """Longer than an encoder that reads recordings whole can take."""
    NONFINITE_VECTOR = "nonfinite_vector"
    """The encoder answered with NaN or infinity, or with more than the stored type holds."""
    CRASHED = "crashed"
    """The worker process died on it, repeatedly and alone."""
    ENCODER_ERROR = "encoder_error"
    """The encoder raised an error on it."""
    STORAGE = "storage"
    """Reading or writing failed after retries."""
    CHANGED = "changed"
    """The object was replaced between listing and reading."""
    OUT_OF_MEMORY = "out_of_memory"
    """The worker or the device ran out of memory."""

    @property
    def is_transient(self) -> bool:
        """True where a later run may succeed, so that the shard stays uncommitted."""
        return self in {Reason.STORAGE, Reason.CHANGED, Reason.OUT_OF_MEMORY}


class BioembedError(Exception):
    """Base of every error raised on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(BioembedError):
    """The caller can put it right; no traceback is shown."""

    exit_code = 2


class ConfigError(UsageError):
    """A job file or option is wrong."""


class InputError(UsageError):
    """The input is missing, empty or not what was promised."""


class WeightsError(UsageError):
    """A checkpoint is missing, unreachable, damaged or belongs to another model."""


class TooManyFailures(BioembedError):
    """More of the input failed than `max_failed_fraction` allows."""

    exit_code = 3


class LockedError(BioembedError):
    """Another run holds the output."""

    exit_code = 4


class StorageError(BioembedError):
    """The store refused or could not be reached."""


class NotFoundError(StorageError):
    """No such object or folder."""


class NoBucketError(StorageError):
    """No such bucket: whether an object exists is not known, so it is no `NotFoundError`."""


class DeniedError(StorageError):
    """No permission."""


class ChangedError(StorageError):
    """The object is no longer the one that was listed."""


class BrokenOutput(BioembedError):
    """The output breaks one of its invariants."""


class RecordingError(BioembedError):
    """One recording cannot be read or encoded.

    Args:
        reason: Why, from the closed list.
        detail: One line for people: what was seen.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RecordingError], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)
