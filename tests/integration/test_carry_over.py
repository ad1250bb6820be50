"""Recordings are removed and changed: neighbours' rows move as they are, in every table, whatever is killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from bioembed_ray import cluster, run, storage
from bioembed_ray.codebooks import fit as codebook_fit
from bioembed_ray.errors import BrokenOutput, StorageError
from bioembed_ray.job_file import parse_job
from bioembed_ray.report_text import describe_result
from bioembed_ray.run import Result, run_job
from bioembed_ray.verify import verify
from tests import oracles
from tests.commands import bioembed, environment, tiny_encoder
from tests.conftest import Bucket
from tests.deadly import Killed, Store
from tests.tiny import RATE_HZ, torchscript
from tests.unit.transformers_fixtures import speech_folder
from tests.update_driver import without_clusters

TABLES = ("embeddings", "frames", "fit_frames", "tokens")
# What identifies a row of any table.
KEY = ("recording", "channel", "start_s", "patch")


class Lab:
    """An archive of short recordings, two encoders, frames and two codebooks; what was encoded is noted."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.source, self.output = folder, folder / "in", folder / "out"
        self.source.mkdir()
        self.counts = without_clusters(patch)
        self.encoded: list[str] = []
        whole = run.stream.run_stream

        def noted(job: Any, pools: Any, todo: Any, watch: Any) -> Iterator[Any]:
            self.encoded += [span.recording for work in todo for span in work.shard.spans]
            yield from whole(job, pools, todo, watch)

        patch.setattr(run.stream, "run_stream", noted)
        model = speech_folder(folder / "model")
        self.raw: dict[str, Any] = {
            "input": {"uri": str(self.source)},
            "encoders": {
                "w": {"model": str(model), "layer": [1, 2], "frames": "all"},
                "t": tiny_encoder(torchscript(folder / "t.pt")),
            },
            "codebooks": {
                "w-4": {"encoder": "w.2", "clusters": 4, "fit_frames": 300},
                "t-3": {"encoder": "t", "clusters": 3, "fit_frames": 60},
            },
            "pools": {"default": {"actors": 1}},
            "max_removed_fraction": 0.5,
        }

    def write(self, name: str, seed: int, seconds: float = 1.2) -> None:
        sound = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
        soundfile.write(self.source / name, sound, RATE_HZ, subtype="FLOAT")

    def run(self, output: Path | str | None = None, **changed: Any) -> Result:
        self.encoded.clear()
        raw = {**self.raw, "output": str(output or self.output), **changed}
        return run_job(parse_job(raw, "test"), lambda text: None)

    def job_file(self) -> str:
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump({**self.raw, "output": str(self.output)}))
        return str(path)

    def shard_of(self, name: str) -> list[str]:
        """Return the recordings in the shard of one, itself included."""
        rows = oracles.recordings(self.output)
        shard = rows[name]["spans"][0]["shard"]
        return [other for other, row in rows.items() if row["spans"][0]["shard"] == shard]

    def remove(self, *names: str) -> None:
        for name in names:
            (self.source / name).unlink()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def partitions(output: Path) -> list[str]:
    found = {path.parent for table in TABLES for path in (output / table).rglob("*.parquet")}
    return sorted(path.relative_to(output).as_posix() for path in found)


def rows(output: Path, names: set[str] | None = None) -> dict[str, pa.Table]:
    """Return the rows of every partition, as DuckDB reads them in the order of what identifies them."""
    found = {}
    for prefix in partitions(output):
        source = f"read_parquet('{output}/{prefix}/*.parquet', hive_partitioning = false)"
        columns = duckdb.sql(f"SELECT * FROM {source} LIMIT 0").columns
        key = ", ".join(column for column in KEY if column in columns)
        table = duckdb.sql(f"SELECT * FROM {source} ORDER BY {key}").to_arrow_table()
        [(n_keys,)] = duckdb.sql(
            f"SELECT count(*) FROM (SELECT DISTINCT {key} FROM {source})"
        ).fetchall()
        assert n_keys == table.num_rows, f"{prefix}: rows stand more than once"
        if names is not None:
            is_in = pa.compute.is_in(table.column("recording"), pa.array(sorted(names)))
            table = table.filter(is_in)
        found[prefix] = table.combine_chunks()
    return found


