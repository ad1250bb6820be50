"""K-means against scikit-learn, tokens against SciPy, and rows that break naive codes."""

from __future__ import annotations

import hashlib
import json
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, kmeans_plusplus

from bioembed_ray.codebooks.card import read_codebook
from bioembed_ray.codebooks.fit_steps import fit_on
from bioembed_ray.codebooks.lloyd import State, advance, far_rows, farthest
from bioembed_ray.codebooks.nearest import NonFiniteFrame, assign, make_codes
from bioembed_ray.codebooks.partial_sums import (
    Partial,
    add_group,
    against,
    close,
    fold,
    prepare,
    square_norms,
)
from bioembed_ray.codebooks.rule import Fit, LloydRule
from bioembed_ray.codebooks.sample import group_rows
from bioembed_ray.codebooks.seeding import plus_plus
from bioembed_ray.errors import InputError
from tests.unit.kmeans_fixtures import LocalPool, a_fit, blobs, fit_here, pseudo_frames, put_sample

torch.set_num_threads(1)


def sklearn_fit(
    rows: np.ndarray, first: np.ndarray, iterations: int = 300, tol: float = 0
) -> KMeans:
    model = KMeans(
        len(first), init=first, n_init=1, max_iter=iterations, tol=tol, algorithm="lloyd"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(rows)


def lloyd(rows: np.ndarray, first: np.ndarray, iterations: int = 300) -> State:
    """Iterate over rows in groups of 4,096, as one worker does."""
    rule = LloydRule(len(first), max_iterations=iterations)
    groups = [torch.from_numpy(rows[i : i + 4096]) for i in range(0, len(rows), 4096)]
    norms = [square_norms(group) for group in groups]
    state = State(first)
    while state.ended is None:
        ready = against(state.centroids)
        found = [add_group(group, norm, ready) for group, norm in zip(groups, norms, strict=True)]
        total = close(fold((0, number, partial) for number, (partial, _) in enumerate(found)))
        digest = hashlib.sha256(b"".join(labels.tobytes() for _, labels in found)).hexdigest()
        n_empty = int((total.counts == 0).sum())
        far = None
        if n_empty:
            every = [
                far_rows(group, norm, ready, n_empty, number * 4096)
                for number, (group, norm) in enumerate(zip(groups, norms, strict=True))
            ]
            far = farthest(every, n_empty)
        state = advance(state, total, digest, far, rule, 0.0)
    return state


def centroids_of(fit: Fit) -> np.ndarray:
    return read_codebook(fit.folder).centroids


def bytes_of(fit: Fit) -> str:
    return hashlib.sha256((Path(fit.folder) / "codebook.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("iterations", [1, 5, 300])
def test_centres_and_labels_are_scikit_learns_after_the_same_iterations(iterations: int) -> None:
    rows = blobs(20_000, 64, 30, noise=1.0)
    first = rows[:25].copy()
    theirs = sklearn_fit(rows, first, iterations)
    ours = lloyd(rows, first, iterations)
    assert ours.iteration == theirs.n_iter_
    assert np.abs(ours.centroids - theirs.cluster_centers_).max() < 1e-4
    tokens, _ = assign(rows, make_codes(ours.centroids, "euclidean"))
    assert np.array_equal(tokens, theirs.labels_)
    if iterations == 300:
        assert ours.ended == "labels stayed"
        assert ours.inertia[-1] == pytest.approx(theirs.inertia_, rel=1e-5)


def test_empty_cluster_moves_to_the_farthest_row_as_in_scikit_learn() -> None:
    rows = blobs(3000, 8, 6, seed=3)
    first = np.concatenate([rows[:5], np.full((1, 8), 1e3, np.float32)])
    theirs = sklearn_fit(rows, first, 1)
    ours = lloyd(rows, first, 1)
    assert ours.n_empty == (1,)
    assert np.abs(ours.centroids - theirs.cluster_centers_).max() < 1e-4


@pytest.mark.parametrize(
    "make", [lambda s: blobs(6000, 32, 40, s, 0.8), lambda s: pseudo_frames(6000, 32, s)]
)
def test_inertia_over_five_seeds_is_within_a_percent_of_scikit_learns(
    make: Any, tmp_path: Path
) -> None:
    ours, theirs = [], []
    for seed in range(5):
        rows = make(seed)
        card, _ = fit_here(a_fit(tmp_path / str(seed), 30, seed=seed), rows)
        _, distances = assign(
            rows, make_codes(read_codebook(str(tmp_path / str(seed))).centroids, "euclidean")
        )
        ours.append(float(np.square(distances.astype(float)).sum()))
        # The card's last inertia is before its last update.
        assert card["fit"]["inertia"][-1] * len(rows) == pytest.approx(ours[-1], rel=1e-3)
        theirs.append(KMeans(30, n_init=1, random_state=seed).fit(rows).inertia_)
    assert np.mean(ours) <= 1.01 * np.mean(theirs)


def test_seeding_alone_is_as_good_as_scikit_learns() -> None:
    rows = pseudo_frames(8000, 24)
    ours = [
        np.square(cdist(rows, plus_plus(torch.from_numpy(rows), 40, seed)).min(axis=1)).sum()
        for seed in range(8)
    ]
    theirs = [
        np.square(cdist(rows, kmeans_plusplus(rows, 40, random_state=seed)[0]).min(axis=1)).sum()
        for seed in range(8)
    ]
    assert np.mean(ours) <= 1.03 * np.mean(theirs)


def test_codebook_is_bitwise_the_same_for_any_number_of_workers_and_when_streamed(
    tmp_path: Path,
) -> None:
    rows = pseudo_frames(21_000, 16).astype(np.float16)
    found = {}
    for n_workers, memory_bytes in ((1, 1 << 40), (2, 1 << 40), (4, 1 << 40), (6, 1 << 40), (2, 0)):
        fit = a_fit(tmp_path / f"{n_workers}-{memory_bytes}", 20, max_iterations=12)
        fit_here(fit, rows, n_workers, memory_bytes=memory_bytes)
        found[n_workers, memory_bytes] = bytes_of(fit)
    assert len(set(found.values())) == 1


def test_tree_of_groups_is_the_same_wherever_it_is_cut() -> None:
    rng = np.random.default_rng(0)
    leaves = [
        (
            0,
            i,
            Partial(
                rng.standard_normal((3, 2)) * 10.0 ** rng.integers(-8, 8),
                np.ones(3, np.int64),
                0.1 * i,
            ),
        )
        for i in range(13)
    ]
    whole = close(fold(leaves))
    for cut in range(1, 13):
        for other in range(cut, 13):
            pieces = [fold(leaves[:cut]), fold(leaves[cut:other]), fold(leaves[other:])]
            total = close(fold(node for piece in pieces for node in piece))
            assert total.sums.tobytes() == whole.sums.tobytes()
            assert total.inertia == whole.inertia
    assert np.allclose(whole.sums, sum(leaf[2].sums for leaf in leaves))


def test_group_size_depends_on_the_sample_alone_and_groups_stay_few() -> None:
    for n in (1, 4096, 10**6, 10**6 + 1, 10**9):
        assert group_rows(n) % 4096 == 0
        assert -(-n // group_rows(n)) <= 256


def test_fit_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path: Path) -> None:
    rows = pseudo_frames(9000, 12)
    whole = a_fit(tmp_path / "whole", 16, tolerance=0.0, max_iterations=30)
    fit_here(whole, rows)

    class Killed(Exception):
        pass

    class Dying(LocalPool):
        n_asked = 0

        def ask(self, method: str, *arguments: Any) -> list[Any]:
            self.n_asked += 1
            if self.n_asked == 9:
                raise Killed
            return super().ask(method, *arguments)

    cut = a_fit(tmp_path / "cut", 16, tolerance=0.0, max_iterations=30)
    info = put_sample(cut, rows)
    with pytest.raises(Killed):
        fit_on(cut, info, None, Dying(cut, info, 2), StringIO())
    said = StringIO()
    fit_on(cut, info, None, LocalPool(cut, info, 1), said)
    assert said.getvalue().startswith("codebook birds-500: iteration 8,")
    assert bytes_of(cut) == bytes_of(whole)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir() if p.is_file()) == [
        "card.json",
        "codebook.safetensors",
    ]


def test_checkpoint_of_another_fit_is_not_taken(tmp_path: Path) -> None:
    rows = pseudo_frames(3000, 8)
    fit = a_fit(tmp_path / "a", 5)
    info = put_sample(fit, rows)
    (tmp_path / "a" / "fit-seed-0.safetensors").write_bytes(b"\0" * 50)
    said = StringIO()
    fit_on(fit, info, None, LocalPool(fit, info, 1), said)
    assert "iteration 1," in said.getvalue()


# ------------------------------------------------------------------ rows that break naive codes


def test_fewer_different_frames_than_clusters_are_an_error_that_counts_them(tmp_path: Path) -> None:
    rows = np.repeat(blobs(37, 6, 5), 100, axis=0)
    with pytest.raises(
        InputError,
        match=r"birds-500: only 37 different frames for 500 clusters \(sample of 3,700\); lower clusters or raise fit_frames",
    ):
        fit_here(a_fit(tmp_path, 500), rows)


def test_all_frames_equal_are_an_error_beyond_one_cluster(tmp_path: Path) -> None:
    rows = np.full((5000, 4), 7.25, np.float32)
    with pytest.raises(InputError, match="only 1 frame for 2 clusters"):
        fit_here(a_fit(tmp_path / "2", 2), rows, 2)
    card, _ = fit_here(a_fit(tmp_path / "1", 1), rows, 2)
    assert np.array_equal(read_codebook(str(tmp_path / "1")).centroids, rows[:1])
    assert card["fit"]["inertia"][-1] == 0


def test_one_cluster_is_the_mean(tmp_path: Path) -> None:
    rows = pseudo_frames(5000, 6)
    fit_here(a_fit(tmp_path, 1), rows, 2)
    assert np.allclose(centroids_of(a_fit(tmp_path, 1)), rows.astype(float).mean(axis=0), atol=1e-5)


def test_as_many_clusters_as_different_frames_finds_every_one(tmp_path: Path) -> None:
    different = blobs(40, 6, 5)
    rows = np.repeat(different, [1] * 20 + [250] * 20, axis=0)
    fit_here(a_fit(tmp_path, 40), rows)
    found = centroids_of(a_fit(tmp_path, 40))
    assert np.abs(found[np.lexsort(found.T)] - different[np.lexsort(different.T)]).max() < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_unusable_frame_is_an_error_that_names_it(value: float, tmp_path: Path) -> None:
    rows = pseudo_frames(6000, 6)
    rows[5001, 3] = value
    rows[5600] = value
    with pytest.raises(
        InputError,
        match=r"2 of 6,000 sampled frames hold NaN, infinity or values beyond 1e18, "
        r"the first: b\.wav, channel 0, position 1600320, patch 0",
    ):
        fit_here(a_fit(tmp_path, 5), rows, 2)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e15])
