"""The windows most like a query, from one pass over all of them: exact, in bounded memory.

Every vector is scored roughly in float32, with a bound on the error; those that may be among the best
are scored again in float64, row by row. So what is found depends neither on the size of batches nor
on the order of parts: equal scores are told apart by recording, channel and start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray.errors import InputError
from bioembed_ray.rows import BATCH_ROWS, Rows, vectors_of
from bioembed_ray.unit_rows import unit_rows

Metric = Literal["cosine", "dot"]
Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

PLACE = ("recording", "channel", "start_s", "end_s")
SCHEMA = pa.schema(
    [
        pa.field("rank", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("recording", pa.string()),
        pa.field("channel", pa.int16()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
    ]
)
# Rounding of a float32, and rows scored in float64 at a time.
UNIT_ROUNDOFF = 2.0**-24
EXACT_ROWS = 1024
# Below it the squares of a float32 vector begin to vanish.
TINY_SQUARE = 1e-20

# (minus score, recording, channel, start_s, end_s): sorted, the best comes first.
Hit = tuple[float, str, int, float, float]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a recording, all channels."""

    recording: str
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is searched for.

    Attributes:
        queries: (Q, D) float32; a window's score is its best over all of them.
        top: How many windows, at most.
        metric: `cosine`, or `dot` for the inner product.
        per_recording: Most windows of one recording; None sets no limit.
        besides: Windows that overlap it are left out, such as the query's own.
        where: Condition on columns of the rows.
        among: Condition on columns of recordings/.
        min_valid_s: Least seconds of sound in a window; None for half a window.
    """

    queries: Vectors
    top: int
    metric: Metric = "cosine"
    per_recording: int | None = None
    besides: Stretch | None = None
    where: pc.Expression | None = None
    among: pc.Expression | None = None
    min_valid_s: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        hits: Columns of `SCHEMA`, best first.
        n_compared: Windows that the query was compared with.
        n_unusable: Windows without a score: NaN or infinite, or zero where the metric is `cosine`.
        n_left_out: Windows that were not compared because they hold too little sound.
    """

    hits: pa.Table
    n_compared: int
    n_unusable: int
    n_left_out: int = 0


def scan(rows: Rows, wanted: Wanted, batch_rows: int = BATCH_ROWS) -> Found:
    """Compare a query with every window that passes the conditions.

    Raises:
        InputError: vectors of another length, or a query without a direction.
        StorageError: a part cannot be read.
    """
    dim = rows.arrow.schema.field("embedding").type.list_size
    check_queries(wanted.queries, dim, wanted.metric)
    batches = rows.batches(
        columns=[*PLACE, "embedding"],
        where=wanted.where,
        among=wanted.among,
        min_valid_s=wanted.min_valid_s,
        batch_rows=batch_rows,
    )
    n_left_out = 0
    if wanted.min_valid_s != 0:
        lacking = ~rows.enough(wanted.min_valid_s).condition
        where = lacking if wanted.where is None else wanted.where & lacking
        n_left_out = rows.count(where=where, among=wanted.among)
    return replace(best(batches, wanted), n_left_out=n_left_out)


def best(batches: Iterable[pa.RecordBatch], wanted: Wanted) -> Found:
    """Return the best rows of batches with the columns of `PLACE` and `embedding`."""
    pool = _Pool(wanted)
    for batch in batches:
        pool.add(batch if wanted.besides is None else _without(batch, wanted.besides))
    return Found(_table(pool.hits), pool.n_compared, pool.n_unusable)


def check_queries(queries: Vectors, dim: int, metric: Metric) -> None:
    """Refuse queries that no window can be compared with.

    Raises:
        InputError: see `scan`.
    """
    if queries.shape[1] != dim:
        raise InputError(f"the query has {queries.shape[1]} numbers, the windows have {dim}")
    if not np.isfinite(queries).all():
        raise InputError("the query holds NaN or infinity; nothing is near that")
    if metric == "cosine" and not queries.any(axis=1).all():
        raise InputError("the query is zero and so has no cosine; use --metric dot, or another one")


def exact_scores(vectors: Vectors, queries: Vectors, metric: Metric) -> Scores:
    """Return the best score of every row over all queries, in float64, each row on its own.

    Args:
        vectors: (n, D).
        queries: (Q, D), checked.
        metric: `cosine` or `dot`.

    Returns:
        (n,); NaN where a vector has no finite score.
    """
    found = np.full(len(vectors), np.nan)
    targets = queries.astype(np.float64)
    with np.errstate(all="ignore"):
        for first in range(0, len(vectors), EXACT_ROWS):
            rows = vectors[first : first + EXACT_ROWS].astype(np.float64)  # (n, D)
            # Sums along a row do not depend on the rows beside it, as a matrix product's do.
            scores = np.stack([(rows * target).sum(axis=1) for target in targets])  # (Q, n)
            if metric == "cosine":
                squares = (rows * rows).sum(axis=1) * (targets * targets).sum(axis=1)[:, None]
                # One root, so that a vector's cosine with itself is 1 to the last bit.
                scores = np.clip(scores / np.sqrt(squares), -1.0, 1.0)
            best_of = scores.max(axis=0)
            found[first : first + len(rows)] = np.where(np.isfinite(best_of), best_of, np.nan)
    return found


