"""Make a RayJob from a manifest and wait for its end: what the pod of cronjob.yaml runs.

    python launch_rayjob.py rayjob.yaml NAME OWNER_UID

NAME and OWNER_UID are those of the Kubernetes Job that the pod belongs to. A second pod of the same
Job finds the RayJob of the first and waits for it.

Exit codes: 0 the run is done, or another run holds the output; 1 it failed, or Kubernetes refused
it; 75 Kubernetes did not answer for ten minutes, and another pod may try.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# Where Kubernetes puts a pod's own rights.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAUSE_S = 15.0
PATIENCE_S = 600.0
DONE, FAILED, TRY_AGAIN = 0, 1, 75
LOCKED = 4


class Refused(Exception):
    """Kubernetes said no, for good."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status


@dataclass(frozen=True)
class Server:
    """The API server as a pod sees it: its address, and the folder with token, CA and namespace."""

    url: str
    account: Path = ACCOUNT
    pause_s: float = PAUSE_S
    patience_s: float = PATIENCE_S

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer to a GET, or to a POST where there is a body.

        Raises:
            Refused: a 4xx that asking again does not change.
            OSError: no answer within `patience_s`.
        """
        until = time.monotonic() + self.patience_s
        while True:
            try:
                return self._ask_once(path, body)
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")[:500]
                if error.code < 500 and error.code not in (401, 408, 429):
                    raise Refused(error.code, text) from None
                last: Exception = error
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                last = error
            if time.monotonic() > until:
                raise OSError(str(last))
            time.sleep(self.pause_s)

    def _ask_once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/apis/ray.io/v1/namespaces/{self._read('namespace')}/{path}",
            None if body is None else json.dumps(body).encode(),
            # Read anew every time: the token is replaced while the pod runs.
            {"Authorization": f"Bearer {self._read('token')}", "Content-Type": "application/json"},
        )
        secure = self.url.startswith("https:")
        trust = ssl.create_default_context(cafile=str(self.account / "ca.crt")) if secure else None
        with urllib.request.urlopen(request, timeout=60, context=trust) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _read(self, name: str) -> str:
        return (self.account / name).read_text().strip()


def launch(server: Server, manifest: Mapping[str, Any], name: str, owner_uid: str) -> int:
    """Make the RayJob, unless it stands, and wait for its end; returns the exit code."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": owner_uid}
    known = {k: v for k, v in manifest.get("metadata", {}).items() if k != "generateName"}
    body = {**manifest, "metadata": {**known, "name": name, "ownerReferences": [owner]}}
    try:
        try:
            server.ask("rayjobs", body)
        except Refused as error:
            if error.status != http.HTTPStatus.CONFLICT:
                raise
            say(f"{name}: stands already")
        return wait(server, name)
    except Refused as error:
        say(f"{name}: Kubernetes refused ({error})")
        return FAILED
    except OSError as error:
        say(f"{name}: Kubernetes does not answer ({error})")
        return TRY_AGAIN


def wait(server: Server, name: str) -> int:
    """Wait until the RayJob has ended; returns the exit code."""
    seen = None
    while True:
        status = server.ask(f"rayjobs/{name}").get("status", {})
        now = (status.get("jobDeploymentStatus", ""), status.get("jobStatus", ""))
        if now != seen:
            say(f"{name}: {' '.join(filter(None, now)) or 'waiting'}")
            seen = now
        if now[0] in {"Complete", "Failed"}:
            return judge(name, now[1], status.get("message", ""))
        time.sleep(server.pause_s)


def judge(name: str, state: str, message: str) -> int:
    """Return the exit code for a run that ended; Ray's message holds the driver's own."""
    if state == "SUCCEEDED":
        return DONE
    say(f"{name}: {message}")
    found = re.search(r"exit code (\d+)", message)
    return DONE if found and int(found[1]) == LOCKED else FAILED


def say(text: str) -> None:
    """Write a line to the pod's log."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Launch what the command line names; returns the exit code."""
    path, name, owner_uid = arguments
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    # An address of IPv6 goes in brackets.
    server = Server(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    return launch(server, yaml.safe_load(Path(path).read_text()), name, owner_uid)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
