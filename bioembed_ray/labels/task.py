"""A question put to vectors: classes of recordings, and folds that share no group.

Folds are drawn over recordings and not over windows, so every window of a recording is on the same
side, and every encoder is asked on the same folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioembed_ray.errors import InputError

Ints = npt.NDArray[np.int64]
SEED = 0


@dataclass(frozen=True, slots=True)
class Task:
    """Classes of recordings, and who is tested when.

    Attributes:
        recordings: (R,) names, sorted.
        classes: (C,) names, sorted.
        label: (R,) class of every recording.
        group: (R,) what must not be on both sides: the recording itself, or its site.
        fold: (R,) the one fold in which a recording is tested.
        left_out: Class -> how many groups it has, too few for the folds.
    """

    recordings: tuple[str, ...]
    classes: tuple[str, ...]
    label: Ints
    group: Ints
    fold: Ints
    left_out: dict[str, int]

    @property
    def n_folds(self) -> int:
        """How many folds there are."""
        return int(self.fold.max()) + 1


def make_task(
    labels: Mapping[str, str], groups: Mapping[str, str], n_folds: int, what: str = "--labels"
) -> Task:
    """Return the task of telling labels apart.

    Args:
        labels: Recording -> label.
        groups: Recording -> group; every recording with a label has one.
        n_folds: Folds, >= 2. A class in fewer groups than that is left out.
        what: Where the labels are from, for messages.

    Raises:
        InputError: fewer than two classes stay.
    """
    pairs = {(labels[name], groups[name]) for name in labels}
    held = dict(Counter(label for label, _ in pairs))
    classes = tuple(sorted(name for name, count in held.items() if count >= n_folds))
    if len(classes) < 2:
        raise InputError(_too_few(what, held, n_folds))
    kept = tuple(sorted(name for name in labels if labels[name] in set(classes)))
    place = {name: number for number, name in enumerate(classes)}
    label = np.array([place[labels[name]] for name in kept], np.int64)
    _, group = np.unique([groups[name] for name in kept], return_inverse=True)
    left_out = {name: held[name] for name in sorted(held) if name not in place}
    fold = draw_folds(label, group.astype(np.int64), n_folds)
    return Task(kept, classes, label, group.astype(np.int64), fold, left_out)


def draw_folds(label: Ints, group: Ints, n_folds: int) -> Ints:
    """Return the fold in which every recording is tested; a group is in one fold only.

    Args:
        label: (R,) classes.
        group: (R,) groups.
        n_folds: Folds; at most as many as groups.

    Returns:
        (R,) int64. Classes are spread over folds as evenly as whole groups allow, by scikit-learn's
        StratifiedGroupKFold, or StratifiedKFold where every group is a single recording.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    is_single = len(np.unique(group)) == len(group)
    # The one with groups asks every fold about every group: minutes at 100,000 of them.
    splitter = StratifiedKFold if is_single else StratifiedGroupKFold
    folds = splitter(n_folds, shuffle=True, random_state=SEED)
    fold = np.zeros(len(label), np.int64)
    for number, (_, test) in enumerate(folds.split(label, label, None if is_single else group)):
        fold[test] = number
    return fold


def fewest_groups(label: Ints, group: Ints) -> int:
    """Return in how many groups the rarest class is."""
    pairs = np.unique(np.stack([label, group]), axis=1)
    return int(np.unique(pairs[0], return_counts=True)[1].min())


def _too_few(what: str, held: dict[str, int], n_folds: int) -> str:
    most = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    if len(held) < 2:
        only = f"all {most[0][1]} are {most[0][0]!r}" if held else "no recording has one"
        return f"{what}: a probe needs two classes, {only}"
    shown = ", ".join(f"{name!r} {count}" for name, count in most[:5])
    possible = most[1][1]
    way_out = (
        f"use --folds {possible}"
        if possible >= 2
        else "a probe needs two classes with two groups each"
    )
    return (
        f"{what}: {sum(count >= n_folds for count in held.values())} of {len(held)} classes are in "
        f"{n_folds} groups or more ({shown}); {way_out}"
    )
