"""An output written by hand, without a run: real recordings, small vectors, a ledger, tokens."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr

from bioembed_ray import parts, schema, storage
from bioembed_ray.audio.probe import probe
from bioembed_ray.coverage import Coverage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.inputs.listing import Recording, Source
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Known, Ledger, Piece
from bioembed_ray.outcomes import Failure, SpanOutcome
from bioembed_ray.synthetic import write_archive
from tests import tiny

WINDOWS = Dataset("embeddings", "tiny", "v1")
TOKENS = Dataset("tokens", "tiny-4", "t1")
HOP_S = 0.5
INJECTION = "<img src=x onerror=alert(1)>.wav"
WEIGHTS = "RANDOM, untrained (seed 3)"
PITCHES = ("low", "mid_low", "mid_high", "high")


def write_output(audio: Path, output: Path) -> None:
    """Write recordings to `audio`, and what a run over them would leave to `output`."""
    names = write_archive(audio)
    rng = np.random.default_rng(5)
    soundfile.write(audio / INJECTION, 0.1 * rng.standard_normal(2 * 16_000), 16_000)
    ledger = Ledger()
    rows: list[dict[str, object]] = []
    for name in [*names, INJECTION]:
        known = Known(Recording(name, _source(audio / name), {"pitch": pitch_of(name)}))
        ledger.known[name] = known
        try:
            known.header, known.metadata = probe(known.recording.source, name)
        except RecordingError as error:
            known.failure = Failure(name, error.reason, error.detail)
            continue
        found = window_rows(name, audio / name)
        rows += found
        known.pieces = [Piece("s1", 0, None)]
        n = soundfile.info(str(audio / name)).frames
        covered = Coverage(n, 0, 0, 0)
        if name.endswith("marsh_20240513_043000.wav"):
            covered = Coverage(n, 0, n, 0)
            detail = "header promises 40.000 s, data end at 20.000 s"
            ledger.failures.append(Failure(name, Reason.TRUNCATED, detail, shard="s1"))
        known.outcomes[WINDOWS, "s1"] = SpanOutcome(name, n, n, 0, len(found), covered)
    put_part(output, WINDOWS, pa.Table.from_pylist(rows, schema.embeddings(tiny.DIM, "float32")))
    put_part(output, TOKENS, tokens_table(rows))
    ledger_file.save(str(output), ledger)
    put_json(
        output / "current.json",
        {
            "encoders": {"tiny": {"embeddings": "v1", "frames": None, "weights": WEIGHTS}},
            "codebooks": {"tiny-4": {"encoder": "tiny", "codebook": "c1", "tokens": "t1"}},
        },
    )
    record = {"run": "20240601T000000Z-1", "exit_code": 0, "parts": 2, "job": {"input": {}}}
    put_json(output / "runs" / "20240601T000000Z-1.json", record)


def pitch_of(name: str) -> str | None:
    """Return the pitch of a tone, None for other recordings."""
    folder, _, file = name.rpartition("/")
    return file.rpartition("_")[0] if folder == "tones" else None


def window_rows(name: str, path: Path) -> list[dict[str, object]]:
    """Return a recording's windows, each encoded alone, the last ones padded."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), rate, tiny.RATE_HZ)
    n_window = round(tiny.WINDOW_S * tiny.RATE_HZ)
    rows = []
    for start in range(0, len(mono), round(HOP_S * tiny.RATE_HZ)):
        sound = mono[start : start + n_window]
        rows.append(
            {
                "recording": name,
                "channel": 0,
                "start_s": start / tiny.RATE_HZ,
                "end_s": (start + n_window) / tiny.RATE_HZ,
                "valid_s": len(sound) / tiny.RATE_HZ,
                "embedding": tiny.alone(np.pad(sound, (0, n_window - len(sound)))),
            }
        )
    return rows


def tokens_table(rows: list[dict[str, object]]) -> pa.Table:
    """Return tokens at 20 Hz: the number of a tone's pitch; elsewhere 4, and gaps."""
    found = []
    for name in dict.fromkeys(str(row["recording"]) for row in rows):
        n = 10 * sum(row["recording"] == name for row in rows)
        pitch = pitch_of(name)
        tokens = (
            [4 if k % 3 else None for k in range(n)]
            if pitch is None
            else [PITCHES.index(pitch)] * n
        )
        found.append(
            {
                "recording": name,
                "channel": 0,
                "start_s": 0.0,
                "hop_s": 0.05,
                "per_step": 1,
                "tokens": tokens,
            }
        )
    return pa.Table.from_pylist(found, schema.tokens("int16"))


def put_part(output: Path, dataset: Dataset, table: pa.Table, shard: str = "s1") -> None:
    """Put a part that says what its weights are."""
    table = table.replace_schema_metadata({"bioembed.weights": WEIGHTS, "bioembed.outcome": "{}"})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.put(parts.part_uri(str(output), dataset, shard), sink.getvalue())


def put_json(path: Path, value: object) -> None:
    """Put a JSON file."""
    storage.put(str(path), json.dumps(value).encode())


def _source(path: Path) -> Source:
    info = storage.stat_object(str(path))
    return Source(str(path), info.stamp, info.size_bytes)
