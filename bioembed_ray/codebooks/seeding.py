"""The first centroids: greedy k-means++ on the first rows of the sample; and what their spread is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.codebooks.partial_sums import square_norms
from bioembed_ray.codebooks.rule import Centroids

# The sample's order is random, so its first rows are a fair subsample. 32,768 rows cost 1 s at
# K = 128 and 768 dimensions; Lloyd's iterations then see every row.
HEAD_ROWS = 1 << 15
ROWS_PER_CLUSTER = 8
SLICES = 16


def head_rows(n_rows: int, clusters: int) -> int:
    """Return how many rows seeding looks at.

    >>> head_rows(200_000, 128), head_rows(20_000, 128), head_rows(10**7, 16_384)
    (32768, 20000, 131072)
    """
    return min(n_rows, max(HEAD_ROWS, ROWS_PER_CLUSTER * clusters))


def robust_centre(head: npt.NDArray[np.floating]) -> Centroids:
    """Return the median of the first rows, an origin that no outlier moves.

    Args:
        head: (N, D) the sample's first rows; 4,096 of them are looked at.

    Returns:
        (D,) float32.
    """
    rows = head[:4096].astype(np.float32)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return np.zeros(head.shape[1], np.float32)
    return np.median(rows, axis=0).astype(np.float32)


def mean_variance(head: torch.Tensor) -> float:
    """Return the rows' variance, mean over dimensions, which scikit-learn's `tol` is relative to.

    Taken from sixteen slices of the first rows, of which the median counts: one broken row would
    else lift the variance so high that the first iteration counts as converged.

    Args:
        head: (N, D) prepared rows.
    """
    n_slices = min(SLICES, max(1, len(head) // 64))
    slices = torch.tensor_split(head, n_slices)
    variances = [float(part.double().var(dim=0, correction=0).mean()) for part in slices]
    return float(np.median(variances))


def plus_plus(head: torch.Tensor, clusters: int, seed: int) -> Centroids:
    """Return the first centroids by greedy k-means++.

    Every next centroid is the best of 2 + ln K rows drawn with probability proportional to their
    squared distance from the centroids so far.

    Args:
        head: (N, D) float32 prepared rows.
        clusters: K.
        seed: Seed of the draws.

    Returns:
        (K, D) float32. Where the rows have fewer than K different vectors, the rest repeat the
        first; they stay empty at first and are moved to the farthest rows of the whole sample.

    Source:
        Arthur and Vassilvitskii 2007, "k-means++"; the greedy form as in scikit-learn.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    n_trials = 2 + int(np.log(clusters))
    norms = square_norms(head)
    first = int(random.integers(len(head)))
    chosen = [first]
    closest = _square_distances(head, norms, [first])[0]
    potential = float(closest.sum(dtype=torch.float64))
    while len(chosen) < clusters and potential > 0:
        draws = random.random(n_trials) * potential
        running = closest.double().cumsum(dim=0).cpu().numpy()
        picks = np.minimum(np.searchsorted(running, draws), len(head) - 1)
        nearer = torch.minimum(_square_distances(head, norms, picks.tolist()), closest)
        sums = nearer.sum(dim=1, dtype=torch.float64).cpu().numpy()
        best = int(np.argmin(sums))
        chosen.append(int(picks[best]))
        closest, potential = nearer[best], float(sums[best])
    chosen += [first] * (clusters - len(chosen))
    return head[torch.tensor(chosen, device=head.device)].cpu().numpy()


def _square_distances(head: torch.Tensor, norms: torch.Tensor, picks: list[int]) -> torch.Tensor:
    """Return (P, N) squared distances of all rows from some of them, exactly 0 from themselves."""
    index = torch.tensor(picks, device=head.device)
    distances = torch.addmm(norms, head[index], head.T, alpha=-2)
    distances += norms[index][:, None]
    # What cancellation leaves of nothing would be drawn again and again.
    noise = 4e-7 * (norms + norms[index][:, None])
    return torch.where(distances > noise, distances, 0.0)
