"""What one worker of a fit does with its groups of the sample. No Ray here: it becomes an actor in fit.py.

Every method is a function of its arguments and of what stands on storage, so a worker that dies is
replaced by one that answers the same. Groups stay in memory as far as the allowance goes; the
others are read again in every iteration, one ahead of the one that is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.frame_parts import Vectors
from bioembed_ray.codebooks.lloyd import FarRows, far_rows
from bioembed_ray.codebooks.partial_sums import (
    Node,
    add_group,
    against,
    fold,
    labels_digest,
    prepare,
    square_norms,
)
from bioembed_ray.codebooks.rule import Centroids, LloydRule
from bioembed_ray.codebooks.sample import Hashes, smallest
from bioembed_ray.codebooks.seeding import head_rows, mean_variance, plus_plus, robust_centre

# Rows hashed at once: 8 MB of 64-bit words at 1,024 dimensions.
CHECK_ROWS = 1024
# Squares of larger values leave float32.
LARGEST_SQUARE = 1e36


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker works on.

    Attributes:
        folder: The sample's folder.
        info: What stands there.
        first: First group.
        stop: One past the last.
        memory_bytes: Memory for rows and sums, beside what the libraries take and the first rows
            that seeding reads at once (100 MB at 768 dimensions). Eight groups are the least.
    """

    folder: str
    info: SampleInfo
    first: int
    stop: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    """What the sample's first rows tell.

    Attributes:
        centre: (D,) origin of prepared rows; None under "cosine".
        variance: Mean variance per dimension.
    """

    centre: Centroids | None
    variance: float


@dataclass(frozen=True, slots=True)
class Check:
    """Whether rows can be fitted on.

    Attributes:
        different: Hashes of different rows; all there are, or enough.
        n_unusable: Rows with NaN, infinity or values beyond 1e18.
        first_unusable: Where the first of them is from.
    """

    different: Hashes
    n_unusable: int
    first_unusable: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Which codes the rows of which recordings have.

    Attributes:
        names: Names of recordings.
        token: (P,) code.
        recording: (P,) index into `names`.
        count: (P,) rows that have both.
    """

    names: tuple[str, ...]
    token: npt.NDArray[np.int64]
    recording: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]


class Worker:
    """Computes over its groups.

    Args:
        share: Which groups, where, and how much memory.
        rule: What is fitted.
        device: "cpu" or "cuda".
        threads: Compute threads; fixed, since another count moves the last bits.
    """

    def __init__(self, share: Share, rule: LloydRule, device: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._share, self._rule, self._device = share, rule, device
        # One thread for good: the allocator keeps freed blocks for every new one.
        self._reader = ThreadPoolExecutor(1)
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        info = share.info
        group = info.group_rows * info.dim * 4
        # Two groups on their way in, as bytes, as an array and prepared, with what the allocator keeps
        # of them; and the sums of the tree's levels.
        sums = (max(1, info.n_groups).bit_length() + 2) * rule.clusters * info.dim * 8
        self._n_keep = max(0, (share.memory_bytes - 8 * group - sums) // group)

    def ping(self) -> str:
        """Answer what the worker computes on."""
        if self._device == "cuda":
            return torch.cuda.get_device_name()
        return f"CPU, {torch.backends.cpu.get_cpu_capability()}"

    def head(self) -> Head:
        """Return what the sample's first rows tell of origin and scale."""
        first = self._read(0)
        centre = None if self._rule.metric == "cosine" else robust_centre(first)
        return Head(centre, mean_variance(self._head_rows(centre)))

    def seed(self, centre: Centroids | None, seed: int) -> Centroids:
        """Return the first centroids, from the sample's first rows."""
        return plus_plus(self._head_rows(centre), self._rule.clusters, seed)

    def _head_rows(self, centre: Centroids | None) -> torch.Tensor:
        """Return the sample's first rows, prepared: the one thing that is read at once."""
        info = self._share.info
        n = head_rows(info.n_rows, self._rule.clusters)
        rows = torch.empty((n, info.dim), device=self._device)
        for group, start in enumerate(range(0, n, info.group_rows)):
            part = self._read(group)[: n - start]
            prepared = prepare(part, self._rule.metric, centre, self._device)
            rows[start : start + len(part)] = prepared
        return rows

    def check(self, centre: Centroids | None) -> Check:
        """Look at every row once; groups are read on the way."""
        different = np.zeros(0, np.uint64)
        n_unusable, first = 0, ""
        for group, rows, norms in self._groups(centre):
            bad = ~(norms < LARGEST_SQUARE)
            if bool(bad.any()):
                places = blocks.read_places(self._share.folder, blocks.group_name(group))
                first = first or places.place(int(torch.nonzero(bad)[0]))
                n_unusable += int(bad.sum())
            for tile in torch.split(rows, CHECK_ROWS):
                if len(different) >= self._rule.clusters:
                    break
                hashes = blocks.row_contents(tile.cpu().numpy())
                different = smallest(np.concatenate([different, hashes]), self._rule.clusters)
        return Check(different, n_unusable, first)

    def step(self, centroids: Centroids, centre: Centroids | None) -> tuple[list[Node], list[str]]:
        """Return the sums of all groups, folded, and the digest of each group's labels."""
        digests: list[str] = []
        ready = against(centroids, self._device)

        def nodes() -> Iterator[Node]:
            for group, rows, norms in self._groups(centre):
                partial, labels = add_group(rows, norms, ready)
                digests.append(labels_digest(labels))
                yield 0, group, partial

        return fold(nodes()), digests

    def far(self, centroids: Centroids, centre: Centroids | None, n: int) -> list[FarRows]:
        """Return the n rows of each group that are farthest from their centroid."""
        ready = against(centroids, self._device)
        return [
            far_rows(rows, norms, ready, n, group * self._share.info.group_rows)
            for group, rows, norms in self._groups(centre)
        ]

    def usage(self, centroids: Centroids, centre: Centroids | None) -> Usage:
        """Return which codes the rows of which recordings have."""
        totals: dict[tuple[str, int], int] = {}
        ready = against(centroids, self._device)
        for group, rows, norms in self._groups(centre):
            _, labels = add_group(rows, norms, ready)
            places = blocks.read_places(self._share.folder, blocks.group_name(group))
            pairs, counts = np.unique(
                places.recording * len(centroids) + labels, return_counts=True
            )
            for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
                key = (places.names[pair // len(centroids)], pair % len(centroids))
                totals[key] = totals.get(key, 0) + count
        names = tuple(sorted({name for name, _ in totals}))
        code = {name: number for number, name in enumerate(names)}
        return Usage(
            names,
            np.array([token for _, token in totals], np.int64),
            np.array([code[name] for name, _ in totals], np.int64),
            np.array(list(totals.values()), np.int64),
        )

    def _groups(self, centre: Centroids | None) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield (group, rows, squared lengths); those that are not kept are read one ahead."""
        groups = range(self._share.first, self._share.stop)
        to_read = [group for group in groups if group not in self._kept]
        ahead: Future[Vectors] | None = None
        for group in groups:
            if group in self._kept:
                yield group, *self._kept[group]
                continue
            vectors = self._read(group) if ahead is None else ahead.result()
            to_read.remove(group)
            ahead = self._reader.submit(self._read, to_read[0]) if to_read else None
            rows = prepare(vectors, self._rule.metric, centre, self._device)
            del vectors
            norms = square_norms(rows)
            if len(self._kept) < self._n_keep:
                self._kept[group] = rows, norms
            yield group, rows, norms

    def _read(self, group: int) -> Vectors:
        return blocks.read_vectors(self._share.folder, blocks.group_name(group))
