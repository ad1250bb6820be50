"""Token rows: exact positions, gaps, segments, types, run lengths."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray.assigned import TokenTable
from bioembed_ray.run_lengths import as_text, run_lengths
from bioembed_ray.tokens import TokenPlaces, token_type, tokens_table


def table(
    starts: list[int], labels: np.ndarray, segment: int | None = None, stride: int = 320
) -> pa.Table:
    found = TokenTable(np.zeros(len(starts), np.int64), np.array(starts, np.int64), labels)
    return tokens_table(TokenPlaces(["a.wav"], [0], 16_000), found, stride, segment, 500)


@given(
    st.sets(st.integers(0, 400), min_size=1),
    st.integers(1, 3),
    st.sampled_from([None, 3200, 16_000]),
)
@settings(deadline=None, max_examples=80)
def test_every_token_stands_where_its_frame_starts_and_holes_are_null(
    steps: set[int], per_step: int, segment: int | None
) -> None:
    starts = np.array(sorted(steps)) * 320
    labels = np.arange(len(starts) * per_step, dtype=np.int32).reshape(-1, per_step) % 500
    got = {}
    for row in table(starts.tolist(), labels, segment).to_pylist():
        assert len(row["tokens"]) % per_step == 0
        for i, token in enumerate(row["tokens"]):
            at = round((row["start_s"] + (i // per_step) * row["hop_s"]) * 16_000)
            if segment is not None:
                assert at // segment == round(row["start_s"] * 16_000) // segment
            if token is not None:
                got[at, i % per_step] = token
    assert got == {
        (int(start), patch): int(labels[k, patch])
        for k, start in enumerate(starts)
        for patch in range(per_step)
    }


def test_a_step_that_is_no_multiple_begins_a_new_row() -> None:
    rows = table([0, 2560, 5120, 8000, 10_560], np.arange(5, dtype=np.int32)[:, None], None, 2560)
    assert [row["tokens"] for row in rows.to_pylist()] == [[0, 1, 2], [3, 4]]
    assert rows.column("start_s").to_pylist() == [0.0, 0.5]


def test_no_frames_give_no_rows() -> None:
    assert table([], np.zeros((0, 1), np.int32)).num_rows == 0


@pytest.mark.parametrize(
    ("n_clusters", "kind"), [(1, "int16"), (32_767, "int16"), (32_768, "int32"), (1 << 20, "int32")]
)
def test_tokens_are_int16_up_to_32767_centroids(n_clusters: int, kind: str) -> None:
    assert token_type(n_clusters) == kind
    assert np.iinfo(kind).max >= n_clusters - 1


@given(st.lists(st.one_of(st.none(), st.integers(0, 3))))
def test_run_lengths_are_undone_by_repeating(tokens: list[int | None]) -> None:
    units, durations = run_lengths(tokens)
    assert [u for u, n in zip(units, durations, strict=True) for _ in range(n)] == tokens
    assert all(a != b for a, b in itertools.pairwise(units))
    assert len(as_text(units, durations).split()) == len(units)
