"""The pass over tokens counts what plain Python counts, however rows are cut and mixed."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray import schema
from bioembed_ray.report.census import COLUMNS, LEAST_S, take_census

K = 5
SITES = {"a.wav": "marsh", "b.wav": "forest", "ü.wav": "marsh"}
NAMES = [*SITES, "nowhere.wav"]


@dataclass(frozen=True)
class Track:
    """A channel of a recording: steps of `bands` tokens, and where it is cut."""

    recording: str
    channel: int
    steps: list[tuple[int | None, ...]]
    cuts: list[int]
    holes: list[int]

    def rows(self, bands: int, hop_s: float) -> list[dict[str, Any]]:
        """Cut into rows; at a hole the next row starts half a step late."""
        edges = [0, *sorted({c for c in self.cuts if 0 < c < len(self.steps)}), len(self.steps)]
        rows, late = [], 0.0
        for low, high in itertools.pairwise(edges):
            late += 0.5 * hop_s if low in self.holes else 0.0
            rows.append(
                {
                    "recording": self.recording,
                    "channel": self.channel,
                    "start_s": low * hop_s + late,
                    "hop_s": hop_s,
                    "per_step": bands,
                    "tokens": [token for step in self.steps[low:high] for token in step],
                }
            )
        return rows

    def sequences(self, bands: int) -> list[list[int | None]]:
        """Return what is connected, per band: holes between rows part it."""
        edges = sorted({c for c in self.cuts if 0 < c < len(self.steps)} & set(self.holes))
        return [
            [step[band] for step in self.steps[low:high]]
            for low, high in itertools.pairwise([0, *edges, len(self.steps)])
            for band in range(bands)
        ]


@st.composite
def archives(draw: st.DrawFn) -> tuple[int, list[Track]]:
    bands = draw(st.sampled_from([1, 1, 3]))
    # Few different ids, so that runs are long enough to cross rows.
    token = st.sampled_from([None, 0, 0, 0, 1, 1, 4])
    step = st.tuples(*[token] * bands)
    places = draw(
        st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 1)), unique=True, max_size=4)
    )
    cuts = st.lists(st.integers(1, 20), max_size=5)
    return bands, [
        Track(*place, draw(st.lists(step, min_size=1, max_size=20)), draw(cuts), draw(cuts))
        for place in places
    ]


@settings(deadline=None, max_examples=150)
@given(archives(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_a_pass_counts_what_plain_python_counts(
    archive: tuple[int, list[Track]], random: Any, n_batches: int
) -> None:
    bands, tracks = archive
    hop_s = 0.02
    rows = [row for track in tracks for row in track.rows(bands, hop_s)]
    random.shuffle(rows)
    batches = [
        batch
        for part in range(n_batches)
        for batch in pa.Table.from_pylist(rows[part::n_batches], schema=schema.tokens("int16"))
        .select(list(COLUMNS))
        .to_batches()
    ]
    census = take_census(batches, K, SITES, len(NAMES))

    runs: Counter[int] = Counter()
    moves: Counter[tuple[int, int]] = Counter()
    stays: Counter[int] = Counter()
    for sequence in (one for track in tracks for one in track.sequences(bands)):
        units = [(token, len(list(group))) for token, group in itertools.groupby(sequence)]
        runs.update(token for token, _ in units if token is not None)
        for (a, _), (b, _) in itertools.pairwise(units):
            if a is not None and b is not None:
                moves[a, b] += 1
        for a, b in itertools.pairwise(sequence):
            if a is not None and a == b:
                stays[a] += 1
    flat = [(t.recording, token) for t in tracks for step in t.steps for token in step]
    counts = Counter(token for _, token in flat)
    assert census.n_gaps == counts[None]
    assert census.counts.tolist() == [counts[k] for k in range(K)]
    assert census.n_runs.tolist() == [runs[k] for k in range(K)]
    assert census.moves.toarray().tolist() == [[moves[a, b] for b in range(K)] for a in range(K)]
    for k in range(K):
        followed = stays[k] + sum(moves[k, b] for b in range(K))
        wanted = stays[k] / followed if followed else np.nan
        np.testing.assert_allclose(census.stay[k], wanted)
        np.testing.assert_allclose(census.run_s[k], hop_s * counts[k] / max(1, runs[k]))
    by_recording = Counter(flat)
    for number, name in enumerate(census.names):
        wanted_row = [by_recording[name, k] for k in range(K)]
        assert census.by_recording.toarray()[:, number].tolist() == wanted_row
    for number, site in enumerate(census.sites):
        members = [name for name in SITES if SITES[name] == site]
        wanted_row = [sum(by_recording[m, k] for m in members) for k in range(K)]
        assert census.by_site.toarray()[:, number].tolist() == wanted_row


@settings(deadline=None, max_examples=150)
@given(archives())
def test_the_longest_runs_are_those_of_different_recordings(
    archive: tuple[int, list[Track]],
) -> None:
    bands, tracks = archive
    rows = [row for track in tracks for row in track.rows(bands, 0.02)]
    table = pa.Table.from_pylist(rows, schema=schema.tokens("int16")).select(list(COLUMNS))
    found = take_census(table.to_batches(), K, SITES, len(NAMES), per_token=2)
    longest: dict[tuple[int, str], int] = defaultdict(int)
    for row in rows:
        for band in range(bands):
            for token, group in itertools.groupby(row["tokens"][band::bands]):
                if token is not None:
                    key = (token, row["recording"])
                    longest[key] = max(longest[key], len(list(group)))
    places = found.longest
    names = [found.names[number] for number in places.origin]
    for k in range(K):
        wanted = sorted((n for (token, _), n in longest.items() if token == k), reverse=True)[:2]
        mine = places.token == k
        assert sorted((-places.score[mine]).astype(int).tolist(), reverse=True) == wanted
        chosen = [name for name, is_mine in zip(names, mine, strict=True) if is_mine]
        assert len(set(chosen)) == len(chosen)
    for token, name, start_s, stop_s, band, score in zip(
        places.token, names, places.start_s, places.stop_s, places.band, places.score, strict=True
    ):
        np.testing.assert_allclose(stop_s - start_s, -score * 0.02, atol=1e-9)
        inside = [
            row["tokens"][band::bands][first : first - int(score)]
            for row in rows
            if row["recording"] == name
            and (first := round((start_s - row["start_s"]) / 0.02)) >= 0
            and abs(row["start_s"] + first * 0.02 - start_s) < 1e-6
        ]
        assert [token] * -int(score) in inside


def test_counts_and_the_busiest_row_are_what_duckdb_finds() -> None:
    rng = np.random.default_rng(1)
    rows = [
        {
            "recording": f"{number}.wav",
            "channel": 0,
            "start_s": 0.0,
            "hop_s": 0.02,
            "per_step": 1,
            "tokens": rng.integers(0, 1 + number % 7, 800 + 100 * number).tolist(),
        }
        for number in range(12)
    ]
    rows_table = pa.Table.from_pylist(rows, schema=schema.tokens("int16"))
    census = take_census(rows_table.to_batches(max_chunksize=5), 8, {}, 12)
    by_code = duckdb.sql(
        "SELECT t, count(*) FROM (SELECT unnest(tokens) t FROM rows_table) GROUP BY t ORDER BY t"
    ).fetchall()
    assert list(enumerate(census.counts.tolist())) == [*by_code, (7, 0)]
    wanted = duckdb.sql(
        f"""SELECT recording FROM (SELECT recording, unnest(tokens) t, len(tokens) * hop_s s FROM rows_table)
        GROUP BY recording, s ORDER BY count(DISTINCT t) / greatest({LEAST_S}, s) DESC LIMIT 1"""
    ).fetchall()
    assert census.busiest is not None
    assert (census.busiest.recording,) == wanted[0]
