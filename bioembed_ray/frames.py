"""Frames on the fixed grid of blocks, and window vectors as means of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bioembed_ray.apply import Outcome, Place, Vectors, Waves, Windows, guarded, lost_window
from bioembed_ray.encoders.base import Encoder, FrameGrid
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.in_flight import Told
from bioembed_ray.windows import Block, WindowRule, blocks, touches


@dataclass(slots=True)
class Frames:
    """Frames of a shard, in the order of places and positions.

    Attributes:
        place: (T,) index into the places.
        start: (T,) first encoder sample each frame sees.
        patch: (T,) frequency patch, 0 where a time step is one frame.
        vectors: One (T, D) float32 array per layer.
    """

    place: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    patch: npt.NDArray[np.int16]
    vectors: list[npt.NDArray[np.float32]]


def run_blocks(
    encoder: Encoder,
    grid: FrameGrid,
    rule: WindowRule,
    places: Sequence[Place],
    device: str,
    told: Told,
) -> Iterator[tuple[int, Block, Outcome]]:
    """Yield (place, block, frames per layer (T · per_step, D) or an error), equal lengths together.

    Blocks that the place's windows reach into are run too, since a window that starts here may
    end in the next block.
    """
    plan: list[tuple[int, Block]] = []
    for index, place in enumerate(places):
        first = int(place.start * place.clock.ratio)
        end = place.length
        beyond = end if place.stop is None else place.clock.length(place.stop)
        reach = 0 if encoder.facts.embeds else rule.window
        if beyond is None:
            raise ValueError("an open span needs the recording's length")
        plan += [
            (index, block)
            for block in blocks(grid, encoder.facts.rate_hz, first, beyond + reach, end)
            if not _is_silent(place, block)
        ]
    by_length: dict[int, list[tuple[int, Block]]] = {}
    for entry in plan:
        by_length.setdefault(entry[1].read_stop - entry[1].read_start, []).append(entry)
    n_done = 0
    for length, entries in by_length.items():
        if length < grid.receptive:
            short = RecordingError(Reason.TOO_SHORT, f"{length} samples are less than one frame")
            yield from ((index, block, short) for index, block in entries)
            continue
        waves = Waves(places, device)
        for first in range(0, len(entries), encoder.batch_size):
            batch = entries[first : first + encoder.batch_size]
            stretches = [waves.cut(index, block.read_start, length) for index, block in batch]
            outcomes = guarded(encoder.frames, stretches)
            for (index, block), outcome in zip(batch, outcomes, strict=True):
                if not isinstance(outcome, RecordingError):
                    outcome = [_own_frames(grid, block, layer) for layer in outcome]
                yield index, block, outcome
            n_done += len(batch)
            told(n_done / len(plan))


def _is_silent(place: Place, block: Block) -> bool:
    """Return True where all that a block owns lies in one hole."""
    start, stop = place.clock.native(block.start), place.clock.native(block.stop)
    return any(low <= start and stop <= high for low, high in place.holes)


class Means:
    """Window vectors as means of frames whose centre lies in the window, summed in float64.

    Sums come from running totals per block, so that a mean is the same whichever other windows
    are asked for beside it.
    """

    def __init__(
        self, windows: Windows, rule: WindowRule, encoder: Encoder, n_layers: int, device: str
    ) -> None:
        n_windows = len(windows.start)
        self._windows = windows
        self._rule = rule
        grid = encoder.facts.grid
        self._centre = 0 if grid is None else grid.receptive // 2
        self._per_step = 1 if grid is None else grid.per_step
        self._sums = [
            torch.zeros((n_windows, encoder.dim), dtype=torch.float64, device=device)
            for _ in range(n_layers)
        ]
        self._counts = np.zeros(n_windows, np.int64)
        self._errors: dict[int, RecordingError] = {}
        self._short: dict[int, RecordingError] = {}
        bounds = np.searchsorted(
            windows.place, [0, *range(1, int(windows.place.max(initial=0)) + 2)]
        )
        self._rows = bounds

    def _overlapping(self, place: int, low: int, high: int) -> tuple[int, int]:
        """Return the rows of a place whose windows meet samples [low, high]."""
        if place + 1 >= len(self._rows):
            return 0, 0
        first, last = int(self._rows[place]), int(self._rows[place + 1])
        starts = self._windows.start[first:last]
        return (
            first + int(np.searchsorted(starts, low - self._rule.window, side="right")),
            first + int(np.searchsorted(starts, high, side="right")),
        )

    def add(self, place: int, steps: npt.NDArray[np.int64], layers: Vectors) -> None:
        """Add the frames of one block."""
        if not len(steps):
            return
        centres = steps + self._centre
        first, last = self._overlapping(place, int(centres[0]), int(centres[-1]))
        if last <= first:
            return
        starts = self._windows.start[first:last]
        low = np.searchsorted(centres, starts)
        high = np.searchsorted(centres, starts + self._rule.window)
        self._counts[first:last] += (high - low) * self._per_step
        for total, layer in zip(self._sums, layers, strict=True):
            running = F.pad(layer.double().cumsum(dim=0), (0, 0, 1, 0))
            to, since = (
                torch.from_numpy(edge * self._per_step).to(running.device) for edge in (high, low)
            )
            total[first:last] += running[to] - running[since]

    def lose(self, place: int, block: Block, error: RecordingError) -> None:
        """Mark the windows that needed a block which failed; one too short had no frame to give."""
        first, last = self._overlapping(place, block.start, block.stop - 1)
        errors = self._short if error.reason == Reason.TOO_SHORT else self._errors
        errors.update(dict.fromkeys(range(first, last), error))

    def finish(self) -> None:
        """Turn sums into means; windows without a frame, or with a failed block, are lost."""
        short = RecordingError(Reason.TOO_SHORT, "no frame has its centre in the window")
        for empty in np.flatnonzero(self._counts == 0):
            self._errors.setdefault(int(empty), self._short.get(int(empty), short))
        for row, error in sorted(self._errors.items()):
            self._windows.lost.append(lost_window(self._windows, row, error))
        counts = torch.from_numpy(np.maximum(1, self._counts))
        self._windows.vectors = [
            (total / counts.to(total.device)[:, None]).float().cpu().numpy() for total in self._sums
        ]


def owned_steps(grid: FrameGrid, block: Block) -> npt.NDArray[np.int64]:
    """Return the first sample of every time step that a block owns."""
    first, last = _own_range(grid, block)
    return block.read_start + np.arange(first, last, dtype=np.int64) * grid.stride


def _own_range(grid: FrameGrid, block: Block) -> tuple[int, int]:
    n_steps = (block.read_stop - block.read_start - grid.receptive) // grid.stride + 1
    first = -(-(block.start - block.read_start) // grid.stride)
    last = -(-(block.stop - block.read_start) // grid.stride)
    return first, max(first, min(last, n_steps))


def _own_frames(grid: FrameGrid, block: Block, layer: torch.Tensor) -> torch.Tensor:
    first, last = _own_range(grid, block)
    return layer[first * grid.per_step : last * grid.per_step]  # (T · per_step, D)


def with_sound(
    encoder: Encoder, place: Place, steps: npt.NDArray[np.int64], layers: Vectors
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Return the time steps that hear no hole, and their frames per layer."""
    grid = encoder.facts.grid
    if not place.holes or grid is None or not len(steps):
        return steps, layers
    keep = ~touches(place.clock, steps, steps + grid.receptive, place.holes)
    rows = torch.from_numpy(np.repeat(keep, grid.per_step))
    return steps[keep], [layer[rows.to(layer.device)] for layer in layers]


def is_own(place: Place, block: Block) -> bool:
    """Return whether the span owns a block: the block starts inside it."""
    native = place.clock.native(block.start)
    return native >= place.start and (place.stop is None or native < place.stop)


def assemble(
    grid: FrameGrid | None,
    kept: list[tuple[int, Block, npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]],
    n_layers: int,
    dim: int,
) -> Frames:
    """Return the kept blocks as one table of frames, in the order of places and positions."""
    per_step = 1 if grid is None else grid.per_step
    kept = sorted(kept, key=lambda entry: (entry[0], entry[1].start))
    counts = [len(steps) * per_step for _, _, steps, _ in kept]
    n_frames = sum(counts)
    starts = [np.repeat(steps, per_step) for _, _, steps, _ in kept]
    return Frames(
        np.repeat([index for index, *_ in kept], counts).astype(np.int64),
        np.concatenate(starts) if starts else np.zeros(0, np.int64),
        np.tile(np.arange(per_step, dtype=np.int16), n_frames // per_step),
        [
            np.concatenate([layers[number] for *_, layers in kept])
            if kept
            else np.zeros((0, dim), np.float32)
            for number in range(n_layers)
        ],
    )
