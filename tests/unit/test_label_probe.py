"""The probe on arrays, against scikit-learn called directly on the same folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bioembed_ray.errors import InputError
from bioembed_ray.labels.scores import (
    STRENGTHS,
    Samples,
    chance,
    choose_strength,
    evaluate,
    linear_scores,
    sides,
)
from bioembed_ray.labels.task import Task, make_task


def blobs(
    n_recordings: int, n_classes: int, distance: float, per: int = 1, dim: int = 6, seed: int = 0
) -> tuple[Samples, Task]:
    """Recordings of `per` windows around the centre of their class, in two or more sites each."""
    rng = np.random.default_rng(seed)
    names = [f"r{k:03d}.wav" for k in range(n_recordings)]
    labels = {name: f"c{k % n_classes}" for k, name in enumerate(names)}
    task = make_task(labels, {name: name for name in names}, 4)
    centres = distance * rng.standard_normal((n_classes, dim))
    recording = np.repeat(np.arange(n_recordings), per)
    vectors = centres[task.label[recording]] + rng.standard_normal((len(recording), dim))
    return Samples(vectors.astype(np.float32), recording), task


@pytest.mark.parametrize("dim", [6, 90])
@pytest.mark.parametrize("method", ["linear", "knn"])
def test_scores_are_those_of_scikit_learn_on_the_same_folds(method: str, dim: int) -> None:
    samples, task = blobs(46, 3, 0.8 if dim == 6 else 0.3, per=2, dim=dim)
    found = evaluate(samples, task, method)
    label = task.label[samples.recording]
    confusion = np.zeros((3, 3), int)
    for number, fold in enumerate(found.folds):
        is_tested = task.fold[samples.recording] == number
        train, test = samples.vectors[~is_tested], samples.vectors[is_tested]
        if method == "linear":
            assert fold.strength is not None
            c = 1 / (fold.strength * len(train))
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=c, max_iter=5000, tol=1e-6)
            )
        else:
            model = KNeighborsClassifier(5, weights="distance", metric="cosine")
        model.fit(train.astype(np.float64), label[~is_tested])
        truth, named = label[is_tested], model.predict(test.astype(np.float64))
        shares = model.predict_proba(test.astype(np.float64))
        assert fold.metrics["accuracy"] == pytest.approx((truth == named).mean())
        assert fold.metrics["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(truth, named)
        )
        assert fold.metrics["macro_f1"] == pytest.approx(f1_score(truth, named, average="macro"))
        precision = average_precision_score(np.eye(3)[truth], shares, average="macro")
        assert fold.metrics["mean_average_precision"] == pytest.approx(precision, abs=1e-3)
        assert (fold.n_train, fold.n_test) == (len(train), len(test))
        confusion += confusion_matrix(truth, named, labels=range(3))
    assert found.confusion.tolist() == confusion.tolist()
    assert 0.4 < found.mean("accuracy") < 1
    values = [fold.metrics["accuracy"] for fold in found.folds]
    assert found.deviation("accuracy") == pytest.approx(np.std(values, ddof=1))
    pooled = np.repeat(np.arange(9), confusion.ravel())
    assert found.class_f1 == pytest.approx(f1_score(pooled // 3, pooled % 3, average=None))


def test_probabilities_are_those_of_the_plain_fit_where_rows_are_fewer_than_dimensions() -> None:
    rng = np.random.default_rng(3)
    train, test = rng.standard_normal((20, 200)), rng.standard_normal((9, 200))
    label = np.arange(20) % 4
    found, is_converged = linear_scores(train, label, test, 5, 0.01)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=5, max_iter=5000, tol=1e-8))
    wanted = plain.fit(train, label).predict_proba(test)
    assert is_converged
    assert np.allclose(found[:, :4], wanted, atol=2e-3)
    assert not found[:, 4].any()


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_classes_far_apart_are_told_apart_without_error(method: str) -> None:
    samples, task = blobs(40, 4, 30, per=3)
    found = evaluate(samples, task, method)
    assert {m: found.mean(m) for m in found.folds[0].metrics} == dict.fromkeys(
        found.folds[0].metrics, 1.0
    )
    assert found.class_f1 == [1.0] * 4


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_vectors_that_know_nothing_score_what_chance_gives(method: str) -> None:
    samples, task = blobs(400, 2, 0)
    found = evaluate(samples, task, method)
    # Four standard deviations of 400 throws of a coin.
    assert abs(found.mean("balanced_accuracy") - 0.5) < 0.1
    by_chance = chance(samples.recording, task)
    assert by_chance["majority"]["balanced_accuracy"] == pytest.approx(0.5)
    assert by_chance["stratified"]["accuracy"] == pytest.approx(0.5, abs=0.03)


def test_chance_follows_how_frequent_classes_are() -> None:
    names = [f"{k:03d}" for k in range(100)]
    labels = {name: "rare" if k % 5 == 0 else "common" for k, name in enumerate(names)}
    task = make_task(labels, {name: name for name in names}, 5)
    by_chance = chance(np.arange(100), task)
    assert by_chance["majority"]["accuracy"] == pytest.approx(0.8)
    assert by_chance["majority"]["mean_average_precision"] == pytest.approx(0.5)
    assert by_chance["stratified"]["accuracy"] == pytest.approx(0.8**2 + 0.2**2, abs=0.04)


def test_windows_that_betray_their_recording_do_not_help() -> None:
    """Each recording has a mark of its own; split by window it would give the label away."""
    rng = np.random.default_rng(0)
    marks = 20 * rng.standard_normal((60, 40))
    recording = np.repeat(np.arange(60), 10)
    vectors = (marks[recording] + rng.standard_normal((600, 40))).astype(np.float32)
    names = [f"{k:02d}" for k in range(60)]
    draw = rng.permutation(60)
    labels = {name: f"c{draw[k] % 2}" for k, name in enumerate(names)}
    task = make_task(labels, {name: name for name in names}, 5)
    samples = Samples(vectors, recording)
    assert evaluate(samples, task, "knn").mean("balanced_accuracy") < 0.75
    leaky = task.label[recording]
    model = KNeighborsClassifier(5, metric="cosine").fit(vectors[::2], leaky[::2])
    assert model.score(vectors[1::2], leaky[1::2]) == 1


def test_strength_is_the_one_that_does_best_inside_the_training_side() -> None:
    samples, task = blobs(60, 2, 0.15, dim=50, seed=4)
    train, test = sides(samples, task, 0)
    chosen = choose_strength(samples, task, train)
    assert chosen in STRENGTHS
    # Whatever stands on the test side has no say.
    changed = samples.vectors.copy()
    changed[test] = 1e3
    assert choose_strength(Samples(changed, samples.recording), task, train) == chosen
    assert evaluate(samples, task, "linear").folds[0].strength == chosen


def test_a_class_that_is_tested_all_at_once_is_told() -> None:
    labels = {f"{k}": "ab"[k % 2] for k in range(8)}
    task = make_task(labels, {name: name for name in labels}, 2)
    # Both folds hold both classes; take one fold's class a away by hand.
    fold = np.where(task.label == 0, 0, np.arange(8) // 2 % 2)
    by_hand = Task(task.recordings, task.classes, task.label, task.group, fold, {})
    vectors = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    for method in ("linear", "knn"):
        found = evaluate(Samples(vectors, np.arange(8)), by_hand, method)
        assert [one.untrained for one in found.folds] == [("a",), ()]


def test_small_classes_are_left_out_and_named() -> None:
    labels = {f"{k:02d}": "common" if k < 6 else "other" for k in range(12)} | {
        "x": "rare",
        "y": "rare",
    }
    task = make_task(labels, {name: name for name in labels}, 3)
    assert task.classes == ("common", "other")
    assert task.left_out == {"rare": 2}
    assert len(task.recordings) == 12


def test_one_class_or_too_few_groups_is_one_line() -> None:
    names = [f"{k}" for k in range(6)]
    own = {name: name for name in names}
    with pytest.raises(InputError, match=r"sp: a probe needs two classes, all 6 are 'wren'"):
        make_task(dict.fromkeys(names, "wren"), own, 2, "sp")
    with pytest.raises(InputError, match=r"two classes, no recording has one"):
        make_task({}, own, 2)
    labels = dict(zip(names, "aaaabb", strict=True))
    with pytest.raises(
        InputError, match=r"1 of 2 classes are in 3 .*'a' 4, 'b' 2\); use --folds 2"
    ):
        make_task(labels, own, 3)
    sites = dict(zip(names, "xyxyzz", strict=True))
    with pytest.raises(InputError, match="two classes with two groups each"):
        make_task(labels, sites, 2)
