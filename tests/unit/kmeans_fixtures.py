"""Samples and workers of a fit inside one process, for tests that need no Ray."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import schema, storage
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo, group_name, put_rows
from bioembed_ray.codebooks.fit_steps import fit_on, sample_folder
from bioembed_ray.codebooks.fit_worker import Share, Worker
from bioembed_ray.codebooks.frame_parts import Rows
from bioembed_ray.codebooks.rule import Fit, LloydRule
from bioembed_ray.codebooks.sample import SampleRule

PLENTY = 1 << 40


def blobs(n: int, dim: int, k: int, seed: int = 0, noise: float = 0.3) -> np.ndarray:
    """Return (n, dim) float32 around k centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((k, dim))
    rows = centres[rng.integers(0, k, n)] + noise * rng.standard_normal((n, dim))
    return rows.astype(np.float32)


def pseudo_frames(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return (n, dim) float32 without clear clusters: smooth in time, a few strong dimensions."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(5.0, 0.1, dim)
    rows = rng.standard_normal((n, dim)) * scale
    rows = rows + 2.0 * rng.standard_normal((40, dim))[np.arange(n) // 25 % 40] * scale
    return (3.0 + rows).astype(np.float32)


def local_spread(function: Any, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function with each tuple of arguments, here."""
    return (function(*call) for call in calls)


class LocalPool:
    """Workers in this process."""

    device = "here"

    def __init__(self, fit: Fit, info: SampleInfo, n: int, memory_bytes: int = PLENTY) -> None:
        edges = np.linspace(0, info.n_groups, min(n, info.n_groups) + 1).round().astype(int)
        self.workers = [
            Worker(Share(sample_folder(fit), info, int(a), int(b), memory_bytes), fit.rule, "cpu")
            for a, b in itertools.pairwise(edges)
        ]

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(worker, method)(*arguments) for worker in self.workers]

    def ask_one(self, method: str, *arguments: Any) -> Any:
        return getattr(self.workers[0], method)(*arguments)


def a_fit(folder: Path, clusters: int, **changes: Any) -> Fit:
    """Return a fit with the given rule."""
    rule = LloydRule(
        clusters, **{k: v for k, v in changes.items() if k in LloydRule.__dataclass_fields__}
    )
    rest = {k: v for k, v in changes.items() if k not in LloydRule.__dataclass_fields__}
    return Fit(
        "birds-500", "v1", "hubert", "e1", 6, str(folder), rule,
        **{"sample": SampleRule(10**6), "second_seed": False, **rest},
    )  # fmt: skip


def put_sample(fit: Fit, rows: np.ndarray, held: np.ndarray | None = None) -> SampleInfo:
    """Put rows as a fit's sample, in the order they have."""
    folder = sample_folder(fit)
    info = SampleInfo(
        len(rows), 0 if held is None else len(held), rows.shape[1], blocks_of(rows), "d", "r",
        len(rows), {},
    )  # fmt: skip
    for group in range(info.n_groups):
        start = group * info.group_rows
        put_rows(folder, group_name(group), as_rows(rows[start : start + info.group_rows], start))
    if held is not None:
        put_rows(folder, blocks.HELD_OUT, as_rows(held, 10**6))
    blocks.put_info(folder, info)
    return info


def blocks_of(rows: np.ndarray) -> int:
    from bioembed_ray.codebooks.sample import group_rows

    return group_rows(len(rows))


def as_rows(vectors: np.ndarray, start: int = 0) -> Rows:
    """Return vectors as rows of four recordings."""
    n = len(vectors)
    position = np.arange(start, start + n)
    return Rows(
        ("a.wav", "b.wav", "c.wav", "d.wav"),
        position % 4,
        np.zeros(n, np.int16),
        position * 320,
        np.zeros(n, np.int16),
        position.astype(np.uint64),
        vectors,
    )


def fit_here(
    fit: Fit, rows: np.ndarray, n_workers: int = 1, held: np.ndarray | None = None, **how: Any
) -> tuple[dict[str, Any], str]:
    """Fit on rows with workers in this process; return the card and what was said."""
    said = io.StringIO()
    info = put_sample(fit, rows, held)
    card = fit_on(fit, info, None, LocalPool(fit, info, n_workers, **how), said)
    return card, said.getvalue()


def put_part(path: Path, names: Sequence[str], position: np.ndarray, vectors: np.ndarray) -> None:
    """Put a part of frames/: one row per name."""
    n, dim = vectors.shape
    kind = str(vectors.dtype)
    table = pa.table(
        [
            pa.array(names, pa.string()),
            pa.array(np.zeros(n, np.int16)),
            pa.array(position.astype(np.int64)),
            pa.array(np.zeros(n, np.int16)),
            pa.array(position / 16_000),
            pa.array((position + 400) / 16_000),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
        ],
        schema=schema.frames(dim, kind),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def put_parts(
    folder: Path, vectors: np.ndarray, n_parts: int, per_recording: int = 250
) -> list[storage.ObjectInfo]:
    """Put vectors as frames of recordings `r0000.wav`, …, whole recordings per part, in turns."""
    recording = np.arange(len(vectors)) // per_recording
    for part in range(n_parts):
        mine = np.flatnonzero(recording % n_parts == part)
        put_part(
            folder / f"{part:03d}.parquet",
            [f"r{r:04d}.wav" for r in recording[mine]],
            mine % per_recording * 320,
            vectors[mine],
        )
    return list(storage.list_objects(str(folder)))
