"""An output asked for labels: folds of sites, bags of tokens, dependence by scikit-learn, errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
import soundfile
import torch
from click.testing import CliRunner
from sklearn.metrics import adjusted_mutual_info_score

from bioembed_ray import parts, schema, storage
from bioembed_ray.cli import commands
from bioembed_ray.config import EncoderConfig
from bioembed_ray.datasets import Dataset
from bioembed_ray.encoders import registry
from bioembed_ray.errors import ConfigError, InputError
from bioembed_ray.labels.probing import Question, probe_output
from bioembed_ray.labels.report import write_probe
from bioembed_ray.labels.samples import pool, read_windows
from bioembed_ray.labels.scores import evaluate
from bioembed_ray.results import open_output
from bioembed_ray.synthetic import write_tones
from tests.tables import put_table
from tests.unit.encoder_fixtures import beats_spec, write_model

SPECIES = ("robin", "wren", "finch")
N, K = 24, 6
NAMES = [f"site{k % 4}/r{k:02d}.wav" for k in range(N)]


def put_windows(root: str, encoder: str, rows: dict[str, Any], weights: str = "local") -> None:
    dim = len(rows["embedding"][0])
    filled = {"channel": 0, "end_s": 1.0, "valid_s": 1.0}
    table = pandas.DataFrame(rows).assign(**filled)
    found = pa.Table.from_pandas(
        table[schema.embeddings(dim, "float32").names],
        schema.embeddings(dim, "float32"),
        preserve_index=False,
    )
    put_part(root, Dataset("embeddings", encoder, "v1"), found, weights)


def put_part(root: str, where: Dataset, table: pa.Table, weights: str) -> None:
    """Put two parts with what a part says of itself."""
    about = {"bioembed.weights": weights, "bioembed.outcome": "{}", "bioembed.spans": "[]"}
    half = len(table) // 2
    for shard, piece in (("s1", table[half:]), ("s2", table[:half])):
        put_table(parts.part_uri(root, where, shard), piece.replace_schema_metadata(about))


def put_recordings(root: str, names: list[str], **columns: list[Any]) -> None:
    given = {"site": [None] * len(names), "recorded_at": [None] * len(names)} | columns
    given |= {"uri": [f"/archive/{name}" for name in names]}
    table = pa.table({"recording": names} | {k: pa.array(v) for k, v in given.items()})
    put_table(storage.join(root, "recordings/recordings.parquet"), table)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """24 recordings of 4 sites; `good` knows the species, `bad` knows nothing, tokens a little."""
    root = str(tmp_path / "out")
    rng = np.random.default_rng(0)
    species = [SPECIES[(k // 4) % 3] for k in range(N)]
    start = [None if k == 5 else f"2024-05-12T{k:02d}:30:00+00:00" for k in range(N)]
    cells: list[str | None] = [*species[:-2], None, " "]
    sites = [f"site{k % 4}" if k else None for k in range(N)]
    put_recordings(root, NAMES, site=sites, recorded_at=start, species=cells)
    windows = pandas.DataFrame({"k": np.repeat(np.arange(N), 5), "n": np.tile(np.arange(5), N)})
    for encoder, distance in (("good", 12.0), ("bad", 0.0)):
        centres = distance * rng.standard_normal((3, 8))
        place = [(k // 4) % 3 for k in windows["k"]]
        vectors = centres[place] + rng.standard_normal((len(windows), 8))
        rows = {
            "recording": [NAMES[k] for k in windows["k"]],
            "start_s": windows["n"] / 2,
            "embedding": list(vectors.astype(np.float32)),
        }
        put_windows(root, encoder, rows, "RANDOM, untrained (seed 0)" if encoder == "bad" else "a")
    put_tokens(root, rng)
    current = {
        "encoders": {name: {"embeddings": "v1"} for name in ("good", "bad")},
        "codebooks": {"book": {"encoder": "good", "codebook": "c", "tokens": "t"}},
    }
    storage.put(storage.join(root, "current.json"), json.dumps(current).encode())
    return root


def put_tokens(root: str, rng: np.random.Generator) -> None:
    """Two rows of 50 steps of 2 tokens per recording, an hour each, some of them gaps."""
    rows = []
    for k, name in enumerate(NAMES):
        for part in range(2):
            own = (k // 4) % 3 * 2 + rng.integers(0, 2, 100)
            mixed = np.where(rng.random(100) < 0.5, own, rng.integers(0, K, 100))
            gaps = rng.random(100) < 0.1
            tokens = [None if gap else int(t) for t, gap in zip(mixed, gaps, strict=True)]
            place = {"recording": name, "channel": 0, "start_s": part * 3600.0, "hop_s": 72.0}
            rows.append(place | {"per_step": 2, "tokens": tokens})
    table = pa.Table.from_pylist(rows, schema=schema.tokens("int16"))
    put_part(root, Dataset("tokens", "book", "t"), table, "local")


def asked(output: str, **options: Any) -> Any:
    return probe_output(output, Question(**{"labels": "species", "folds": 3, **options}))


def by_name(answer: Any) -> dict[tuple[str, str], Any]:
    return {(one.name, one.method): one for one in answer.probed}


def test_best_comes_first_and_who_is_left_out_is_counted(output: str) -> None:
    answer = asked(output)
    reached = [one.outcome.mean("balanced_accuracy") for one in answer.probed]
    assert reached == sorted(reached, reverse=True)
    assert {one.name for one in answer.probed[-2:]} == {"bad"}
    found = by_name(answer)
    assert set(found) == {(n, m) for n in ("good", "bad") for m in ("linear", "knn")} | {
        ("book", "bag of tokens")
    }
    for method in ("linear", "knn"):
        assert found["good", method].outcome.mean("balanced_accuracy") == 1
        assert found["bad", method].outcome.mean("balanced_accuracy") < 0.75
    assert found["book", "bag of tokens"].outcome.mean("balanced_accuracy") > 0.8
    assert len(answer.task.recordings) == 22
    assert answer.without["label"] == 2
    assert found["bad", "knn"].rows == 22
    assert (found["bad", "knn"].windows, found["bad", "knn"].standing) == (110, 110)


def test_windows_are_rows_of_their_own_on_the_same_folds(output: str) -> None:
    answer = asked(output, level="window", names=("good",))
    one = by_name(answer)["good", "knn"]
    assert one.rows == 110
    recordings = asked(output, names=("good",))
    assert recordings.task.fold.tolist() == answer.task.fold.tolist()
    assert [f.n_test * 5 for f in by_name(recordings)["good", "knn"].outcome.folds] == [
        fold.n_test for fold in one.outcome.folds
    ]


def test_sites_are_never_on_both_sides(output: str) -> None:
    answer = asked(output, group="site")
    assert answer.without["group"] == 1
    for number in range(3):
        tested = {n.split("/")[0] for n, f in zip(answer.task.recordings, answer.task.fold, strict=True) if f == number}  # fmt: skip
        rest = {n.split("/")[0] for n, f in zip(answer.task.recordings, answer.task.fold, strict=True) if f != number}  # fmt: skip
        assert tested and not tested & rest


def test_recording_vectors_are_means_of_windows_by_pandas(output: str) -> None:
    rows = open_output(output).windows("bad")
    samples, channel = read_windows(rows, sorted(NAMES), 10**6)
    pooled = pool(samples, channel)
    frame = rows.pandas()
    wanted = frame.groupby("recording")["embedding"].apply(lambda v: np.stack(list(v)).mean(axis=0))
    assert np.allclose(pooled.vectors, np.stack(list(wanted)), atol=1e-6)
    some, _ = read_windows(rows, sorted(NAMES), 50)
    assert len(some.recording) == 50
    assert set(np.bincount(some.recording, minlength=N).tolist()) == {2, 3}
    known = {vector.tobytes() for vector in samples.vectors}
    assert {vector.tobytes() for vector in some.vectors} <= known
    again, _ = read_windows(rows, sorted(NAMES), 50)
    assert np.array_equal(again.vectors, some.vectors)


def test_dependence_of_tokens_is_what_scikit_learn_finds(output: str) -> None:
    found = asked(output).dependence["book"]
    frame = open_output(output).tokens("book").pandas().explode("tokens")
    frame["place"] = frame.groupby(["recording", "start_s"]).cumcount()
    frame = frame.dropna(subset="tokens")
    number = frame["recording"].map(NAMES.index)
    seconds = number * 3600 + 1800 + frame["start_s"] + frame["place"] // 2 * 72
    values = {
        "label": number.map(lambda k: SPECIES[k // 4 % 3] if k < N - 2 else None),
        "hour": (seconds // 3600 % 24).where(number != 5),
        "site": number.map(lambda k: f"site{k % 4}" if k else None),
    }
    unknown = {"label": 2, "hour": 1, "site": 1}
    for kind, value in values.items():
        known = value.notna()
        wanted = adjusted_mutual_info_score(value[known], frame["tokens"][known].astype(int))
        assert found[kind].adjusted_mutual_information == pytest.approx(wanted, abs=1e-9)
        assert found[kind].tokens == known.sum()
        assert found[kind].unknown == unknown[kind]
        assert found[kind].values == value[known].nunique()
    label = found["label"]
    assert label.adjusted_mutual_information > 0.1 > label.shuffled > found["site"].shuffled - 0.1


def test_a_table_of_ones_own_gives_labels_by_name_uri_or_ending(
    output: str, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    lines = ["uri,sp"]
    for k, name in enumerate(NAMES):
        written = (name, f"/archive/{name}", name.rpartition("/")[2], f"./{name}")[k % 4]
        lines.append(f"{written},{SPECIES[(k // 4) % 3]}")
    table.write_text("\n".join([*lines, "elsewhere.wav,robin", ""]))
    answer = asked(output, labels=f"{table}:sp")
    assert answer.name == "sp"
    assert len(answer.task.recordings) == N
    assert sum(answer.without.values()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "speces"}, r"recordings/ has no column 'speces'; did you mean 'species'\?"),
        ({"group": "sight"}, r"--group: recordings/ has no column 'sight'; did you mean 'site'\?"),
        ({"labels": "{csv}"}, r"name the column too: .*labels.csv:COLUMN"),
        ({"labels": "{csv}:spp"}, r"labels.csv has no column 'spp'; did you mean 'sp'\?"),
        ({"labels": "{csv}:sp"}, r"2 recordings have several labels, e.g. site0/r00.wav 'robin; wren'"),
        ({"labels": "{csv}:sp", "against_rest": "robbin"}, r"no sp is 'robbin'; did you mean 'robin'\?"),
        ({"labels": "{csv}:one"}, r"--labels .*: a probe needs two classes, all 4 are 'x'"),
        ({"names": ("god",)}, r"--name: no encoder or codebook 'god'; did you mean 'good'\?"),
        ({"folds": 9}, r"0 of 3 classes are in 9 groups or more .*; use --folds 8"),
        ({"labels": "{csv}:twice"}, r"row 5 calls site1/r01.wav 'b', a row before it 'a'"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line(
    output: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    table = tmp_path / "labels.csv"
    rows = [
        "uri,sp,one,twice",
        f"{NAMES[0]},robin; wren,x,",
        f"{NAMES[1]},robin|finch,x,a",
        f"{NAMES[2]},wren,x,",
        f"{NAMES[1]},robin|finch,x,{'b' if 'twice' in str(options) else 'a'}",
        f"{NAMES[3]},finch,x,",
    ]
    table.write_text("\n".join(rows))
    written = {
        key: value.format(csv=table) if isinstance(value, str) else value
        for key, value in options.items()
    }
    with pytest.raises((ConfigError, InputError), match=message):
        asked(output, **written)


def test_a_table_of_other_recordings_or_of_ambiguous_names_is_one_line(
    output: str, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("uri,sp\nx.wav,a\ny.wav,b\n")
    with pytest.raises(InputError, match=r"none of its 2 rows names .* e\.g\. site0/r00\.wav"):
        asked(output, labels=f"{table}:sp")
    put_recordings(output, ["a/x.wav", "b/x.wav"])
    with pytest.raises(InputError, match=r"row 2: 'x\.wav' may be a/x\.wav or b/x\.wav"):
        asked(output, labels=f"{table}:sp")


def test_one_label_is_told_from_the_rest_where_recordings_have_several(
    output: str, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    rows = [f"{n},{SPECIES[(k // 4) % 3]}{'; rain' if k % 2 else ''}" for k, n in enumerate(NAMES)]
    table.write_text("\n".join(["uri,sp", *rows]))
    answer = asked(output, labels=f"{table}:sp", against_rest="wren")
    assert answer.task.classes == ("not wren", "wren")
    assert np.bincount(answer.task.label).tolist() == [16, 8]
    assert by_name(answer)["good", "linear"].outcome.mean("balanced_accuracy") == 1


def test_an_encoder_without_a_current_version_is_left_out_and_named(output: str) -> None:
    rows = {"recording": NAMES, "start_s": np.zeros(N), "embedding": list(np.ones((N, 2)))}
    put_windows(output, "new", rows)
    put_part(
        output,
        Dataset("embeddings", "new", "v2"),
        open_output(output).windows("new", "v1").table(),
        "a",
    )
    answer = asked(output)
    assert "new" not in {one.name for one in answer.probed}
    assert "no version is current yet" in answer.not_asked["new"]


def test_files_hold_what_the_lines_say(output: str, tmp_path: Path) -> None:
    to = tmp_path / "to"
    done = CliRunner().invoke(
        commands,
        ["probe", "--output", output, "--labels", "species", "--folds", "3", "--to", str(to)],
    )
    assert done.exit_code == 0, done.output
    found = json.loads((to / "species.json").read_text())
    answer = asked(output)
    best = found["probed"][0]
    outcome = answer.probed[0].outcome
    assert (best["name"], best["method"]) == (answer.probed[0].name, answer.probed[0].method)
    assert best["confusion"] == outcome.confusion.tolist()
    assert [fold["metrics"] for fold in best["folds"]] == [fold.metrics for fold in outcome.folds]
    assert set(best["class_f1"]) == set(SPECIES)
    assert found["left_out"]["recordings"]["label"] == 2
    assert found["folds"] == dict(
        zip(answer.task.recordings, answer.task.fold.tolist(), strict=True)
    )
    with (to / "species.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["name"], r["method"]) for r in rows[:5]] == [
        (p.name, p.method) for p in answer.probed
    ]
    assert float(rows[4]["accuracy"]) == answer.probed[4].outcome.mean("accuracy")
    assert rows[5]["name"] == "chance"
    assert (to / "species.png").read_bytes()[:4] == b"\x89PNG"
    assert "bad: RANDOM weights" in done.output
    assert "left out   2 without label" in done.output
    lines = [line.split()[0] for line in done.output.splitlines() if "±" in line]
    assert lines == [p.name for p in answer.probed]


def test_twelve_tones_are_told_apart_by_a_small_beats(tmp_path: Path) -> None:
    """The real architecture with random weights, made small, on the real tones cut by hand."""
    names = write_tones(tmp_path / "tones")
    config, _ = write_model(tmp_path / "model", beats_spec())
    settings = EncoderConfig.model_validate({"model": str(config)})
    encoder = registry.load("beats", settings, registry.checkpoint("beats", settings), "cpu")
    waves = np.stack([soundfile.read(tmp_path / "tones" / n, dtype="float32")[0] for n in names])
    padded = np.pad(waves, ((0, 0), (0, 8000)))
    windows = np.stack([padded[:, s : s + 16000] for s in range(0, 48000, 8000)], axis=1)
    vectors = encoder.embed(torch.from_numpy(windows.reshape(72, 16000)))[0].float().numpy()
    root = str(tmp_path / "out")
    rows = {
        "recording": np.repeat([f"tones/{name}" for name in names], 6),
        "start_s": np.tile(np.arange(6) / 2, 12),
        "embedding": list(vectors),
    }
    put_windows(root, "beats", rows)
    put_recordings(root, [f"tones/{n}" for n in names], pitch=[n.rpartition("_")[0] for n in names])
    answer = probe_output(root, Question("pitch", folds=3))
    assert answer.task.classes == ("high", "low", "mid_high", "mid_low")
    found = by_name(answer)["beats", "knn"]
    assert found.windows == 72
    assert found.outcome.mean("accuracy") >= 0.95
    draw = np.random.default_rng(1).permutation(12)
    samples, channel = read_windows(open_output(root).windows("beats"), answer.task.recordings, 72)
    pooled = pool(samples, channel)
    mixed = type(pooled)(pooled.vectors[draw], pooled.recording)
    assert evaluate(mixed, answer.task, "knn").mean("accuracy") < 0.95


def test_an_archive_in_which_all_are_one_site_says_so(output: str, tmp_path: Path) -> None:
    put_recordings(output, NAMES, species=list(SPECIES) * 8)
    found = asked(output).dependence["book"]["site"]
    assert (found.adjusted_mutual_information, found.unknown) == (None, N)
    lines = list(write_probe(output, Question("species", folds=3), str(tmp_path / "to")))
    assert any("- (0 values, 24 unknown)" in line for line in lines)
