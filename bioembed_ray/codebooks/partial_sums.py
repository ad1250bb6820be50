"""Partial sums of k-means: a group of rows against all centroids, and how groups are merged.

Rows come in fixed groups. A group's sums are float32 over runs of 4,096 rows and float64 beyond;
groups are merged along a fixed binary tree. So the sums are bitwise the same whoever computes
which group, on one kind of processor with one compute thread each. Squared distances are float32,
|x|² - 2 x·c + |c|², and exist for a few rows at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.codebooks.rule import Centroids, Metric
from bioembed_ray.codebooks.sample import RUN_ROWS

# Rows whose distances exist at once. On a CPU 1024 rows of 768 dimensions are read twice within the L2 and L3
# caches; on a GPU a launch should be worth its while.
CPU_TILE, GPU_TILE = 1024, RUN_ROWS
HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
# Share of |x|² below which |x|² - 2 x·c + |c|² has lost too many of float32's seven digits.
NEARLY_ZERO = 1e-3


@dataclass(frozen=True, slots=True)
class Partial:
    """Sums over some rows.

    Attributes:
        sums: (K, D) float64, sum of the rows nearest to each centroid.
        counts: (K,) int64, how many they are.
        inertia: Sum of squared distances to the nearest centroid.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    inertia: float

    def __add__(self, other: Partial) -> Partial:
        return Partial(
            self.sums + other.sums, self.counts + other.counts, self.inertia + other.inertia
        )


def prepare(
    rows: npt.NDArray[np.floating], metric: Metric, centre: Centroids | None, device: str = "cpu"
) -> torch.Tensor:
    """Return rows as they are fitted: float32, less `centre`, or of unit length.

    Moving the origin near the rows keeps digits that |x|² - 2 x·c + |c|² would lose. A row of zeros
    stays zero under "cosine", equally far from every centroid.

    Args:
        rows: (N, D) float16 or float32.
        metric: Which.
        centre: (D,) origin for "euclidean"; None is zero.
        device: Where the rows shall lie.
    """
    given = torch.from_numpy(np.ascontiguousarray(rows)).to(device).float()
    if metric == "cosine":
        # In float64, since squares of large float16 features sum to more than float32 resolves.
        norms = torch.linalg.vector_norm(given, dim=1, dtype=torch.float64, keepdim=True)
        return (given.double() / torch.where(norms > 0, norms, 1.0)).float()
    if centre is None:
        return given
    return given - torch.tensor(centre, device=device)


def square_norms(rows: torch.Tensor) -> torch.Tensor:
    """Return the squared length of every row, (N,) float32; infinite or NaN for unusable rows."""
    return torch.cat([tile.square().sum(dim=1) for tile in torch.split(rows, tile_rows(rows))])


def tile_rows(rows: torch.Tensor) -> int:
    """Return how many rows are looked at at once: fixed for a kind of device."""
    return GPU_TILE if rows.is_cuda else CPU_TILE


@dataclass(frozen=True, slots=True)
class Against:
    """Centroids made ready for many groups.

    Attributes:
        codes: (K, D) float32 on the rows' device.
        scores: Gives |c|² - 2 x·c, (n, K), of a tile of rows.
    """

    codes: torch.Tensor
    scores: Callable[[torch.Tensor], torch.Tensor]


def against(centroids: Centroids, device: str = "cpu") -> Against:
    """Return centroids made ready for `add_group`.

    Args:
        centroids: (K, D) float32.
        device: Where the rows lie.
    """
    # A copy: what comes from the object store may not be written, which torch warns about.
    codes = torch.tensor(centroids, device=device)
    offset = codes.square().sum(dim=1)
    if not codes.is_cuda and HAS_ONEDNN:
        # Centroids packed once for all tiles: 100 GFLOP/s instead of the 86 of torch.mm, a tenth of
        # an iteration. The operator is the one that torch.compile writes for nn.Linear.
        packed = torch.ops.mkldnn._reorder_linear_weight(-2.0 * codes, CPU_TILE)
        linear = torch.ops.mkldnn._linear_pointwise
        return Against(codes, lambda tile: linear(tile, packed, offset, "none", [], ""))
    across = (-2.0 * codes).T
    return Against(codes, lambda tile: torch.addmm(offset, tile, across))


def add_group(
    rows: torch.Tensor, norms: torch.Tensor, centroids: Against
) -> tuple[Partial, npt.NDArray[np.int32]]:
    """Assign the rows of one group to their nearest centroids and sum them up.

    Args:
        rows: (N, D) float32, prepared.
        norms: (N,) their squared lengths.
        centroids: From `against`.

    Returns:
        The sums, and (N,) labels; of equally near centroids the lowest counts.
    """
    size = tile_rows(rows)
    total: torch.Tensor | None = None
    run = torch.zeros_like(centroids.codes)
    labels = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    best = torch.empty(len(rows), device=rows.device)
    for start in range(0, len(rows), size):
        tile = slice(start, min(start + size, len(rows)))
        near = centroids.scores(rows[tile])  # (n, K)
        # NumPy's search is vectorised, five times as fast as torch's.
        label = near.argmin(1) if rows.is_cuda else torch.from_numpy(near.numpy().argmin(axis=1))
        labels[tile] = label
        torch.gather(near, 1, label[:, None], out=best[tile, None])
        _add_rows(run, label, rows[tile])
        if tile.stop % RUN_ROWS == 0 or tile.stop == len(rows):
            total = run.double() if total is None else total.add_(run)
            run.zero_()
    if total is None:
        raise ValueError("a group without rows")
    distances = best + norms
    # Of rows almost at their centroid only rounding is left, so these are measured directly.
    near_rows = torch.nonzero(distances < NEARLY_ZERO * norms)[:, 0]
    for part in torch.split(near_rows, RUN_ROWS):
        distances[part] = (rows[part] - centroids.codes[labels[part]]).square().sum(dim=1)
    inertia = float(distances.sum(dtype=torch.float64))
    counts = torch.bincount(labels, minlength=len(run))
    return (
        Partial(total.cpu().numpy(), counts.cpu().numpy(), inertia),
        labels.cpu().numpy().astype(np.int32),
    )


def _add_rows(sums: torch.Tensor, label: torch.Tensor, rows: torch.Tensor) -> None:
    if rows.is_cuda:
        # index_add_ adds in whatever order threads come along; a product has one order.
        chosen = rows.new_zeros(len(sums), len(rows)).scatter_(0, label[None], 1.0)
        sums.addmm_(chosen, rows)
    else:
        sums.index_add_(0, label, rows)


def labels_digest(labels: npt.NDArray[np.int32]) -> str:
    """Return 64 bits that tell one group's labels from others."""
    return hashlib.blake2b(labels.tobytes(), digest_size=8).hexdigest()


Node = tuple[int, int, Partial]
"""A finished part of the tree: level, number within the level, sums of its 2^level groups."""


def fold(nodes: Iterable[Node]) -> list[Node]:
    """Merge neighbours along the fixed binary tree as far as they are complete.

    Args:
        nodes: In the order of their groups, without gaps.

    Returns:
        What is left, in order: at most two per level.
    """
    stack: list[Node] = []
    for node in nodes:
        stack.append(node)
        while len(stack) > 1:
            (level, left, a), (same, right, b) = stack[-2:]
            if level != same or left % 2 or right != left + 1:
                break
            stack[-2:] = [(level + 1, left // 2, a + b)]
    return stack


def close(nodes: Sequence[Node]) -> Partial:
    """Return the sums of all groups, from what `fold` left of them."""
    total = nodes[-1][2]
    for _, _, part in reversed(nodes[:-1]):
        total = part + total
    return total