def bits(table: pa.Table) -> dict[str, list[bytes]]:
    """Return the bytes of every column, so that no two different numbers count as equal."""
    sink = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        flat = column.flatten() if pa.types.is_nested(column.type) else column
        if pa.types.is_floating(flat.type):
            assert flat.null_count == 0
            sink[name] = [flat.to_numpy(zero_copy_only=False).tobytes()]
        else:
            sink[name] = [repr(flat.to_pylist()).encode()]
    return sink


def assert_same_rows(got: dict[str, pa.Table], wanted: dict[str, pa.Table]) -> None:
    assert got.keys() == wanted.keys()
    for prefix, table in wanted.items():
        assert got[prefix].schema.equals(table.schema), prefix
        assert bits(got[prefix]) == bits(table), prefix


def everything(output: Path) -> dict[str, Any]:
    """Return what a run leaves, but for times: parts with what they say of themselves, tables, versions, cards."""
    parts = {}
    for prefix in partitions(output):
        for path in sorted((output / prefix).glob("*.parquet")):
            table = pq.read_table(path, partitioning=None)
            told = dict(table.schema.metadata)
            parts[f"{prefix}/{path.name}"] = (told, bits(table))
    known = oracles.recordings(output)
    for row in known.values():
        # Frames kept for a fit are gone, and a ledger that was lost does not know that they were.
        lasting = [one for one in row["outcomes"] if one["table"] != "fit_frames"]
        row["outcomes"] = sorted(lasting, key=repr)
    return {
        "parts": parts,
        "recordings": known,
        "failures": sorted(oracles.failures(output), key=repr),
        "current": json.loads((output / "current.json").read_text()),
        "cards": {
            path.parts[-3]: json.loads(path.read_text()) for path in output.rglob("card.json")
        },
    }


def test_after_ten_of_three_hundred_were_deleted_rows_move_and_nothing_is_encoded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        lab.write(f"{number:03d}.wav", number)
    # One that is cut off, and so has a failure that stays, and one that leaves with its failure.
    for name in ("002.wav", "003.wav"):
        path = lab.source / name
        path.write_bytes(path.read_bytes()[:40_000])
    assert lab.run().exit_code == 0
    gone = {f"{number:03d}.wav" for number in (3, 4, 5, *range(60, 300, 35))}
    assert len(gone) == 10
    stay = {path.name for path in lab.source.iterdir()} - gone
    assert {f["recording"] for f in oracles.failures(lab.output)} == {"002.wav", "003.wav"}
    before, stood = rows(lab.output, stay), oracles.parts(lab.output)
    assert {prefix.partition("/")[0] for prefix in before} == set(TABLES) - {"fit_frames"}
    left = {tuple(lab.shard_of(name)) for name in gone}
    assert (
        1
        < len(left)
        < len({row["spans"][0]["shard"] for row in oracles.recordings(lab.output).values()})
    )
    n_moved = len({name for shard in left for name in shard} - gone)
    lab.remove(*gone)

    told = bioembed("plan", lab.job_file())
    assert told.returncode == 0, told.stderr
    n_parts = len(before) * len(left)
    assert f"0 new, 0 changed, {len(gone)} removed" in told.stdout
    assert "to do      0 of " in told.stdout
    assert (
        f"carry over rows of {n_moved} recordings, neighbours of what changed or was removed, into "
        f"{n_parts} new parts; nothing of them is encoded\n" in told.stdout
    )
    assert f"to delete  {n_parts} parts" in told.stdout
    # Two layers and the other encoder, and both codebooks.
    assert told.stdout.count(" windows, 0 to compute") == 3
    assert told.stdout.count(": 0 shards to name\n") == 2
    assert "estimate" not in told.stdout
    assert oracles.parts(lab.output) == stood

    # In a process of its own: what encodes or asks for a cluster brings torch or Ray along.
    code = (
        "import sys\nfrom bioembed_ray import cli\ntry:\n    cli.main(sys.argv[1:])\n"
        "finally:\n    print('loaded', sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", lab.job_file()],
        capture_output=True, text=True, check=False, env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded []\n")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("done       nothing to encode: all ")
    assert lines[1].startswith(f"carried    {n_parts} parts made of rows that stood, beside what ")
    record = oracles.run_records(lab.output)[-1]
    assert (record["parts"], record["parts_carried_over"], record["audio_s"]) == (0, n_parts, 0)

    assert_same_rows(rows(lab.output), before)
    now = oracles.parts(lab.output)
    assert len(stood.keys() - now.keys()) == len(now.keys() - stood.keys()) == 5 * len(left)
    assert {part: now[part] for part in stood if part in now} == {
        part: stood[part] for part in stood if part in now
    }
    assert list(verify(str(lab.output))) == []
    assert oracles.recordings(lab.output).keys() == stay
    assert {row["status"] for row in oracles.recordings(lab.output).values()} == {
        "embedded",
        "partial",
    }
    assert {f["recording"] for f in oracles.failures(lab.output)} == {"002.wav"}
    # The codebooks' cards count what is left.
    for path in lab.output.rglob("card.json"):
        card = json.loads(path.read_text())
        [(n_named,)] = duckdb.sql(
            f"SELECT sum(list_count(tokens)) FROM '{lab.output}/tokens/codebook={path.parts[-3]}/*/*.parquet'"
        ).fetchall()
        assert card["archive"]["frames"] == n_named

    def refuse(*_: Any) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(cluster, "connect", refuse)
    again = lab.run()
    assert (again.exit_code, again.tally.n_parts, again.tally.n_carried) == (0, 0, 0)
    assert oracles.parts(lab.output) == now


