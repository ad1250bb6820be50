"""Fixtures for every test: an S3 server over HTTP, and an environment in which Ray starts quickly."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bioembed_ray.store.stores import OPTIONS_VARIABLE
from tests.flaky import Flaky, flaky_proxy

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What the tests set here reaches Ray's workers only where it is set before the cluster starts.
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a module's tests in one process of pytest-xdist where they share runs that took long."""
    for item in items:
        if "integration" in item.path.parts or item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket; `client` is boto3's, an independent witness of what is stored."""

    name: str
    endpoint: str
    client: Any

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, body: bytes = b"") -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=body)
        return f"{self.uri}/{key}"

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def listing(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]


class Faults:
    """The S3 server's application, with objects that fail on demand.

    Attributes:
        broken: Part of a key -> what a read of such an object past the first `good_bytes` meets:
            "error" is an HTTP 500, "cut" a connection closed half-way through the body.
        good_bytes: How far every object can be read.
        n_met: How many requests were failed.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self.broken: dict[str, str] = {}
        self.good_bytes = 256 << 10
        self.n_met = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        how = next((how for key, how in self.broken.items() if key in environ["PATH_INFO"]), None)
        found = re.fullmatch(r"bytes=\d+-(\d+)", environ.get("HTTP_RANGE", ""))
        is_far = found is not None and int(found[1]) >= self.good_bytes
        if how is None or environ["REQUEST_METHOD"] != "GET" or not is_far:
            return self._application(environ, start_response)
        self.n_met += 1
        if how == "error":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return []
        return self._half(self._application(environ, start_response))

    def _half(self, answer: Any) -> Iterator[bytes]:
        body = b"".join(answer)
        yield body[: len(body) // 2]
        raise ConnectionAbortedError


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, Faults]]:
    """An S3 server for the whole session; the environment of this process and its children names it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    faults = Faults(server._server.app)
    server._server.app = faults
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
            patch.setenv(name, value)
        yield endpoint, faults
    server.stop()


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: tuple[str, Faults]) -> str:
    """Where the session's S3 server listens."""
    return s3_server[0]


@pytest.fixture
def s3_faults(s3_server: tuple[str, Faults]) -> Iterator[Faults]:
    """The server's faults, none at first and none afterwards."""
    faults = s3_server[1]
    faults.n_met = 0
    yield faults
    faults.broken.clear()


@pytest.fixture
def s3(s3_endpoint: str) -> Bucket:
    """A fresh bucket on the session's S3 server."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(name, s3_endpoint, client)


@pytest.fixture
def flaky(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """A proxy before the S3 server that fails nothing yet; the environment names it instead."""
    with flaky_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        # What a test announces of a job's storage ends with it.
        monkeypatch.setenv(OPTIONS_VARIABLE, "")
        monkeypatch.delenv(OPTIONS_VARIABLE)
        yield proxy


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[None]:
    """One local Ray for all runs inside this process, started after the S3 environment is set."""
    import ray

    # Short, since a socket's whole path may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
