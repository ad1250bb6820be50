"""Learning codes: the network with its quantiser, one step, one look at held-out patches.

The quantiser is `vector-quantize-pytorch`'s: nearest code in the Euclidean metric, gradients passed
straight through, codes that follow their latents as running means (van den Oord et al. 2017,
arXiv:1711.00937, appendix A.1), begun by k-means on the first batch; a code that fewer latents than
a threshold choose is moved to a latent of the batch. No Ray here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from bioembed_ray.config import TrainingConfig
from bioembed_ray.vqvae.mel import STEP
from bioembed_ray.vqvae.network import PatchDecoder, PatchEncoder, Size

# Of the running means: a code forgets half of what it was in 34 steps.
DECAY = 0.98
KMEANS_ROUNDS = 10
# Weight of the distance between latents and their codes, van den Oord's beta.
COMMITMENT = 0.25
# A code is dead where it gets less than this share of an even share, or than 2 latents per batch.
DEAD_SHARE, DEAD_COUNT = 0.1, 2.0
LARGEST_GRADIENT = 1.0
WARM_UP_STEPS = 50


class VqVae(nn.Module):
    """Patch to codes and back."""

    def __init__(self, training: TrainingConfig, latents_per_batch: int, is_shared: bool) -> None:
        """Build it; `is_shared` where several processes train together."""
        # Only those who train need it, and it takes seconds to import.
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        size = Size(training.hidden, training.dim)
        self.encoder = PatchEncoder(size)
        even = latents_per_batch / training.codes
        self.quantiser = VectorQuantize(
            dim=training.dim,
            codebook_size=training.codes,
            decay=DECAY,
            kmeans_init=True,
            kmeans_iters=KMEANS_ROUNDS,
            threshold_ema_dead_code=min(DEAD_COUNT, DEAD_SHARE * even),
            commitment_weight=COMMITMENT,
            rotation_trick=False,
            sync_codebook=is_shared,
        )
        self.decoder = PatchDecoder(size)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return reconstructions (B, T, F), codes (B, T/4, F/4) and the commitment loss."""
        latents = self.encoder(patches)  # (B, T/4, F/4, D)
        shape = latents.shape
        quantised, codes, commitment = self.quantiser(latents.flatten(1, 2))
        decoded = self.decoder(quantised.reshape(shape))
        decoded = decoded[:, : patches.shape[1], : patches.shape[2]]
        return decoded, codes.reshape(shape[:3]), commitment.sum()

    @property
    def codebook(self) -> torch.Tensor:
        """The codes, (K, D)."""
        found: torch.Tensor = self.quantiser.codebook
        return found


def latents_of(n_frames: int, n_mels: int) -> int:
    """Return how many latents a patch has.

    >>> latents_of(100, 128)
    800
    """
    return -(-n_frames // STEP) * -(-n_mels // STEP)


def make_optimiser(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW over the networks; the codes are no parameters."""
    return torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=1e-4)


def rate_at(step: int, training: TrainingConfig) -> float:
    """Return the learning rate of a step: a linear rise, then a cosine down to a tenth.

    >>> rate_at(0, TrainingConfig(max_steps=1000)) < 1e-4
    True
    >>> round(rate_at(1000, TrainingConfig(max_steps=1000)), 6)
    0.0001
    """
    rise = min(WARM_UP_STEPS, max(1, training.max_steps // 10))
    if step < rise:
        return training.learning_rate * (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, training.max_steps - rise))
    return training.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def batch_rows(n_rows: int, batch: int, step: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the rows of a step: every row once per epoch, in an order drawn from seed and epoch.

    A function of its arguments alone, so that training goes on from any step.

    Args:
        n_rows: Patches there are.
        batch: Patches per step; all rows where there are fewer.
        step: Number of the step.
        seed: Of the order.

    >>> sorted(np.concatenate([batch_rows(6, 2, step, 0) for step in range(3)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    batch = min(batch, n_rows)
    per_epoch = n_rows // batch
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(n_rows)
    rows: npt.NDArray[np.int64] = order[place * batch : (place + 1) * batch]
    return rows


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    patches: torch.Tensor,
    rate: float,
    precision: str,
) -> tuple[float, float]:
    """Move the networks and the codes by one batch.

    Args:
        model: A `VqVae`, or one wrapped for several processes.
        optimiser: Its optimiser.
        patches: (B, T, F) float32, standardised.
        rate: Learning rate.
        precision: "float32" or "bfloat16".

    Returns:
        Reconstruction error (mean square) and commitment loss of the batch.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    model.train()
    for group in optimiser.param_groups:
        group["lr"] = rate
    with torch.autocast(patches.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        decoded, _, commitment = model(patches)
    error = F.mse_loss(decoded.float(), patches)
    loss = error + commitment.float()
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError("the loss is not finite; lower training.learning_rate")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    optimiser.step()
    return float(error.detach()), float(commitment.detach())


@dataclass(slots=True)
class Look:
    """What held-out patches say; sums, so that the looks of several workers add up.

    Attributes:
        squares: Sum of squared differences.
        n_values: How many.
        counts: (K,) latents per code.
    """

    squares: float
    n_values: int
    counts: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """Mean squared difference, in units of the training sample's variance."""
        return self.squares / max(1, self.n_values)


def evaluate(model: VqVae, patches: Iterator[torch.Tensor], n_codes: int) -> Look:
    """Return how well held-out patches (B, T, F) are kept, and by which codes."""
    look = Look(0.0, 0, np.zeros(n_codes, np.int64))
    model.eval()
    with torch.inference_mode():
        for batch in patches:
            decoded, codes, _ = model(batch)
            look.squares += float((decoded - batch).double().square().sum())
            look.n_values += batch.numel()
            look.counts += np.bincount(codes.flatten().cpu().numpy(), minlength=n_codes)
    return look
