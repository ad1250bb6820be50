"""Token runs as selections and labels: against the tokens one by one, and crowsetta's reader."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioembed_ray.errors import InputError
from bioembed_ray.exports.formats import Request, export_all
from bioembed_ray.exports.token_annotations import token_runs
from tests.unit.output_fixtures import TOKENS, put_part, tokens, write_output

# Of the first recording's tokens 3 3 1 - - 0 2 | 2 2 0 at 0.1 s: unit, start, end.
RUNS = [(3, 0.0, 0.2), (1, 0.2, 0.3), (0, 0.5, 0.6), (2, 0.6, 0.9), (0, 0.9, 1.0)]


def write(root: Path, kind: str) -> list[str]:
    request = Request(str(root), str(root / "to"), (kind,), codebooks=("book-4",))
    return list(export_all(request))


def test_raven_selections_are_read_back(tmp_path: Path) -> None:
    crowsetta = pytest.importorskip("crowsetta")
    write_output(str(tmp_path))
    assert write(tmp_path, "raven") == [f"{tmp_path}/to/book-4_raven  2 files, 8 runs"]
    folder = tmp_path / "to" / "book-4_raven"
    # Both recordings have the same file name.
    path = folder / "forest" / "20240501_040000.wav.selections.txt"
    assert (folder / "marsh" / "20240501_040000.wav.selections.txt").exists()
    found = crowsetta.formats.bbox.Raven.from_file(path, annot_col="Annotation")
    boxes = found.to_bbox()
    assert [(int(b.label[1:]), b.onset, b.offset) for b in boxes] == RUNS
    assert {(b.low_freq, b.high_freq) for b in boxes} == {(0.0, 16_000.0)}
    text = path.read_text()
    assert f"{tmp_path}/archive/forest/20240501_040000.wav" in text


def test_audacity_labels_are_one_file_per_channel(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    assert write(tmp_path, "audacity") == [f"{tmp_path}/to/book-4_audacity  3 files, 8 runs"]
    folder = tmp_path / "to" / "book-4_audacity"
    rows = np.genfromtxt(
        folder / "forest" / "20240501_040000.wav.labels.txt",
        delimiter="\t",
        dtype=[("start", float), ("end", float), ("label", "U8")],
    )
    assert [(int(r["label"][1:]), r["start"], r["end"]) for r in rows] == RUNS
    names = sorted(path.name for path in (folder / "marsh").iterdir())
    assert names == [f"20240501_040000.wav.channel_{c}.labels.txt" for c in (0, 1)]
    second = (folder / "marsh" / names[1]).read_text().splitlines()
    assert [line.split("\t")[2] for line in second] == ["u1", "u0"]


def test_tokens_without_an_order_in_time_are_refused(tmp_path: Path) -> None:
    write_output(str(tmp_path))
    table = tokens()
    eight = table.set_column(
        4, table.schema.field("per_step"), pa.array([8] * len(table), pa.int16())
    )
    put_part(str(tmp_path), TOKENS, "s1", eight)
    with pytest.raises(InputError, match="book-4: 8 tokens per time step have no order in time"):
        write(tmp_path, "raven")


@given(
    st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=40),
    st.sets(st.integers(1, 39)),
)
def test_runs_are_what_stands_at_every_step(labels: list[int | None], cuts: set[int]) -> None:
    """However tokens are cut into rows: one run per stretch of equal tokens."""
    edges = [0, *sorted(c for c in cuts if c < len(labels)), len(labels)]
    rows = [
        {"channel": 0, "start_s": low * 0.02, "hop_s": 0.02, "tokens": labels[low:high]}
        for low, high in itertools.pairwise(edges)
    ]
    found = list(token_runs(rows))
    steps: list[int | None] = [None] * len(labels)
    for _, start, end, unit in found:
        for k in range(round(start / 0.02), round(end / 0.02)):
            assert steps[k] is None
            steps[k] = unit
    assert steps == labels
    groups = [unit for unit, _ in itertools.groupby(labels) if unit is not None]
    assert [unit for *_, unit in found] == groups
