"""The card's figures by hand and against scikit-learn; ids that stay; bytes that do not change."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from bioembed_ray.codebooks.alignment import align, drift
from bioembed_ray.codebooks.card import (
    Codebook,
    agreement,
    card_bytes,
    codebook_bytes,
    concentration,
    dependence,
    read_card,
    read_codebook,
    usage,
    verdict,
)
from bioembed_ray.errors import BrokenOutput, NotFoundError
from tests.unit.kmeans_fixtures import a_fit, blobs, fit_here, pseudo_frames


def a_codebook(clusters: int = 7) -> Codebook:
    centroids = np.arange(clusters * 3, dtype=np.float32).reshape(clusters, 3)
    return Codebook("birds-500", "v1", "hubert", "e1", "euclidean", centroids)


def test_usage_by_hand() -> None:
    figures = usage(np.array([4, 2, 2, 0]))
    assert figures["entropy_bits"] == 1.5
    assert figures["perplexity"] == pytest.approx(2**1.5)
    assert (figures["used"], figures["dead"], figures["top_share"], figures["top_code"]) == (
        3,
        1,
        0.5,
        0,
    )


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ([100] * 50, "healthy"),
        ([1000, 500, 100] + [10] * 47, "uneven"),
        ([10_000] + [1] * 49, "COLLAPSED"),
        ([500, 500] + [0] * 48, "COLLAPSED"),
        ([500], "a single code"),
        ([0, 0, 0], "COLLAPSED"),
    ],
)
def test_verdict_tells_a_collapsed_codebook(counts: list[int], state: str) -> None:
    text = verdict(usage(np.array(counts)))
    assert text.startswith(state)
    assert f"of {len(counts)} codes in use, perplexity" in text


def test_concentration_by_hand() -> None:
    token, origin = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    found = concentration(token, origin, np.array([3, 1, 5, 5]))
    assert found == {"origins": 2, "top_share_median": 1.0, "owned_codes": 2}


def test_dependence_is_nought_by_chance_and_one_where_origin_decides() -> None:
    rng = np.random.default_rng(0)
    origin = rng.integers(0, 20, 6000)
    by_chance = dependence(rng.integers(0, 50, 6000), origin)
    assert by_chance is not None
    assert abs(by_chance["adjusted_mutual_information"]) < 0.01
    assert dependence(origin, origin) == {"adjusted_mutual_information": 1.0, "frames": 6000}
    assert dependence(origin[:0], origin[:0]) is None


def test_agreement_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 500)
    b = np.where(rng.random(500) < 0.8, a, rng.integers(0, 9, 500))
    found = agreement(a, (b + 3) % 9)
    assert found is not None
    assert found["adjusted_rand_index"] == pytest.approx(adjusted_rand_score(a, b))
    assert found["adjusted_mutual_information"] == pytest.approx(adjusted_mutual_info_score(a, b))


def test_codebook_is_read_back_and_by_anything_that_reads_safetensors(tmp_path: Path) -> None:
    codebook = a_codebook()
    (tmp_path / "codebook.safetensors").write_bytes(codebook_bytes(codebook))
    found = read_codebook(str(tmp_path))
    assert np.array_equal(found.centroids, codebook.centroids)
    assert (found.name, found.version, found.metric) == ("birds-500", "v1", "euclidean")
    with safe_open(tmp_path / "codebook.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["bioembed.codebook"])["encoder_version"] == "e1"
        assert np.array_equal(file.get_tensor("centroids"), codebook.centroids)


def test_codebook_has_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib\n"
        "from tests.unit.test_card import a_codebook\n"
        "from bioembed_ray.codebooks.card import codebook_bytes\n"
        "print(hashlib.sha256(codebook_bytes(a_codebook())).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], text=True, capture_output=True
    )
    assert other.stdout.strip() == hashlib.sha256(codebook_bytes(a_codebook())).hexdigest()


@pytest.mark.parametrize(("clusters", "size"), [(2, 2), (32_767, 2), (32_768, 4), (100_000, 4)])
def test_tokens_take_two_bytes_while_ids_fit(clusters: int, size: int) -> None:
    assert a_codebook(clusters).token_bytes == size
    assert (np.iinfo(np.int16).max >= clusters - 1 or size == 4) is True


def test_file_that_is_no_codebook_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_codebook(str(tmp_path))
    (tmp_path / "codebook.safetensors").write_bytes(b"nonsense" * 20)
    with pytest.raises(BrokenOutput, match=r"codebook\.safetensors: not a codebook; delete it"):
        read_codebook(str(tmp_path))


def test_card_bytes_are_plain_json_with_lists_on_one_line() -> None:
    card: dict[str, Any] = {
        "verdict": "healthy: [x]",
        "counts": [1, 2, 3],
        "inertia": (0.123456789, float("nan")),
        "nested": {"é": np.float32(0.5), "n": np.int64(3), "empty": []},
    }
    body = card_bytes(card)
    assert json.loads(body) == {
        "verdict": "healthy: [x]",
        "counts": [1, 2, 3],
        "inertia": [0.123457, None],
        "nested": {"é": 0.5, "n": 3, "empty": []},
    }
    assert '"counts": [1, 2, 3]' in body.decode()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_alignment_is_the_best_of_all_permutations(metric: Any) -> None:
    rng = np.random.default_rng(1)
    old = rng.standard_normal((6, 4)).astype(np.float32)
    new = (old[rng.permutation(6)] + 0.8 * rng.standard_normal((6, 4))).astype(np.float32)
    order = align(new, old, metric)
    a, b = new.astype(float), old.astype(float)
    if metric == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    costs = ((a[:, None] - b) ** 2).sum(axis=2)
    best = min(sum(costs[p[i], i] for i in range(6)) for p in itertools.permutations(range(6)))
    assert costs[order, np.arange(6)].sum() == pytest.approx(best)


def test_ids_survive_more_and_fewer_clusters() -> None:
    old = np.eye(5, dtype=np.float32) * 10
    shuffled = old[[3, 0, 4, 1, 2]]
    more = np.concatenate([np.full((2, 5), 5, np.float32), shuffled])
    order = align(more, old, "euclidean")
    assert np.array_equal(more[order][:5], old)
    assert sorted(order) == list(range(7))
    fewer = old[[2, 0, 1]]
    assert np.array_equal(fewer[align(fewer, old, "euclidean")], old[:3])


def test_drift_by_hand() -> None:
    old = np.zeros((3, 2), np.float32)
    new = np.array([[0, 0], [3, 4], [0, 1]], np.float32)
    found = drift(new, old, spread=2.0, metric="euclidean")
    assert (found["mean_shift"], found["max_shift"]) == (1.0, 2.5)
    assert next(iter(found["most_moved"].items())) == ("1", 2.5)


def test_card_of_a_fit_says_how_to_fit_it_again_and_how_good_it_is(tmp_path: Path) -> None:
    rows, held = blobs(5000, 8, 12), blobs(6000, 8, 12)[5000:]
    fit = a_fit(tmp_path, 12, seed=3, second_seed=True)
    card, _ = fit_here(fit, rows, 2, held=held)
    assert read_card(str(tmp_path)) == json.loads(card_bytes(card))
    for key, value in {"layer": 6, "seed": 3, "clusters": 12, "metric": "euclidean"}.items():
        assert card["fit"][key] == value
    assert card["fit"]["tolerance"] == 1e-4
    assert card["fit"]["sample"]["frames"] == 10**6
    assert set(card["environment"]) >= {"python", "numpy", "torch", "ray", "bioembed_ray"}
    assert sum(card["counts"]) == 5000
    centroids = read_codebook(str(tmp_path)).centroids
    distances = ((held[:, None] - centroids) ** 2).sum(axis=2)
    assert card["held_out"]["inertia"] == pytest.approx(distances.min(axis=1).mean(), rel=1e-5)
    assert card["held_out"]["usage"]["frames"] == 1000
    # The same blobs with another seed, and recordings that have nothing to do with them.
    assert card["held_out"]["seeds"]["adjusted_rand_index"] > 0.7
    assert abs(card["held_out"]["recording_and_token"]["adjusted_mutual_information"]) < 0.02
    assert card["by_recording"]["origins"] == 4
    assert 0.25 <= card["by_recording"]["top_share_median"] < 0.35


def test_refit_keeps_ids_and_tells_the_drift(tmp_path: Path) -> None:
    rows = pseudo_frames(6000, 8)
    held = pseudo_frames(500, 8)
    fit_here(a_fit(tmp_path / "1", 10), rows, held=held)
    first = read_codebook(str(tmp_path / "1"))
    again = a_fit(tmp_path / "2", 10, seed=5, previous=str(tmp_path / "1"))
    card, said = fit_here(again, rows + np.float32(0.01), held=held)
    second = read_codebook(str(tmp_path / "2"))
    nearest = ((second.centroids[:, None] - first.centroids) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(nearest, np.arange(10))
    assert card["fit"]["first_centroids"] == "centroids of version v1"
    assert card["previous"]["max_shift"] < 0.2
    assert card["previous"]["changed_tokens"] < 0.1
    # Begun where the last one ended, it is soon done.
    assert len(said.splitlines()) < 15
    assert sum(card["counts"]) == 6000
    labels = ((rows[:, None] + np.float32(0.01) - second.centroids) ** 2).sum(axis=2).argmin(axis=1)
    assert np.abs(np.bincount(labels, minlength=10) - card["counts"]).max() <= 2


def test_refit_with_another_number_of_clusters_begins_anew_and_keeps_what_ids_it_can(
    tmp_path: Path,
) -> None:
    rows = blobs(4000, 8, 6, noise=0.1)
    fit_here(a_fit(tmp_path / "1", 6), rows)
    card, _ = fit_here(a_fit(tmp_path / "2", 8, previous=str(tmp_path / "1")), rows)
    assert card["fit"]["first_centroids"].startswith("greedy k-means++")
    assert card["previous"]["clusters"] == 6
