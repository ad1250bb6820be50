"""Where in the archive a token is heard best: places near its centroid, or its longest runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import parts
from bioembed_ray.codebooks.card import Codebook
from bioembed_ray.datasets import Dataset
from bioembed_ray.report.census import Census
from bioembed_ray.report.codebook_numbers import Candidates, Ints, best_places, promising
from bioembed_ray.report.markup import count
from bioembed_ray.results import Results
from bioembed_ray.rows import Rows, vectors_of

# Decoded at once: 25 MB of 768 float32.
BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Places:
    """What galleries show.

    Attributes:
        places: By token, the best first; of different recordings.
        names: Recordings by number.
        are_nearest: Whether they are nearest the centroids, or the longest runs.
        note: How they were found, plain text.
    """

    places: Candidates
    names: list[str]
    are_nearest: bool
    note: str


def shown_tokens(counts: Ints, most: int) -> list[int]:
    """Return which tokens get a gallery: half the most used, half evenly spread over the others.

    Args:
        counts: (K,) how often each is used.
        most: Most tokens.

    Returns:
        Ids, the most used first; ones never used are not among them.

    >>> shown_tokens(np.array([5, 0, 9, 7, 1, 2, 3]), 4)
    [2, 3, 0, 4]
    """
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    if len(order) <= most:
        return [int(code) for code in order]
    first = most - most // 2
    spread = np.linspace(first, len(order) - 1, most // 2).round().astype(np.int64)
    return [int(code) for code in [*order[:first], *order[spread]]]


def find_places(
    results: Results,
    book: Codebook,
    census: Census,
    shown: list[int],
    per_token: int,
    most_vectors: int,
) -> Places:
    """Return the places that show some tokens best.

    Args:
        results: The output.
        book: Codebook of the tokens.
        census: What the pass over tokens found.
        shown: Which tokens.
        per_token: Places per token, each of another recording.
        most_vectors: Most vectors read, about; parts are left out evenly beyond.

    Returns:
        Places nearest the centroids, where vectors of the codebook's encoder stand; else the longest runs.

    Raises:
        StorageError: reading failed.
    """
    wanted = np.zeros(len(book.centroids), bool)
    wanted[shown] = True
    found = vectors_behind(results, book)
    if found is None:
        mine = census.longest.take(wanted[census.longest.token])
        return Places(
            mine,
            census.names,
            False,
            "No vectors stand for this codebook's frames, so these are not the places nearest the "
            "centroids but the token's longest runs, one per recording. "
            f"Set encoders.{book.encoder.partition('.')[0]}.frames: all to see the nearest.",
        )
    rows, what = found
    places, names, n_seen, n_all = nearest_places(rows, book, wanted, per_token, most_vectors)
    seen = f"all {count(n_all)}" if n_seen == n_all else f"{count(n_seen)} of {count(n_all)}"
    note = (
        f"The places nearest each centroid, one per recording, among {seen} {what} that stand; "
        "the nearest comes first."
    )
    return Places(places, names, True, note)


def vectors_behind(results: Results, book: Codebook) -> tuple[Rows, str] | None:
    """Return the vectors that a codebook's tokens were named from, and what they are.

    Frames where they are kept; window vectors where the encoder has no frames; frames that a fit
    left behind. None where none of these stand.
    """
    kept = results.current.get("encoders", {}).get(book.encoder, {}).get("frames")
    candidates = [Dataset("frames", book.encoder, kept)] if kept else []
    # Beside frames, window vectors have a version of their own: only one of the two is the source.
    candidates += [
        Dataset(table, book.encoder, book.encoder_version) for table in ("embeddings", "fit_frames")
    ]
    for dataset in candidates:
        if not parts.list_parts(results.output, dataset):
            continue
        rows = Rows(results.output, dataset, results.recordings)
        if rows.arrow.schema.field("embedding").type.list_size == book.centroids.shape[1]:
            return rows, "window vectors" if dataset.table == "embeddings" else "frames"
    return None


def nearest_places(
    rows: Rows, book: Codebook, wanted: np.ndarray, per_token: int, most_vectors: int
) -> tuple[Candidates, list[str], int, int]:
    """Return the places nearest some centroids among those whose token they are.

    Args:
        rows: Vectors.
        book: Centroids.
        wanted: (K,) bool, which of them.
        per_token: Places per token, each of another recording.
        most_vectors: Most vectors read, about.

    Returns:
        Places by token and distance; names of recordings by number; vectors read; vectors there are.
    """
    from bioembed_ray.codebooks.nearest import assign, make_codes

    codes = make_codes(book.centroids, book.metric)
    numbers: dict[str, int] = {}
    kept = best_places([], per_token)
    n_all, n_seen = rows.count(), 0
    for batch in _some_batches(rows, n_all, most_vectors):
        n_seen += len(batch)
        # A copy, since Arrow's memory is not for writing and torch complains.
        token, distance = assign(np.array(vectors_of(batch.column("embedding"))), codes)
        encoded = batch.column("recording").dictionary_encode()
        number = [numbers.setdefault(n, len(numbers)) for n in encoded.dictionary.to_pylist()]
        places = Candidates(
            token,
            distance.astype(np.float64),
            np.array(number, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)],
            _whole(batch, "channel"),
            _whole(batch, "patch"),
            batch.column("start_s").to_numpy(zero_copy_only=False),
            batch.column("end_s").to_numpy(zero_copy_only=False),
        )
        places = promising(kept, places.take(wanted[token]), per_token, len(wanted))
        kept = best_places([kept, places], per_token)
    return kept, list(numbers), n_seen, n_all


def _some_batches(rows: Rows, n_all: int, most: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of every n-th part, so that about `most` are read."""
    names = ("recording", "channel", "patch", "start_s", "end_s", "embedding")
    columns = [name for name in names if name in rows.arrow.schema.names]
    fragments = list(rows.arrow.get_fragments())
    step = max(1, -(-n_all // most))
    for fragment in fragments[::step]:
        for batch in fragment.to_batches(
            columns=columns, batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1
        ):
            if batch.num_rows:
                yield batch


def _whole(batch: pa.RecordBatch, name: str) -> Ints:
    if name not in batch.schema.names:
        return np.zeros(len(batch), np.int64)
    numbers: Ints = pc.cast(batch.column(name), pa.int64()).to_numpy(zero_copy_only=False)
    return numbers
