"""A proxy in front of an S3 server that fails requests in every way that object stores do.

Which request fails is drawn from a seed, so that a run can be repeated as far as its requests come in
the same order. `only` narrows faults to some requests; `log` keeps all of them with their headers.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KINDS = ("busy", "silent", "late", "cut", "missing")
READS = ("GET", "HEAD")
NO_SUCH_BUCKET = (
    b'<?xml version="1.0"?><Error><Code>NoSuchBucket</Code>'
    b"<Message>The specified bucket does not exist</Message></Error>"
)
NO_SUCH_KEY = NO_SUCH_BUCKET.replace(b"NoSuchBucket", b"NoSuchKey")
SLOW_DOWN = NO_SUCH_BUCKET.replace(b"NoSuchBucket", b"SlowDown")


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it."""

    method: str
    path: str
    headers: dict[str, str]
    fault: str | None


@dataclass
class Flaky:
    """The running proxy.

    Attributes:
        url: Where it listens.
        upstream: (host, port) of the S3 server behind it.
        rates: Kind of fault -> share of the requests that meet it. "busy" is 503 SlowDown; "silent"
            an answer that never comes, to a request that was not carried out; "late" the same after
            it was carried out; "cut" a connection closed half-way through the body it promised;
            "missing" a 404 to a read, and to the next ones of that object for `missing_s`.
        hold_s: How long a silent or late answer is held; longer than the client's patience.
        missing_s: How long an object stays away.
        only: Which requests may fail, by (method, path with query).
        gone: What all requests meet: "bucket" is NoSuchBucket, "refused" a connection that is reset.
        gone_where: Which requests `gone` is about, by path with query.
        n_met: Faults served, by kind.
    """

    url: str
    upstream: tuple[str, int]
    rates: dict[str, float] = field(default_factory=dict)
    hold_s: float = 3.0
    missing_s: float = 0.0
    only: Callable[[str, str], bool] = lambda method, path: True
    gone: str | None = None
    gone_where: Callable[[str], bool] = lambda path: True
    n_met: Counter[str] = field(default_factory=Counter)
    log: list[Request] = field(default_factory=list)
    away: dict[str, float] = field(default_factory=dict)
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str) -> str | None:
        """Return what this request meets, None for nothing."""
        if self.gone is not None and self.gone_where(path):
            return self.gone
        with self.lock:
            found = self._drawn(method, path)
            if found is not None:
                self.n_met[found] += 1
            return found

    def _drawn(self, method: str, path: str) -> str | None:
        if not self.only(method, path):
            return None
        if method in READS and self.away.get(path, 0) > time.monotonic():
            return "missing"
        level = self.draw.random()
        for kind, rate in self.rates.items():
            if level < rate:
                # What has no body cannot be cut, and only what is read can be missing.
                if (kind == "missing" and method not in READS) or (
                    kind == "cut" and method != "GET"
                ):
                    return None
                if kind == "missing":
                    self.away[path] = time.monotonic() + self.missing_s
                return kind
            level -= rate
        return None


@contextlib.contextmanager
def flaky_proxy(endpoint: str) -> Iterator[Flaky]:
    """Run a proxy on a free port of 127.0.0.1 until the block ends; it fails nothing at first."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False
    where = urlsplit(endpoint)
    assert where.hostname is not None and where.port is not None
    flaky = Flaky(f"http://127.0.0.1:{server.server_address[1]}", (where.hostname, where.port))
    server.flaky = flaky  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield flaky
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body waits for the acknowledgement of the headers: 40 ms per request.
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Keep the test output quiet; the proxy has its own log."""

    def handle(self) -> None:
        # A client that has waited long enough is no longer there to be answered.
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def _serve(self) -> None:
        flaky: Flaky = self.server.flaky  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        fault = flaky.fault(self.command, self.path)
        flaky.log.append(Request(self.command, self.path, dict(self.headers.items()), fault))
        if fault == "refused":
            self._hang_up()
        elif fault == "bucket":
            self._answer(404, NO_SUCH_BUCKET)
        elif fault == "missing":
            self._answer(404, NO_SUCH_KEY)
        elif fault == "busy":
            self._answer(503, SLOW_DOWN)
        elif fault == "silent":
            time.sleep(flaky.hold_s)
            self._hang_up()
        else:
            self._pass_on(flaky, body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _pass_on(self, flaky: Flaky, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(*flaky.upstream)
        headers = {name: value for name, value in self.headers.items() if name != "Connection"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault == "late":
            time.sleep(flaky.hold_s)
            self._hang_up()
            return
        kept = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower()
            not in {"content-length", "connection", "transfer-encoding", "date", "server"}
        ]
        promised = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_response(answer.status)
        for name, value in kept:
            self.send_header(name, value)
        self.send_header("Content-Length", promised or str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self._hang_up()
            return
        self.wfile.write(content)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        """End the connection at once, whatever was promised."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            # No lingering: the peer sees a reset, as when a machine goes away.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
