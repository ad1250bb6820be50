"""Parts become the sample: hashes decide, rows are scattered by where they belong and put in order.

Three rounds over the parts, each a function of one part, so that any scheduler may run them in any
order: count the groups (balanced samples only), find the smallest hashes, scatter the chosen rows.
A last one over buckets, neighbouring stretches of the sample, puts each in order. Vectors travel
through storage, never through the driver.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bioembed_ray import storage
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.frame_parts import (
    Rows,
    chosen_rows,
    count_part,
    in_order,
    part_hashes,
    read_part,
    stack_rows,
)
from bioembed_ray.codebooks.sample import (
    Hashes,
    SampleRule,
    Selection,
    group_rows,
    merge,
    order_keys,
    quotas,
)
from bioembed_ray.errors import InputError

# A bucket is put in order in memory, several copies of it.
BUCKET_BYTES = 256 << 20

Groups = Mapping[str, str] | None
Spread = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
"""Calls a function with each tuple of arguments, anywhere; yields the answers in that order."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the chosen rows go.

    Attributes:
        folder: The sample's folder.
        selection: Which rows.
        bounds: First order key of every bucket but the first.
        group_rows: Rows per group.
        bucket_rows: Rows per bucket, a multiple of `group_rows`.
    """

    folder: str
    selection: Selection
    bounds: tuple[int, ...]
    group_rows: int
    bucket_rows: int


def request_of(parts: Sequence[storage.ObjectInfo], rule: SampleRule, groups: Groups) -> str:
    """Return what tells one request for a sample from another: parts, their stamps, the rule."""
    content = {
        "parts": sorted((part.uri, part.stamp) for part in parts),
        "rule": asdict(rule),
        "groups": sorted((groups or {}).items()),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def gather_sample(
    folder: str,
    parts: Sequence[storage.ObjectInfo],
    rule: SampleRule,
    groups: Groups,
    spread: Spread,
    bucket_bytes: int = BUCKET_BYTES,
) -> SampleInfo:
    """Put the sample in its folder, unless it stands there already.

    Args:
        folder: Where to.
        parts: Parts of frames/ or embeddings/, in any order.
        rule: How many frames.
        groups: Recording -> value of the column to balance by; None takes all alike.
        spread: Who computes.
        bucket_bytes: Vectors put in order at once.

    Raises:
        InputError: no frames, or parts that are none.
        StorageError: reading or writing failed.
    """
    request = request_of(parts, rule, groups)
    standing = blocks.read_info(folder)
    if standing is not None and standing.request == request:
        return standing
    blocks.drop_sample(folder)
    uris = sorted(part.uri for part in parts)
    selection, fitted, n_held, by_group, n_seen = _select(uris, rule, groups, spread)
    if not len(fitted):
        raise InputError(
            f"no frames to fit a codebook on: {len(uris)} parts hold {n_seen}, all of them held out"
        )
    dim = _dim(uris)
    layout = _lay_out(folder, selection, fitted, dim, bucket_bytes)
    written: dict[str, list[str]] = {}
    for names in spread(
        scatter_part, [(uri, f"{index:06d}", layout, groups) for index, uri in enumerate(uris)]
    ):
        for bucket, name in names:
            written.setdefault(bucket, []).append(name)
    for _ in spread(
        order_bucket, [(bucket, sorted(names), layout) for bucket, names in sorted(written.items())]
    ):
        pass
    info = SampleInfo(
        n_rows=len(fitted),
        n_held=n_held,
        dim=dim,
        group_rows=layout.group_rows,
        digest=hashlib.sha256(np.sort(fitted).tobytes()).hexdigest()[:16],
        request=request,
        n_seen=n_seen,
        by_group=by_group,
    )
    blocks.put_info(folder, info)
    pieces = [(folder, name) for names in written.values() for name in names]
    for _ in spread(blocks.drop_rows, pieces):
        pass
    return info


def _select(
    uris: list[str], rule: SampleRule, groups: Groups, spread: Spread
) -> tuple[Selection, Hashes, int, dict[str, int], int]:
    n_seen = 0
    counts: dict[str, int] = {}
    for found in spread(count_part, [(uri, rule, groups) for uri in uris]):
        for name, count in found.fitted.items():
            counts[name] = counts.get(name, 0) + count
        n_seen += sum(found.fitted.values()) + found.held
    quota = quotas(counts, rule.frames)
    fitted = {name: np.zeros(0, np.uint64) for name in quota}
    held = np.zeros(0, np.uint64)
    for best, kept in spread(part_hashes, [(uri, rule, groups, quota) for uri in uris]):
        for name, hashes in best.items():
            fitted[name] = merge([fitted[name], hashes], quota[name])
        held = merge([held, kept], rule.held_out_frames)
    limits = {name: int(hashes[-1]) for name, hashes in fitted.items() if len(hashes)}
    selection = Selection(rule.held_out, limits, int(held[-1]) if len(held) else None)
    every = np.unique(np.concatenate([np.zeros(0, np.uint64), *fitted.values()]))
    by_group = {name: len(hashes) for name, hashes in sorted(fitted.items())}
    return selection, every, len(held), by_group if groups is not None else {}, n_seen


def _dim(uris: list[str]) -> int:
    for uri in uris:
        for rows in read_part(uri, with_vectors=True):
            if rows.vectors is not None and len(rows):
                return int(rows.vectors.shape[1])
    raise InputError("no frames to fit a codebook on")


def _lay_out(
    folder: str, selection: Selection, fitted: Hashes, dim: int, bucket_bytes: int
) -> Layout:
    each = group_rows(len(fitted))
    # Counted as float32, whatever they are stored as.
    bucket_rows = max(1, bucket_bytes // (each * dim * 4)) * each
    keys = np.sort(order_keys(fitted))
    bounds = tuple(int(key) for key in keys[bucket_rows::bucket_rows])
    return Layout(folder, selection, bounds, each, bucket_rows)


def scatter_part(uri: str, name: str, layout: Layout, groups: Groups) -> list[tuple[str, str]]:
    """Put the chosen rows of a part, one piece per bucket; return (bucket, piece) of each."""
    fitted, held = chosen_rows(uri, layout.selection, groups)
    written = []
    if fitted is not None:
        bounds = np.array(layout.bounds, np.uint64)
        bucket = np.searchsorted(bounds, order_keys(fitted.hashes), side="right")
        for number in np.unique(bucket):
            written.append((f"{number:05d}", f"piece-{number:05d}-{name}"))
            blocks.put_rows(layout.folder, written[-1][1], fitted.take(bucket == number))
    if held is not None:
        written.append((blocks.HELD_OUT, f"piece-held-{name}"))
        blocks.put_rows(layout.folder, written[-1][1], held)
    return written


def order_bucket(bucket: str, pieces: Sequence[str], layout: Layout) -> None:
    """Put the rows of a bucket in the sample's order, group by group.

    The pieces stay until all is done, since a worker that dies here is followed by another.
    """
    rows = _ordered(layout.folder, pieces)
    if bucket == blocks.HELD_OUT:
        blocks.put_rows(layout.folder, blocks.HELD_OUT, rows)
    else:
        first = int(bucket) * layout.bucket_rows // layout.group_rows
        for number, start in enumerate(range(0, len(rows), layout.group_rows)):
            group = rows.take(slice(start, start + layout.group_rows))
            blocks.put_rows(layout.folder, blocks.group_name(first + number), group)


def _ordered(folder: str, pieces: Sequence[str]) -> Rows:
    rows = stack_rows([blocks.read_rows(folder, name) for name in pieces])
    if rows is None:
        raise ValueError("pieces without rows")
    return in_order(rows)
