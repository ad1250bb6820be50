"""The token of a frame: its nearest centroid, exactly, on the frames' own device.

Float32 products decide where they can. Where the best two centroids are closer than rounding could
have moved them, the row is looked at again in float64, and where that cannot tell either, the
differences are taken one by one and the lowest id of equals counts. So a token does not depend on
the processor, the batch it came in or the order of a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.codebooks.rule import Centroids, Metric
from bioembed_ray.unit_rows import unit_rows

# Rows whose scores exist at once, per device.
CPU_TILE, GPU_TILE = 512, 1 << 14
# Half a unit in the last place: float64, and what a float32 product may be computed in.
UNIT_64 = 2.0**-53
UNIT_ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}
# Pairs of row and centroid compared at once in float64: 48 MB of 768 dimensions.
PAIRS = 1 << 13
# Squares of longer frames overflow in float32; NaN and infinity are no shorter than this either.
LONGEST = 1e18


class NonFiniteFrame(ValueError):
    """A frame has NaN, infinity or values beyond 1e18.

    Attributes:
        row: The first such row.
    """

    def __init__(self, row: int) -> None:
        super().__init__(
            f"frame {row} holds NaN, infinity or values beyond 1e18; it has no nearest centroid"
        )
        self.row = row


@dataclass(frozen=True, slots=True)
class Codes:
    """Centroids made ready for `assign`: score k of a row x is offset_k - 2 x·direction_k.

    Attributes:
        metric: Which distance the lowest score stands for.
        centroids: (K, D) float64, as given; of unit length under "cosine".
        shifted: (K, D) float64, centroids less their mean: the same order of scores, less rounding.
        offset: (K,) float64.
        shifted_32: `shifted` times -2 in float32 on the device.
        offset_32: `offset` in float32 on the device.
    """

    metric: Metric
    centroids: npt.NDArray[np.float64]
    shifted: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    shifted_32: torch.Tensor
    offset_32: torch.Tensor


def make_codes(centroids: Centroids, metric: Metric, device: str = "cpu") -> Codes:
    """Return centroids made ready for `assign`.

    Args:
        centroids: (K, D), finite.
        metric: "euclidean" or "cosine".
        device: Where frames will lie.
    """
    exact = centroids.astype(np.float64)
    if metric == "cosine":
        exact = unit_rows(exact)
        offset = np.zeros(len(exact))
    else:
        offset = np.einsum("kd,kd->k", exact, exact)
    shifted = exact - exact.mean(axis=0)
    offset = offset - offset.mean()
    return Codes(
        metric,
        exact,
        shifted,
        offset,
        torch.from_numpy(-2.0 * shifted).float().to(device),
        torch.from_numpy(offset).float().to(device),
    )


def assign(
    frames: npt.NDArray[np.floating] | torch.Tensor, codes: Codes
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the nearest centroid of every frame, and how far it is.

    Args:
        frames: (T, D) float16 or float32, an array or a tensor on the codes' device.
        codes: From `make_codes`.

    Returns:
        (T,) tokens, equal to `scipy.spatial.distance.cdist(frames, centroids, metric).argmin(1)` in
        float64 but for distances that float64 cannot tell apart; (T,) distances: Euclidean, or
        1 - cosine. A frame of zeros is equally far from all under "cosine": 0 and 1.

    Raises:
        NonFiniteFrame: a frame without a nearest centroid.
    """
    given = (
        torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    )
    device = codes.shifted_32.device
    size = GPU_TILE if device.type == "cuda" else CPU_TILE
    tokens = np.empty(len(given), np.int64)
    distances = np.empty(len(given), np.float32)
    table = torch.from_numpy(codes.centroids).float().to(device)
    # Autocast would round the rows to half precision first.
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(given), size):
            rows = given[start : start + size].to(device).float()
            label = _nearest(rows, codes, start)
            tokens[start : start + size] = label
            chosen = table[torch.from_numpy(label).to(device)]
            distances[start : start + size] = _distances(rows, chosen, codes.metric).cpu().numpy()
    return tokens, distances


def has_nearest(frames: torch.Tensor) -> torch.Tensor:
    """Return (...,) bool: which of (..., D) float32 frames `assign` takes."""
    norms: torch.Tensor = torch.linalg.vector_norm(frames, dim=-1)
    return norms < LONGEST


