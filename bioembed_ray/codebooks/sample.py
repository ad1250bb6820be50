"""Which frames form the fit sample: those with the smallest hashes of who and where they are.

Nothing but recording, channel, position and patch decides, so the sample depends neither on the
order of arrival nor on workers, shards or runs. A frame's hash is drawn on three times, each time
mixed anew: is it held out, is it among the M smallest, and where does it stand in the sample. The
order is a draw of its own so that the first rows are a fair sample of the whole, also where a
balanced sample takes a large group's smallest hashes only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

# Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators": SplitMix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
# Any constants do, as long as they differ and never change.
_HELD_OUT = np.uint64(0x6865_6C64_6F75_7421)
_ORDER = np.uint64(0x6F72_6465_7265_6421)
# Rows whose sums are kept in float32 by a fit; a group is a multiple of it.
RUN_ROWS = 4096
# Groups at most: enough to share among that many workers, few enough for one partial each.
MOST_GROUPS = 256


@dataclass(frozen=True, slots=True)
class SampleRule:
    """How large the sample is and whom it draws on.

    Attributes:
        frames: Most frames to fit on, M.
        held_out: Share of all frames that is never fitted on, and of M that is kept to judge by.
        max_held_out: Most held-out frames that are kept.
        balance: Name of the manifest column whose values get equal shares; None takes all alike.
    """

    frames: int
    held_out: float = 0.05
    max_held_out: int = 50_000
    balance: str | None = None

    @property
    def held_out_frames(self) -> int:
        """How many held-out frames are kept at most."""
        return min(self.max_held_out, round(self.frames * self.held_out))


def group_rows(n_rows: int) -> int:
    """Return how many rows a group has: it depends on the sample's size and on nothing else.

    >>> group_rows(200_000), group_rows(5_000_000)
    (4096, 20480)
    """
    each = -(-n_rows // MOST_GROUPS)
    return max(1, -(-each // RUN_ROWS)) * RUN_ROWS


def mix(values: Hashes) -> Hashes:
    """Return SplitMix64's mixing of every value: a bijection of 64-bit numbers.

    >>> hex(mix(np.array([0], np.uint64))[0])
    '0xe220a8397b1dcdaf'
    """
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def track_digest(recording: str, channel: int) -> int:
    """Return 64 bits of BLAKE2b over a recording's name and a channel."""
    body = f"{channel}\0{recording}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little")


def frame_hashes(
    recordings: Sequence[str],
    recording: npt.NDArray[np.integer],
    channel: npt.NDArray[np.integer],
    position: npt.NDArray[np.integer],
    patch: npt.NDArray[np.integer],
) -> Hashes:
    """Return the hash of every frame.

    Args:
        recordings: Names.
        recording: (N,) index into the names.
        channel: (N,) channel.
        position: (N,) first sample that the frame sees, or any other integer that places it.
        patch: (N,) frequency patch, 0 where a time step is one frame.

    Returns:
        (N,) uint64.
    """
    tracks, track = np.unique(
        np.stack([recording.astype(np.int64), channel.astype(np.int64)], axis=1),
        axis=0,
        return_inverse=True,
    )
    digests = np.array(
        [track_digest(recordings[int(r)], int(c)) for r, c in tracks], dtype=np.uint64
    )
    place = mix(position.astype(np.int64).view(np.uint64)) + patch.astype(np.uint64)
    return mix(digests[track.reshape(-1)] ^ mix(place))


def is_held_out(hashes: Hashes, share: float) -> npt.NDArray[np.bool_]:
    """Return which frames are never fitted on: a fixed share of all there are."""
    if share >= 1:
        return np.ones(len(hashes), bool)
    return mix(hashes ^ _HELD_OUT) < np.uint64(int(max(0.0, share) * 2.0**64))


def order_keys(hashes: Hashes) -> Hashes:
    """Return what the sample is sorted by; different hashes have different keys."""
    return mix(hashes ^ _ORDER)


def smallest(hashes: Hashes, n: int) -> Hashes:
    """Return the n smallest different hashes, ascending."""
    if len(hashes) > 2 * n > 0:
        hashes = np.partition(hashes, n - 1)
        # Of a hash that occurs more than once, too few others may have been kept.
        kept = np.unique(hashes[:n])
        return kept if len(kept) == n else np.unique(hashes)[:n]
    return np.unique(hashes)[:n]


def merge(partial: Iterable[Hashes], n: int) -> Hashes:
    """Return the n smallest hashes of all, from the n smallest of each part.

    A hash among the n smallest of all has fewer than n below it, so it is also among the n
    smallest of the part it came from: merging in any order, at any time, loses none.

    >>> merge([np.array([1, 7], np.uint64), np.array([3], np.uint64)], 2).tolist()
    [1, 3]
    """
    kept = np.zeros(0, np.uint64)
    for hashes in partial:
        kept = smallest(np.concatenate([kept, hashes]), n)
    return kept


def quotas(counts: Mapping[str, int], n: int) -> dict[str, int]:
    """Return how many frames each group gives: equal shares, what small ones leave to the others.

    Args:
        counts: Group -> frames it has.
        n: Frames wanted in all.

    Returns:
        Group -> frames; the sum is n, or all there are. What does not divide goes to the first
        groups by name.

    >>> quotas({"loud": 900, "quiet": 40, "shy": 60}, 300)
    {'loud': 200, 'quiet': 40, 'shy': 60}
    """
    given: dict[str, int] = {}
    left = n
    # Smallest first: what a group cannot give is shared by those that have more.
    waiting = sorted(counts, key=lambda group: (counts[group], group))
    while waiting and counts[waiting[0]] * len(waiting) <= left:
        group = waiting.pop(0)
        given[group] = counts[group]
        left -= counts[group]
    if waiting:
        share, extra = divmod(left, len(waiting))
        for number, group in enumerate(sorted(waiting)):
            given[group] = share + (number < extra)
    # No group is asked for more than it has: every waiting one has more than the share.
    return {group: given[group] for group in sorted(given)}


@dataclass(frozen=True, slots=True)
class Selection:
    """What is in the sample, settled: every worker can tell for every frame on its own.

    Attributes:
        share: Share that is held out.
        limits: Group -> largest hash fitted on; a group without one gives nothing.
        held_limit: Largest hash of the held-out frames that are kept; None keeps none.
    """

    share: float
    limits: Mapping[str, int]
    held_limit: int | None

    def chosen(
        self, hashes: Hashes, groups: Sequence[str], group: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which frames are fitted on, and which are kept to judge by.

        Args:
            hashes: (N,) hash of every frame.
            groups: Names of groups.
            group: (N,) index into the names.
        """
        held = is_held_out(hashes, self.share)
        limits = np.array([self.limits.get(name, 0) for name in groups] or [0], np.uint64)
        has_limit = np.array([name in self.limits for name in groups] or [False])
        fitted = ~held & has_limit[group] & (hashes <= limits[group])
        if self.held_limit is None:
            return fitted, np.zeros(len(hashes), bool)
        return fitted, held & (hashes <= np.uint64(self.held_limit))
