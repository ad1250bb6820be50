"""A streamed search finds what comparing everything in float64 finds, however rows are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray.search.exact import Metric, Stretch, Wanted, best

NAMES = ("a.wav", "b/ü.wav", "b/z.wav", "c.wav")
# Twins, opposites, lengths that float32 cannot square, and what has no direction.
SCALES = (1.0, 1.0, 1.0, -1.0, 1e-30, 1e25, 0.0, np.nan, np.inf)


@dataclass(frozen=True)
class Case:
    vectors: np.ndarray
    names: list[str]
    channels: list[int]
    starts: list[float]
    queries: np.ndarray
    top: int
    batch_rows: int
    metric: Metric
    per_recording: int | None
    besides: Stretch | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n, dim = draw(st.integers(0, 60)), draw(st.sampled_from([1, 2, 5, 9, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Few directions, so that scores tie; some differ in the last bits only.
    kinds = rng.standard_normal((draw(st.integers(1, 6)), dim)).astype(np.float32)
    vectors = kinds[rng.integers(len(kinds), size=n)]
    vectors = vectors * (1 + rng.integers(0, 3, (n, 1)) * np.float32(6e-8))
    with np.errstate(all="ignore"):
        vectors = (vectors * rng.choice(SCALES, (n, 1))).astype(np.float32)
    queries = rng.standard_normal((draw(st.integers(1, 3)), dim)).astype(np.float32)
    if draw(st.booleans()):
        queries[0] = kinds[0]
    order = rng.permutation(n)
    return Case(
        vectors,
        [NAMES[int(k) % len(NAMES)] for k in order],
        [int(k) // len(NAMES) % 2 for k in order],
        [float(int(k) // (2 * len(NAMES))) / 2 for k in order],
        queries,
        draw(st.integers(1, 12)),
        draw(st.integers(1, 70)),
        draw(st.sampled_from(["cosine", "dot"])),
        draw(st.sampled_from([None, 1, 2, 5])),
        draw(st.sampled_from([None, Stretch("a.wav", 0.5, 1.5)])),
    )


def batches(case: Case) -> list[pa.RecordBatch]:
    dim = case.vectors.shape[1]
    table = pa.table(
        {
            "recording": case.names,
            "channel": pa.array(case.channels, pa.int16()),
            "start_s": pa.array(case.starts, pa.float64()),
            "end_s": pa.array([start + 1 for start in case.starts], pa.float64()),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(case.vectors.reshape(-1), pa.float32()), dim
            ),
        }
    )
    return table.combine_chunks().to_batches(max_chunksize=case.batch_rows)


def by_force(case: Case) -> list[tuple[str, int, float]]:
    """Return (recording, channel, start_s) of the hits by comparing all, row after row."""
    ranked = []
    for row, vector in enumerate(case.vectors):
        name, start = case.names[row], case.starts[row]
        own = case.besides
        if own and name == own.recording and start < own.stop_s and start + 1 > own.start_s:
            continue
        wide = vector.astype(np.float64)
        scores = []
        for query in case.queries.astype(np.float64):
            with np.errstate(all="ignore"):
                score = (wide * query).sum()
                if case.metric == "cosine":
                    score /= np.sqrt((wide * wide).sum() * (query * query).sum())
            scores.append(np.clip(score, -1, 1) if case.metric == "cosine" else score)
        if np.isfinite(max(scores)) and not np.isnan(scores).any():
            ranked.append((-max(scores), name, case.channels[row], start))
    kept: list[tuple[str, int, float]] = []
    for _, *place in sorted(ranked):
        same = sum(name == place[0] for name, _, _ in kept)
        if case.per_recording is None or same < case.per_recording:
            kept.append((place[0], place[1], place[2]))
    return kept[: case.top]


@settings(deadline=None, max_examples=300)
@given(cases())
def test_hits_are_those_of_comparing_everything(case: Case) -> None:
    wanted = Wanted(case.queries, case.top, case.metric, case.per_recording, case.besides)
    hits = best(batches(case), wanted).hits
    columns = (hits.column(c).to_pylist() for c in ("recording", "channel", "start_s"))
    places = zip(*columns, strict=True)
    assert list(places) == by_force(case)
    scores = hits.column("score").to_numpy()
    assert (np.diff(scores) <= 0).all()
    assert hits.column("rank").to_pylist() == list(range(1, len(hits) + 1))


@settings(deadline=None, max_examples=50)
@given(cases(), st.integers(1, 70))
def test_neither_batches_nor_order_matter(case: Case, batch_rows: int) -> None:
    wanted = Wanted(case.queries, case.top, case.metric, case.per_recording)
    one = best(batches(case), wanted)
    table = (
        pa.Table.from_batches(batches(case), batches(case)[0].schema) if len(case.names) else None
    )
    if table is None:
        assert not len(one.hits)
        return
    turned = table.take(pa.array(range(len(table) - 1, -1, -1))).combine_chunks()
    other = best(turned.to_batches(max_chunksize=batch_rows), wanted)
    assert one.hits.equals(other.hits)