def _distances(rows: torch.Tensor, chosen: torch.Tensor, metric: Metric) -> torch.Tensor:
    if metric == "euclidean":
        lengths: torch.Tensor = torch.linalg.vector_norm(rows - chosen, dim=1)
        return lengths
    # In float64, as `unit_rows` has it: a tiny row has a length too.
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64, keepdim=True)
    units = (rows.double() / torch.where(norms > 0, norms, 1.0)).float()
    return 1.0 - (units * chosen).sum(dim=1)


def _nearest(rows: torch.Tensor, codes: Codes, first: int) -> npt.NDArray[np.int64]:
    """Return (n,) labels of a tile; float32 scores, and a second look at what they cannot tell."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    if not bool((norms < LONGEST).all()):
        raise NonFiniteFrame(first + int(torch.nonzero(~(norms < LONGEST))[0]))
    scores = torch.addmm(codes.offset_32, rows, codes.shifted_32.T)
    if len(codes.offset) == 1:
        return np.zeros(len(rows), np.int64)
    label, gap = _best_two(scores)
    unit = UNIT_ROUNDING[torch.get_float32_matmul_precision()]
    unsure = np.flatnonzero(gap <= 2 * _rounding(norms.double().cpu().numpy(), codes, unit))
    if len(unsure):
        close = rows[torch.from_numpy(unsure).to(rows.device)].double().cpu().numpy()
        label[unsure] = _nearest_64(close, codes)
    return label


def _best_two(scores: torch.Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the lowest score's column of every row, and how much higher the second lowest is."""
    if scores.is_cuda:
        best, label = torch.topk(scores, 2, dim=1, largest=False)
        return label[:, 0].cpu().numpy(), (best[:, 1] - best[:, 0]).double().cpu().numpy()
    # NumPy's searches are vectorised; torch.topk takes ten times as long.
    table = scores.numpy()
    row = np.arange(len(table))
    columns = table.argmin(axis=1)
    lowest = table[row, columns].astype(np.float64)
    table[row, columns] = np.inf
    return columns, table.min(axis=1) - lowest


def _rounding(norms: npt.NDArray[np.float64], codes: Codes, unit: float) -> npt.NDArray[np.float64]:
    """Return a bound on how far rounding moved any score of each row.

    A product of D terms computed in any order is off by at most D u / (1 - D u) |x| |c|
    (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1); rounding of the
    operands, the offset and the sum adds a few u.
    """
    depth = (codes.shifted.shape[1] + 8) * unit
    longest = float(np.linalg.norm(codes.shifted, axis=1).max())
    product = 2.0 * depth / max(1e-3, 1.0 - depth) * longest
    bound: npt.NDArray[np.float64] = product * 1.01 * norms
    return bound + 4 * unit * float(np.abs(codes.offset).max())


def _nearest_64(rows: npt.NDArray[np.float64], codes: Codes) -> npt.NDArray[np.int64]:
    """Return (n,) labels by float64 scores; those of equals by their differences."""
    # The rows' own distance from the centroids' mean is what rounding then scales with.
    mean = codes.centroids.mean(axis=0)
    if codes.metric == "cosine":
        near, offset = rows, codes.offset
    else:
        near, offset = rows - mean, np.einsum("kd,kd->k", codes.shifted, codes.shifted)
    scores = offset - 2.0 * (near @ codes.shifted.T)
    label: npt.NDArray[np.int64] = scores.argmin(axis=1)
    norms = np.linalg.norm(near, axis=1)
    size = float(np.abs(codes.centroids).max()) + np.abs(rows).max(axis=1)
    bound = 2 * _rounding(norms, codes, UNIT_64) + 64 * UNIT_64 * (offset.max() + size * norms)
    lowest = scores[np.arange(len(rows)), label]
    row, column = np.nonzero(scores <= (lowest + 2 * bound)[:, None])
    several = np.flatnonzero(np.bincount(row, minlength=len(rows)) > 1)
    is_open = np.isin(row, several)
    row, column = row[is_open], column[is_open]
    distance = np.concatenate(
        [np.zeros(0)]
        + [
            _exact(rows[row[i : i + PAIRS]], codes.centroids[column[i : i + PAIRS]], codes.metric)
            for i in range(0, len(row), PAIRS)
        ]
    )
    # By row, then distance, then id: the first of each row is its token.
    order = np.lexsort((column, distance, row))
    _, first = np.unique(row[order], return_index=True)
    label[row[order][first]] = column[order][first]
    return label


def _exact(
    rows: npt.NDArray[np.float64], chosen: npt.NDArray[np.float64], metric: Metric
) -> npt.NDArray[np.float64]:
    terms = -rows * chosen if metric == "cosine" else np.square(rows - chosen)
    total: npt.NDArray[np.float64] = terms.sum(axis=1)
    return total
