"""What an encoder is to the rest of the package.

Shape letters, everywhere: B batch, N samples, T frames, F frequency patches, D features,
W windows, L layers asked for.

An encoder turns waveforms into windows' vectors, into frames, or both:

* `embed` takes windows of one fixed length and gives one vector each (BEATs, EfficientNet, AST).
* `frames` takes a stretch of any length and gives a vector per time step, positioned by sample
  (wav2vec 2.0, HuBERT, BEATs). Where there is no `embed`, a window's vector is the mean of the
  frames whose centre lies in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """How a recording is cut for an encoder whose frames depend on all they are read with.

    Block k owns seconds [k · block_s, (k+1) · block_s) of encoder time and is read with
    `context_s` on both sides. A tail shorter than half a block joins the block before where
    `joins_tail`, else it is a block of its own length.

    Attributes:
        block_s: Seconds a block owns; None reads the recording as one block.
        context_s: Seconds of context on both sides.
        joins_tail: Whether a short tail joins the block before.
        stride: Samples from one time step to the next.
        receptive: Samples one time step sees.
        per_step: Frames per time step (8 for BEATs patches, else 1).
    """

    block_s: int | None
    context_s: int
    joins_tail: bool
    stride: int
    receptive: int
    per_step: int = 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about an encoder before its weights are loaded.

    Attributes:
        family: What the loader goes by, e.g. "beats" or "wav2vec2".
        rate_hz: Input rate.
        window_s: Default window.
        hop_s: Default hop.
        grid: How frames are cut; None where the encoder has none.
        embeds: Whether windows go through the network one by one (`embed`), rather than being
            means of frames.
        pads: Whether a last window shorter than the window is zero-padded before it enters, as
            opposed to going in at its own length (AST takes its own padding for silence).
        keeps: Lowest cosine to float32 measured per precision class, as far as it was measured.
        max_window_s: Longest window the encoder takes, None without a limit.
        dim: D where it is known without the weights, for estimates.
    """

    family: str
    rate_hz: int
    window_s: float
    hop_s: float
    grid: FrameGrid | None
    embeds: bool
    pads: bool = True
    keeps: dict[str, float] = field(default_factory=dict)
    max_window_s: float | None = None
    dim: int | None = None


# Kaldi's first analysis frame; a shorter stretch gives an unpadded spectrogram no column at all.
MIN_UNPADDED_S = 0.025


def shortest_window(facts: Facts) -> float:
    """Return the samples of real sound, below which a window has no vector of its own."""
    return facts.rate_hz * MIN_UNPADDED_S if facts.embeds and not facts.pads else 0.0


class Encoder(Protocol):
    """A loaded network on its device, in eval mode. Not picklable: built inside the actor.

    Attributes:
        facts: What was known before.
        dim: D, features per vector.
        batch_size: Windows or blocks per forward pass.
    """

    facts: Facts
    dim: int
    batch_size: int

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Return one vector per window and layer.

        Args:
            windows: (B, N) float32 on the encoder's device, all of one length.

        Returns:
            One (B, D) float32 tensor per layer asked for, in order.
        """
        ...

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Return the frames of equally long stretches.

        Args:
            waves: (B, N) float32 on the encoder's device, N >= grid.receptive.

        Returns:
            One (B, T · per_step, D) float32 tensor per layer; time step t sees samples
            [t · stride, t · stride + receptive), T = (N - receptive) // stride + 1.
        """
        ...
