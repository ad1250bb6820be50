"""Each way in which a store fails, alone and often: what is asked for is done, once, or one line says why not."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bioembed_ray import lease, run, storage
from bioembed_ray.config import StorageConfig, StoreConfig
from bioembed_ray.errors import NoBucketError, NotFoundError, StorageError
from bioembed_ray.store import stores
from tests import tiny
from tests.commands import embed, tiny_encoder, without_ray
from tests.flaky import KINDS, Flaky
from tests.unit.test_storage import ODD_KEYS

# The client waits 0.3 s for an answer that comes after 0.6 s.
PATIENT = StoreConfig(timeout_s=0.3, retries=12, retry_s=30)
HASTY = StoreConfig(timeout_s=0.3, retries=2, retry_s=5)


def announce(store: StoreConfig) -> None:
    stores.announce(StorageConfig(input=store, output=store), "s3://nowhere")


@pytest.fixture
def patient(flaky: Flaky) -> Flaky:
    flaky.hold_s = 0.6
    announce(PATIENT)
    return flaky


def is_listing(method: str, path: str) -> bool:
    return method == "GET" and "list-type=2" in path


@pytest.mark.parametrize("kind", KINDS)
def test_all_operations_come_through_where_every_third_request_fails(
    s3: Any, patient: Flaky, kind: str
) -> None:
    patient.rates = {kind: 0.35}
    bodies = {f"x/{number}": bytes([number]) * 3000 for number in range(2)}
    for key, body in bodies.items():
        storage.put(f"{s3.uri}/{key}", body)
    assert {key: s3.get(key) for key in s3.listing()} == bodies
    listed = {one.key: one for one in storage.list_objects(f"{s3.uri}/x")}
    assert {f"x/{key}" for key in listed} == bodies.keys()
    for key, body in bodies.items():
        one = storage.stat_object(f"{s3.uri}/{key}")
        assert (one.stamp, one.size_bytes) == (listed[key[2:]].stamp, 3000)
        assert storage.read(one.uri) == body
        assert storage.read_range(one.uri, 1000, 2500, one.stamp) == body[1000:2500]
        assert storage.exists(one.uri)
        for _ in range(5):
            # Its 404 has a body, too, which may be cut.
            with pytest.raises(NotFoundError):
                storage.read(f"{one.uri}.none")
        # What was carried out although its answer was lost counts as done, and is not done twice.
        assert storage.create(f"{one.uri}.new", body)
        assert not storage.create(f"{one.uri}.new", b"another")
        assert s3.get(f"{key}.new") == body
        assert storage.replace(one.uri, body + b"!", one.stamp)
        assert not storage.replace(one.uri, b"another", one.stamp)
        assert s3.get(key) == body + b"!"
        storage.delete(f"{one.uri}.new")
    assert sorted(s3.listing()) == sorted(bodies)
    assert patient.n_met[kind] >= 2


@pytest.mark.parametrize("kind", ["busy", "cut", "missing"])
def test_a_listing_that_breaks_off_on_its_second_page_has_every_key_once(
    s3: Any, flaky: Flaky, kind: str
) -> None:
    from moto.s3.models import s3_backends

    # Into the server's memory: a thousand requests would take seconds.
    bucket = next(one["aws"] for one in s3_backends.values() if s3.name in one["aws"].buckets)
    keys = sorted([*ODD_KEYS, *(f"{number:04d}.wav" for number in range(1100))])
    for key in keys:
        bucket.put_object(s3.name, f"x/{key}", b"")
    n_failed = 0

    def only(method: str, path: str) -> bool:
        nonlocal n_failed
        # Also the first pages that are asked for anew.
        is_hit = is_listing(method, path) and "start-after" not in path
        n_failed += is_hit and "continuation-token" in path
        return is_hit and "continuation-token" in path and n_failed <= 2

    flaky.rates, flaky.only = {kind: 1.0}, only
    assert sorted(one.key for one in storage.list_objects(f"{s3.uri}/x")) == keys
    assert flaky.n_met[kind] >= 1


def test_what_does_not_exist_is_told_at_once(s3: Any, patient: Flaky) -> None:
    s3.put("x/a.wav", b"1")
    for key in ("x/b.wav", "x/a.wa", "x/a.wav.b", "y", "x/a.wav/c"):
        patient.log.clear()
        with pytest.raises(NotFoundError, match=f"{key}: not found"):
            storage.read(f"{s3.uri}/{key}")
        assert not storage.exists(f"{s3.uri}/{key}")
        # A 404, and a look into the listing, each time.
        assert [one.method for one in patient.log] == ["GET", "GET", "HEAD", "GET"]


def test_an_object_that_stays_away_though_it_is_listed_is_no_missing_one(
    s3: Any, flaky: Flaky
) -> None:
    announce(HASTY)
    s3.put("x/a.wav", b"1")
    flaky.rates, flaky.only = {"missing": 1.0}, lambda method, path: "list-type" not in path
    for act in (storage.read, storage.stat_object, storage.exists):
        flaky.log.clear()
        with pytest.raises(
            StorageError, match=r"x/a.wav: is listed, but cannot be read: "
        ) as caught:
            act(f"{s3.uri}/x/a.wav")
        assert not isinstance(caught.value, NotFoundError)
        assert sum(one.fault == "missing" for one in flaky.log) == HASTY.retries + 1


def test_an_object_that_comes_back_after_a_while_is_read(s3: Any, patient: Flaky) -> None:
    s3.put("x/a.wav", b"1")
    patient.missing_s, patient.rates = 0.7, {"missing": 1.0}
    n_drawn = 0

    def first(method: str, path: str) -> bool:
        nonlocal n_drawn
        n_drawn += 1
        return n_drawn <= 2

    patient.only = lambda method, path: (
        patient.away.get(path, 0) > time.monotonic() or first(method, path)
    )
    start = time.monotonic()
    assert storage.read(f"{s3.uri}/x/a.wav") == b"1"
    assert time.monotonic() - start > 0.7
    # The object's own 404, and the listing's: both passed.
    assert patient.n_met["missing"] >= 3


@pytest.mark.parametrize("gone", ["bucket", "refused"])
def test_a_store_that_is_gone_is_one_line_in_bounded_time(s3: Any, flaky: Flaky, gone: str) -> None:
    announce(HASTY)
    uri = s3.put("x/a.wav", b"1")
    stamp = storage.stat_object(uri).stamp
    flaky.gone = gone
    text = "no such bucket" if gone == "bucket" else f"no answer from {flaky.url}"
    for act in (
        lambda: storage.read(uri),
        lambda: storage.exists(uri),
        lambda: storage.read_range(uri, 0, 1, stamp),
        lambda: list(storage.list_objects(f"{s3.uri}/x")),
        lambda: storage.put(uri, b"2"),
        lambda: storage.create(uri, b"2"),
        lambda: storage.replace(uri, b"2", stamp),
        lambda: storage.delete(uri),
        lambda: storage.check_writable(f"{s3.uri}/x"),
    ):
        start = time.monotonic()
        with pytest.raises(StorageError, match=text) as caught:
            act()
        assert time.monotonic() - start < 3
        assert isinstance(caught.value, NoBucketError) == (gone == "bucket")
        assert not isinstance(caught.value, NotFoundError)


def test_a_lease_on_a_store_that_fails_is_held(
    s3: Any, patient: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    patient.rates = dict.fromkeys(KINDS, 0.06)
    with lease.hold(f"{s3.uri}/out", "bioembed run") as lost:
        deadline = time.monotonic() + 20
        while patient.n_met.total() < 12 and time.monotonic() < deadline:
            assert not lost.wait(0.05)
    assert patient.n_met.total() >= 12
    assert s3.listing() == []


def test_a_lease_that_cannot_be_renewed_ends_the_run_as_a_fault_of_the_store(
    s3: Any, flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(HASTY)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "EXPIRY_S", 1.0)
    with lease.hold(f"{s3.uri}/out", "bioembed run") as lost:
        flaky.gone = "bucket"
        assert lost.wait(20)
        with pytest.raises(StorageError, match=r"the lease could not be renewed for 1 s .*bucket"):
            lost.check()
    # Nobody could delete it; it has expired, so the next run has it.
    flaky.gone = None
    assert s3.listing() == ["out/lease.json"]
    with lease.hold(f"{s3.uri}/out", "bioembed run"):
        pass


def test_a_shard_is_not_read_to_its_end_from_a_store_that_is_gone(
    s3: Any, flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = without_ray(monkeypatch)
    sink = io.BytesIO()
    soundfile.write(sink, np.zeros(1600), 16_000, format="WAV")
    for number in range(60):
        s3.put(f"in/{number:02d}.wav", sink.getvalue())
    whole_stream = run.stream.run_stream

    def gone(*arguments: Any) -> Iterator[Any]:
        flaky.gone, flaky.gone_where = "refused", lambda path: "/in/" in path
        flaky.log.clear()
        yield from whole_stream(*arguments)

    monkeypatch.setattr(run.stream, "run_stream", gone)
    encoders = {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))}
    storage_options = {"input": {"retries": 1, "retry_s": 5}}
    result = embed(f"{s3.uri}/in", f"{s3.uri}/out", encoders, storage=storage_options)
    assert (result.exit_code, counts["parts"]) == (1, 0)
    # Two requests each of about eight recordings, four at a time, of sixty.
    assert sum("/in/" in one.path for one in flaky.log) <= 2 * 12
    # Each recording is named with what befell it, and none is held for damaged.
    lines = result.tally.transient
    assert len(lines) == 60 and all("storage: " in line for line in lines)
    assert sum("not read after" in line for line in lines) >= 48
