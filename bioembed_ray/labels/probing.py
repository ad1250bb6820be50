"""Every encoder and codebook of an output, asked for the labels of its recordings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bioembed_ray.errors import InputError
from bioembed_ray.labels.samples import (
    Level,
    bags,
    count_rows,
    count_tokens,
    pool,
    read_windows,
)
from bioembed_ray.labels.scores import Outcome, chance, evaluate
from bioembed_ray.labels.table import Labels, nearest_name, one_of_several, read_labels
from bioembed_ray.labels.task import Ints, Task, make_task
from bioembed_ray.labels.token_dependence import (
    Dependence,
    dependence_on_hour,
    dependence_on_values,
    seconds_of_day,
)
from bioembed_ray.results import Results, open_output
from bioembed_ray.rows import Rows


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an output.

    Attributes:
        labels: `COLUMN` of recordings/, or `TABLE:COLUMN`.
        group: The same, for what must not be trained and tested on; None is the recording.
        level: One row per recording and channel, the mean of its windows; or one per window.
        folds: How many times the recordings are divided, >= 2.
        names: Encoders and codebooks; all where empty.
        max_windows: Most windows read of an encoder.
        min_valid_s: Least seconds of sound in a window; None for half a window.
        against_rest: Label that is told from all others; None tells all apart.
    """

    labels: str
    group: str | None = None
    level: Level = "recording"
    folds: int = 5
    names: tuple[str, ...] = ()
    max_windows: int = 50_000
    min_valid_s: float | None = None
    against_rest: str | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """What one method made of one encoder's vectors or one codebook's tokens.

    Attributes:
        name: Encoder's output, e.g. `hubert.9`, or codebook.
        method: `linear`, `knn`, or `bag of tokens`: a linear probe on the shares of codes.
        version: Version of the vectors or tokens.
        weights: What is said of the weights.
        level: What a row is.
        rows: Rows in all folds.
        windows: Windows or tokens that they are made of.
        standing: Windows with enough sound, or tokens, that the recordings have.
        outcome: Scores.
    """

    name: str
    method: str
    version: str
    weights: str
    level: Level
    rows: int
    windows: int
    standing: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Answer:
    """All that a probe found.

    Attributes:
        question: What was asked.
        name: The column asked for.
        task: Recordings, classes and folds.
        probed: One per method and name, best balanced accuracy first.
        chance: `majority` and `stratified` -> metric -> mean over folds, on the first encoder's rows.
        dependence: Codebook -> `label`, `hour`, `site` -> what its tokens depend on, over all recordings
            where it is known: labels of classes too small for the folds too.
        without: Why a recording was not asked -> how many.
        not_asked: Encoder or codebook -> why it was left out.
        lacking: Encoder -> windows left out, of all recordings, since they hold too little sound.
    """

    question: Question
    name: str
    task: Task
    probed: tuple[Probed, ...]
    chance: dict[str, dict[str, float]]
    dependence: dict[str, dict[str, Dependence]]
    without: dict[str, int]
    not_asked: dict[str, str]
    lacking: dict[str, int]


def probe_output(output: str, question: Question) -> Answer:
    """Ask an output.

    Raises:
        ConfigError: no such column.
        InputError: no such encoder or codebook, or too few recordings per class.
        StorageError: a part cannot be read.
    """
    results = open_output(output)
    recordings = results.recordings()
    labels = one_of_several(read_labels(recordings, question.labels), question.against_rest)
    groups = _groups(recordings, question)
    encoders, codebooks, not_asked = _partitions(results, question.names)
    names: list[str] = sorted(recordings.column("recording").to_pylist())
    counts = {
        name: count_rows(rows, names, question.min_valid_s) for name, rows in encoders.items()
    }
    tokens = {name: count_tokens(rows, names) for name, rows in codebooks.items()}
    standing = [*counts.values(), *(count for count, _ in tokens.values())]
    asked, without = _asked(names, labels, groups, standing)
    what = f"--labels {question.labels}"
    task = make_task({n: labels.of[n] for n in asked}, groups, question.folds, what)
    place = {name: number for number, name in enumerate(names)}
    inside = np.array([place[name] for name in task.recordings], np.int64)
    probed: list[Probed] = []
    by_chance: dict[str, dict[str, float]] = {}
    for name, rows in encoders.items():
        n_standing = int(counts[name][inside].sum())
        found, recording = _probe_encoder(name, rows, task, question, n_standing)
        probed += found
        by_chance = by_chance or chance(recording, task)
    for name, rows in codebooks.items():
        count, n_codes = tokens[name]
        probed.append(_probe_tokens(name, rows, task, n_codes, int(count[inside].sum())))
    probed.sort(key=lambda one: (-one.outcome.mean("balanced_accuracy"), one.name, one.method))
    if not by_chance:
        by_chance = chance(np.arange(len(task.recordings)), task)
    return Answer(
        question,
        labels.name,
        task,
        tuple(probed),
        by_chance,
        {
            n: _dependence(rows, names, tokens[n][0], labels, recordings)
            for n, rows in codebooks.items()
        },
        without,
        not_asked,
        {name: rows.count() - int(counts[name].sum()) for name, rows in encoders.items()},
    )


