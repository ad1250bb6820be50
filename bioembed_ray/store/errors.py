"""What the operating system and obstore raise becomes one line and one of our errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from bioembed_ray.errors import (
    ChangedError,
    DeniedError,
    NoBucketError,
    NotFoundError,
    StorageError,
)
from bioembed_ray.persist import names_no_bucket
from bioembed_ray.store.uris import shown_uri


@contextlib.contextmanager
def translated(uri: str, *, name_the_file: bool = False) -> Iterator[None]:
    """Turn what the operating system and obstore raise into our errors, in one line.

    `name_the_file`: say which file below `uri` it was.
    """
    from obstore import exceptions as obs

    shown = shown_uri(uri)
    try:
        yield
    except FileNotFoundError as error:  # obstore raises Python's own, too
        raise _not_found(uri, str(error)) from error
    except NotADirectoryError as error:
        raise NotFoundError(f"{shown}: not found; a part of the path is a file") from error
    except OSError as error:
        if name_the_file and isinstance(error.filename, str):
            shown = shown_uri(error.filename)
        if isinstance(error, PermissionError):
            raise DeniedError(f"{shown}: no permission") from error
        raise StorageError(f"{shown}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # also a key with an empty part, `.`, `..` or a control character
        raise StorageError(
            f"{shown}: no such name is possible ({_first_line(str(error))})"
        ) from error
    except (obs.PermissionDeniedError, obs.UnauthenticatedError) as error:
        raise DeniedError(
            f"{shown}: no permission; check the credentials in the environment"
        ) from error
    except (obs.PreconditionError, obs.NotModifiedError) as error:
        raise ChangedError(f"{shown}: replaced since it was listed") from error
    except obs.BaseError as error:
        if names_no_bucket(str(error)):
            raise _not_found(uri, str(error)) from error
        # A listing that is forbidden comes as a general error.
        if re.search("40[13] (Forbidden|Unauthorized)", str(error)) and not _is_lookup(str(error)):
            raise DeniedError(
                f"{shown}: no permission; check the credentials in the environment"
            ) from error
        raise StorageError(f"{shown}: {_plain(str(error))}") from error


def _not_found(uri: str, text: str) -> NotFoundError | NoBucketError:
    if names_no_bucket(text):
        return NoBucketError(f"{'/'.join(uri.split('/')[:3])}: no such bucket")
    return NotFoundError(f"{shown_uri(uri)}: not found")


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "store error")[:300]


def _is_lookup(text: str) -> bool:
    """Return True where a cloud machine's own credentials were asked for, since none were given."""
    return "169.254.169.254" in text or "metadata.google.internal" in text


def _plain(text: str) -> str:
    """Say what obstore means, for the cases that people meet."""
    if _is_lookup(text):
        return (
            "no credentials in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(or your store's own), or AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    sent = re.search(r"(https?://[^/\s]+)[^\n]*error sending request", text)
    if sent:
        return f"no answer from {sent[1]}; check the endpoint and the network"
    invalid = re.search(r'invalid path: (?:Error parsing )?Path "(.*?)"', text, re.DOTALL)
    if invalid:
        return (
            f"holds the key {shown_uri(invalid[1])!r}, which cannot be read (empty part, '.', '..' or a "
            "control character); rename it, or name a prefix without it"
        )
    return re.sub(r"^Generic \w+ error: ", "", _first_line(text))
