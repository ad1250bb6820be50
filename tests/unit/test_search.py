"""The scan over parts: conditions, what has no score, memory."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import bioembed_ray
from bioembed_ray import parts, schema, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import ConfigError, InputError
from bioembed_ray.results import Results
from bioembed_ray.search.exact import Wanted, rough_scores, scan
from bioembed_ray.search.filters import choose_recordings, on_channel
from tests.unit.search_fixtures import D, cosines, write_output


@pytest.fixture
def results(tmp_path: Path) -> Results:
    write_output(str(tmp_path))
    return bioembed_ray.open(str(tmp_path))


def places(hits: pa.Table) -> list[tuple[str, int, float]]:
    columns = (hits.column(c).to_pylist() for c in ("recording", "channel", "start_s"))
    return list(zip(*columns, strict=True))


def expected(results: Results, query: np.ndarray, top: int, keep: pc.Expression) -> list[object]:
    vectors, index = results.windows("fake").numpy()
    index = index.append_column("score", pa.array(cosines(vectors, query))).filter(keep)
    order = [
        ("score", "descending"),
        *((c, "ascending") for c in ("recording", "channel", "start_s")),
    ]
    return places(index.sort_by(order).slice(0, top))  # type: ignore[return-value]


QUERY = np.random.default_rng(5).standard_normal(D).astype(np.float32)


def test_all_windows_are_compared(results: Results) -> None:
    found = scan(results.windows("fake"), Wanted(QUERY[None], 15), batch_rows=7)
    assert places(found.hits) == expected(results, QUERY, 15, pc.scalar(True))
    assert (found.n_compared, found.n_unusable) == (results.windows("fake").count(), 0)


@pytest.mark.parametrize(
    ("where", "since", "until", "names"),
    [
        (["site=marsh"], None, None, {"a.wav"}),
        (["site=marsh", "site=forest"], None, None, {"a.wav", "b/ü.wav"}),
        (["site="], None, None, {"c.wav"}),
        (["site=", "rate_hz=48000"], None, None, {"c.wav"}),
        (["latitude=47.5"], None, None, {"b/ü.wav"}),
        ([], "2024-05-13", None, {"b/ü.wav"}),
        ([], None, "2024-05-12", {"a.wav"}),
        ([], "2024-05-12T04:30", "2024-05-12T04:31", {"a.wav"}),
        ([], "2024-05-12T04:31", None, {"b/ü.wav"}),
        # b/ü.wav began at 23:30 with +02:00, 21:30 UTC; a.wav's clock tells no zone.
        ([], "2024-05-13T21:00Z", "2024-05-13T22:00Z", {"b/ü.wav"}),
        ([], "2024-05-13T22:00Z", None, set()),
    ],
)
def test_conditions_on_recordings(
    results: Results, where: list[str], since: str | None, until: str | None, names: set[str]
) -> None:
    among = choose_recordings(results.recordings(), where, since, until)
    found = scan(results.windows("fake"), Wanted(QUERY[None], 1000, among=among.condition))
    assert set(found.hits.column("recording").to_pylist()) == names
    keep = pc.field("recording").isin(pa.array(sorted(names), pa.string()))
    assert places(found.hits) == expected(results, QUERY, 1000, keep)
    assert among.n_without_zone == (1 if "Z" in f"{since}{until}" else 0)


def test_one_channel(results: Results) -> None:
    found = scan(results.windows("fake"), Wanted(QUERY[None], 9, where=on_channel(1)))
    assert places(found.hits) == expected(results, QUERY, 9, pc.field("channel") == 1)


@pytest.mark.parametrize(
    ("where", "since", "said"),
    [
        (["site"], None, "write column=value"),
        (["place=marsh"], None, "no such column; recordings/ has recording, "),
        (["rate_hz=fast"], None, "got fast; the column is int32"),
        ([], "May", "--since: got 'May'; use e.g. 2024-05-12"),
    ],
)
def test_conditions_that_mean_nothing_are_one_line(
    results: Results, where: list[str], since: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_recordings(results.recordings(), where, since, None)


def test_queries_that_nothing_is_near_are_refused(results: Results) -> None:
    rows = results.windows("fake")
    with pytest.raises(InputError, match="the query has 5 numbers, the windows have"):
        scan(rows, Wanted(np.ones((1, 5), np.float32), 3))
    with pytest.raises(InputError, match="is zero"):
        scan(rows, Wanted(np.zeros((1, D), np.float32), 3))
    with pytest.raises(InputError, match="NaN"):
        scan(rows, Wanted(np.full((1, D), np.nan, np.float32), 3))
    assert len(scan(rows, Wanted(np.zeros((1, D), np.float32), 3, "dot")).hits) == 3


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_rough_scores_are_off_by_less_than_they_say(metric: str) -> None:
    rng = np.random.default_rng(0)
    # All near one direction, where rounding counts most.
    vectors = (1 + 1e-3 * rng.standard_normal((500, 768))).astype(np.float32)
    query = (1 + 1e-3 * rng.standard_normal((1, 768))).astype(np.float32)
    rough, off = rough_scores(vectors, query, metric)  # type: ignore[arg-type]
    truth = cosines(vectors, query[0]) if metric == "cosine" else vectors @ query[0].astype(float)
    assert (np.abs(rough - truth) <= off).all()
    assert (off < 1e-3 * np.abs(truth)).all()


SCAN = """
import sys
import numpy as np
import pyarrow as pa
from bioembed_ray.datasets import Dataset
from bioembed_ray.rows import Rows
from bioembed_ray.search.exact import Wanted, scan

rows = Rows(sys.argv[1], Dataset("embeddings", "big", "v"), lambda: pa.table({"recording": []}))
rows.arrow
wanted = Wanted(np.ones((1, 768), np.float32), 10)

def peak_kb():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

before = peak_kb()
found = scan(rows, wanted)
print(found.n_compared, (peak_kb() - before) // 1024)
"""


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    n_parts, rows, dim = 120, 2000, 768
    rng = np.random.default_rng(0)
    vectors = pa.array(rng.standard_normal(rows * dim, dtype=np.float32))
    columns = [
        pa.repeat("a.wav", rows),
        pa.array(np.zeros(rows, np.int16)),
        pa.array(np.arange(rows) / 2),
        pa.array(np.arange(rows) / 2 + 1),
        pa.array(np.ones(rows, np.float32)),
        pa.FixedSizeListArray.from_arrays(vectors, dim),
    ]
    table = pa.table(columns, schema=schema.embeddings(dim, "float32"))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    partition = Dataset("embeddings", "big", "v")
    first = parts.part_uri(str(tmp_path), partition, "0")
    storage.put(first, sink.getvalue())
    for number in range(1, n_parts):
        Path(parts.part_uri(str(tmp_path), partition, str(number))).hardlink_to(first)
    done = subprocess.run(
        [sys.executable, "-c", SCAN, str(tmp_path)], capture_output=True, text=True, check=True
    )
    n_compared, grown_mb = map(int, done.stdout.split())
    assert n_compared == n_parts * rows
    # The vectors are 740 MB.
    assert grown_mb < 250
