"""What encoders are applied to, and how a network is run without one recording stopping the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bioembed_ray.audio.holes import Holes
from bioembed_ray.audio.spans import Track
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.windows import Clock


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
        holes: What of it is silence instead of sound, native samples.
    """

    span: int
    clock: Clock
    start: int
    stop: int | None
    n_native: int | None
    track: Track
    holes: Holes = ()

    @property
    def length(self) -> int | None:
        """Encoder samples in the recording, None where the end is far."""
        return None if self.n_native is None else self.clock.length(self.n_native)


@dataclass(frozen=True, slots=True)
class LostWindow:
    """A window without a row: failed, or absent because it holds no frame, or no sound."""

    place: int
    start: int
    error: RecordingError


@dataclass(frozen=True, slots=True)
class LostBlock:
    """Encoder samples [start, stop) that a failed block owns: their frames are missing."""

    place: int
    start: int
    stop: int
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
        lost_blocks: Blocks of frames that failed; windows that are means of frames are lost besides.
    """

    place: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    valid: list[object]
    vectors: list[npt.NDArray[np.float32]]
    lost: list[LostWindow] = field(default_factory=list)
    lost_blocks: list[LostBlock] = field(default_factory=list)


Vectors = list[torch.Tensor]

Outcome = Vectors | RecordingError


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
        text = " ".join(str(error).split())[:300]
        if "DefaultCPUAllocator" in text:  # torch has no class of its own for it
            return [RecordingError(Reason.OUT_OF_MEMORY, text)] * len(stretches)
        if len(stretches) == 1 and isinstance(error, RecordingError):
            return [error]
        if len(stretches) == 1:
            return [RecordingError(Reason.ENCODER_ERROR, f"{type(error).__name__}: {text}")]
        return [outcome for stretch in stretches for outcome in guarded(call, [stretch])]
    finite = torch.stack([layer.flatten(1).isfinite().all(dim=1) for layer in layers]).all(dim=0)
    return [
        [layer[row] for layer in layers]
        if is_finite
        else RecordingError(Reason.NONFINITE_VECTOR, "the encoder gave NaN or infinity")
        for row, is_finite in enumerate(finite.tolist())
    ]


class Waves:
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
        if low < 0:
            raise ValueError(f"sample {start} lies before what was read of place {index}")
        wave = self._loaded[index][low : low + length]
        return F.pad(wave, (0, length - len(wave))) if len(wave) < length else wave


def lost_window(windows: Windows, row: int | np.int64, error: RecordingError) -> LostWindow:
    """Return the window of a row as lost."""
    return LostWindow(int(windows.place[row]), int(windows.start[row]), error)


def without_lost(windows: Windows) -> Windows:
    """Return the windows that have a row; the lost ones stay named."""
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
        windows.lost_blocks,
    )
