"""Runs with input and output on S3 over HTTP, also on a server that fails in the middle of a read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from bioembed_ray.errors import InputError, LockedError, NoBucketError
from bioembed_ray.verify import verify
from tests import oracles, tiny
from tests.commands import embed, tiny_encoder, without_ray

RATE_HZ = 16_000
NAMES = (
    "plain.wav",
    "site #1/räv 50%.wav",
    "a b/c+d&e=f?.flac",
    "колибри/鳥 [1].wav",
    "per%20cent%2Fslash.wav",
)


def sound(seed: int, seconds: float = 4.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (0.1 * draw.standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def put_sound(s3: Any, key: str, samples: np.ndarray) -> None:
    sink = io.BytesIO()
    kind = "FLAC" if key.endswith(".flac") else "WAV"
    subtype = "PCM_24" if kind == "FLAC" else "FLOAT"
    soundfile.write(sink, samples, RATE_HZ, format=kind, subtype=subtype)
    s3.put(key, sink.getvalue())


def windows(s3: Any, prefix: str) -> oracles.Rows:
    """Return every window's vector, read with boto3 and pyarrow; each stands once."""
    rows: oracles.Rows = {}
    for key in s3.listing():
        if key.startswith(f"{prefix}/embeddings/") and key.endswith(".parquet"):
            for row in pq.read_table(io.BytesIO(s3.get(key))).to_pylist():
                place = (row["recording"], row["channel"], row["start_s"])
                assert place not in rows
                rows[place] = np.array(row["embedding"], np.float32)
    return rows


def expected(sounds: dict[str, np.ndarray]) -> oracles.Rows:
    return {
        (name, 0, start / RATE_HZ): tiny.alone(oracles.cut(samples, start, RATE_HZ))
        for name, samples in sounds.items()
        for start in oracles.window_starts(len(samples), RATE_HZ, RATE_HZ // 2)
    }


@pytest.mark.ray
def test_an_archive_on_s3_with_odd_names_is_embedded_onto_s3(
    s3: Any, ray_cluster: None, tmp_path: Any
) -> None:
    encoders = {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))}
    sounds = {name: sound(seed) for seed, name in enumerate(NAMES)}
    for name, samples in sounds.items():
        put_sound(s3, f"in 2024/{name}", samples)
    source, output = f"{s3.uri}/in 2024", f"{s3.uri}/out #1/räv%"
    result = embed(source, output, encoders)
    assert (result.exit_code, result.tally.n_parts) == (0, 1)
    oracles.assert_same(windows(s3, "out #1/räv%"), expected(sounds), within=1e-5)
    assert list(verify(output)) == []
    # Nothing but the tables and the records; the lease is given back.
    folders = {
        key.removeprefix("out #1/räv%/").split("/")[0] for key in s3.listing() if "out" in key
    }
    assert folders == {"current.json", "embeddings", "failures", "recordings", "runs", "versions"}
    parts = [key for key in s3.listing() if key.endswith(".parquet") and "/embeddings/" in key]
    before = [s3.client.head_object(Bucket=s3.name, Key=key)["LastModified"] for key in parts]
    again = embed(source, output, encoders)
    assert (again.exit_code, again.tally.n_parts) == (0, 0)
    now = [s3.client.head_object(Bucket=s3.name, Key=key)["LastModified"] for key in parts]
    assert now == before and len(now) == 1


@pytest.mark.parametrize("how", ["error", "cut"])
def test_a_read_that_fails_half_way_leaves_its_shard_uncommitted_and_never_a_shorter_recording(
    s3: Any, s3_faults: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    counts = without_ray(monkeypatch)
    encoders = {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))}
    # 1.9 MB each, so that most of the recording lies beyond the bytes that can be read.
    sounds = {f"{name}.wav": sound(seed, 30.0) for seed, name in enumerate(("a", "bad", "c"))}
    for name, samples in sounds.items():
        put_sound(s3, f"in/{name}", samples)
    source, output = f"{s3.uri}/in", f"{s3.uri}/out"
    s3_faults.broken["bad.wav"] = how
    result = embed(source, output, encoders, shard_minutes=0.5)
    assert s3_faults.n_met > 1  # it was tried again
    assert result.exit_code == 1
    assert counts["parts"] == 2 and len(result.tally.uncommitted) == 1
    assert result.tally.transient[0].startswith("bad.wav: storage: ")
    good = {name: samples for name, samples in sounds.items() if name != "bad.wav"}
    oracles.assert_same(windows(s3, "out"), expected(good), within=1e-5)
    assert "out/current.json" not in s3.listing()
    s3_faults.broken.clear()
    result = embed(source, output, encoders, shard_minutes=0.5)
    assert result.exit_code == 0
    assert counts["parts"] == 3
    oracles.assert_same(windows(s3, "out"), expected(sounds), within=1e-5)
    assert list(verify(output)) == []


def test_a_missing_bucket_is_named(s3: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    encoders = {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))}
    put_sound(s3, "in/a.wav", sound(1))
    with pytest.raises(NoBucketError, match="s3://no-such-bucket: no such bucket"):
        embed(f"{s3.uri}/in", "s3://no-such-bucket/out", encoders)
    with pytest.raises(InputError, match="s3://no-such-bucket: no such bucket"):
        embed("s3://no-such-bucket/in", f"{s3.uri}/out", encoders)


def test_a_lease_on_s3_keeps_a_second_run_out(
    s3: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bioembed_ray import lease

    without_ray(monkeypatch)
    encoders = {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))}
    put_sound(s3, "in/a.wav", sound(1))
    with (
        lease.hold(f"{s3.uri}/out", "bioembed run"),
        pytest.raises(LockedError, match=f"{s3.uri}/out: another run holds it"),
    ):
        embed(f"{s3.uri}/in", f"{s3.uri}/out", encoders)
    assert embed(f"{s3.uri}/in", f"{s3.uri}/out", encoders).exit_code == 0
