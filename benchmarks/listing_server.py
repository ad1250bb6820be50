"""An S3 store in one process for `million.py`: lists a million keys as quickly as they can be printed.

Objects that were put are kept in memory. Keys added from a table are listed, and have no content.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 1000
DATE = "2024-05-12T04:30:00.000Z"


class Store:
    """Keys in order, each with (size, etag), and the content of some."""

    def __init__(self) -> None:
        self.about: dict[str, tuple[int, str]] = {}
        self.bodies: dict[str, bytes] = {}
        self.keys: list[str] = []
        self.requests: Counter[str] = Counter()

    def load(self, path: str) -> None:
        """Take up keys from lines of key, size and etag."""
        for line in Path(path).read_text().splitlines():
            key, size, etag = line.split("\t")
            self.about[key] = (int(size), etag)
        self.keys = sorted(self.about)

    def put(self, key: str, body: bytes) -> None:
        """Keep an object."""
        if key not in self.about:
            bisect.insort(self.keys, key)
        self.about[key] = (len(body), hashlib.md5(body, usedforsecurity=False).hexdigest())
        self.bodies[key] = body

    def delete(self, key: str) -> None:
        """Drop an object."""
        if self.about.pop(key, None) is not None:
            self.keys.pop(bisect.bisect_left(self.keys, key))
            self.bodies.pop(key, None)

    def page(self, bucket: str, prefix: str, after: str) -> str:
        """Return one page of ListObjectsV2."""
        first = bisect.bisect_left(self.keys, prefix)
        if after:
            first = bisect.bisect_right(self.keys, after)
        found = []
        for key in self.keys[first : first + PAGE]:
            if not key.startswith(prefix):
                break
            found.append(key)
        is_more = len(found) == PAGE
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{DATE}</LastModified>"
            f"<ETag>&quot;{self.about[key][1]}&quot;</ETag><Size>{self.about[key][0]}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key in found
        )
        token = (
            f"<NextContinuationToken>{quote(found[-1])}</NextContinuationToken>" if found else ""
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(is_more).lower()}</IsTruncated>"
            f"{token if is_more else ''}{entries}</ListBucketResult>"
        )


STORE = Store()


class Handler(BaseHTTPRequestHandler):
    """The verbs that a run needs; `/?load=FILE` adds keys, `/?counts` tells the requests so far."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """List a page, or give an object or a range of it."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query, True)
        bucket, _, key = unquote(path).lstrip("/").partition("/")
        if "load" in query:
            STORE.load(query["load"][0])
            return self._answer(200)
        if "counts" in query:
            counts = json.dumps(STORE.requests).encode()
            STORE.requests.clear()
            return self._answer(200, counts)
        if key:
            STORE.requests["get"] += 1
            return self._object(f"{bucket}/{key}")
        STORE.requests["list"] += 1
        prefix = query.get("prefix", [""])[0]
        after = unquote(query.get("continuation-token", [""])[0])
        text = STORE.page(bucket, f"{bucket}/{prefix}", after)
        return self._answer(200, text.replace(f"<Key>{bucket}/", "<Key>").encode())

    def do_HEAD(self) -> None:
        """Tell size and etag."""
        STORE.requests["head"] += 1
        self._object(unquote(urlsplit(self.path).path).lstrip("/"))

    def do_PUT(self) -> None:
        """Take an object, under a condition where one is given."""
        STORE.requests["put"] += 1
        key = unquote(urlsplit(self.path).path).lstrip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("If-None-Match") == "*" and key in STORE.about:
            return self._answer(412)
        wanted = self.headers.get("If-Match", "").strip('"')
        if wanted and STORE.about.get(key, (0, ""))[1] != wanted:
            return self._answer(412)
        STORE.put(key, body)
        return self._answer(200, b"", etag=STORE.about[key][1])

    def do_POST(self) -> None:
        """Delete many: the one thing that S3 is asked with POST here."""
        bucket = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        keys = re.findall("<Key>(.*?)</Key>", body)
        for key in keys:
            STORE.requests["delete"] += 1
            STORE.delete(f"{bucket}/{unescape(key)}")
        gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def do_DELETE(self) -> None:
        """Drop an object."""
        STORE.requests["delete"] += 1
        STORE.delete(unquote(urlsplit(self.path).path).lstrip("/"))
        self._answer(204)

    def _object(self, key: str) -> None:
        if key not in STORE.about:
            return self._answer(404)
        size, etag = STORE.about[key]
        body = STORE.bodies.get(key)
        span = self.headers.get("Range")
        if body is None or span is None:
            return self._answer(200, body or b"", etag=etag, length=size)
        first, _, last = span.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            return self._answer(416)
        piece = body[start:stop]
        return self._answer(206, piece, etag=etag, span=f"bytes {start}-{stop - 1}/{size}")

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        etag: str = "",
        length: int | None = None,
        span: str = "",
    ) -> None:
        self.send_response(status)
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", str(length if is_head and length else len(body)))
        self.send_header("Last-Modified", formatdate(1715488200, usegmt=True))
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        if not is_head:
            self.wfile.write(body)


def serve(tell: Connection) -> None:
    """Serve on a free port of this machine, told through the pipe."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    tell.send(server.server_address[1])
    server.serve_forever()