def test_of_five_changed_only_these_are_encoded_as_a_first_run_does(lab: Lab) -> None:
    for number in range(60):
        lab.write(f"{number:02d}.wav", number)
    assert lab.run().exit_code == 0
    changed = {f"{number:02d}.wav" for number in (0, 1, 17, 40, 59)}
    stay = {path.name for path in lab.source.iterdir()} - changed
    before = rows(lab.output, stay)
    left = {tuple(lab.shard_of(name)) for name in changed}
    for name in changed:
        lab.write(name, 1000 + int(name[:2]), seconds=2.3)
    result = lab.run()
    assert (result.exit_code, result.plan.changes.n_changed) == (0, 5)
    assert set(lab.encoded) == changed
    assert result.tally.n_carried == len(before) * len(left)
    assert any(line.startswith("carried ") for line in describe_result(result))
    assert_same_rows(rows(lab.output, stay), before)
    assert list(verify(str(lab.output))) == []
    fresh = lab.folder / "fresh"
    assert lab.run(fresh, codebooks={}).exit_code == 0
    wanted = rows(fresh)
    assert_same_rows({prefix: rows(lab.output)[prefix] for prefix in wanted}, wanted)


def small(lab: Lab) -> None:
    """Make an archive of three shards of three recordings, and embed it."""
    for number in range(9):
        lab.write(f"{number}.wav", number, seconds=10)
    assert lab.run().exit_code == 0
    assert lab.shard_of("0.wav") == ["0.wav", "1.wav", "2.wav"]
    assert lab.shard_of("8.wav") == ["6.wav", "7.wav", "8.wav"]


def update(lab: Lab) -> None:
    """Remove one and change one in the same shard, remove all of another, add one."""
    lab.remove("0.wav", "3.wav", "4.wav", "5.wav")
    lab.write("2.wav", 102, seconds=9)
    lab.write("9.wav", 109, seconds=3)


def test_removed_and_changed_in_one_shard_and_all_of_another(lab: Lab) -> None:
    small(lab)
    before = rows(lab.output, {"1.wav", "6.wav", "7.wav", "8.wav"})
    update(lab)
    result = lab.run()
    assert result.exit_code == 0
    assert set(lab.encoded) == {"2.wav", "9.wav"}
    assert result.tally.n_carried == len(before)
    assert_same_rows(rows(lab.output, {"1.wav", "6.wav", "7.wav", "8.wav"}), before)
    assert set(oracles.recordings(lab.output)) == {f"{n}.wav" for n in (1, 2, 6, 7, 8, 9)}
    assert list(verify(str(lab.output))) == []
    # Again, out of parts that were carried over themselves.
    lab.remove("1.wav", "7.wav")
    result = lab.run()
    assert (result.exit_code, lab.encoded, result.tally.n_carried) == (0, [], len(before))
    stay = {"6.wav", "8.wav"}
    assert_same_rows(
        rows(lab.output, stay),
        {
            prefix: table.filter(
                pa.compute.is_in(table.column("recording"), pa.array(sorted(stay)))
            )
            for prefix, table in before.items()
        },
    )
    assert list(verify(str(lab.output))) == []


