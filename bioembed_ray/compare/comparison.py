"""Two versions side by side, as files and as lines for people.

Parts of both are read one shard at a time, so memory does not grow with the archive.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bioembed_ray import parts, storage
from bioembed_ray.compare.tokens import TokenChange
from bioembed_ray.compare.vectors import COSINE_BINS, VectorChange
from bioembed_ray.current import differences, read_current, read_description
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.partitions import list_datasets

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pick(output: str, name: str, versions: tuple[str, str] | None) -> tuple[Dataset, Dataset]:
    """Return the two versions to compare, the current one last.

    Args:
        output: The output.
        name: An encoder's output, or a codebook.
        versions: Both; None takes the two that stand.

    Raises:
        InputError: there is no such name or version, or nothing to compare it with.
    """
    standing = [d for table in ("embeddings", "tokens") for d in list_datasets(output, table)]
    names = sorted({dataset.encoder for dataset in standing})
    if name not in names:
        raise InputError(
            f"{output}: no encoder or codebook {name!r}; there is {', '.join(names) or 'none'}"
        )
    found = {dataset.version: dataset for dataset in standing if dataset.encoder == name}
    if len({dataset.table for dataset in found.values()}) > 1:
        # A VQ-VAE has vectors and codes under one name.
        found = {v: dataset for v, dataset in found.items() if dataset.table == "embeddings"}
    if versions is not None:
        for version in versions:
            if version not in found:
                raise InputError(f"{name}: no version {version!r}; there is {', '.join(found)}")
        return found[versions[0]], found[versions[1]]
    if len(found) != 2:
        raise InputError(
            f"{name}: {len(found)} version(s) stand: {', '.join(sorted(found))}; "
            + ("there is nothing to compare" if len(found) < 2 else "give two with --versions")
        )
    current = read_current(output)
    encoder, codebook = (current.get(kind, {}).get(name, {}) for kind in ("encoders", "codebooks"))
    now = {encoder.get("embeddings"), codebook.get("tokens")}
    old, new = sorted(found.values(), key=lambda dataset: dataset.version in now)
    return old, new


def compare_versions(output: str, old: Dataset, new: Dataset) -> VectorChange | TokenChange:
    """Read both versions side by side, a shard at a time.

    Raises:
        StorageError: a part cannot be read.
        InputError: no shard stands in both.
    """
    before, after = (parts.list_parts(output, dataset) for dataset in (old, new))
    shards = sorted(before.keys() & after.keys())
    if not shards:
        raise InputError(f"{old.encoder}: the two versions have no shard in common")
    change = TokenChange() if old.table == "tokens" else VectorChange()
    for shard in shards:
        change.add(parts.read_table(before[shard]), parts.read_table(after[shard]))
    return change


def write_comparison(output: str, old: Dataset, new: Dataset, folder: str) -> Iterator[str]:
    """Compare two versions; put JSON, a picture and for tokens all moves; yield what to tell.

    Raises:
        InputError: no shard stands in both.
        StorageError: reading or writing failed.
    """
    change = compare_versions(output, old, new)
    was, now = (read_description(output, dataset) for dataset in (old, new))
    why = differences(was, now) if was is not None and now is not None else []
    figures = {
        "name": old.encoder,
        "table": old.table,
        "old": old.version,
        "new": new.version,
        "why": why,
        **change.figures(),
    }
    yield f"{old.encoder}: {old.version} (old) and {new.version} (new)"
    yield from (f"  {text}" for text in why)
    yield from (f"  {text}" for text in _lines(figures))
    files = {
        "comparison.json": json.dumps(figures, indent=2).encode(),
        "comparison.png": _picture(change, figures),
    }
    if isinstance(change, TokenChange):
        body = io.BytesIO()
        np.save(body, change.moves)
        files["moves.npy"] = body.getvalue()
    for name, content in files.items():
        storage.put(storage.join(folder, name), content)
    yield f"  in {folder}: {', '.join(files)}"


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    if figures["table"] == "tokens":
        counts = figures["tokens"]
        yield (
            f"{counts['both']:,} tokens in both, {counts['old_only']:,} in the old only, "
            f"{counts['new_only']:,} in the new only, {counts['gaps']:,} gaps"
        )
        if figures["agreement"] is not None:
            yield (
                f"{figures['agreement']:.1%} agree once ids are matched, "
                f"{figures['agreement_without_alignment']:.1%} as they are"
            )
        moves = [
            f"{m['old']} to {m['new']} ({m['tokens']:,})" for m in figures["most_frequent_moves"]
        ]
        if moves:
            yield f"most frequent moves: {', '.join(moves[:5])}"
        return
    counts = figures["windows"]
    yield (
        f"{counts['both']:,} windows in both, {counts['old_only']:,} in the old only, "
        f"{counts['new_only']:,} in the new only"
    )
    if "cosine" in figures:
        quantiles = figures["cosine"]["quantiles"]
        yield (
            f"cosine: mean {figures['cosine']['mean']:.4f}, median at most {quantiles['0.5']:.2f}, "
            f"1 % of the windows at most {quantiles['0.01']:.2f}"
        )
    else:
        yield "cosine: none, the vectors differ in length"
    overlap = figures["neighbour_overlap_at_10"]
    if overlap is not None:
        yield (
            f"{overlap:.1%} of the 10 nearest neighbours are the same, among "
            f"{figures['neighbour_sample']:,} windows"
        )
    moved = [f"{name} ({cosine:.3f})" for name, cosine in figures.get("most_moved", {}).items()]
    if moved:
        yield f"moved most: {', '.join(moved[:5])}"


def _picture(change: VectorChange | TokenChange, figures: dict[str, Any]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    if isinstance(change, TokenChange):
        _draw_moves(figure, change, figures["alignment"])
    else:
        _draw_cosines(figure, change)
    figure.suptitle(f"{figures['name']}: {figures['old']} to {figures['new']}", fontsize=10)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()


def _draw_cosines(figure: Figure, change: VectorChange) -> None:
    axes = figure.subplots()
    if not change.by_recording:
        axes.text(0.5, 0.5, "the vectors differ in length", ha="center", va="center")
        axes.set_axis_off()
        return
    axes.stairs(change.histogram, COSINE_BINS, fill=True)
    filled = np.flatnonzero(change.histogram)
    axes.set_xlim(COSINE_BINS[filled[0]] - 0.02, 1.005)
    axes.set_yscale("symlog")
    axes.set_xlabel("cosine of a window's two vectors")
    axes.set_ylabel("windows")


def _draw_moves(figure: Figure, change: TokenChange, alignment: dict[str, int]) -> None:
    """Draw which new ids the tokens of an old id have, new ids in the order of their partners."""
    axes = figure.subplots()
    n_new = change.moves.shape[1]
    order = list(alignment.values())
    order += sorted(set(range(n_new)) - set(order))
    share = change.moves[:, order] / np.maximum(change.moves.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, vmin=0, vmax=1, cmap="magma", aspect="auto")
    axes.set_xlabel("new id, in the order of matched old ids")
    axes.set_ylabel("old id")
    figure.colorbar(image, ax=axes, label="share of the old id's tokens")