def rough_scores(vectors: Vectors, queries: Vectors, metric: Metric) -> tuple[Vectors, Vectors]:
    """Return float32 scores and how far each may be off; not finite where float32 cannot tell.

    A float32 inner product of D terms is off by at most D u |v| |q| (u = 2^-24) whatever the order
    of its sums (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
    """
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    units = unit_rows(queries)  # (Q, D)
    # The product, both norms and the rounding of the query, each off by as much, and some more.
    slack = np.float32(4 * (vectors.shape[1] + 8) * UNIT_ROUNDOFF)
    with np.errstate(all="ignore"):
        dots = vectors @ units.astype(np.float32).T  # (n, Q)
        squares = np.einsum("nd,nd->n", vectors, vectors)
        lengths = np.sqrt(squares)
        if metric == "cosine":
            rough = dots.max(axis=1) / lengths
            off = np.full(len(vectors), slack, np.float32)
        else:
            rough = (dots * norms.astype(np.float32)).max(axis=1)
            off = slack * lengths * np.float32(norms.max(initial=0.0))
        off[~((squares > TINY_SQUARE) & (squares < np.inf))] = np.nan
    return rough, off


@dataclass(slots=True)
class _Pool:
    """The best rows so far."""

    wanted: Wanted
    hits: list[Hit] = field(default_factory=list)
    n_compared: int = 0
    n_unusable: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        wanted = self.wanted
        vectors = vectors_of(batch.column("embedding"))
        self.n_compared += len(vectors)
        rows = self._hopeful(vectors)
        scores = exact_scores(vectors[rows], wanted.queries, wanted.metric)
        is_usable = ~np.isnan(scores)
        self.n_unusable += int((~is_usable).sum())
        rows, scores = rows[is_usable], scores[is_usable]
        kept = scores >= self._threshold()
        if wanted.per_recording is None and len(scores) > wanted.top:
            kept &= scores >= np.partition(scores, -wanted.top)[-wanted.top]
        rows, scores = rows[kept], scores[kept]
        places = batch.select(list(PLACE)).take(pa.array(rows))
        if wanted.per_recording is not None:
            first = _first_per_recording(places, scores, wanted.per_recording)
            places, scores = places.take(pa.array(first)), scores[first]
        columns = (places.column(name).to_pylist() for name in PLACE)
        new: Iterator[Hit] = zip((-scores).tolist(), *columns, strict=True)
        ordered = sorted([*self.hits, *new])
        if wanted.per_recording is not None:
            ordered = _capped(ordered, wanted.per_recording)
        self.hits = ordered[: wanted.top]

    def _hopeful(self, vectors: Vectors) -> npt.NDArray[np.int64]:
        """Return the rows that may be among the best, and those whose score float32 cannot tell."""
        wanted = self.wanted
        rough, off = rough_scores(vectors, wanted.queries, wanted.metric)
        needed = self._threshold()
        if wanted.per_recording is None and len(rough) > wanted.top:
            lowest = np.nan_to_num(rough - off, nan=-np.inf)
            needed = max(needed, float(np.partition(lowest, -wanted.top)[-wanted.top]))
        # Not "at least": what is not a number is looked at too.
        return np.flatnonzero(~(rough + off < needed))

    def _threshold(self) -> float:
        """Return the score of the last hit; any score will do while there are too few.

        With a limit per recording too: a hit leaves only for a better one of its recording.
        """
        return -self.hits[-1][0] if len(self.hits) == self.wanted.top else -np.inf


def _without(batch: pa.RecordBatch, own: Stretch) -> pa.RecordBatch:
    overlaps = pc.and_(
        pc.equal(batch.column("recording"), own.recording),
        pc.and_(
            pc.less(batch.column("start_s"), own.stop_s),
            pc.greater(batch.column("end_s"), own.start_s),
        ),
    )
    return batch.filter(pc.invert(overlaps))


def _first_per_recording(
    places: pa.RecordBatch, scores: Scores, most: int
) -> npt.NDArray[np.int64]:
    """Return the rows that are among the first `most` of their recording."""
    codes = places.column("recording").dictionary_encode().indices.to_numpy()
    channel = places.column("channel").to_numpy()
    start = places.column("start_s").to_numpy()
    order = np.lexsort((start, channel, -scores, codes))
    ordered = codes[order]
    nth = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    first: npt.NDArray[np.int64] = order[nth < most]
    return first


def _capped(ordered: Sequence[Hit], most: int) -> list[Hit]:
    seen: dict[str, int] = {}
    kept = []
    for hit in ordered:
        seen[hit[1]] = seen.get(hit[1], 0) + 1
        if seen[hit[1]] <= most:
            kept.append(hit)
    return kept


def _table(hits: Sequence[Hit]) -> pa.Table:
    rows = [
        # Not -0.0, which would be printed so.
        dict(zip(SCHEMA.names, (rank, 0.0 - score, *place), strict=True))
        for rank, (score, *place) in enumerate(hits, 1)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
