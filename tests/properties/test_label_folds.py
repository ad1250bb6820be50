"""No group, and so no recording, is on both sides of a fold, however groups and classes lie."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray.errors import InputError
from bioembed_ray.labels.even_sample import LARGEST, limits, shares
from bioembed_ray.labels.scores import Samples, sides
from bioembed_ray.labels.task import make_task

RECORDINGS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=4, max_size=60)


@settings(deadline=None, max_examples=150)
@given(rows=RECORDINGS, n_folds=st.integers(2, 5), by_recording=st.booleans(), data=st.data())
def test_groups_are_on_one_side(
    rows: list[tuple[int, int]], n_folds: int, by_recording: bool, data: st.DataObject
) -> None:
    names = [f"{k:02d}" for k in range(len(rows))]
    labels = {name: f"c{row[0]}" for name, row in zip(names, rows, strict=True)}
    groups = {n: n if by_recording else f"g{row[1]}" for n, row in zip(names, rows, strict=True)}
    held = Counter(label for label, _ in {(labels[n], groups[n]) for n in names})
    kept = {label for label, count in held.items() if count >= n_folds}
    if len(kept) < 2:
        with pytest.raises(InputError):
            make_task(labels, groups, n_folds)
        return
    task = make_task(labels, groups, n_folds)
    assert set(task.classes) == kept
    assert task.recordings == tuple(n for n in names if labels[n] in kept)
    assert task.left_out == {name: held[name] for name in held.keys() - kept}
    windows = data.draw(st.lists(st.integers(1, 4), min_size=len(names), max_size=len(names)))
    recording = np.repeat(np.arange(len(task.recordings)), windows[: len(task.recordings)])
    samples = Samples(np.zeros((len(recording), 1), np.float32), recording)
    tested: list[int] = []
    for number in range(n_folds):
        train, test = sides(samples, task, number)
        both = [{groups[task.recordings[recording[row]]] for row in side} for side in (train, test)]
        assert not both[0] & both[1]
        assert len(train) and len(test)
        tested += test.tolist()
    assert sorted(tested) == list(range(len(recording)))


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    n=st.integers(1, 120),
    seed=st.integers(0, 9),
)
def test_a_sample_is_even_and_the_same_in_any_order(counts: list[int], n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    recording = np.repeat(np.arange(len(counts)), counts)
    hashes = rng.integers(1, 2**63, len(recording)).astype(np.uint64)

    def kept(order: np.ndarray, pieces: int) -> set[int]:
        parts = np.array_split(order, pieces)
        highest = limits(
            lambda: ((recording[part], hashes[part]) for part in parts), np.array(counts), n
        )
        return set(hashes[hashes <= highest[recording]].tolist())

    found = kept(np.arange(len(recording)), 1)
    assert found == kept(rng.permutation(len(recording)), 5)
    assert len(found) == min(n, sum(counts))
    given_by = np.bincount(
        recording[np.isin(hashes, np.array(sorted(found), np.uint64))], minlength=len(counts)
    )
    if sum(counts) > n:
        assert given_by.tolist() == shares(np.array(counts), n).tolist()
        # Nobody gives more than one row above another who has more to give.
        for place, count in enumerate(counts):
            if given_by[place] < count:
                assert given_by.max() <= given_by[place] + 1
    else:
        assert limits(lambda: iter(()), np.array(counts), n).tolist() == [int(LARGEST)] * len(
            counts
        )
