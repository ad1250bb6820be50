"""Maps of windows and of recordings: coordinates, and all that the page's script draws them from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bioembed_ray.report.colours import About, Colouring
from bioembed_ray.report.listening import Clip
from bioembed_ray.report.markup import is_random
from bioembed_ray.report.sampling import Points, Sampled
from bioembed_ray.umap_maps import umap_coordinates

Level = Literal["windows", "recordings"]
N_FIT = 10_000
# Coordinates are whole numbers up to here; a screen has fewer pixels.
GRID = 65_535
# Okabe and Ito 2008, colours that the colour-blind tell apart, the yellow darkened for white paper.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#8c6bb1")


@dataclass(frozen=True, slots=True)
class SoundMap:
    """One map.

    Attributes:
        encoder, version, weights: Whose vectors.
        level: Of windows or of recordings.
        points: What is on it.
        coordinates: (N, 2) float32.
        n_all: Windows there are, or recordings with one.
        colourings: Values of single points.
    """

    encoder: str
    version: str
    weights: str
    level: Level
    points: Points
    coordinates: npt.NDArray[np.float32]
    n_all: int
    colourings: tuple[Colouring, ...]

    @property
    def key(self) -> str:
        """Name in files and ids."""
        return f"{self.encoder}-{self.level}"


def lay_out(
    sampled: Sampled, level: Level, n_all: int, colourings: Sequence[Colouring]
) -> SoundMap:
    """Return the map of an encoder's sample.

    Args:
        sampled: What one pass left.
        level: Which of its points.
        n_all: How many there are of which these are a sample.
        colourings: Values of these points.
    """
    points = sampled.windows if level == "windows" else sampled.recordings
    coordinates = umap_coordinates(points.vectors, n_fit=N_FIT, metric="cosine", seed=0)
    return SoundMap(
        sampled.encoder,
        sampled.version,
        sampled.weights,
        level,
        points,
        coordinates,
        n_all,
        tuple(colourings),
    )


def quantised(coordinates: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return coordinates on a square grid of 65,536 steps, (N, 2), the map in its middle."""
    if not len(coordinates):
        return np.zeros((0, 2), np.uint16)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    side = max(float((high - low).max()), 1e-9)
    scaled = (coordinates.astype(np.float64) - (low + high) / 2) / side + 0.5
    grid: npt.NDArray[np.uint16] = np.clip(np.rint(scaled * GRID), 0, GRID).astype(np.uint16)
    return grid


def payload(
    maps: Sequence[SoundMap],
    known: About,
    shared: Sequence[Colouring],
    first: str,
    listen: str,
) -> dict[str, object]:
    """Return what the script reads, by the id of its element.

    Args:
        maps: All maps.
        known: The page's recordings.
        shared: Colourings by recording.
        first: Title of what colours them at first.
        listen: A command for a shell, with {recording}, {channel}, {start} and {length} in it.
    """
    number = {name: index for index, name in enumerate(known.names)}
    data: dict[str, object] = {}
    plain_maps = []
    for one in maps:
        points, key = one.points, f"map-{one.key}"
        own = np.array([number[name] for name in points.names], np.uint32)
        lengths = points.end_s - points.start_s
        is_even = one.level == "windows" and len(lengths) > 0 and np.ptp(lengths) < 1e-6
        data[f"{key}-xy"] = quantised(one.coordinates).astype("<u2").tobytes()
        wide = "<u2" if len(known.names) <= GRID else "<u4"
        data[f"{key}-recording"] = own[points.recording].astype(wide).tobytes()
        data[f"{key}-start"] = points.start_s.astype("<f8").tobytes()
        if not is_even:
            data[f"{key}-length"] = lengths.astype("<f8").tobytes()
        if points.channel.any():
            data[f"{key}-channel"] = points.channel.astype("<u2").tobytes()
        plain_maps.append(
            {
                "id": key,
                "encoder": one.encoder,
                "version": one.version,
                "weights": one.weights,
                "level": one.level,
                "n": len(points),
                "all": one.n_all,
                "hasChannels": bool(points.channel.any()),
                "length": float(np.median(lengths)) if is_even else None,
                "colourings": [
                    _plain(c, f"{key}-c{k}", data) for k, c in enumerate(one.colourings)
                ],
            }
        )
    data["map-page"] = {
        "maps": plain_maps,
        "names": list(known.names),
        "isWide": len(known.names) > GRID,
        "clock": [None if np.isnan(at) else at for at in known.clock_s.tolist()],
        "colourings": [_plain(c, f"shared-c{k}", data) for k, c in enumerate(shared)],
        "palette": list(PALETTE),
        "first": first,
        "listen": listen,
    }
    return data


def clip_payload(clips: Sequence[Clip], known: About) -> dict[str, object]:
    """Return the sounds that the script reads.

    Args:
        clips: What can be heard.
        known: The page's recordings.
    """
    number = {name: index for index, name in enumerate(known.names)}
    return {"map-clips": [clip.plain(number[clip.stretch.recording]) for clip in clips]}


def _plain(one: Colouring, name: str, data: dict[str, object]) -> dict[str, Any]:
    if one.by in {"recording", "point"}:
        data[name] = one.values.astype("<u2").tobytes()
    return {
        "id": name,
        "title": one.title,
        "kind": one.kind,
        "by": one.by,
        "labels": list(one.labels),
        "low": one.low,
        "high": one.high,
        "unit": one.unit,
        "note": one.note,
    }


def draw(
    one: SoundMap, colouring: Colouring | None, of_point: npt.NDArray[np.uint16] | None
) -> bytes:
    """Return the map as a PNG, coloured by one value.

    Args:
        one: The map.
        colouring: What colours it; None for one colour.
        of_point: (N,) its values, point by point.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    x, y = one.coordinates.T if len(one.points) else (np.zeros(0), np.zeros(0))
    size = float(np.clip(9000 / max(len(x), 1), 1.5, 26))
    if colouring is None or of_point is None or colouring.kind != "category":
        axes.scatter(x, y, s=size, c=PALETTE[0], alpha=0.7, linewidths=0)
    else:
        listed = colouring.labels[: len(PALETTE)]
        rest = of_point >= len(listed)
        axes.scatter(x[rest], y[rest], s=size, c="#b5b5b5", alpha=0.6, linewidths=0)
        for code, label in enumerate(listed):
            own = of_point == code
            shown = label if len(label) <= 34 else f"{label[:16]}…{label[-16:]}"
            # A label that begins with an underscore would be left out.
            axes.scatter(
                x[own],
                y[own],
                s=size,
                c=PALETTE[code],
                alpha=0.8,
                linewidths=0,
                label=shown.replace("$", r"\$").replace("_", "\u200b_", 1),
            )
        figure.legend(
            loc="outside right upper",
            title=colouring.title,
            fontsize=7,
            frameon=False,
            markerscale=2,
        )
    axes.set_aspect("equal", "datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("UMAP 1")
    axes.set_ylabel("UMAP 2")
    for side in axes.spines.values():
        side.set_color("#cccccc")
    axes.set_title(
        f"{one.encoder}: {len(one.points):,} of {one.n_all:,} {one.level}\n{one.weights}",
        fontsize=10,
        color="#b3261e" if is_random(one.weights) else "#1d2521",
    )
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    return sink.getvalue()