def _groups(recordings: pa.Table, question: Question) -> dict[str, str]:
    if question.group is None:
        return {name: name for name in recordings.column("recording").to_pylist()}
    return read_labels(recordings, question.group, "--group").of


def _partitions(
    results: Results, names: Sequence[str]
) -> tuple[dict[str, Rows], dict[str, Rows], dict[str, str]]:
    """Return window rows and token rows by name, and who has no current version."""
    with_windows, with_tokens = results.encoders, results.codebooks
    for name in names:
        if name not in {*with_windows, *with_tokens}:
            hint = nearest_name(name, [*with_windows, *with_tokens])
            raise InputError(f"--name: no encoder or codebook {name!r}; {hint}")
    not_asked: dict[str, str] = {}
    encoders, codebooks = (
        {
            name: rows
            for name in every
            if (not names or name in names)
            and (rows := _current(opened, name, not_asked)) is not None
        }
        for every, opened in (
            (with_windows, results.windows),
            (with_tokens, results.tokens),
        )
    )
    if not encoders and not codebooks:
        raise InputError("; ".join(not_asked.values()))
    return encoders, codebooks, not_asked


def _current(opened: Callable[[str], Rows], name: str, not_asked: dict[str, str]) -> Rows | None:
    try:
        return opened(name)
    except InputError as error:
        # Being computed anew: the others can still be asked.
        not_asked[name] = str(error)
        return None


def _asked(
    names: Sequence[str], labels: Labels, groups: dict[str, str], standing: Sequence[Ints]
) -> tuple[list[str], dict[str, int]]:
    """Return recordings with a label, a group and rows everywhere, and how many lack what."""
    asked, without = [], {"label": 0, "group": 0, "rows of every encoder": 0}
    for number, name in enumerate(names):
        if name not in labels.of:
            without["label"] += 1
        elif name not in groups:
            without["group"] += 1
        elif not all(count[number] for count in standing):
            without["rows of every encoder"] += 1
        else:
            asked.append(name)
    without["recording (rows of the table)"] = labels.n_strangers
    return asked, without


def _probe_encoder(
    name: str, rows: Rows, task: Task, question: Question, standing: int
) -> tuple[list[Probed], Ints]:
    """Return what both methods made of an encoder, and the recording of every row."""
    samples, channel = read_windows(
        rows, task.recordings, question.max_windows, question.min_valid_s
    )
    windows = len(samples.recording)
    if question.level == "recording":
        samples = pool(samples, channel)
    found = [
        Probed(
            name,
            method,
            rows.version,
            rows.weights,
            question.level,
            len(samples.recording),
            windows,
            standing,
            evaluate(samples, task, method),
        )
        for method in ("linear", "knn")
    ]
    return found, samples.recording


def _probe_tokens(name: str, rows: Rows, task: Task, n_codes: int, standing: int) -> Probed:
    samples = bags(rows, task.recordings, n_codes)
    return Probed(
        name,
        "bag of tokens",
        rows.version,
        rows.weights,
        "recording",
        len(samples.recording),
        standing,
        standing,
        evaluate(samples, task, "linear"),
    )


def _dependence(
    rows: Rows, names: Sequence[str], counts: Ints, labels: Labels, recordings: pa.Table
) -> dict[str, Dependence]:
    known = recordings.sort_by("recording")
    sites = known.column("site").to_pylist()
    start = seconds_of_day(known.column("recorded_at").to_pylist())
    return {
        "label": dependence_on_values(rows, names, counts, [labels.of.get(n) for n in names]),
        "hour": dependence_on_hour(rows, names, counts, start),
        "site": dependence_on_values(rows, names, counts, sites),
    }
