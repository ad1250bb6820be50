"""Raven tables and Audacity labels, read back by crowsetta and pandas."""

from __future__ import annotations

import io
from pathlib import Path

import crowsetta
import numpy as np
import pandas

from bioembed_ray.exports.annotations import Annotation, audacity_labels, label_keys, raven_table

ROWS = [
    Annotation("s1/a.wav", "/in/s1/a.wav", 0, 1.5, 2.5, 60.0, 24_000, "wren", score=0.9),
    Annotation("s2/a.wav", "/in/s2/a.wav", 1, 0.1 + 0.2, 1.3, 10.5, 8_000, "owl\there", score=0.8),
    Annotation("s1/a.wav", "/in/s1/a.wav", 0, 59.5, 60.5, 60.0, 24_000, "wren", 500, 0.7),
    Annotation("s3/b.wav", "/in/s3/b.wav", 0, 2, 3, None, 24_000, "tit"),
]


def read_table(text: str) -> pandas.DataFrame:
    return pandas.read_csv(io.StringIO(text), sep="\t")


def test_begin_times_go_on_over_files_and_offsets_start_anew_in_each() -> None:
    table = read_table(raven_table(ROWS))
    # s1/a.wav is 60 s long, s2/a.wav 10.5 s.
    assert table["Begin Time (s)"].tolist() == [1.5, 60.3, 59.5, 72.5]
    assert table["End Time (s)"].tolist() == [2.5, 61.3, 60.0, 73.5]
    assert table["File Offset (s)"].tolist() == [1.5, 0.3, 59.5, 2.0]
    assert table["Begin Path"].tolist() == [row.path for row in ROWS]
    assert table["Selection"].tolist() == [1, 2, 3, 4]
    assert table["Channel"].tolist() == [1, 2, 1, 1]
    assert table["Annotation"].tolist() == ["wren", "owl here", "wren", "tit"]
    np.testing.assert_equal(table["Score"].to_numpy(), [0.9, 0.8, 0.7, np.nan])
    assert set(table["View"]) == {"Spectrogram 1"}


def test_crowsetta_reads_the_boxes(tmp_path: Path) -> None:
    path = tmp_path / "hits.selections.txt"
    path.write_text(raven_table(ROWS), encoding="utf-8")
    boxes = crowsetta.formats.bbox.Raven.from_file(path).to_bbox()
    found = [(box.onset, box.offset, box.low_freq, box.high_freq, box.label) for box in boxes]
    assert found[2] == (59.5, 60.0, 500.0, 24_000.0, "wren")
    assert len(found) == len(ROWS)


def test_audacity_labels_are_in_order_of_time_without_a_header() -> None:
    text = audacity_labels([ROWS[2], ROWS[0]])
    assert text == "1.5\t2.5\twren 0.900\n59.5\t60.0\twren 0.700\n"
    assert audacity_labels([ROWS[3]]) == "2.0\t3.0\ttit\n"


def test_no_rows_are_a_header_and_no_labels() -> None:
    assert raven_table([]).split("\t")[:2] == ["Selection", "View"]
    assert audacity_labels([]) == ""


def test_equal_file_names_keep_labels_of_their_own() -> None:
    names = ["s1/a.wav", "s2/a.wav", "s2/a.flac", "a.wav"]
    keys = label_keys(names, ".labels.txt")
    assert len(set(keys.values())) == len(names)
