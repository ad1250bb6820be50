"""The networks of the VQ-VAE: patch to latents, latents to patch.

Time and frequency are halved twice, so one latent stands for 4 mel frames by 4 bands. Patches of
other lengths are filled up to a multiple of 4 by repeating their last frame, and cut again after
decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bioembed_ray.vqvae.mel import STEP


@dataclass(frozen=True, slots=True)
class Size:
    """How large the networks are.

    Attributes:
        hidden: Channels of the inner layers, even.
        dim: D, features of a latent.
    """

    hidden: int
    dim: int


class PatchEncoder(nn.Module):
    """Standardised log-mel patches to latents, each of zero mean and unit variance over its features."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        half = size.hidden // 2
        self.layers = nn.Sequential(
            nn.Conv2d(1, half, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, size.hidden, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(size.hidden, size.dim, 1),
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return (B, T/4, F/4, D) for (B, T, F), both rounded up."""
        latents = self.layers(filled_up(patches)[:, None])  # (B, D, T/4, F/4)
        latents = latents.float().permute(0, 2, 3, 1)
        # Without it training may shrink or blow up latents at will, and codes cannot follow.
        return F.layer_norm(latents, latents.shape[-1:])


class PatchDecoder(nn.Module):
    """Latents, or the codes in their place, to standardised log-mel patches."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        half = size.hidden // 2
        self.layers = nn.Sequential(
            nn.Conv2d(size.dim, size.hidden, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(size.hidden, half, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(half, 1, 4, stride=2, padding=1),
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return (B, T, F), both multiples of 4, for (B, T/4, F/4, D)."""
        patches: torch.Tensor = self.layers(latents.permute(0, 3, 1, 2))
        return patches[:, 0].float()


def filled_up(patches: torch.Tensor) -> torch.Tensor:
    """Return (B, T, F) with T and F filled up to multiples of 4 by their last frame and band.

    >>> filled_up(torch.arange(5.0).reshape(1, 5, 1)).shape
    torch.Size([1, 8, 4])
    """
    n_frames, n_bands = patches.shape[1:]
    missing = (0, -n_bands % STEP, 0, -n_frames % STEP)
    return F.pad(patches[:, None], missing, mode="replicate")[:, 0]
