"""`plan` and `run` on an archive of a million recordings of which nothing, or a hundred, is new.

The archive and the parts are keys that a local S3 server lists in pages of 1000 over HTTP; the ledger
is written by the package's own writer, each recording in its shard, every shard done in every
partition. Limits: 60 s and 2 GB on the driver. The server shares the machine's cores with what is
measured; a real store takes longer for each page, and no CPU here.

    python benchmarks/million.py [--recordings 1000000] [--encoders beats,hubert]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import listing_server
import numpy as np
import pyarrow as pa
import soundfile

from bioembed_ray import storage
from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.audio.probe import Header
from bioembed_ray.codebooks.card import CODEBOOK_KEY, Codebook, codebook_bytes
from bioembed_ray.codebooks.wanted import wanted_codebooks, with_tokens
from bioembed_ray.config import Job
from bioembed_ray.coverage import Coverage
from bioembed_ray.inputs.listing import Recording, Source
from bioembed_ray.job_file import parse_job
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Known, Ledger, Piece
from bioembed_ray.outcomes import SpanOutcome
from bioembed_ray.segments import Cutting, form_shards
from bioembed_ray.versions import plan_encoder

RATE_HZ = 48_000
SITES = 200
START = datetime(2024, 5, 1)
N_NEW = 100
CHUNK = 50_000
STEPS = {"plan, nothing new": "plan", "run, nothing new": "run", "plan, 100 new": "plan"}
MEASURE = (
    "import sys, time, resource\n"
    "from bioembed_ray import cli\n"
    "try:\n    cli.main(sys.argv[1:])\n"
    "finally:\n"
    "    use = resource.getrusage(resource.RUSAGE_SELF)\n"
    "    peak = next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]\n"
    "    print('measured', use.ru_utime + use.ru_stime, peak, 'ray' in sys.modules, file=sys.stderr)\n"
)


def raw_job(encoders: list[str]) -> dict[str, Any]:
    """Return the job file: encoders with random weights, and a codebook where HuBERT is among them."""
    has_codebook = "hubert" in encoders
    return {
        "input": {"uri": "s3://archive/2024"},
        "output": "s3://lab/reef",
        "encoders": {name: {"weights": "random"} for name in encoders},
        "codebooks": {"hubert-500": {"encoder": "hubert", "clusters": 500}} if has_codebook else {},
    }


def recordings(n: int) -> Iterator[tuple[str, Source, Header]]:
    """Yield recordings of about a minute in name order, each of a length of its own."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20 * RATE_HZ, 100 * RATE_HZ, n).tolist()
    per_site = -(-n // SITES)
    for number, length in enumerate(lengths):
        site, place = divmod(number, per_site)
        at = START + timedelta(minutes=place)
        name = f"SITE_{site:03d}/{at:%Y%m%d}/SITE_{site:03d}_{at:%Y%m%d_%H%M%S}.wav"
        source = Source(f"s3://archive/2024/{name}", f"{number:032x}", 44 + 2 * length)
        yield (
            name,
            source,
            Header("WAV", "PCM_16", RATE_HZ, 1, length, True, "soundfile", (), length),
        )


def write_keys(path: Path, keys: Iterator[tuple[str, int, str]]) -> None:
    """Write lines of key, size and etag for the server."""
    with path.open("w") as file:
        file.writelines(f"{key}\t{size}\t{etag}\n" for key, size, etag in keys)


def ask(query: str) -> bytes:
    """Return the server's answer."""
    with urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/?{query}") as answer:
        body: bytes = answer.read()
    return body


def build(job: Job, n: int, scratch: Path) -> int:
    """Fill the server with archive, ledger, codebook and parts; return how many shards there are."""
    write_keys(
        scratch / "archive.tsv",
        (
            (source.uri.removeprefix("s3://"), source.size_bytes, source.stamp)
            for _, source, _ in recordings(n)
        ),
    )
    ask(f"load={scratch}/archive.tsv")
    encoders = tuple(plan_encoder(name, job) for name in job.encoders)
    codebooks = wanted_codebooks(job, encoders)
    for one in codebooks:
        centroids = np.random.default_rng(1).standard_normal((one.fit.rule.clusters, 768))
        found = Codebook(
            one.fit.name, one.fit.version, one.fit.encoder, one.fit.encoder_version,
            one.fit.rule.metric, centroids.astype(np.float32),
        )  # fmt: skip
        storage.put(storage.join(one.fit.folder, CODEBOOK_KEY), codebook_bytes(found))
    encoders, _ = with_tokens(encoders, codebooks)
    datasets = [dataset for encoder in encoders for dataset in encoder.datasets]
    tables, shards = [], []
    ledger = Ledger(wanted=datasets)
    cutting = Cutting(job.segment_s, job.shard_minutes * 60, 1, "mix")
    loose = ((name, source, header, [(0, None)]) for name, source, header in recordings(n))
    for shard in form_shards(loose, cutting):
        shards.append(shard.id)
        for span in shard.spans:
            site, _, _ = span.recording.partition("/")
            n_samples = span.header.n_samples or 0
            entry = Known(
                Recording(span.recording, span.source),
                span.header,
                Metadata(datetime(2024, 5, 12, 4, 30), f"AudioMoth {site}", site, 54.3, 10.1),
            )
            entry.pieces.append(Piece(shards[-1], 0, None))
            sums = Coverage(embedded=n_samples - 24_000, padded=24_000)
            for dataset in datasets:
                n_rows = -(-n_samples // 24_000)
                entry.outcomes[dataset, shards[-1]] = SpanOutcome(
                    span.recording, n_samples, n_samples, 0, n_rows, sums
                )
            ledger.known[span.recording] = entry
        if len(ledger.known) >= CHUNK:
            tables.append(ledger_file.recordings_table(ledger))
            ledger = Ledger(wanted=datasets)
    tables.append(ledger_file.recordings_table(ledger))
    table = pa.concat_tables(tables)
    for key, rows in (
        (ledger_file.RECORDINGS_KEY, table),
        (ledger_file.FAILURES_KEY, ledger_file.failures_table([])),
    ):
        storage.put(storage.join(job.output, key), ledger_file._parquet(rows))
    prefix = job.output.removeprefix("s3://")
    parts = (
        (f"{prefix}/{dataset.prefix}/{shard}.parquet", 5_000_000, shard)
        for dataset in datasets
        for shard in shards
    )
    write_keys(scratch / "parts.tsv", parts)
    ask(f"load={scratch}/parts.tsv")
    return len(shards)


@dataclass(frozen=True, slots=True)
class Measured:
    """One command: wall and CPU seconds, peak memory in MB, whether Ray was loaded, requests, text."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    has_ray: bool
    requests: dict[str, int]
    text: str


def measure(command: str, job_file: Path) -> Measured:
    """Run a command on the job in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    ask("counts")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, command, str(job_file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall_s = time.perf_counter() - started
    said = next((line for line in done.stderr.splitlines() if line.startswith("measured")), None)
    if done.returncode or said is None:
        sys.exit(f"{command} failed ({done.returncode}): {done.stderr[-2000:]}")
    _, cpu_s, peak, has_ray = said.split()
    requests: dict[str, int] = json.loads(ask("counts"))
    return Measured(
        wall_s, float(cpu_s), int(peak) / 1024, has_ray == "True", requests, done.stdout
    )


def add_new() -> None:
    """Put a hundred recordings of a second each."""
    for number in range(N_NEW):
        sink = io.BytesIO()
        wave = np.random.default_rng(number).uniform(-0.1, 0.1, RATE_HZ)
        soundfile.write(sink, wave, RATE_HZ, format="WAV")
        name = f"SITE_{number % SITES:03d}/20250101/new_{number:03d}.wav"
        storage.put(f"s3://archive/2024/{name}", sink.getvalue())


def expect(text: str, *wanted: str) -> None:
    """Exit where a line is missing from what a command printed."""
    for line in wanted:
        if line not in text:
            sys.exit(f"expected {line!r} in:\n{text}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=1_000_000)
    parser.add_argument("--encoders", default="beats,hubert")
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--limit-mb", type=float, default=2000.0)
    parser.add_argument("--steps", default=",".join(STEPS), help="which of these, with commas")
    options = parser.parse_args()
    n = options.recordings
    hears, tells = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=listing_server.serve, args=(tells,), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{hears.recv()}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_SKIP_SIGNATURE": "true",
        "NO_PROXY": "127.0.0.1",
    }
    raw = raw_job(options.encoders.split(","))
    job = parse_job(raw, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        n_shards = build(job, n, Path(folder))
        print(
            f"{n:,} recordings in {n_shards:,} shards, {time.perf_counter() - started:.0f} s to make"
        )
        job_file = Path(folder) / "job.yaml"
        job_file.write_text(json.dumps(raw))
        print(f"load before: {os.getloadavg()[0]:.2f}")
        print(f"{'':<22}{'wall':>9}{'CPU':>9}{'peak':>10}  Ray    requests")
        for title, command in STEPS.items():
            if title not in options.steps:
                continue
            if "100" in title:
                add_new()
            found = measure(command, job_file)
            counts = ", ".join(f"{count} {verb}" for verb, count in sorted(found.requests.items()))
            print(
                f"{title:<22}{found.wall_s:>7.1f} s{found.cpu_s:>7.1f} s{found.peak_mb:>7.0f} MB"
                f"  {'yes' if found.has_ray else 'no':<5}  {counts}",
                flush=True,
            )
            if command == "run":
                expect(found.text, f"nothing to do: all {n_shards} shards stand")
            elif "100" in title:
                expect(found.text, f"input      {n + N_NEW} recordings", f"{N_NEW} new, 0 changed")
            else:
                expect(
                    found.text, f"input      {n} recordings", " 0 new, 0 changed, 0 removed",
                    f"to do      0 of {n_shards} shards",
                )  # fmt: skip
            if found.wall_s > options.limit_s or found.peak_mb > options.limit_mb:
                print(f"  over the limits of {options.limit_s:g} s and {options.limit_mb:g} MB")
    server.terminate()


if __name__ == "__main__":
    main()
