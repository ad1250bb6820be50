"""A made-up output with sound, frames, tokens and a codebook, as a run leaves them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from bioembed_ray import parts, schema, storage
from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.audio.probe import probe
from bioembed_ray.codebooks.card import Codebook, codebook_bytes, usage, verdict
from bioembed_ray.datasets import Dataset
from bioembed_ray.inputs.listing import Recording, Source
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Known, Ledger

RATE_HZ, HOP_S, DIM, K = 16_000, 0.1, 6, 12
SECONDS = 4
# A name that would be HTML, where it is not escaped.
NASTY = "b'><img src=x onerror=alert(1)>&\"</script>.wav"
NAMES = ("a.wav", NASTY, "forest/ü.wav", "d.wav")
ENCODER, BOOK = "fake", "fake-12"
FRAMES = Dataset("frames", ENCODER, "f1")
EMBEDDINGS = Dataset("embeddings", ENCODER, "e1")
TOKENS = Dataset("tokens", BOOK, "t1")


def put_table(uri: str, table: pa.Table) -> None:
    about = {"bioembed.outcome": "{}", "bioembed.weights": "local, sha256 w0"}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(about), sink)
    storage.put(uri, bytes(sink.getvalue()))


@dataclass(frozen=True)
class MadeUp:
    """What the output holds, for tests to know better.

    Attributes:
        output: Where it stands.
        vectors: Recording -> (T, D) frames.
        tokens: Recording -> (T,) the nearest centroid of each, by float64 distances.
        centroids: (K, D).
    """

    output: str
    vectors: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    centroids: np.ndarray


def distances(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return (T, K) by the definition."""
    exact = vectors.astype(np.float64)[:, None, :] - centroids.astype(np.float64)[None]
    return np.sqrt((exact**2).sum(axis=2))


def write_sound(path: Path, rng: np.random.Generator, rate_hz: int = RATE_HZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(SECONDS * rate_hz) / rate_hz
    sweep = np.sin(2 * np.pi * (500 + 400 * t) * t)
    soundfile.write(path, 0.2 * sweep + 0.02 * rng.standard_normal(len(t)), rate_hz)


def write_ledger(output: str, audio: Path, names: tuple[str, ...]) -> None:
    known = {}
    for name in names:
        info = storage.stat_object(str(audio / name))
        source = Source(str(audio / name), info.stamp, info.size_bytes)
        site = {"a.wav": "marsh", "d.wav": "marsh"}.get(name, "forest")
        known[name] = Known(Recording(name, source), probe(source)[0], Metadata(site=site))
    ledger_file.save(output, Ledger(known))


def frame_rows(name: str, vectors: np.ndarray) -> dict[str, Any]:
    starts = np.arange(len(vectors)) * HOP_S
    return {
        "recording": [name] * len(vectors),
        "channel": [0] * len(vectors),
        "sample": [round(start * RATE_HZ) for start in starts],
        "patch": [0] * len(vectors),
        "start_s": starts.tolist(),
        "end_s": (starts + HOP_S).tolist(),
        "embedding": vectors.tolist(),
    }


def a_card(counts: np.ndarray) -> dict[str, Any]:
    figures = usage(counts)
    concentrated = {"origins": 4, "top_share_median": 0.3, "owned_codes": 1}
    return {
        "verdict": verdict(figures),
        "name": BOOK,
        "clusters": K,
        "metric": "euclidean",
        "fit": {"inertia": [2.5, 1.25]},
        "usage": figures,
        "by_recording": concentrated,
        "by_group": concentrated,
        "held_out": {
            "inertia": 1.5,
            "recording_and_token": {"adjusted_mutual_information": 0.1, "frames": 100},
            "seeds": {"adjusted_rand_index": 0.75, "adjusted_mutual_information": 0.8},
        },
    }


def write_output(folder: Path, frames: bool = True) -> MadeUp:
    """Write everything; without `frames`, only their tokens stand."""
    rng = np.random.default_rng(3)
    audio, output = folder / "audio", str(folder / "out")
    centroids = rng.standard_normal((K, DIM)).astype(np.float32)
    vectors, tokens = {}, {}
    for name in NAMES:
        write_sound(audio / name, rng)
        # Stretches of a centroid each, so that there are runs.
        at = np.repeat(rng.integers(0, K - 1, 12), rng.integers(1, 6, 12))[: SECONDS * 10]
        vectors[name] = (centroids[at] + 0.2 * rng.standard_normal((len(at), DIM))).astype("f4")
        tokens[name] = distances(vectors[name], centroids).argmin(axis=1)
    write_ledger(output, audio, NAMES)
    for number, name in enumerate(NAMES):
        if frames:
            table = pa.table(frame_rows(name, vectors[name]), schema=schema.frames(DIM, "float32"))
            put_table(parts.part_uri(output, FRAMES, f"s{number}"), table)
        empty = schema.embeddings(DIM, "float32").empty_table()
        put_table(parts.part_uri(output, EMBEDDINGS, f"s{number}"), empty)
        put_tokens(output, f"s{number}", name, tokens[name])
    book = Codebook(BOOK, "c1", ENCODER, "fit1", "euclidean", centroids)
    where = storage.join(output, f"codebooks/{BOOK}/version=c1")
    storage.put(storage.join(where, "codebook.safetensors"), codebook_bytes(book))
    counts = np.bincount(np.concatenate(list(tokens.values())), minlength=K)
    storage.put(storage.join(where, "card.json"), json.dumps(a_card(counts)).encode())
    current = {
        "encoders": {ENCODER: {"embeddings": "e1", "frames": "f1" if frames else None}},
        "codebooks": {BOOK: {"encoder": ENCODER, "codebook": "c1", "tokens": "t1"}},
    }
    storage.put(storage.join(output, "current.json"), json.dumps(current).encode())
    return MadeUp(output, vectors, tokens, centroids)


def put_tokens(output: str, shard: str, name: str, tokens: np.ndarray) -> None:
    """Put a recording's tokens as two rows that follow each other."""
    middle = len(tokens) // 2
    rows = [
        {
            "recording": name,
            "channel": 0,
            "start_s": low * HOP_S,
            "hop_s": HOP_S,
            "per_step": 1,
            "tokens": tokens[low:high].tolist(),
        }
        for low, high in ((0, middle), (middle, len(tokens)))
    ]
    table = pa.Table.from_pylist(rows, schema=schema.tokens("int16"))
    put_table(parts.part_uri(output, TOKENS, shard), table)
