"""How well labels are read off vectors: a linear probe, nearest neighbours, and what chance gives."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioembed_ray.labels.task import SEED, Ints, Task, draw_folds, fewest_groups

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "mean_average_precision")
# Weight of the squared norm against the mean loss of a row, strongest first. Given per row, so that
# what was chosen on a part of the rows holds for all of them: scikit-learn's C is 1 / (strength · rows).
STRENGTHS = (1.0, 0.1, 0.01, 0.001)
DEFAULT_STRENGTH = 0.01
INNER_FOLDS = 3
INNER_ROWS = 2_000
MAX_ITERATIONS = 500
# Of the gradient: at the default of 1e-4 probabilities are off by a hundredth.
TOLERANCE = 1e-6
NEIGHBOURS = 5
# Few rows need many draws for a mean that is worth showing.
CHANCE_ROWS, MOST_DRAWS, FEWEST_DRAWS = 50_000, 50, 3


@dataclass(frozen=True, slots=True)
class Samples:
    """Vectors, each of a recording of the task.

    Attributes:
        vectors: (n, D) float32.
        recording: (n,) index into the task's recordings.
    """

    vectors: Vectors
    recording: Ints


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fold gave.

    Attributes:
        metrics: Of `METRICS`, 0 to 1.
        n_train: Rows trained on.
        n_test: Rows tested.
        strength: Strength of the linear probe, None for others.
        is_converged: False where the linear probe stopped at its last iteration.
        untrained: Classes that no group of the training side has.
    """

    metrics: dict[str, float]
    n_train: int
    n_test: int
    strength: float | None = None
    is_converged: bool = True
    untrained: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method gave over all folds.

    Attributes:
        folds: One per fold.
        confusion: (C, C) rows tested, by true class and named class.
    """

    folds: tuple[Fold, ...]
    confusion: Ints

    def mean(self, metric: str) -> float:
        """Return the mean over folds."""
        return float(np.mean([fold.metrics[metric] for fold in self.folds]))

    def deviation(self, metric: str) -> float:
        """Return the standard deviation over folds (n - 1)."""
        return float(np.std([fold.metrics[metric] for fold in self.folds], ddof=1))

    @property
    def class_f1(self) -> list[float]:
        """F1 of every class, over the rows of all folds."""
        both = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return [float(f1) for f1 in 2 * np.diag(self.confusion) / np.maximum(both, 1)]


def sides(samples: Samples, task: Task, number: int) -> tuple[Ints, Ints]:
    """Return the rows to train on and those to test in one fold; no group has rows in both."""
    is_tested = task.fold[samples.recording] == number
    return np.flatnonzero(~is_tested), np.flatnonzero(is_tested)


def evaluate(samples: Samples, task: Task, method: str) -> Outcome:
    """Train and test in every fold.

    Args:
        samples: Rows; each recording of the task has at least one.
        task: Classes and folds.
        method: `linear` or `knn`.
    """
    label = task.label[samples.recording]
    n_classes = len(task.classes)
    folds, confusion = [], np.zeros((n_classes, n_classes), np.int64)
    for number in range(task.n_folds):
        train, test = sides(samples, task, number)
        strength, is_converged = None, True
        if method == "linear":
            strength = choose_strength(samples, task, train)
            scores, is_converged = linear_scores(
                samples.vectors[train], label[train], samples.vectors[test], n_classes, strength
            )
        else:
            scores = neighbour_scores(
                samples.vectors[train], label[train], samples.vectors[test], n_classes
            )
        np.add.at(confusion, (label[test], scores.argmax(axis=1)), 1)
        missing = np.setdiff1d(np.arange(n_classes), label[train])
        folds.append(
            Fold(
                measure(label[test], scores),
                len(train),
                len(test),
                strength,
                is_converged,
                tuple(task.classes[place] for place in missing),
            )
        )
    return Outcome(tuple(folds), confusion)


def measure(truth: Ints, scores: Scores) -> dict[str, float]:
    """Return `METRICS`; a row is named by its highest score.

    Recall and average precision are means over the classes that are tested, F1 over those that are
    tested or named, as in scikit-learn.

    Args:
        truth: (n,) classes.
        scores: (n, C).
    """
    from sklearn.metrics import average_precision_score, f1_score

    named, tested = scores.argmax(axis=1), np.unique(truth)
    precisions = [average_precision_score(truth == c, scores[:, c]) for c in tested]
    return {
        "accuracy": float((truth == named).mean()),
        "balanced_accuracy": balanced_accuracy(truth, named),
        "macro_f1": float(f1_score(truth, named, average="macro", zero_division=0)),
        "mean_average_precision": float(np.mean(precisions)),
    }


def balanced_accuracy(truth: Ints, named: Ints) -> float:
    """Return the mean, over the classes that are tested, of the share of a class named rightly."""
    rows = np.bincount(truth)
    right = np.bincount(truth, weights=truth == named)
    return float((right[rows > 0] / rows[rows > 0]).mean())


def linear_scores(
    train: Vectors, label: Ints, test: Vectors, n_classes: int, strength: float
) -> tuple[Scores, bool]:
    """Return class probabilities (n, C) of a multinomial logistic regression, and if it converged.

    Dimensions are standardised by the training side. A class that it lacks has probability 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scores = np.zeros((len(test), n_classes))
    known = np.unique(label)
    if len(known) == 1:
        scores[:, known[0]] = 1
        return scores, True
    # In float32 the line search stops short of the optimum.
    scaler = StandardScaler().fit(train.astype(np.float64))
    inside, outside = (scaler.transform(side.astype(np.float64)) for side in (train, test))
    if len(inside) < inside.shape[1]:
        # The optimum lies in the span of the rows, and turning them moves no score: fewer unknowns.
        _, _, axes = np.linalg.svd(inside, full_matrices=False)
        inside, outside = inside @ axes.T, outside @ axes.T
    c = 1 / (strength * len(train))
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings():
        # It is told by the fold.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inside, label)
    scores[:, known] = model.predict_proba(outside)
    return scores, bool(model.n_iter_.max() < MAX_ITERATIONS)


