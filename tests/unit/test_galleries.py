"""Galleries show the places that a brute-force search finds, each of another recording."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import cdist

import bioembed_ray
from bioembed_ray import parts, schema
from bioembed_ray.codebooks.card import Codebook
from bioembed_ray.datasets import Dataset
from bioembed_ray.report.census import COLUMNS, Census, take_census
from bioembed_ray.report.codebook_numbers import Candidates
from bioembed_ray.report.galleries import Places, find_places, nearest_places, shown_tokens
from bioembed_ray.results import Results
from bioembed_ray.rows import Rows
from tests.unit.codebook_fixtures import BOOK, HOP_S, NAMES, K, put_table, write_output


def census_of(results: Results) -> Census:
    batches = results.tokens(BOOK).batches(columns=COLUMNS)
    return take_census(batches, K, {}, len(NAMES))


def as_lists(found: Candidates, names: list[str]) -> dict[int, list[tuple[str, float]]]:
    """Return the recordings and scores of every token, in order."""
    lists: dict[int, list[tuple[str, float]]] = {}
    for token, origin, score in zip(found.token, found.origin, found.score, strict=True):
        lists.setdefault(int(token), []).append((names[origin], float(score)))
    return lists


def brute_force(
    vectors: dict[str, np.ndarray], centroids: np.ndarray, metric: str, n: int
) -> dict[int, list[tuple[str, float]]]:
    """Return each token's nearest frame of every recording, the n nearest of them."""
    best: dict[int, dict[str, float]] = {}
    for name, rows in vectors.items():
        table = cdist(rows.astype(np.float64), centroids.astype(np.float64), metric)
        for token, distance in zip(table.argmin(axis=1), table.min(axis=1), strict=True):
            mine = best.setdefault(int(token), {})
            mine[name] = min(mine.get(name, np.inf), float(distance))
    return {token: sorted(mine.items(), key=lambda one: one[1])[:n] for token, mine in best.items()}


def same(
    found: dict[int, list[tuple[str, float]]], wanted: dict[int, list[tuple[str, float]]]
) -> None:
    assert found.keys() == wanted.keys()
    for token, places in wanted.items():
        assert [name for name, _ in found[token]] == [name for name, _ in places]
        np.testing.assert_allclose(
            [score for _, score in found[token]], [score for _, score in places], atol=1e-5
        )


def test_places_are_the_nearest_of_different_recordings(tmp_path: Path) -> None:
    made = write_output(tmp_path)
    results = bioembed_ray.open(made.output)
    shown = shown_tokens(census_of(results).counts, 64)
    found = find_places(results, results.codebook(BOOK), census_of(results), shown, 3, 10**6)
    assert found.are_nearest
    assert f"among all {sum(map(len, made.vectors.values()))} frames" in found.note
    wanted = brute_force(made.vectors, made.centroids, "euclidean", 3)
    same(as_lists(found.places, found.names), wanted)
    # And they are where those frames are.
    for token, origin, start_s, score in zip(
        found.places.token,
        found.places.origin,
        found.places.start_s,
        found.places.score,
        strict=True,
    ):
        frame = made.vectors[found.names[origin]][round(start_s / HOP_S)]
        assert np.linalg.norm(frame - made.centroids[token]) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("batch", [7, 8192])
def test_nearest_places_equal_brute_force_in_many_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, batch: int
) -> None:
    monkeypatch.setattr("bioembed_ray.report.galleries.BATCH_ROWS", batch)
    rng = np.random.default_rng(5)
    centroids = rng.standard_normal((12, 5)).astype(np.float32)
    names = [f"{number}.wav" for number in range(9)]
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in names}
    dataset = Dataset("frames", "x", "1")
    for shard in range(4):
        chosen = rng.choice(names, 60).tolist()
        rows = rng.standard_normal((60, 5)).astype(np.float16)
        for name, row in zip(chosen, rows, strict=True):
            vectors[name].append(row)
        table = pa.table(
            {
                "recording": chosen,
                "channel": [0] * 60,
                "sample": list(range(60)),
                "patch": [0] * 60,
                "start_s": [float(k) for k in range(60)],
                "end_s": [k + 1.0 for k in range(60)],
                "embedding": list(rows),
            },
            schema=schema.frames(5, "float16"),
        )
        put_table(parts.part_uri(str(tmp_path), dataset, f"s{shard}"), table)
    book = Codebook("x", "1", "x", "1", metric, centroids)  # type: ignore[arg-type]
    wanted_tokens = np.ones(12, bool)
    wanted_tokens[3] = False
    rows_ = Rows(str(tmp_path), dataset, lambda: pa.table({}))
    found, met, n_seen, n_all = nearest_places(rows_, book, wanted_tokens, 4, 10**6)
    assert n_seen == n_all == 240
    stacked = {name: np.stack(rows) for name, rows in vectors.items()}
    wanted = brute_force(stacked, centroids, metric, 4)
    wanted.pop(3, None)
    same(as_lists(found, met), wanted)

    some = nearest_places(rows_, book, wanted_tokens, 4, 120)
    assert some[2:] == (120, 240)


def test_without_vectors_the_longest_runs_are_shown_and_said_to_be(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    results = bioembed_ray.open(made.output)
    census = census_of(results)
    found = find_places(results, results.codebook(BOOK), census, [2, 5], 3, 10**6)
    assert not found.are_nearest
    assert "longest runs" in found.note
    assert "encoders.fake.frames: all" in found.note
    assert set(found.places.token.tolist()) == {2, 5} & set(np.flatnonzero(census.counts).tolist())


def test_window_vectors_are_used_where_tokens_were_named_from_them(tmp_path: Path) -> None:
    made = write_output(tmp_path, frames=False)
    results = bioembed_ray.open(made.output)
    book = replace(results.codebook(BOOK), encoder_version="e1")
    found: Places = find_places(results, book, census_of(results), [0], 3, 10**6)
    assert found.are_nearest
    assert "window vectors" in found.note


def test_vectors_of_another_length_are_not_taken_for_a_codebooks(tmp_path: Path) -> None:
    made = write_output(tmp_path)
    results = bioembed_ray.open(made.output)
    book = replace(results.codebook(BOOK), centroids=np.zeros((K, 9), np.float32))
    assert not find_places(results, book, census_of(results), [0], 3, 10**6).are_nearest


def test_galleries_are_of_the_most_used_tokens_and_of_some_of_all_others() -> None:
    counts = np.r_[np.arange(100, 0, -1), 0]
    shown = shown_tokens(counts, 20)
    assert shown[:10] == list(range(10))
    assert len(set(shown)) == 20
    assert shown[-1] == 99
    assert np.ptp(np.diff(shown[10:])) <= 1
    assert shown_tokens(np.array([0, 3, 0, 5]), 20) == [3, 1]
    assert shown_tokens(np.zeros(4, np.int64), 20) == []
