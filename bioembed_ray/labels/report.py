"""What a probe found, as lines for people, JSON, CSV and a picture."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from bioembed_ray import storage
from bioembed_ray.labels.probing import Answer, Probed, Question, probe_output
from bioembed_ray.labels.scores import INNER_ROWS, METRICS, NEIGHBOURS, STRENGTHS
from bioembed_ray.labels.task import SEED
from bioembed_ray.labels.token_dependence import Dependence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = ("balanced accuracy", "accuracy", "macro F1", "mean AP")
# The same order: the first one decides who is best.
SHOWN = ("balanced_accuracy", "accuracy", "macro_f1", "mean_average_precision")
MOST_BARS = 30
MOST_NUMBERS = 15


def write_probe(output: str, question: Question, folder: str) -> Iterator[str]:
    """Ask an output, put JSON, CSV and picture, and yield the lines for people.

    Raises:
        ConfigError, InputError: see `probe_output`.
        StorageError: reading or writing failed.
    """
    answer = probe_output(output, question)
    yield from _lines(answer)
    stem = _stem(answer)
    files = {
        f"{stem}.json": (
            json.dumps(_figures(answer), indent=1, ensure_ascii=False) + "\n"
        ).encode(),
        f"{stem}.csv": _csv(answer),
        f"{stem}.png": _picture(answer),
    }
    for name, body in files.items():
        storage.put(storage.join(folder, name), body)
    yield f"in {folder}: {', '.join(files)}"


def _stem(answer: Answer) -> str:
    question = answer.question
    parts = [answer.name]
    if question.against_rest is not None:
        parts.append(question.against_rest)
    if question.level == "window":
        parts.append("window")
    if question.group is not None:
        parts.append(f"by-{question.group.rpartition(':')[2]}")
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _by(answer: Answer) -> str:
    return (answer.question.group or "recording").rpartition(":")[2]


def _lines(answer: Answer) -> Iterator[str]:
    task = answer.task
    counts = np.bincount(task.label)
    classes = ", ".join(f"{n} {c}" for n, c in zip(task.classes, counts, strict=True))
    yield (
        f"{answer.name}: {len(task.recordings)} recordings in {len(task.classes)} classes ({classes}), "
        f"{len(np.unique(task.group))} groups by {_by(answer)}, {task.n_folds} folds"
    )
    yield ""
    yield from _table(_score_cells(answer))
    if answer.dependence:
        yield ""
        yield "adjusted mutual information of tokens (shuffled among recordings in brackets)"
        yield from _table(_dependence_cells(answer))
    yield ""
    yield from _remarks(answer)


def _score_cells(answer: Answer) -> Iterator[list[str]]:
    yield ["", "method", "rows", *TITLES]
    for one in answer.probed:
        values = [f"{one.outcome.mean(m):.3f} ± {one.outcome.deviation(m):.3f}" for m in SHOWN]
        yield [one.name, one.method, f"{one.rows:,}", *values]
    for name, metrics in answer.chance.items():
        yield ["chance", name, "", *(f"{metrics[m]:.3f}" for m in SHOWN)]


def _dependence_cells(answer: Answer) -> Iterator[list[str]]:
    yield ["", answer.name, "hour of day", "site"]
    for name, kinds in answer.dependence.items():
        yield [name, *(_dependence_text(kinds[kind]) for kind in ("label", "hour", "site"))]


def _dependence_text(one: Dependence) -> str:
    if one.adjusted_mutual_information is None:
        plural = "" if one.values == 1 else "s"
        return f"- ({one.values} value{plural}, {one.unknown} unknown)"
    unknown = f", {one.unknown} unknown" if one.unknown else ""
    return f"{one.adjusted_mutual_information:.3f} ({one.shuffled:.3f}){unknown}"


def _table(cells: Iterator[list[str]]) -> Iterator[str]:
    rows = list(cells)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()


def _remarks(answer: Answer) -> Iterator[str]:
    sampled = [p for p in answer.probed if p.windows < p.standing and p.method == "linear"]
    for one in sampled:
        yield f"sample     {one.name}: {one.windows:,} of {one.standing:,} windows, evenly by recording"
    if answer.task.left_out:
        few = ", ".join(f"{name} {count}" for name, count in answer.task.left_out.items())
        yield f"left out   classes in fewer than {answer.task.n_folds} groups: {few}"
    for what, count in answer.without.items():
        if count:
            yield f"left out   {count} without {what}"
    for name, why in answer.not_asked.items():
        yield f"left out   {name}: {why}"
    for name, count in answer.lacking.items():
        if count:
            yield f"left out   {name}: {count:,} windows with less than {_least(answer.question)} of sound"
    stopped = sorted(
        {p.name for p in answer.probed if not all(f.is_converged for f in p.outcome.folds)}
    )
    if stopped:
        yield f"warning    {', '.join(stopped)}: the linear probe did not converge in some folds"
    untrained = sorted({c for p in answer.probed for f in p.outcome.folds for c in f.untrained})
    if untrained:
        yield f"warning    {', '.join(untrained)}: all groups of the class are tested at once in a fold"
    random = sorted({p.name for p in answer.probed if p.weights.startswith("RANDOM")})
    if random:
        yield f"warning    {', '.join(random)}: RANDOM weights, these scores say nothing of the trained encoder"


def _least(question: Question) -> str:
    return "half" if question.min_valid_s is None else f"{question.min_valid_s:g} s"


def _figures(answer: Answer) -> dict[str, Any]:
    """Return everything, for JSON."""
    task = answer.task
    counts = np.bincount(task.label)
    return {
        "labels": answer.name,
        "question": asdict(answer.question),
        "classes": {n: int(c) for n, c in zip(task.classes, counts, strict=True)},
        "recordings": len(task.recordings),
        "groups": len(np.unique(task.group)),
        "group_by": _by(answer),
        "folds": dict(zip(task.recordings, task.fold.tolist(), strict=True)),
        "left_out": {
            "classes": task.left_out,
            "recordings": answer.without,
            "names": answer.not_asked,
            "windows": answer.lacking,
        },
        "methods": {
            "linear": f"multinomial logistic regression, dimensions standardised, strength of {STRENGTHS} "
            f"by balanced accuracy in inner folds of at most {INNER_ROWS} rows",
            "knn": f"{NEIGHBOURS} nearest by cosine, weighted by 1 / distance",
            "bag of tokens": "linear, on the shares of codes in a recording",
            "seed": SEED,
        },
        "chance": answer.chance,
        "probed": [_probed_figures(one, task.classes) for one in answer.probed],
        "adjusted_mutual_information": {
            name: {kind: asdict(one) for kind, one in kinds.items()}
            for name, kinds in answer.dependence.items()
        },
    }


def _probed_figures(one: Probed, classes: tuple[str, ...]) -> dict[str, Any]:
    outcome = one.outcome
    return {
        "name": one.name,
        "method": one.method,
        "version": one.version,
        "weights": one.weights,
        "level": one.level,
        "rows": one.rows,
        "windows_or_tokens": one.windows,
        "of": one.standing,
        "mean": {metric: outcome.mean(metric) for metric in METRICS},
        "standard_deviation": {metric: outcome.deviation(metric) for metric in METRICS},
        "folds": [asdict(fold) for fold in outcome.folds],
        "class_f1": dict(zip(classes, outcome.class_f1, strict=True)),
        "confusion": outcome.confusion.tolist(),
    }


def _csv(answer: Answer) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    head = ["name", "method", "level", "version", "weights", "rows"]
    writer.writerow([*head, *(title for m in SHOWN for title in (m, f"{m}_sd"))])
    for one in answer.probed:
        values = [v for m in SHOWN for v in (one.outcome.mean(m), one.outcome.deviation(m))]
        writer.writerow(
            [one.name, one.method, one.level, one.version, one.weights, one.rows, *values]
        )
    for name, metrics in answer.chance.items():
        flat = [value for m in SHOWN for value in (metrics[m], "")]
        writer.writerow(["chance", name, answer.question.level, "", "", "", *flat])
    return text.getvalue().encode()


def _picture(answer: Answer) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 2 + 0.28 * min(len(answer.probed), MOST_BARS)
    figure = Figure(figsize=(12, max(4.5, height)), layout="constrained")
    FigureCanvasAgg(figure)
    bars, square = figure.subplots(1, 2)
    _draw_bars(bars, answer)
    _draw_confusion(square, answer.probed[0], answer.task.classes)
    figure.suptitle(f"{answer.name}, by {_by(answer)}, {answer.task.n_folds} folds", fontsize=11)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()


def _draw_bars(axes: Axes, answer: Answer) -> None:
    shown = answer.probed[:MOST_BARS]
    names = [f"{one.name}, {one.method}" for one in shown]
    means = [one.outcome.mean(SHOWN[0]) for one in shown]
    axes.barh(names, means, xerr=[one.outcome.deviation(SHOWN[0]) for one in shown], capsize=3)
    axes.axvline(answer.chance["majority"][SHOWN[0]], color="black", linestyle="--", label="chance")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    rest = len(answer.probed) - len(shown)
    more = f" (the best {len(shown)}, {rest} more in the CSV)" if rest else ""
    axes.set_xlabel(f"balanced accuracy, mean ± sd over folds{more}")
    axes.legend(loc="lower right")
    if any(one.weights.startswith("RANDOM") for one in shown):
        axes.set_title("RANDOM weights: says nothing of the trained encoders", fontsize=9)


def _draw_confusion(axes: Axes, best: Probed, classes: tuple[str, ...]) -> None:
    counts = best.outcome.confusion
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=90, fontsize=8)
    axes.set_yticks(places, classes, fontsize=8)
    axes.set_xlabel("named")
    axes.set_ylabel("true")
    axes.set_title(f"best: {best.name}, {best.method} (rows of all folds)", fontsize=9)
    if len(classes) <= MOST_NUMBERS:
        for row in places:
            for column in places:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour
                )
