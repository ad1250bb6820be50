"""Frames and tokens are counted like windows: by the rule, less what failures account for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch

from bioembed_ray import parts, storage, versions
from bioembed_ray.codebooks import standing
from bioembed_ray.codebooks.card import CODEBOOK_KEY, Codebook, codebook_bytes
from bioembed_ray.codebooks.nearest import make_codes
from bioembed_ray.datasets import Dataset, PlannedEncoder, Tokens
from bioembed_ray.encoders.base import Facts, FrameGrid
from bioembed_ray.errors import Reason
from bioembed_ray.ledger import ledger_file
from bioembed_ray.plan import Plan, list_again, make_plan
from bioembed_ray.shard_audio import decode_shard
from bioembed_ray.verify import verify
from bioembed_ray.work import Receipt, encode_shard
from tests.unit.audio_samples import wav
from tests.unit.references import (
    FakeFrames,
    FakeRegistry,
    FakeWindows,
    frame_encoder,
    job_of,
    sound,
    window_encoder,
    write_wave,
)
from tests.unit.test_verify import probe_all

torch.set_num_threads(1)
RATE = 1000
K = 5
CENTROIDS = np.random.default_rng(7).uniform(-0.5, 0.5, (K, 3)).astype(np.float32)
TOKENS = Dataset("tokens", "c", "v9")


@dataclass
class Patches(FakeFrames):
    """Frames of several patches per time step, and windows of its own: what BEATs is."""

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        grid = self.facts.grid
        assert grid is not None
        number = torch.arange(grid.per_step).repeat(
            1 + (waves.shape[1] - grid.receptive) // grid.stride
        )
        return [
            layer.repeat_interleave(grid.per_step, dim=1) + number[:, None] / 100
            for layer in super().frames(waves)
        ]

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([windows.mean(1), windows.std(1), windows[:, 0]], dim=1)]


def patches(grid: FrameGrid, embeds: bool, kind: type[Patches] = Patches) -> Patches:
    return kind(Facts("fake", RATE, 1.0, 0.5, grid, embeds=embeds))


ENCODERS: dict[str, Callable[[], FakeFrames | FakeWindows]] = {
    "wav2vec": frame_encoder,
    "whole": lambda: frame_encoder(block_s=None),
    # 12.5 steps of 160 ms to a block of 2 s, as BEATs has 62.5 to one of 10 s.
    "beats": lambda: patches(FrameGrid(2, 0, False, 160, 175, 8), embeds=True),
    "beats with context": lambda: patches(FrameGrid(4, 2, False, 100, 110, 2), embeds=True),
    # Steps that do not touch: a frame sees less than a stride.
    "vqvae": lambda: patches(FrameGrid(1, 0, False, 40, 10, 4), embeds=False),
    "windows": lambda: window_encoder(pads=False),
}


def with_tokens(planned: PlannedEncoder, folder: str) -> PlannedEncoder:
    (output,) = planned.outputs
    tokens = Tokens("c", folder, TOKENS)
    return replace(planned, outputs=(replace(output, tokens=(tokens,)),))


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    encoder: FakeFrames | FakeWindows,
    centroids: np.ndarray | None = None,
    **values: Any,
) -> tuple[Plan, list[Receipt]]:
    """Do in this process what a run with a codebook does, and save the ledger."""
    monkeypatch.setattr(versions, "registry", FakeRegistry({"fake": encoder.facts}))
    values["input"] = {"uri": str(folder / "archive"), **values.get("input", {})}
    if encoder.facts.grid is not None:
        values["encoder_frames"] = "all"
    job = job_of(folder / "out", **{"segment_s": 4, "shard_minutes": 0.2, **values})
    plan = make_plan(job, probe_all, lambda containers: [])
    planned = with_tokens(plan.encoders[0], "none")
    list_again(plan, (planned,))
    if centroids is None:
        centroids = np.tile(CENTROIDS, 2)[:, : encoder.dim]
    codes = {"c": make_codes(centroids, "euclidean")}
    receipts = []
    for work in plan.todo:
        receipt = Receipt(work.shard.id)
        audios = decode_shard(work, (planned,), job)
        encode_shard(work, audios, planned, encoder, "cpu", job, receipt, codes=codes)
        assert receipt.put_error is None
        receipts.append(receipt)
        for outcome in receipt.outcomes:
            plan.ledger.absorb(outcome)
    ledger_file.save(job.output, plan.ledger)
    return plan, receipts


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    # Tails of every length that matters: none, a sample, less than a step, half a block, more.
    for number, n in enumerate(
        (8000, 8001, 8030, 9999, 10_000, 10_001, 11_500, 24, 25, 160, 47_300)
    ):
        write_wave(folder / f"{number:02}.wav", sound(n, number), RATE)
    write_wave(folder / "b.wav", sound(31_111, 1, channels=2), 2501)
    write_wave(folder / "d.flac", sound(9001, 4), 1102, "PCM_16")
    body = wav(b"\x01\x20" * 40_000, rate_hz=RATE)
    (folder / "cut.wav").write_bytes(body[: 44 + 2 * 33_150])
    (folder / "notes.wav").write_text("these are notes, no sound")
    return tmp_path


def frames_by_hand(n: int, grid: FrameGrid) -> list[int]:
    """Return the first samples of all time steps of a recording, block by block, by trying each sample."""
    size = n if grid.block_s is None else grid.block_s * RATE
    edges = [*range(0, n, size), n]
    if grid.joins_tail and len(edges) > 2 and 2 * (edges[-1] - edges[-2]) < size:
        del edges[-2]
    found = []
    for low, high in itertools.pairwise(edges):
        context = grid.context_s * RATE
        heard = n if grid.joins_tail or high == n else min(n, high + context)
        first = max(0, low - context)
        found += [
            at
            for at in range(low, high)
            if (at - first) % grid.stride == 0 and at + grid.receptive <= heard
        ]
    return found


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_sound_output_has_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, archive: Path, kind: str
) -> None:
    settings: list[dict[str, Any]] = [
        {"input": {"channels": "each"}},
        {"input": {"time_expansion": 3}, "encoder_tail": "shift"},
    ]
    for number, values in enumerate(settings):
        folder = archive / str(number)
        folder.mkdir()
        (folder / "archive").symlink_to(archive / "archive")
        plan, _ = run(monkeypatch, folder, ENCODERS[kind](), **values)
        assert len(plan.shards) > 3 or kind == "whole"
        assert list(verify(str(folder / "out"))) == []


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "windows"])
def test_frames_and_tokens_lie_where_they_lie_by_hand(
    monkeypatch: pytest.MonkeyPatch, archive: Path, kind: str
) -> None:
    encoder = ENCODERS[kind]()
    grid = encoder.facts.grid
    assert grid is not None
    run(monkeypatch, archive, encoder)
    out = archive / "out"
    for path in sorted((archive / "archive").glob("[0-9]*.wav")):
        n = pq_count(path)
        table = f"'{out}/frames/*/*/*.parquet'"
        found = duckdb.execute(
            f"SELECT sample, patch FROM {table} WHERE recording = ? ORDER BY ALL", [path.name]
        ).fetchall()
        steps = frames_by_hand(n, grid)
        assert found == [(step, patch) for step in steps for patch in range(grid.per_step)]
        (tokens,) = duckdb.execute(
            f"SELECT coalesce(sum(len(tokens)), 0) FROM '{out}/tokens/*/*/*.parquet' WHERE recording = ?",
            [path.name],
        ).fetchall()[0]
        assert tokens == len(found)


def pq_count(path: Path) -> int:
    return int(sf.info(path).frames)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_part_says_how_many_rows_it_has_of_each_recording(
    monkeypatch: pytest.MonkeyPatch, archive: Path, kind: str
) -> None:
    _, receipts = run(monkeypatch, archive, ENCODERS[kind]())
    tables = set()
    for outcome in (outcome for receipt in receipts for outcome in receipt.outcomes):
        path = archive / "out" / outcome.dataset.prefix / f"{outcome.shard}.parquet"
        counted = dict(
            duckdb.execute(f"SELECT recording, count(*) FROM '{path}' GROUP BY 1").fetchall()
        )
        said = {span.recording: span.n_rows for span in outcome.spans if span.n_rows}
        assert said == counted
        tables.add(outcome.dataset.table)
    assert tables == {"embeddings", "tokens"} | ({"frames"} if kind != "windows" else set())


# ---- broken promises -------------------------------------------------------------------------


def part(out: Path, table: str, recording: str = "10.wav") -> Path:
    """Return the part with most of a recording."""
    paths = sorted((out / table).rglob("*.parquet"))
    return max(
        paths, key=lambda path: pq.read_table(path).column("recording").to_pylist().count(recording)
    )


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def without(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def first_of(table: pa.Table, recording: str = "10.wav") -> int:
    return int(table.column("recording").to_pylist().index(recording))


def moved(table: pa.Table, column: str, by: float) -> pa.Table:
    values = table.column(column).to_numpy().copy()
    values[first_of(table)] += by
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(column), pa.array(values))


def tokens_of(table: pa.Table, change: Callable[[list[int | None]], None]) -> pa.Table:
    lists = table.column("tokens").to_pylist()
    change(lists[first_of(table)])
    place = table.schema.get_field_index("tokens")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(lists, field.type))


FRAMES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "missing": lambda table: without(table, first_of(table) + 11),
    "last one missing": lambda table: without(
        table, len(table) - 1 - table.column("recording").to_pylist()[::-1].index("10.wav")
    ),
    "of a wrong patch": lambda table: moved(table, "patch", 1),
    "moved": lambda table: moved(table, "sample", 1),
    "of a wrong time": lambda table: moved(table, "start_s", 0.001),
    "all missing": lambda table: table.slice(0, first_of(table)),
}
TOKEN_ROWS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a gap that nobody accounts for": lambda table: tokens_of(
        table, lambda tokens: tokens.__setitem__(slice(8, 16), [None] * 8)
    ),
    "a row too short": lambda table: tokens_of(
        table, lambda tokens: tokens.__delitem__(slice(-8, None))
    ),
    "a row too long": lambda table: tokens_of(table, lambda tokens: tokens.extend([1] * 8)),
    "a row missing": lambda table: without(table, first_of(table)),
    "a row moved": lambda table: moved(table, "start_s", 0.001),
    "ids below zero": lambda table: tokens_of(
        table, lambda tokens: tokens.__setitem__(slice(0, 8), [-1] * 8)
    ),
    "half a step": lambda table: tokens_of(table, lambda tokens: tokens.__delitem__(-1)),
    "steps of another length": lambda table: moved(table, "hop_s", 0.001),
}


@pytest.mark.parametrize(
    ("table", "change"),
    [*(("frames", name) for name in FRAMES), *(("tokens", name) for name in TOKEN_ROWS)],
)
def test_what_is_wrong_with_frames_and_tokens_is_seen(
    monkeypatch: pytest.MonkeyPatch, archive: Path, table: str, change: str
) -> None:
    run(monkeypatch, archive, ENCODERS["beats"]())
    path = part(archive / "out", table)
    rewrite(path, (FRAMES if table == "frames" else TOKEN_ROWS)[change])
    found = list(verify(str(archive / "out")))
    where = f"{path.relative_to(archive / 'out').as_posix()}: 10.wav channel 0: "
    assert found
    assert all(line.startswith(where) for line in found)
    if change in {"ids below zero", "half a step"}:
        assert found[0].startswith(f"{where}not tokens at ")
    else:
        assert any(line.endswith("expected") and f" {table}, " in line for line in found)


def test_a_frame_that_stands_twice_is_seen(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    run(monkeypatch, archive, frame_encoder())
    path = part(archive / "out", "frames")
    rewrite(path, lambda table: pa.concat_tables([table, table.slice(first_of(table), 1)]))
    (line,) = verify(str(archive / "out"))
    assert line.endswith("10.wav channel 0: frames stand more than once")


def test_rows_that_the_part_does_not_account_for_are_seen(
    monkeypatch: pytest.MonkeyPatch, archive: Path
) -> None:
    run(monkeypatch, archive, frame_encoder())
    path = part(archive / "out", "tokens")

    table = pq.read_table(path)
    metadata = table.schema.metadata
    said = json.loads(metadata[b"bioembed.outcome"])
    said["spans"][0]["n_rows"] += 2
    metadata[b"bioembed.outcome"] = json.dumps(said).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    (line,) = verify(str(archive / "out"))
    name = said["spans"][0]["recording"]
    assert line.endswith(f": {name}: 2 rows fewer than the part accounts for")


def test_parts_of_before_are_not_counted_by_a_rule_that_they_do_not_state(
    monkeypatch: pytest.MonkeyPatch, archive: Path
) -> None:
    run(monkeypatch, archive, frame_encoder())
    for path in (archive / "out").rglob("version=*/*.parquet"):
        table = pq.read_table(path)
        metadata = table.schema.metadata
        rule = json.loads(metadata[b"bioembed.placement"])
        kept = {
            key: one
            for key, one in rule.items()
            if key not in {"frames_per_step", "frames_block_s"}
        }
        metadata[b"bioembed.placement"] = json.dumps(kept).encode()
        pq.write_table(table.replace_schema_metadata(metadata), path)
    assert list(verify(str(archive / "out"))) == []


# ---- what failures account for ---------------------------------------------------------------


class Picky(Patches):
    """Fails on blocks that hold a sample of 0.75, and on windows never."""

    error: BaseException = RuntimeError("no")

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        if (waves == 0.75).any():
            raise self.error
        return super().frames(waves)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    wave = sound(20_500)
    wave[[4321, 6000, 16_000]] = 0.75
    write_wave(tmp_path / "archive" / "a.wav", wave, RATE)
    return tmp_path


@pytest.mark.parametrize("embeds", [True, False])
def test_blocks_that_fail_are_failures_of_frames_and_tokens(
    monkeypatch: pytest.MonkeyPatch, marked: Path, embeds: bool
) -> None:
    grid = FrameGrid(2, 0, False, 160, 175, 8)
    _, receipts = run(monkeypatch, marked, patches(grid, embeds, Picky), segment_s=20)
    assert list(verify(str(marked / "out"))) == []
    outcomes = {outcome.dataset.table: outcome for outcome in receipts[0].outcomes}
    # Three blocks of 2 s, of which two are neighbours.
    for table in ("frames", "tokens"):
        found = [
            (f.start_s, f.end_s, f.n_samples, f.version, f.reason) for f in outcomes[table].failures
        ]
        version = outcomes[table].dataset.version
        assert found == [
            (4.0, 8.0, 4000, version, Reason.ENCODER_ERROR),
            (16.0, 18.0, 2000, version, Reason.ENCODER_ERROR),
        ]
    steps = [at for at in frames_by_hand(20_500, grid) if at // 2000 not in {2, 3, 8}]
    table = pq.read_table(part(marked / "out", "frames", "a.wav"))
    assert table.column("sample").to_pylist() == np.repeat(steps, 8).tolist()
    assert bool(outcomes["embeddings"].failures) is not embeds
    # A step that is missing beside the blocks that failed is seen.
    rewrite(part(marked / "out", "frames", "a.wav"), lambda table: table.slice(8))
    (line,) = verify(str(marked / "out"))
    assert line.endswith(f"{8 * len(steps) - 8} frames, {8 * len(steps)} expected")


def test_frames_that_the_machine_failed_on_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, marked: Path
) -> None:
    picky = patches(FrameGrid(2, 0, False, 160, 175, 8), True, Picky)
    monkeypatch.setattr(Picky, "error", torch.cuda.OutOfMemoryError("CUDA out of memory"))
    _, (receipt,) = run(monkeypatch, marked, picky, segment_s=20)
    assert receipt.outcomes == []
    assert [failure.reason for failure in receipt.failures] == [Reason.OUT_OF_MEMORY]


class Loud(Patches):
    """Gives frames without a nearest centroid where it hears a sample of 0.75."""

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        grid = self.facts.grid
        assert grid is not None
        seen = (waves.unfold(1, grid.receptive, grid.stride) == 0.75).any(2)
        gain = torch.where(seen.repeat_interleave(grid.per_step, 1)[..., None], 1e20, 1.0)
        return [gain * layer for layer in super().frames(waves)]


def test_time_steps_without_a_token_are_a_failure_of_the_tokens(
    monkeypatch: pytest.MonkeyPatch, marked: Path
) -> None:
    grid = FrameGrid(2, 0, False, 160, 175, 8)
    loud = patches(grid, True, Loud)
    _, receipts = run(monkeypatch, marked, loud, segment_s=20, frame_dtype="float32")
    assert list(verify(str(marked / "out"))) == []
    outcomes = {outcome.dataset.table: outcome for outcome in receipts[0].outcomes}
    assert outcomes["frames"].failures == ()
    (failure,) = outcomes["tokens"].failures
    assert (failure.encoder, failure.version) == ("c", "v9")
    gone = [
        at
        for at in frames_by_hand(20_500, grid)
        if any(at <= mark < at + 175 for mark in (4321, 6000, 16_000))
    ]
    assert failure.detail.startswith(f"{len(gone)} time steps without a token: ")
    assert (failure.start_s, failure.end_s) == (gone[0] / RATE, (gone[-1] + 160) / RATE)


@pytest.mark.parametrize("kind", ["wav2vec", "beats", "windows"])
def test_tokens_of_standing_vectors_say_the_same_as_those_made_with_them(
    monkeypatch: pytest.MonkeyPatch, archive: Path, kind: str
) -> None:
    plan, receipts = run(monkeypatch, archive, ENCODERS[kind]())
    (planned,) = plan.encoders
    (output,) = planned.outputs
    folder = str(archive / "book")
    centroids = np.tile(CENTROIDS, 2)[:, : ENCODERS[kind]().dim]
    book = Codebook("c", "1", "fake", "v", "euclidean", centroids)
    storage.put(f"{folder}/{CODEBOOK_KEY}", codebook_bytes(book))
    source = output.embeddings if kind == "windows" else output.frames
    assert source is not None
    # float16 frames may be nearer to another centroid; where they lie is the same.
    for shard, entry in parts.list_parts(plan.job.output, source).items():
        made = next(
            outcome
            for receipt in receipts
            for outcome in receipt.outcomes
            if receipt.shard == shard and outcome.dataset == TOKENS
        )
        tokens = Tokens("c", folder, TOKENS)
        naming = standing.Naming(plan.shards[shard], entry, planned, output, tokens)
        again = standing.name_part(plan.job, naming)
        assert again.spans == made.spans
        assert set(again.failures) == set(made.failures)
    assert list(verify(plan.job.output)) == []


def test_a_crash_in_the_middle_of_a_recording_moves_no_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    write_wave(tmp_path / "archive" / "a.wav", sound(40_000), RATE)
    encoder = frame_encoder()
    monkeypatch.setattr(versions, "registry", FakeRegistry({"fake": encoder.facts}))
    job = job_of(
        tmp_path / "out",
        input={"uri": str(tmp_path / "archive")},
        encoder_frames="all",
        segment_s=4,
        shard_minutes=0.5,
    )
    plan = make_plan(job, probe_all, lambda containers: [])
    (work, *_) = sorted(plan.todo, key=lambda work: work.shard.spans[0].start)
    for todo in plan.todo:
        todo = replace(todo, crashed=(0,)) if todo is work else todo
        receipt = Receipt(todo.shard.id)
        audios = decode_shard(todo, plan.encoders, job)
        encode_shard(todo, audios, plan.encoders[0], encoder, "cpu", job, receipt)
        for outcome in receipt.outcomes:
            plan.ledger.absorb(outcome)
    ledger_file.save(job.output, plan.ledger)
    assert len(plan.todo) > 1
    assert list(verify(job.output)) == []