@pytest.mark.parametrize("is_ledger_lost", [False, True], ids=["ledger stands", "ledger lost"])
def test_an_update_killed_at_any_write_ends_as_one_that_nobody_disturbed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, is_ledger_lost: bool
) -> None:
    small(lab)
    shutil.copytree(lab.output, lab.folder / "base")
    update(lab)
    store = Store(monkeypatch, lab.counts)
    assert lab.run().exit_code == 0
    wanted = everything(lab.output)
    n_kills = 0
    # A lost ledger makes no new states of the store, only another way on from each.
    for dies_after in range(1, 200, 3 if is_ledger_lost else 1):
        output = lab.folder / f"out-{dies_after}"
        shutil.copytree(lab.folder / "base", output)
        store.live(dies_after)
        try:
            lab.run(output)
        except Killed:
            n_kills += 1
            (output / "lease.json").unlink(missing_ok=True)
        encoded = set(lab.encoded)
        if not store.is_dead:
            break
        store.live(None)
        if is_ledger_lost:
            shutil.rmtree(output / "recordings")
            shutil.rmtree(output / "failures")
        assert lab.run(output).exit_code == 0
        # Of what stood, nothing was encoded, in neither run.
        assert encoded | set(lab.encoded) <= {"2.wav", "9.wav"}
        left = everything(output)
        assert left.keys() == wanted.keys()
        for what in wanted:
            assert left[what] == wanted[what], f"{what}, dead at write {dies_after}"
        assert list(verify(str(output))) == []
        shutil.rmtree(output)
    assert n_kills > (12 if is_ledger_lost else 40)


def test_rows_move_on_an_object_store(lab: Lab, s3: Bucket) -> None:
    for number in range(40):
        lab.write(f"{number:02d}.wav", number, seconds=5)
    output = f"{s3.uri}/out"
    assert lab.run(output).exit_code == 0
    gone = {f"{number:02d}.wav" for number in (0, 20, 21)}
    before = rows(fetched(s3, lab.folder / "first"), {p.name for p in lab.source.iterdir()} - gone)
    lab.remove(*gone)
    result = lab.run(output)
    assert (result.exit_code, lab.encoded) == (0, [])
    assert result.tally.n_carried >= len(before)
    assert_same_rows(rows(fetched(s3, lab.folder / "second")), before)
    assert list(verify(output)) == []


def fetched(bucket: Bucket, folder: Path) -> Path:
    """Return a local copy of the output in a bucket."""
    for key in bucket.listing():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get(key))
    return folder / "out"


def test_a_store_that_refuses_ends_the_run_with_one_line_and_the_next_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(lab)
    lab.remove("0.wav", "4.wav")
    n_put = 0
    put = storage.put

    def full(uri: str, body: bytes) -> None:
        nonlocal n_put
        if uri.endswith(".parquet") and "version=" in uri:
            n_put += 1
            if n_put > 3:
                raise StorageError(f"{uri}: no space left")
        put(uri, body)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", full)
        with pytest.raises(StorageError, match="no space left; what was put stays, run again"):
            lab.run()
    assert not (lab.output / "lease.json").exists()
    result = lab.run()
    n_parts = 2 * len(partitions(lab.output))
    assert (result.exit_code, lab.encoded, result.tally.n_carried) == (0, [], n_parts - 3)
    assert list(verify(str(lab.output))) == []


