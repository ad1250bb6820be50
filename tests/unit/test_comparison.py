"""Two versions side by side, against scipy, scikit-learn and a search through all permutations."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import cosine
from sklearn.neighbors import NearestNeighbors

from bioembed_ray.compare.comparison import pick, write_comparison
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError

OLD, NEW = Dataset("embeddings", "e", "v1"), Dataset("embeddings", "e", "v2")


def put(output: Path, dataset: Dataset, shard: str, columns: dict[str, Any]) -> None:
    folder = output / dataset.prefix
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{shard}.parquet")


def windows(names: list[str], vectors: np.ndarray) -> dict[str, Any]:
    count = len(vectors) // len(names)
    return {
        "recording": np.repeat(names, count).tolist(),
        "channel": pa.array([0] * len(vectors), pa.int16()),
        "start_s": np.tile(np.arange(count) * 0.5, len(names)),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1]
        ),
    }


def compared(output: Path, old: Dataset, new: Dataset) -> tuple[dict[str, Any], list[str]]:
    lines = list(write_comparison(str(output), old, new, str(output / "to")))
    assert (output / "to" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    found: dict[str, Any] = json.loads((output / "to" / "comparison.json").read_text())
    return found, lines


def test_cosines_neighbours_and_the_recordings_that_moved_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal((60, 7))
    after = before + 0.2 * rng.standard_normal((60, 7))
    after[20:30] += 3 * rng.standard_normal((10, 7))
    after[4] = before[4] = 0
    for shard, rows in (("s1", slice(0, 30)), ("s2", slice(30, 60))):
        names = [f"{shard}-{letter}.wav" for letter in "abc"]
        put(tmp_path, OLD, shard, windows(names, before[rows]))
        put(tmp_path, NEW, shard, windows(names, after[rows]))
    found, lines = compared(tmp_path, OLD, NEW)
    cosines = np.array([1 - cosine(a, b) for a, b in zip(before, after, strict=True) if a.any()])
    cosines = np.append(cosines, 1.0)
    assert found["windows"] == {"both": 60, "old_only": 0, "new_only": 0}
    assert found["cosine"]["mean"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert sum(found["cosine"]["histogram"]) == 60
    for share, value in found["cosine"]["quantiles"].items():
        assert (cosines <= value + 1e-9).mean() >= float(share)
        assert (cosines <= value - 0.01).mean() <= float(share)
    assert next(iter(found["most_moved"])) == "s1-c.wav"
    kept = [row for row in range(60) if row != 4]

    def near(vectors: np.ndarray) -> list[set[int]]:
        search = NearestNeighbors(n_neighbors=11, metric="cosine").fit(vectors)
        rows = search.kneighbors(vectors, return_distance=False)
        return [set(row.tolist()) - {number} for number, row in enumerate(rows)]

    pairs = zip(near(before[kept]), near(after[kept]), strict=True)
    overlap = np.mean([len(one & other) / 10 for one, other in pairs])
    # The zero vector is as near to all others as to none.
    assert found["neighbour_overlap_at_10"] == pytest.approx(overlap, abs=0.03)
    assert any("moved most: s1-c.wav" in line for line in lines)


def test_windows_of_one_version_alone_are_counted_and_lengths_may_differ(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    put(tmp_path, OLD, "s", windows(["a.wav", "b.wav"], rng.standard_normal((20, 4))))
    put(tmp_path, NEW, "s", windows(["a.wav"], rng.standard_normal((12, 5))))
    found, lines = compared(tmp_path, OLD, NEW)
    assert found["windows"] == {"both": 10, "old_only": 10, "new_only": 2}
    assert "cosine" not in found and "most_moved" not in found
    assert 0 <= found["neighbour_overlap_at_10"] <= 1
    assert any("differ in length" in line for line in lines)


def tokens(rows: list[tuple[str, float, list[int | None]]], per_step: int = 1) -> dict[str, Any]:
    return {
        "recording": [row[0] for row in rows],
        "channel": pa.array([0] * len(rows), pa.int16()),
        "start_s": [row[1] for row in rows],
        "hop_s": [0.02] * len(rows),
        "per_step": pa.array([per_step] * len(rows), pa.int16()),
        "tokens": pa.array([row[2] for row in rows], pa.list_(pa.int16())),
    }


def test_tokens_agree_by_the_best_of_all_matchings(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    before = rng.integers(0, 5, 400)
    after = np.array([3, 0, 4, 1, 2])[before]
    noisy = rng.random(400) < 0.3
    after[noisy] = rng.integers(0, 5, noisy.sum())
    old, new = Dataset("tokens", "k", "v1"), Dataset("tokens", "k", "v2")
    one, other = before.tolist(), after.tolist()
    one[7], other[9] = None, None
    put(tmp_path, old, "s", tokens([("a.wav", 0.0, one[:250]), ("b.wav", 0.0, one[250:])]))
    put(tmp_path, new, "s", tokens([("a.wav", 0.0, other[:250]), ("b.wav", 0.0, other[250:])]))
    put(tmp_path, old, "t", tokens([("c.wav", 0.0, [1, 2, 3, 4]), ("d.wav", 0.0, [0, 1])]))
    put(tmp_path, new, "t", tokens([("c.wav", 0.0, [1, 2, 3, 4]), ("d.wav", 0.0, [0, 1])], 2))
    found, lines = compared(tmp_path, old, new)
    both = [(a, b) for a, b in zip(one, other, strict=True) if None not in (a, b)]
    best = max(sum(order[a] == b for a, b in both) for order in itertools.permutations(range(5)))
    assert found["tokens"] == {"both": 398, "old_only": 6, "new_only": 6, "gaps": 2}
    assert found["agreement"] == pytest.approx(best / 398)
    assert found["agreement_without_alignment"] == pytest.approx(sum(a == b for a, b in both) / 398)
    assert found["alignment"] == {"0": 3, "1": 0, "2": 4, "3": 1, "4": 2}
    moves = np.load(tmp_path / "to" / "moves.npy")
    assert moves[0, 3] == both.count((0, 3)) and moves.sum() == 398
    first = found["most_frequent_moves"][0]
    assert first["tokens"] == both.count((first["old"], first["new"]))
    assert found["alignment"][str(first["old"])] != first["new"]
    assert any("agree once ids are matched" in line for line in lines)


def test_two_versions_are_picked_or_what_there_is_is_named(tmp_path: Path) -> None:
    out = str(tmp_path)
    vectors = np.ones((2, 3))
    put(tmp_path, NEW, "s", windows(["a.wav"], vectors))
    with pytest.raises(InputError, match=r"no encoder or codebook 'x'; there is e"):
        pick(out, "x", None)
    with pytest.raises(InputError, match=r"e: 1 version\(s\) stand: v2; there is nothing"):
        pick(out, "e", None)
    put(tmp_path, OLD, "s", windows(["a.wav"], vectors))
    (tmp_path / "current.json").write_text(json.dumps({"encoders": {"e": {"embeddings": "v1"}}}))
    assert pick(out, "e", None) == (NEW, OLD)
    assert pick(out, "e", ("v1", "v2")) == (OLD, NEW)
    with pytest.raises(InputError, match=r"no version 'v9'; there is v1, v2"):
        pick(out, "e", ("v1", "v9"))
    put(tmp_path, Dataset("embeddings", "e", "v3"), "s", windows(["a.wav"], vectors))
    with pytest.raises(InputError, match="give two with --versions"):
        pick(out, "e", None)
