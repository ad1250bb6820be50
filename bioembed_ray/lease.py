"""One run at a time on an output: a lease object with a heartbeat and an expiry.

The lease is created only where none stands. A holder that stopped beating is taken over after
`EXPIRY_S`; one on this machine whose process is gone, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bioembed_ray import storage
from bioembed_ray.errors import BioembedError, LockedError, NotFoundError, StorageError

LEASE_KEY = "lease.json"
BEAT_S = 10.0
EXPIRY_S = 60.0


class Lost(threading.Event):
    """Set when a lease was lost.

    Attributes:
        error: What to end with; what it says is right from the moment the event is set.
    """

    def __init__(self, output: str) -> None:
        super().__init__()
        self._output = output
        self.error: BioembedError = LockedError(
            f"{output}: another run took the output over; stopping"
        )

    def out_of_reach(self, error: StorageError) -> None:
        """Set, because the store says nothing of the lease any more."""
        self.error = StorageError(
            f"{self._output}: the lease could not be renewed for {EXPIRY_S:.0f} s ({error}); stopping, "
            "what is committed stays, run again to go on"
        )
        self.set()

    def check(self) -> None:
        """Raise where the lease was lost.

        Raises:
            LockedError: another run has it.
            StorageError: the store was out of reach for too long.
        """
        if self.is_set():
            raise self.error


@contextlib.contextmanager
def hold(output: str, command: str) -> Iterator[Lost]:
    """Hold the output's lease; yields an event that is set when it was lost.

    Raises:
        LockedError: another run holds it.
        StorageError: the output cannot be written.
    """
    uri = storage.join(output, LEASE_KEY)
    mine = {
        "id": uuid.uuid4().hex,
        "command": command,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "pid_start": _process_start(os.getpid()),
        "taken": time.time(),
        "beat": time.time(),
    }
    _take(uri, mine)
    lost, stop = Lost(output), threading.Event()
    beating = threading.Thread(target=_beat, args=(uri, mine, stop, lost), daemon=True)
    beating.start()
    try:
        yield lost
    finally:
        stop.set()
        beating.join()
        with contextlib.suppress(StorageError):
            if _read(uri).get("id") == mine["id"]:
                storage.delete(uri)


def holder(output: str) -> dict[str, Any] | None:
    """Return who holds the output now, None where nobody does."""
    try:
        found = _read(storage.join(output, LEASE_KEY))
    except NotFoundError:
        return None
    return None if _is_over(found) else found


def _take(uri: str, mine: dict[str, Any]) -> None:
    body = json.dumps(mine).encode()
    # Twice: a lease may go away between seeing it and reading it.
    for _ in range(3):
        if storage.create(uri, body):
            return
        try:
            stamp = storage.stat_object(uri).stamp
            found = _read(uri)
        except NotFoundError:
            continue
        if not _is_over(found):
            age = max(0, round(time.time() - found.get("beat", 0)))
            raise LockedError(
                f"{uri.removesuffix('/' + LEASE_KEY)}: another run holds it ({found.get('command')}, pid "
                f"{found.get('pid')} on {found.get('host')}, since {_moment(found.get('taken', 0))}, "
                f"alive {age} s ago); wait for it to end, or {EXPIRY_S:.0f} s after its death"
            )
        # Of several that see a dead lease, the one whose write meets the same stamp has it.
        if storage.replace(uri, body, stamp):
            time.sleep(0.05 if storage.is_local(uri) else 0)
            if _read(uri).get("id") == mine["id"]:
                return
    raise LockedError(f"{uri}: another run is taking the output over; try again")


def _beat(uri: str, mine: dict[str, Any], stop: threading.Event, lost: Lost) -> None:
    alive = time.monotonic()
    while not stop.wait(BEAT_S):
        try:
            stamp = storage.stat_object(uri).stamp
            body = json.dumps({**mine, "beat": time.time()}).encode()
            # Only over the lease that was looked at, not over that of a run that came in between.
            if _read(uri).get("id") != mine["id"] or not storage.replace(uri, body, stamp):
                lost.set()
                return
            alive = time.monotonic()
        except NotFoundError:
            lost.set()
            return
        except StorageError as error:
            # A store that hiccups is not a lost lease, until others may believe us dead.
            if time.monotonic() - alive > EXPIRY_S:
                lost.out_of_reach(error)
                return


def _read(uri: str) -> dict[str, Any]:
    try:
        found = json.loads(storage.read(uri))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _is_over(found: dict[str, Any]) -> bool:
    if time.time() - found.get("beat", 0) > EXPIRY_S:
        return True
    if found.get("boot") != _boot_id() or found.get("host") != socket.gethostname():
        return False
    # The start time tells a process from a later one that got the same number.
    return _process_start(found.get("pid", -1)) != found.get("pid_start")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """Return when a process started (field 22 of /proc/PID/stat), None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    # A zombie is dead, only not yet collected.
    return None if fields[0] == "Z" else fields[19]