def test_a_part_that_cannot_be_read_is_named_and_encoded_once_it_is_deleted(lab: Lab) -> None:
    small(lab)
    lab.remove("0.wav")
    shard = oracles.recordings(lab.output)["1.wav"]["spans"][0]["shard"]
    [path] = lab.output.glob(f"embeddings/encoder=t/*/{shard}.parquet")
    body = bytearray(path.read_bytes())
    # Its footer still says what it held.
    body[4:400] = bytes(396)
    path.write_bytes(body)
    with pytest.raises(BrokenOutput) as caught:
        lab.run()
    text = str(caught.value)
    assert text.startswith(f"{path}: cannot be read (") and "\n" not in text
    assert text.endswith("); delete it and run again")
    path.unlink()
    result = lab.run()
    assert (result.exit_code, set(lab.encoded)) == (0, {"1.wav", "2.wav"})
    assert list(verify(str(lab.output))) == []


def test_frames_kept_for_a_fit_are_carried_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        lab.write(f"{number}.wav", number, seconds=10)
    # So many that every shard is drawn on.
    lab.raw["codebooks"]["w-4"]["fit_frames"] = 5000

    def interrupted(*_: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(codebook_fit, "fit_codebook", interrupted)
        with pytest.raises(InterruptedError):
            lab.run()
    assert set(lab.encoded) == {f"{n}.wav" for n in range(9)}
    stay = {f"{n}.wav" for n in range(9)} - {"1.wav", "5.wav"}
    before = rows(lab.output, stay)
    assert any(prefix.startswith("fit_frames/") for prefix in before)
    lab.remove("1.wav", "5.wav")
    result = lab.run()
    # Tokens are named from the frames that moved.
    assert (result.exit_code, lab.encoded) == (0, [])
    assert not list(lab.output.glob("fit_frames/**/*.parquet"))
    lasting = {prefix for prefix in before if not prefix.startswith("fit_frames/")}
    now = rows(lab.output)
    assert {prefix.partition("/")[0] for prefix in now} == {"embeddings", "frames", "tokens"}
    assert_same_rows({p: now[p] for p in lasting}, {p: before[p] for p in lasting})
    assert list(verify(str(lab.output))) == []


def test_patches_kept_for_a_training_are_carried_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        lab.write(f"{number}.wav", number, seconds=10)
    training = {"n_mels": 16, "hidden": 64, "dim": 8, "codes": 16}
    model = {"model": "vqvae", "rate_hz": RATE_HZ, "training": training}
    trained_on: list[pa.Table] = []

    def interrupted(training: Any, sources: Any, groups: Any) -> None:
        found = [pq.read_table(entry.uri, partitioning=None) for entry in sources]
        tables = [table.replace_schema_metadata(None) for table in found]
        trained_on.append(pa.concat_tables(tables).sort_by([(key, "ascending") for key in KEY[:3]]))
        raise InterruptedError

    monkeypatch.setattr(run, "train_model", interrupted)
    with pytest.raises(InterruptedError):
        lab.run(encoders={"v": model}, codebooks={})
    assert set(lab.encoded) == {f"{n}.wav" for n in range(9)}
    lab.remove("1.wav", "5.wav")
    with pytest.raises(InterruptedError):
        lab.run(encoders={"v": model}, codebooks={})
    assert lab.encoded == []
    first, second = trained_on
    gone = pa.compute.is_in(first.column("recording"), pa.array(["1.wav", "5.wav"]))
    assert bits(second) == bits(first.filter(pa.compute.invert(gone)))


def test_tokens_left_alone_by_embed_are_carried_over_by_a_later_run(lab: Lab) -> None:
    small(lab)
    before = rows(lab.output, {f"{n}.wav" for n in range(9)} - {"1.wav", "2.wav"})
    job = parse_job({**lab.raw, "output": str(lab.output)}, "test")
    for name in ("1.wav", "2.wav"):
        lab.remove(name)
        assert run_job(job, lambda text: None, "embeddings").exit_code == 0
    # The old tokens name a shard that is two steps back, while the old vectors are gone.
    result = lab.run()
    n_tokens = sum(prefix.startswith("tokens/") for prefix in before)
    assert (result.exit_code, lab.encoded, result.tally.n_carried) == (0, [], n_tokens)
    assert_same_rows(rows(lab.output), before)
    assert list(verify(str(lab.output))) == []
