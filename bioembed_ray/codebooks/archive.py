"""How a codebook is used by the whole archive: the card's last figures, from the tokens that stand."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from bioembed_ray import parts, storage
from bioembed_ray.codebooks.card import CARD_KEY, card_bytes, read_card, usage, verdict
from bioembed_ray.datasets import Dataset, Tokens, digest
from bioembed_ray.errors import NotFoundError
from bioembed_ray.plan import Plan

READ_THREADS = 8


def describe_codebooks(plan: Plan, complete: set[Dataset], is_changed: bool) -> None:
    """Enter in cards how the archive uses codebooks, where that has changed or is not known yet.

    Args:
        plan: What is wanted.
        complete: What stands whole; other codebooks wait.
        is_changed: Whether the run encoded anything; shards that others put are noticed without.
    """
    shards = digest({"shards": sorted(plan.shards)})
    for tokens in (t for e in plan.encoders for output in e.outputs for t in output.tokens):
        if tokens.dataset not in complete:
            continue
        # A run that was killed after its last put or delete leaves the next one nothing but this.
        known = read_card(tokens.folder).get("archive", {})
        is_known = (known.get("tokens"), known.get("shards")) == (tokens.dataset.version, shards)
        if is_changed or not is_known:
            describe_archive(plan.job.output, tokens)


def describe_archive(output: str, tokens: Tokens) -> str:
    """Enter the archive's use of a codebook in its card; return the verdict in one line.

    Raises:
        StorageError: reading or writing failed.
    """
    card = read_card(tokens.folder)
    n_codes = int(card["clusters"])
    counts = np.zeros(n_codes, np.int64)
    n_gaps = 0
    standing = parts.list_parts(output, tokens.dataset)
    for found, gaps in _counted(standing.values(), n_codes):
        counts += found
        n_gaps += gaps
    figures = usage(counts)
    text = verdict(figures)
    archive = {
        "tokens": tokens.dataset.version,
        "shards": digest({"shards": sorted(standing)}),
        "gaps": n_gaps,
        "verdict": text,
        **figures,
    }
    if card.get("archive") != archive:
        body = card_bytes({**card, "archive": archive})
        storage.put(storage.join(tokens.folder, CARD_KEY), body)
    return text


def _counted(
    entries: Iterable[storage.ObjectInfo], n_codes: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    def count(entry: storage.ObjectInfo) -> tuple[npt.NDArray[np.int64], int]:
        try:
            body = storage.read(entry.uri)
        except NotFoundError:
            return np.zeros(n_codes, np.int64), 0
        values = pq.read_table(io.BytesIO(body), columns=["tokens"]).column("tokens")
        flat = values.combine_chunks().flatten()
        ids = flat.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        return np.bincount(ids, minlength=n_codes), flat.null_count

    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from pool.map(count, entries)
