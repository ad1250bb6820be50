"""A sound output has nothing to say; each broken promise is one line that names the place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bioembed_ray import versions
from bioembed_ray.audio.probe import probe
from bioembed_ray.errors import InputError, RecordingError
from bioembed_ray.inputs.listing import Recording
from bioembed_ray.inventory import Probed
from bioembed_ray.ledger import ledger_file
from bioembed_ray.plan import Plan, make_plan
from bioembed_ray.verify import verify
from tests.unit.audio_samples import wav
from tests.unit.references import (
    FakeFrames,
    FakeRegistry,
    FakeWindows,
    done,
    frame_encoder,
    job_of,
    sound,
    window_encoder,
    write_wave,
)

torch.set_num_threads(1)
RATE = 1000


def probe_all(recordings: list[Recording]) -> Iterable[Probed]:
    for recording in recordings:
        try:
            yield Probed(recording.name, *probe(recording.source))
        except RecordingError as error:
            yield Probed(recording.name, reason=error.reason, detail=error.detail)


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    encoder: FakeWindows | FakeFrames,
    **values: Any,
) -> Plan:
    """Do in this process what a run does, and save the ledger."""
    monkeypatch.setattr(versions, "registry", FakeRegistry({"fake": encoder.facts}))
    values["input"] = {"uri": str(folder / "archive"), **values.get("input", {})}
    job = job_of(folder / "out", **values)
    plan = make_plan(job, probe_all, lambda containers: [])
    for work in plan.todo:
        for outcome in done(work, job, plan.encoders[0], encoder).outcomes:
            plan.ledger.absorb(outcome)
    ledger_file.save(job.output, plan.ledger)
    return plan


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    write_wave(folder / "a.wav", sound(47_300), RATE)
    write_wave(folder / "b.wav", sound(61_111, 1, channels=2), 2501)
    write_wave(folder / "c.wav", sound(7, 2), RATE)
    write_wave(folder / "d.flac", sound(9001, 4), 1102, "PCM_16")
    body = wav(b"\x01\x20" * 40_000, rate_hz=RATE)
    (folder / "cut.wav").write_bytes(body[: 44 + 2 * 33_150])
    (folder / "notes.wav").write_text("these are notes, no sound")
    return tmp_path


ENCODERS: dict[str, Callable[[], FakeWindows | FakeFrames]] = {
    "windows": window_encoder,
    "unpadded": lambda: window_encoder(pads=False),
    "frames": frame_encoder,
}


@pytest.mark.parametrize("tail", ["pad", "drop", "shift"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_sound_output_has_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, archive: Path, kind: str, tail: str
) -> None:
    settings: list[dict[str, Any]] = [
        {"input": {"channels": "each"}},
        {"input": {"time_expansion": 3}},
        {"encoder_window_s": 0.7, "encoder_hop_s": 1.3},
    ]
    for number, values in enumerate(settings):
        encoder = ENCODERS[kind]()
        if encoder.facts.grid is not None:
            values["encoder_frames"] = "all"
        values |= {"encoder_tail": tail, "segment_s": 4, "shard_minutes": 0.2}
        folder = archive / str(number)
        folder.mkdir()
        (folder / "archive").symlink_to(archive / "archive")
        plan = run(monkeypatch, folder, encoder, **values)
        assert len(plan.shards) > 3
        assert list(verify(str(folder / "out"))) == []
        assert make_plan(plan.job, probe_all, lambda containers: []).todo == []


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, archive: Path) -> Path:
    run(monkeypatch, archive, window_encoder(), segment_s=20, shard_minutes=0.5)
    return archive / "out"


def part(output: Path, recording: str = "a.wav") -> Path:
    """Return a part that holds windows of a recording."""
    for path in sorted((output / "embeddings").rglob("*.parquet")):
        if recording in pq.read_table(path).column("recording").to_pylist():
            return path
    raise AssertionError(recording)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def lines(output: Path) -> list[str]:
    return list(verify(str(output)))


def below(output: Path, path: Path) -> str:
    return path.relative_to(output).as_posix()


def a_windows(path: Path) -> int:
    return int(pq.read_table(path).column("recording").to_pylist().count("a.wav"))


def test_a_missing_window_is_seen(output: Path) -> None:
    path = part(output)
    rewrite(path, lambda table: table.slice(1))
    n = a_windows(path)
    assert lines(output) == [
        f"{below(output, path)}: a.wav channel 0: {n} windows, {n + 1} expected"
    ]


def test_a_window_that_stands_twice_is_seen(output: Path) -> None:
    path = part(output)
    rewrite(path, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert lines(output) == [
        f"{below(output, path)}: a.wav channel 0: windows stand more than once"
    ]


def test_a_moved_window_is_seen(output: Path) -> None:
    def move(table: pa.Table) -> pa.Table:
        starts = table.column("start_s").to_numpy().copy()
        starts[0] += 0.001
        return table.set_column(2, table.schema.field(2), pa.array(starts))

    path = part(output)
    rewrite(path, move)
    n = a_windows(path)
    assert lines(output) == [f"{below(output, path)}: a.wav channel 0: {n} windows, {n} expected"]


def test_rows_of_a_foreign_recording_are_seen(output: Path) -> None:
    path = part(output)

    def rename(table: pa.Table) -> pa.Table:
        row = table.slice(0, 1)
        row = row.set_column(0, row.schema.field(0), pa.array(["x.wav"]))
        return pa.concat_tables([table, row])

    rewrite(path, rename)
    assert lines(output) == [f"{below(output, path)}: x.wav channel 0 does not belong here"]


def test_a_vector_that_is_not_finite_is_seen(output: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        vectors = np.array(table.column("embedding").to_pylist(), np.float32)
        vectors[3, 1] = np.nan
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4)
        return table.set_column(5, table.schema.field(5), column)

    path = part(output)
    rewrite(path, spoil)
    assert lines(output) == [f"{below(output, path)}: holds vectors that are not finite"]


def test_a_torn_part_is_seen(output: Path) -> None:
    path = part(output)
    body = path.read_bytes()
    for torn in (
        body[:-5],
        body[:-5] + b"PAR1\0",
        b"",
        body[:4] + bytes(len(body) // 2) + body[len(body) // 2 + 4 :],
    ):
        path.write_bytes(torn)
        (line,) = lines(output)
        assert line.startswith(str(path))
        assert "\n" not in line


def test_a_deleted_part_is_seen(output: Path) -> None:
    path = part(output)
    path.unlink()
    assert lines(output) == [
        f"{below(output, path)}: the ledger has it, the store does not; run again"
    ]


def test_a_part_of_nobody_is_seen(output: Path) -> None:
    path = part(output)
    stray = path.with_name("0" * 20 + ".parquet")
    stray.write_bytes(path.read_bytes())
    assert lines(output) == [f"{stray}: belongs to no shard; the next complete run removes it"]


def test_a_part_that_the_ledger_does_not_know_is_seen(output: Path) -> None:
    ledger = ledger_file.load(str(output))
    assert ledger is not None
    path = part(output)
    for entry in ledger.known.values():
        entry.outcomes = {k: v for k, v in entry.outcomes.items() if k[1] != path.stem}
    ledger_file.save(str(output), ledger)
    assert f"{path}: the ledger does not know it; run again" in lines(output)


def test_pieces_that_do_not_tile_are_seen(output: Path) -> None:
    ledger = ledger_file.load(str(output))
    assert ledger is not None
    pieces = ledger.known["a.wav"].pieces
    assert len(pieces) > 1
    pieces[-1] = replace(pieces[-1], start=pieces[-1].start + 5)
    ledger.known["b.wav"].pieces[-1] = replace(ledger.known["b.wav"].pieces[-1], stop=50_000)
    ledger_file.save(str(output), ledger)
    found = lines(output)
    assert f"a.wav: pieces do not meet at sample {pieces[-1].start}" in found
    assert "b.wav: pieces end at sample 50000, before the recording does" in found


def test_an_output_without_a_ledger_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list(verify(str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: no recordings/; run `bioembed run` first"