def test_one_huge_outlier_costs_one_cluster_and_no_more(size: float, tmp_path: Path) -> None:
    rows = blobs(6000, 16, 8, noise=0.2)
    rows[4321] = size
    card, _ = fit_here(a_fit(tmp_path, 9), rows)
    assert sorted(card["counts"])[:2] == [1, pytest.approx(700, abs=100)]
    # What the noise alone gives: 16 dimensions of variance 0.04.
    assert card["fit"]["inertia"][-1] == pytest.approx(0.64, rel=0.02)


def test_frames_far_from_the_origin_lose_nothing(tmp_path: Path) -> None:
    rows = blobs(6000, 16, 8, noise=0.2)
    near, _ = fit_here(a_fit(tmp_path / "near", 8), rows)
    far, _ = fit_here(a_fit(tmp_path / "far", 8), rows + np.float32(4096))
    assert far["fit"]["inertia"][-1] == pytest.approx(near["fit"]["inertia"][-1], rel=1e-3)


def test_cosine_finds_directions_whatever_the_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = blobs(6000, 16, 8, noise=0.1)
    rows *= rng.uniform(0.01, 1000, (6000, 1)).astype(np.float32)
    fit = a_fit(tmp_path, 8, metric="cosine")
    card, _ = fit_here(fit, rows, 2)
    centroids = centroids_of(fit)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # One step of spherical k-means by hand leaves them where they are.
    labels = cdist(unit, centroids, "cosine").argmin(axis=1)
    means = np.stack([unit[labels == k].mean(axis=0) for k in range(8)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(means - centroids).max() < 1e-3
    assert card["usage"]["used"] == 8


def test_cosine_rows_of_float16_do_not_overflow() -> None:
    rows = np.full((2, 64), 60_000, np.float16)
    assert np.allclose(prepare(rows, "cosine", None).numpy(), 1 / 8)


def test_progress_says_iteration_inertia_change_empty_clusters_and_rate(tmp_path: Path) -> None:
    _, said = fit_here(a_fit(tmp_path, 5), blobs(4000, 4, 5))
    first, *_, last = said.splitlines()
    assert first.startswith("codebook birds-500: iteration 1, inertia ")
    assert ", 0 empty, " in first
    assert first.endswith(" rows/s")
    assert last.endswith(("; done, no label changed", "; done, shift within tolerance"))


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["blobs", "frames", "offset", "half", "outlier", "close"])
def test_tokens_are_cdists_argmin(metric: Any, kind: str) -> None:
    rows = pseudo_frames(4000, 48, seed=1)
    if kind == "blobs":
        rows = blobs(4000, 48, 30)
    if kind == "offset":
        rows += np.float32(5000)
    if kind == "half":
        rows = rows.astype(np.float16)
    centroids = rows[::50].astype(np.float32)
    if kind == "outlier":
        centroids[3] = 1e6
    if kind == "close":
        # Every second centroid a few float32 steps beside the one before.
        centroids[1::2] = centroids[::2] * np.float32(1 + 3e-7)
    tokens, distances = assign(rows, make_codes(centroids, metric))
    exact = cdist(rows.astype(float), centroids.astype(float), metric)
    lowest = exact.min(axis=1)
    # What float64 itself cannot tell apart may go either way.
    is_tie = (np.sort(exact, axis=1)[:, 1] - lowest) <= 1e-13 * np.abs(exact).max(axis=1)
    assert is_tie.mean() < 0.02
    assert np.array_equal(tokens[~is_tie], exact.argmin(axis=1)[~is_tie])
    assert np.allclose(distances, lowest, rtol=1e-4, atol=3e-3 if kind == "offset" else 1e-5)


def test_plain_float32_products_would_get_tokens_wrong_where_ours_are_right() -> None:
    rows = pseudo_frames(4000, 48, seed=1) + np.float32(5000)
    centroids = rows[::50].copy()
    naive = ((centroids**2).sum(axis=1) - 2 * rows @ centroids.T).argmin(axis=1)
    exact = cdist(rows.astype(float), centroids.astype(float)).argmin(axis=1)
    assert (naive != exact).mean() > 0.1
    assert np.array_equal(assign(rows, make_codes(centroids, "euclidean"))[0], exact)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_ties_go_to_the_lowest_id(metric: Any) -> None:
    rows = blobs(1500, 32, 10)
    centroids = rows[:40].copy()
    doubled = np.concatenate([centroids, centroids[::-1], centroids])
    once = assign(rows, make_codes(centroids, metric))[0]
    assert np.array_equal(assign(rows, make_codes(doubled, metric))[0], once)
    # Half-way between two, exactly: 0 beats 1 and 1 beats 2.
    line = np.array([[0.0, 1], [2, 1], [4, 1]], np.float32)
    assert assign(np.array([[1, 1], [3, 1]], np.float32), make_codes(line, "euclidean"))[
        0
    ].tolist() == [0, 1]


def test_token_of_a_frame_does_not_depend_on_its_batch() -> None:
    rows = pseudo_frames(3000, 40)
    codes = make_codes(rows[:200].copy(), "euclidean")
    tokens, distances = assign(rows, codes)
    alone = [assign(rows[i : i + 1], codes) for i in range(0, 3000, 97)]
    assert tokens[::97].tolist() == [int(t[0]) for t, _ in alone]
    assert np.array_equal(distances[::97], np.concatenate([d for _, d in alone]))


def test_tensors_and_arrays_give_the_same_tokens_even_under_autocast() -> None:
    rows = pseudo_frames(1000, 40)
    codes = make_codes(rows[:100].copy(), "euclidean")
    expected = assign(rows, codes)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(assign(torch.from_numpy(rows), codes)[0], expected)


def test_rough_products_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a GPU does with TF32 allowed: the bound follows, and so do the tokens.
    rows = pseudo_frames(1000, 40)
    codes = make_codes(rows[:100].copy(), "euclidean")
    expected = assign(rows, codes)[0]
    rough = torch.addmm

    def rounded(offset: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return rough(offset, a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch, "addmm", rounded)
    assert not np.array_equal(assign(rows, codes)[0], expected)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert np.array_equal(assign(rows, codes)[0], expected)


def test_one_code_takes_all_and_zeros_have_no_direction() -> None:
    rows = np.concatenate([np.zeros((2, 5), np.float32), blobs(3, 5, 2)])
    assert assign(rows, make_codes(rows[3:4], "euclidean"))[0].tolist() == [0] * 5
    tokens, distances = assign(rows[:2], make_codes(rows[2:], "cosine"))
    assert tokens.tolist() == [0, 0]
    assert distances.tolist() == [1, 1]
    assert assign(rows[:0], make_codes(rows[2:], "cosine"))[0].shape == (0,)


def test_frame_without_a_nearest_centroid_is_an_error_that_names_it() -> None:
    rows = blobs(2000, 5, 3)
    rows[1700, 2] = np.nan
    with pytest.raises(
        NonFiniteFrame, match="frame 1700 holds NaN, infinity or values beyond 1e18"
    ):
        assign(rows, make_codes(rows[:4], "euclidean"))


def test_card_on_disk_is_json_with_the_verdict_first(tmp_path: Path) -> None:
    fit_here(a_fit(tmp_path, 5), blobs(4000, 4, 5))
    card = json.loads((tmp_path / "card.json").read_text())
    assert next(iter(card)) == "verdict"
    assert card["verdict"].startswith("healthy: 5 of 5 codes in use")
