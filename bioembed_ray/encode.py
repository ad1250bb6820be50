"""Waveforms become window vectors and frames: the network is applied, nothing is read or written.

A vector depends on its window (or its block of the fixed grid) and on nothing else: batches hold
one length only, and what is in a batch beside it does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bioembed_ray.audio import Track
from bioembed_ray.encoders.base import Encoder, FrameGrid
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.windows import Block, Clock, WindowRule, blocks, valid_samples, window_starts

# Kaldi's first analysis frame; a shorter stretch gives an unpadded spectrogram no column at all.
MIN_UNPADDED_S = 0.025


@dataclass(frozen=True, slots=True)
class Place:
    """One channel of one span, and where it lies in its recording.

    Attributes:
        span: Index of the span in the shard.
        clock: Rates of recording and encoder.
        start: First native sample of the span.
        stop: One past its last native sample; None to the end.
        n_native: Native samples in the recording where its end was met, else None.
        track: The waveform at the encoder's rate.
    """

    span: int
    clock: Clock
    start: int
    stop: int | None
    n_native: int | None
    track: Track

    @property
    def length(self) -> int | None:
        """Encoder samples in the recording, None where the end is far."""
        return None if self.n_native is None else self.clock.length(self.n_native)


@dataclass(frozen=True, slots=True)
class LostWindow:
    """A window without a row: failed, or absent because it holds no frame."""

    place: int
    start: int
    error: RecordingError


@dataclass(slots=True)
class Windows:
    """Window vectors of a shard, in the order of places and starts.

    Attributes:
        place: (W,) index into the places.
        start: (W,) encoder samples.
        valid: W fractions, encoder samples of real sound.
        vectors: One (W, D) float32 array per layer.
        lost: Windows that have no row.
    """

    place: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    valid: list[object]
    vectors: list[npt.NDArray[np.float32]]
    lost: list[LostWindow] = field(default_factory=list)


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


Vectors = list[torch.Tensor]
Outcome = Vectors | RecordingError


def encode(
    encoder: Encoder,
    rule: WindowRule,
    places: Sequence[Place],
    device: str,
    n_layers: int,
    keep_frames: bool,
) -> tuple[Windows, Frames | None]:
    """Apply an encoder to the tracks of a shard.

    Args:
        encoder: The loaded network.
        rule: Window, hop and tail in encoder samples.
        places: The tracks and where they lie.
        device: Torch device the encoder is on.
        n_layers: L, how many outputs the encoder gives.
        keep_frames: Whether every frame is returned.

    Returns:
        The windows, and the frames where they are kept.
    """
    tables = [
        window_starts(place.clock, rule, place.start, place.stop, place.n_native)
        for place in places
    ]
    windows = Windows(
        np.repeat(np.arange(len(places)), [len(table) for table in tables]),
        np.concatenate(tables) if tables else np.zeros(0, np.int64),
        [
            valid
            for place, table in zip(places, tables, strict=True)
            for valid in valid_samples(place.clock, rule, table, place.n_native)
        ],
        [],
    )
    kept: list[tuple[int, Block, npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]] = []
    with torch.inference_mode():
        if encoder.facts.embeds:
            _embed_windows(encoder, rule, places, windows, device, n_layers)
        grid = encoder.facts.grid
        if grid is not None and (keep_frames or not encoder.facts.embeds):
            means = (
                None if encoder.facts.embeds else _Means(windows, rule, encoder, n_layers, device)
            )
            for index, block, outcome in run_blocks(encoder, grid, rule, places, device):
                if isinstance(outcome, RecordingError):
                    if means is not None:
                        means.lose(index, block, outcome)
                    continue
                steps = _owned_steps(grid, block)
                if means is not None:
                    means.add(index, steps, outcome)
                if keep_frames and _is_own(places[index], block):
                    layers = [layer.float().cpu().numpy() for layer in outcome]
                    kept.append((index, block, steps, layers))
            if means is not None:
                means.finish()
    return _without_lost(windows), _assemble(
        grid, kept, n_layers, encoder.dim
    ) if keep_frames else None


def _embed_windows(
    encoder: Encoder,
    rule: WindowRule,
    places: Sequence[Place],
    windows: Windows,
    device: str,
    n_layers: int,
) -> None:
    """Fill `windows.vectors` through `embed`, one pass per distinct input length."""
    n_windows = len(windows.start)
    results = [torch.zeros((n_windows, encoder.dim), device=device) for _ in range(n_layers)]
    lengths = np.full(n_windows, rule.window)
    if not encoder.facts.pads:
        lengths = np.array([-(-v.numerator // v.denominator) for v in windows.valid], np.int64)  # type: ignore[attr-defined]
    shortest = encoder.facts.rate_hz * MIN_UNPADDED_S
    for length in (int(length) for length in np.unique(lengths)):
        rows = np.flatnonzero(lengths == length)
        if length < shortest and not encoder.facts.pads:
            error = RecordingError(Reason.TOO_SHORT, f"{length} samples are less than one frame")
            windows.lost += [_lost(windows, row, error) for row in rows]
            continue
        waves = _Waves(places, device)
        for first in range(0, len(rows), encoder.batch_size):
            batch = rows[first : first + encoder.batch_size]
            stretches = [
                waves.cut(int(windows.place[r]), int(windows.start[r]), length) for r in batch
            ]
            for row, outcome in zip(batch, guarded(encoder.embed, stretches), strict=True):
                if isinstance(outcome, RecordingError):
                    windows.lost.append(_lost(windows, row, outcome))
                    continue
                for result, vector in zip(results, outcome, strict=True):
                    result[int(row)] = vector
    windows.vectors = [result.cpu().numpy() for result in results]


def run_blocks(
    encoder: Encoder,
    grid: FrameGrid,
    rule: WindowRule,
    places: Sequence[Place],
    device: str,
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
        ]
    by_length: dict[int, list[tuple[int, Block]]] = {}
    for entry in plan:
        by_length.setdefault(entry[1].read_stop - entry[1].read_start, []).append(entry)
    for length, entries in by_length.items():
        if length < grid.receptive:
            short = RecordingError(Reason.TOO_SHORT, f"{length} samples are less than one frame")
            yield from ((index, block, short) for index, block in entries)
            continue
        waves = _Waves(places, device)
        for first in range(0, len(entries), encoder.batch_size):
            batch = entries[first : first + encoder.batch_size]
            stretches = [waves.cut(index, block.read_start, length) for index, block in batch]
            outcomes = guarded(encoder.frames, stretches)
            for (index, block), outcome in zip(batch, outcomes, strict=True):
                if not isinstance(outcome, RecordingError):
                    outcome = [_own_frames(grid, block, layer) for layer in outcome]
                yield index, block, outcome


def guarded(
    call: Callable[[torch.Tensor], list[torch.Tensor]], stretches: list[torch.Tensor]
) -> list[Outcome]:
    """Run a network on equally long stretches; one that makes it fail does not take the others along.

    A batch that does not fit the device's memory is halved until it does.
    """
    try:
        layers = call(torch.stack(stretches))
    except torch.cuda.OutOfMemoryError:
        if len(stretches) == 1:
            return [RecordingError(Reason.OUT_OF_MEMORY, "one batch row does not fit the device")]
        torch.cuda.empty_cache()
        half = len(stretches) // 2
        return guarded(call, stretches[:half]) + guarded(call, stretches[half:])
    except MemoryError:
        return [RecordingError(Reason.OUT_OF_MEMORY, "out of memory")] * len(stretches)
    # A network may be the user's own and raise anything; one recording must not stop the run.
    except Exception as error:  # noqa: BLE001
        if len(stretches) == 1:
            text = " ".join(str(error).split())[:300]
            return [RecordingError(Reason.ENCODER_ERROR, f"{type(error).__name__}: {text}")]
        return [outcome for stretch in stretches for outcome in guarded(call, [stretch])]
    finite = torch.stack([layer.flatten(1).isfinite().all(dim=1) for layer in layers]).all(dim=0)
    return [
        [layer[row] for layer in layers]
        if is_finite
        else RecordingError(Reason.NONFINITE_VECTOR, "the encoder gave NaN or infinity")
        for row, is_finite in enumerate(finite.tolist())
    ]


class _Waves:
    """Tracks on the device, each moved once and dropped when the next ones are in use."""

    def __init__(self, places: Sequence[Place], device: str) -> None:
        self._places = places
        self._device = device
        self._loaded: dict[int, torch.Tensor] = {}

    def cut(self, index: int, start: int, length: int) -> torch.Tensor:
        """Return `length` samples from recording position `start`, zero-padded at the end."""
        if index not in self._loaded:
            for old in [place for place in self._loaded if place < index - 1]:
                del self._loaded[old]
            # A copy: what comes out of the object store is read-only.
            samples = torch.tensor(self._places[index].track.samples)
            self._loaded[index] = samples.to(self._device)
        low = start - self._places[index].track.offset
        wave = self._loaded[index][low : low + length]
        return F.pad(wave, (0, length - len(wave))) if len(wave) < length else wave


class _Means:
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
        """Mark the windows that needed a block which failed."""
        first, last = self._overlapping(place, block.start, block.stop - 1)
        self._errors.update(dict.fromkeys(range(first, last), error))

    def finish(self) -> None:
        """Turn sums into means; windows without a frame, or with a failed block, are lost."""
        short = RecordingError(Reason.TOO_SHORT, "no frame has its centre in the window")
        for empty in np.flatnonzero(self._counts == 0):
            self._errors.setdefault(int(empty), short)
        for row, error in sorted(self._errors.items()):
            self._windows.lost.append(_lost(self._windows, row, error))
        counts = torch.from_numpy(np.maximum(1, self._counts))
        self._windows.vectors = [
            (total / counts.to(total.device)[:, None]).float().cpu().numpy() for total in self._sums
        ]


def _lost(windows: Windows, row: int | np.int64, error: RecordingError) -> LostWindow:
    return LostWindow(int(windows.place[row]), int(windows.start[row]), error)


def _owned_steps(grid: FrameGrid, block: Block) -> npt.NDArray[np.int64]:
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


def _is_own(place: Place, block: Block) -> bool:
    """Return whether the span owns a block: the block starts inside it."""
    native = place.clock.native(block.start)
    return native >= place.start and (place.stop is None or native < place.stop)


def _without_lost(windows: Windows) -> Windows:
    if not windows.lost:
        return windows
    lost = {(entry.place, entry.start) for entry in windows.lost}
    keep = np.array(
        [(int(p), int(s)) not in lost for p, s in zip(windows.place, windows.start, strict=True)],
        bool,
    )
    return Windows(
        windows.place[keep],
        windows.start[keep],
        [valid for valid, is_kept in zip(windows.valid, keep, strict=True) if is_kept],
        [vectors[keep] for vectors in windows.vectors],
        windows.lost,
    )


def _assemble(
    grid: FrameGrid | None,
    kept: list[tuple[int, Block, npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]],
    n_layers: int,
    dim: int,
) -> Frames:
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
