"""An archive on S3 over HTTP: what is listed there is what can be read back, from any process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from bioembed_ray import storage
from bioembed_ray.audio.bytefile import open_source
from bioembed_ray.audio.containers import members
from bioembed_ray.config import InputConfig
from bioembed_ray.inputs.listing import Recording, list_input, unique

RATE_HZ = 16_000


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3000, 3000, RATE_HZ // 10, dtype=np.int16)


def encoded(seed: int, kind: str) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, noise(seed), RATE_HZ, format=kind)
    return sink.getvalue()


def archive(s3) -> dict[str, int]:
    """Put plain recordings, a tar and a Parquet with odd names; return the seed by recording name."""
    plain = {"site #1/20230512_043000.WAV": "WAV", "site 2/räv+50%.flac": "FLAC", "é[1].wav": "WAV"}
    seeds = {}
    for seed, (name, kind) in enumerate(plain.items()):
        s3.put(f"2024/{name}", encoded(seed, kind))
        seeds[name] = seed
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for seed in (10, 11):
            for extension, body in (
                ("wav", encoded(seed, "WAV")),
                ("json", json.dumps({"seed": seed}).encode()),
            ):
                info = tarfile.TarInfo(f"{seed}.{extension}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
            seeds[f"shards/a.tar/{seed}.wav"] = seed
    s3.put("2024/shards/a.tar", sink.getvalue())
    rows = [{"bytes": encoded(seed, "FLAC"), "path": f"{seed}.flac"} for seed in (20, 21, 22)]
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.table({"audio": rows, "seed": [20, 21, 22]}), parquet, row_group_size=2)
    s3.put("2024/hf/train.parquet", parquet.getvalue().to_pybytes())
    seeds |= {f"hf/train.parquet/{row:09d}": 20 + row for row in range(3)}
    s3.put("2024/._ghost.wav", b"")
    s3.put("2024/readme.txt", b"")
    return seeds


def all_recordings(config: InputConfig) -> list[Recording]:
    listing = list_input(config)
    inside = [one for container in listing.containers for one in members(container).recordings]
    return unique([*listing.recordings, *inside])


def test_every_recording_of_an_archive_on_s3_decodes_to_what_was_put(s3) -> None:
    seeds = archive(s3)
    config = InputConfig(
        uri=f"{s3.uri}/2024", include=("**/*.wav", "**/*.flac", "**/*.tar", "**/*.parquet")
    )
    found = all_recordings(config)
    assert [one.name for one in found] == sorted(seeds)
    for one in found:
        samples, rate_hz = soundfile.read(open_source(one.source), dtype="int16")
        assert rate_hz == RATE_HZ
        np.testing.assert_array_equal(samples, noise(seeds[one.name]))
        if "seed" in one.labels:
            assert one.labels["seed"] == seeds[one.name]


def test_a_manifest_on_s3_gives_labels_to_recordings_of_another_prefix(s3) -> None:
    archive(s3)
    s3.put("tables/sites.csv", "uri,site\né[1].wav,north\nshards/a.tar,south\n".encode())
    config = InputConfig(uri=f"{s3.uri}/2024", manifest=f"{s3.uri}/tables/sites.csv")
    sites = {one.name: one.labels["site"] for one in all_recordings(config)}
    assert sites == {
        "é[1].wav": "north",
        "shards/a.tar/10.wav": "south",
        "shards/a.tar/11.wav": "south",
    }


def test_a_child_process_reaches_the_same_server(s3) -> None:
    storage.put(f"{s3.uri}/x/a b.wav", b"from the parent")
    code = (
        "import sys; from bioembed_ray import storage; "
        "[one] = storage.list_objects(sys.argv[1]); "
        "print(storage.read_range(one.uri, 0, 4, one.stamp), storage.create(one.uri, b''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"{s3.uri}/x"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "b'from' False\n"