def neighbour_scores(train: Vectors, label: Ints, test: Vectors, n_classes: int) -> Scores:
    """Return each class's share (n, C) among the 5 nearest by cosine, weighted by 1 / distance.

    The weights let a class with two recordings on the training side win where these are far nearer.
    """
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(
        min(NEIGHBOURS, len(train)), weights="distance", metric="cosine", algorithm="brute"
    )
    # Cosines of neighbouring windows differ in the digits that float32 lacks.
    model.fit(train.astype(np.float64), label)
    scores = np.zeros((len(test), n_classes))
    scores[:, model.classes_] = model.predict_proba(test.astype(np.float64))
    return scores


def choose_strength(samples: Samples, task: Task, train: Ints) -> float:
    """Return the strength with the best balanced accuracy in folds of the training side.

    These folds share no group either. Of equals the strongest is taken; where a class is in one
    group only there are no such folds, and it is `DEFAULT_STRENGTH`.

    Args:
        samples: Rows.
        task: Classes and groups.
        train: Rows of the training side; at most `INNER_ROWS` of them are looked at, drawn by seed.
    """
    if len(train) > INNER_ROWS:
        draw = np.random.default_rng(SEED)
        train = np.sort(draw.choice(train, INNER_ROWS, replace=False))
    present, place = np.unique(samples.recording[train], return_inverse=True)
    label, group = task.label[present], task.group[present]
    n_folds = min(INNER_FOLDS, fewest_groups(label, group))
    if n_folds < 2 or len(np.unique(label)) < 2:
        return DEFAULT_STRENGTH
    fold = draw_folds(label, group, n_folds)[place]
    reached = []
    for strength in STRENGTHS:
        values = []
        for number in range(n_folds):
            inside, outside = train[fold != number], train[fold == number]
            truth = task.label[samples.recording[outside]]
            scores, _ = linear_scores(
                samples.vectors[inside],
                task.label[samples.recording[inside]],
                samples.vectors[outside],
                len(task.classes),
                strength,
            )
            values.append(balanced_accuracy(truth, scores.argmax(axis=1)))
        reached.append(float(np.mean(values)))
    return STRENGTHS[int(np.argmax(reached))]


def chance(recording: Ints, task: Task) -> dict[str, dict[str, float]]:
    """Return the metrics, mean over folds, of two that do not look at vectors.

    Args:
        recording: (n,) recording of every row.
        task: Classes and folds.

    Returns:
        `majority` names the most frequent class of the training side, `stratified` draws classes as
        often as they are there (mean of 50 draws, fewer from 1,000 rows on).
    """
    from sklearn.dummy import DummyClassifier

    samples = Samples(np.zeros((len(recording), 1), np.float32), recording)
    label = task.label[recording]
    n_draws = int(np.clip(CHANCE_ROWS // len(recording), FEWEST_DRAWS, MOST_DRAWS))
    found: dict[str, dict[str, float]] = {}
    for name, strategy, draws in (
        ("majority", "most_frequent", 1),
        ("stratified", "stratified", n_draws),
    ):
        values = []
        for number in range(task.n_folds):
            train, test = sides(samples, task, number)
            for draw in range(draws):
                model = DummyClassifier(
                    strategy=strategy, random_state=draw * task.n_folds + number
                )
                model.fit(samples.vectors[train], label[train])
                scores = np.zeros((len(test), len(task.classes)))
                scores[:, model.classes_] = model.predict_proba(samples.vectors[test])
                values.append(measure(label[test], scores))
        found[name] = {m: float(np.mean([v[m] for v in values])) for m in METRICS}
    return found
