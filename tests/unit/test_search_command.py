"""`bioembed search` as people call it, and the files it writes, read back by other packages."""

from __future__ import annotations

import io
from pathlib import Path

import crowsetta
import numpy as np
import pandas
import pytest
from click.testing import CliRunner, Result

import bioembed_ray
from bioembed_ray.cli import commands
from bioembed_ray.errors import BioembedError
from tests.unit.search_fixtures import D, cosines, write_output

QUERY = ["--recording", "b/ü.wav", "--at", "19.5"]


@pytest.fixture
def output(tmp_path: Path) -> str:
    write_output(str(tmp_path / "out"))
    return str(tmp_path / "out")


def search(output: str, *arguments: str) -> Result:
    """Run the command; what it raises on purpose is raised here."""
    done = CliRunner().invoke(commands, ["search", "--output", output, *arguments])
    if isinstance(done.exception, BioembedError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def wanted_hits(output: str, top: int) -> pandas.DataFrame:
    vectors, index = bioembed_ray.open(output).windows("fake").numpy()
    frame = index.to_pandas()
    own = (frame.recording == "b/ü.wav") & (frame.start_s == 19.5) & (frame.channel == 0)
    frame["score"] = cosines(vectors, vectors[own.to_numpy()][0])
    order = ["score", "recording", "channel", "start_s"]
    return frame.sort_values(order, ascending=[False, True, True, True])[:top]


def test_lines_for_people_on_stdout_and_talk_on_stderr(output: str) -> None:
    done = search(output, *QUERY, "--top", "3")
    header, first, *_ = done.stdout.splitlines()
    assert header.split() == [
        "rank",
        "score",
        "recording",
        "channel",
        "start_s",
        "end_s",
        "site",
        "recorded_at",
    ]
    assert first.split() == [
        "1",
        "1.0000",
        "b/ü.wav",
        "0",
        "19.5",
        "20.5",
        "forest",
        "2024-05-13T23:30:00+02:00",
    ]
    assert len(done.stdout.splitlines()) == 4
    assert "compared with 240 windows" in done.stderr
    assert "RANDOM" in done.stderr


def test_csv_and_parquet(output: str, tmp_path: Path) -> None:
    expected = wanted_hits(output, 20)
    text = search(output, *QUERY, "--format", "csv").stdout
    search(output, *QUERY, "--to", str(tmp_path / "hits.parquet"), "--join", "rate_hz")
    frames = pandas.read_csv(io.StringIO(text)), pandas.read_parquet(tmp_path / "hits.parquet")
    for frame in frames:
        for column in ("recording", "channel", "start_s", "end_s"):
            assert frame[column].tolist() == expected[column].tolist()
        np.testing.assert_allclose(frame.score, expected.score, rtol=1e-12)
        assert frame["rank"].tolist() == list(range(1, 21))
    assert set(frames[1].rate_hz) == {48_000}


def test_raven_opens_the_files_one_after_the_other(output: str, tmp_path: Path) -> None:
    path = tmp_path / "hits.selections.txt"
    search(output, *QUERY, "--to", str(path))
    boxes = crowsetta.formats.bbox.Raven.from_file(path).to_bbox()
    table = pandas.read_csv(path, sep="\t")
    expected = wanted_hits(output, 20)
    # Every recording is 20.25 s long; the files follow in the order of their first hit.
    files = list(dict.fromkeys(expected.recording))
    begins = [20.25 * files.index(name) for name in expected.recording]
    np.testing.assert_allclose([box.onset for box in boxes], begins + expected.start_s)
    ends = begins + np.minimum(expected.end_s, 20.25)
    np.testing.assert_allclose([box.offset for box in boxes], ends)
    assert table["Begin Path"].tolist() == [f"/in/{name}" for name in expected.recording]
    assert table["File Offset (s)"].tolist() == expected.start_s.tolist()
    assert table["Channel"].tolist() == (expected.channel + 1).tolist()
    # The encoder heard up to 8 kHz of the 24 kHz.
    assert {(box.low_freq, box.high_freq) for box in boxes} == {(0.0, 8000.0)}
    np.testing.assert_allclose(table["Score"], expected.score, atol=1e-6)


def test_audacity_has_one_track_per_recording(output: str, tmp_path: Path) -> None:
    search(output, *QUERY, "--to", str(tmp_path / "labels"), "--format", "audacity")
    found = {}
    for path in (tmp_path / "labels").rglob("*.txt"):
        name = path.relative_to(tmp_path / "labels").as_posix().removesuffix(".labels.txt")
        found[name] = pandas.read_csv(path, sep="\t", header=None, names=["start", "end", "label"])
    expected = wanted_hits(output, 20)
    assert set(found) == set(expected.recording)
    for name, labels in found.items():
        own = expected[expected.recording == name].start_s
        assert labels.start.tolist() == sorted(own)


def test_conditions_and_limits(output: str, tmp_path: Path) -> None:
    to = str(tmp_path / "hits.csv")
    search(output, *QUERY, "--per-recording", "2", "--exclude-self", "--channel", "0", "--to", to)
    frame = pandas.read_csv(to)
    assert frame.recording.value_counts().tolist() == [2, 2, 2]
    assert set(frame.channel) == {0}
    assert not ((frame.recording == "b/ü.wav") & (frame.start_s > 18.5)).any()
    search(output, *QUERY, "--where", "site=marsh", "--since", "2024-05-12", "--to", to)
    assert set(pandas.read_csv(to).recording) == {"a.wav"}


def test_the_index_gives_the_same_hits(output: str) -> None:
    exact = search(output, *QUERY).stdout
    built = search(output, "--build-index")
    assert (built.stdout, "240 windows of 2 parts" in built.stderr) == ("", True)
    assert search(output, *QUERY, "--index").stdout == exact


def test_near_any_of_several_vectors(output: str, tmp_path: Path) -> None:
    pair = np.eye(2, D, dtype=np.float32)
    np.save(tmp_path / "pair.npy", pair)
    vectors, _ = bioembed_ray.open(output).windows("fake").numpy()
    best = np.max([cosines(vectors, one) for one in pair], axis=0)
    query = ["--vector", str(tmp_path / "pair.npy"), "--format", "csv"]
    each = pandas.read_csv(io.StringIO(search(output, *query, "--each").stdout))
    np.testing.assert_allclose(each.score, np.sort(best)[::-1][:20], rtol=1e-12)
    mean = pandas.read_csv(io.StringIO(search(output, *query).stdout))
    np.testing.assert_allclose(
        mean.score, np.sort(cosines(vectors, pair.mean(axis=0)))[::-1][:20], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "search for one thing: --audio, --recording with --at, or --vector"),
        ([*QUERY, "--audio", "a.wav"], "search for one thing"),
        (["--recording", "a.wav"], "--recording and --at go together"),
        (["--vector", "q.npy", "--exclude-self"], "only --recording says where the query lies"),
        ([*QUERY, "--start", "2"], "--start and --stop are times of --audio"),
        ([*QUERY, "--metric", "dot", "--index"], "the index knows cosines only"),
        ([*QUERY, "--to", "hits.xls"], "use a name that ends in .csv, .parquet, .txt, .html"),
        ([*QUERY, "--format", "html"], "--format html: give a file with --to"),
        ([*QUERY, "--encoder", "bets"], "no encoder 'bets'; there is fake"),
        ([*QUERY, "--join", "place"], "no column 'place'"),
    ],
)
def test_wrong_usage_is_one_line(output: str, arguments: list[str], said: str) -> None:
    with pytest.raises(BioembedError, match=said) as caught:
        search(output, *arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
