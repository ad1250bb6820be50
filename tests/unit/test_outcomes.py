"""Every promised sample of every channel is accounted for, whatever became of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bioembed_ray.coverage import Coverage
from bioembed_ray.errors import Reason
from bioembed_ray.outcomes import outcome_from_json, outcome_to_json
from bioembed_ray.segments import Span
from tests.unit.audio_samples import wav
from tests.unit.one_shard import RATE, one_shard, part_of, small_archive, spans_of
from tests.unit.references import (
    FakeFrames,
    FakeWindows,
    frame_encoder,
    sound,
    span_of,
    starts_by_loop,
    window_encoder,
    write_wave,
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return small_archive(tmp_path)


@pytest.mark.parametrize("channels", ["mix", "first", "each"])
@pytest.mark.parametrize("tail", ["pad", "drop", "shift"])
def test_every_promised_sample_of_every_channel_is_accounted_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path, channels: str, tail: str
) -> None:
    for encoder in (window_encoder(), frame_encoder(), window_encoder(pads=False)):
        spans = spans_of(archive)
        values: dict[str, Any] = {"input": {"channels": channels}, "encoder_tail": tail}
        receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", spans, encoder, **values)
        (outcome,) = receipt.outcomes
        for span, found in zip(spans, outcome.spans, strict=True):
            n_channels = span.header.channels if channels == "each" else 1
            assert found.coverage.total == span.promised * n_channels, span.recording
            assert found.n_decoded == span.header.n_samples
        assert (
            sum(found.n_rows for found in outcome.spans)
            == pq.read_metadata(part_of(tmp_path / "out", outcome)).num_rows
        )


def test_coverage_of_each_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", spans_of(archive), window_encoder())
    (outcome,) = receipt.outcomes
    by_name = {span.recording: span for span in outcome.spans}
    # 3300 samples: full windows until 3000 + 500 > 3300, so [0, 3000) is full.
    assert by_name["a.wav"].coverage == Coverage(embedded=3000, padded=300)
    assert by_name["short.wav"].coverage == Coverage(padded=7)
    assert by_name["cut.wav"].coverage == Coverage(embedded=1500, failed=2500)
    assert by_name["ä – 鳥.wav"].coverage == Coverage(embedded=5000)
    (failure,) = outcome.failures
    assert (failure.recording, failure.reason, failure.encoder) == (
        "cut.wav",
        Reason.TRUNCATED,
        None,
    )
    assert failure.detail == "header promises 4.000 s, data end at 1.500 s; embedded up to there"
    assert (failure.start_s, failure.end_s, failure.n_samples) == (1.5, 4.0, 2500)
    assert failure.shard == outcome.shard


def test_a_recording_too_short_for_a_frame_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    receipt, planned, _ = one_shard(
        monkeypatch, tmp_path / "out", [span_of(archive / "short.wav")], frame_encoder()
    )
    (outcome,) = receipt.outcomes
    assert outcome.spans[0].coverage == Coverage(failed=7)
    (failure,) = outcome.failures
    assert (failure.reason, failure.encoder, failure.channel) == (Reason.TOO_SHORT, "fake", 0)
    assert failure.detail == "7 samples are less than one frame"
    assert failure.version == planned.outputs[0].embeddings.version
    table = pq.read_table(part_of(tmp_path / "out", outcome))
    assert table.num_rows == 0


def test_crashed_and_damaged_spans_fail_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    spans = spans_of(archive)
    crashed = [span.recording for span in spans].index("a.wav")
    receipt, _, _ = one_shard(
        monkeypatch, tmp_path / "out", spans, window_encoder(), crashed=(crashed,)
    )
    (outcome,) = receipt.outcomes
    assert outcome.spans[crashed].coverage == Coverage(failed=3300)
    reasons = {failure.recording: failure.reason for failure in outcome.failures}
    assert reasons == {"a.wav": Reason.CRASHED, "cut.wav": Reason.TRUNCATED}


def test_a_shard_in_which_nothing_decodes_is_an_empty_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    span = span_of(archive / "a.wav")
    for encoder in (window_encoder(), frame_encoder()):
        values: dict[str, Any] = {"encoder_frames": "all"} if encoder.facts.grid else {}
        receipt, planned, _ = one_shard(
            monkeypatch, tmp_path / "out", [span], encoder, crashed=(0,), **values
        )
        assert len(receipt.outcomes) == len(planned.datasets)
        for outcome in receipt.outcomes:
            assert pq.read_table(part_of(tmp_path / "out", outcome)).num_rows == 0
            assert outcome.spans[0].coverage == Coverage(failed=3300)


def test_windows_lost_by_the_encoder_are_one_failure_per_run_of_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wave = sound(10_000)
    wave[[2700, 8200]] = 0.75

    class Picky(FakeWindows):
        def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
            if (windows == 0.75).any():
                raise RuntimeError("no")
            return super().embed(windows)

    span = span_of(write_wave(tmp_path / "a.wav", wave, RATE))
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", [span], Picky(window_encoder().facts))
    (outcome,) = receipt.outcomes
    found = [(f.start_s, f.end_s, f.n_samples, f.detail) for f in outcome.failures]
    assert found == [
        (2.0, 3.5, 1500, "2 windows: RuntimeError: no"),
        (7.5, 9.0, 1500, "2 windows: RuntimeError: no"),
    ]
    # [2.5, 3.0) and [8.0, 8.5) are in no other window.
    assert outcome.spans[0].coverage == Coverage(embedded=9000, failed=1000)
    assert outcome.spans[0].n_rows == 16


def test_a_lost_window_is_named_by_its_own_start_between_two_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At a third of the rate the second window starts at native sample 266.67."""
    wave = np.full(1000, 0.1, np.float32)
    wave[260:450] = 0.4

    class Picky(FakeWindows):
        def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
            if (windows.mean(1) > 0.3).any():
                raise RuntimeError("no")
            return super().embed(windows)

    span = span_of(write_wave(tmp_path / "a.wav", wave, RATE))
    settings: dict[str, Any] = {"input": {"time_expansion": 3}}
    settings |= {"encoder_window_s": 0.5, "encoder_hop_s": 0.8}
    picky = Picky(window_encoder().facts)
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", [span], picky, **settings)
    (outcome,) = receipt.outcomes
    assert [failure.start_s for failure in outcome.failures] == [0.8 / 3]


def test_out_of_memory_commits_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    class Full(FakeWindows):
        def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    receipt, _, _ = one_shard(
        monkeypatch, tmp_path / "out", spans_of(archive), Full(window_encoder().facts)
    )
    assert receipt.outcomes == []
    (failure,) = receipt.failures
    assert (failure.reason, failure.encoder) == (Reason.OUT_OF_MEMORY, "fake")
    assert not (tmp_path / "out").exists()


def test_outcomes_come_back_from_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", spans_of(archive), frame_encoder())
    (outcome,) = receipt.outcomes
    text = json.dumps(outcome_to_json(outcome))
    assert outcome_from_json(json.loads(text)) == outcome


def test_the_same_vector_for_different_sounds_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    class Constant(FakeWindows):
        def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
            return [torch.ones(len(windows), self.dim)]

    spans = spans_of(archive)
    for encoder, n_distinct in ((Constant(window_encoder().facts), 1), (window_encoder(), None)):
        receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", spans, encoder)
        (outcome,) = receipt.outcomes
        assert outcome.n_checked > 10
        assert outcome.n_distinct == (n_distinct or outcome.n_checked)


def test_a_span_without_a_promise_owes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    span = span_of(archive / "a.wav")
    header = replace(span.header, n_samples=9999, n_promised=None)
    receipt, _, _ = one_shard(
        monkeypatch, tmp_path / "out", [replace(span, header=header)], window_encoder()
    )
    (outcome,) = receipt.outcomes
    assert outcome.failures == ()
    assert outcome.spans[0].coverage.total == 3300


def test_a_recording_cut_off_before_its_last_spans(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write_wave(tmp_path / "a.flac", sound(60_000), RATE, "PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 8])
    span = span_of(path)
    assert span.promised == 60_000
    cuts = [(0, 10_000), (10_000, 30_000), (30_000, 50_000), (50_000, None)]
    spans = [replace(span, start=start, stop=stop) for start, stop in cuts]
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", spans, window_encoder())
    (outcome,) = receipt.outcomes
    assert [found.coverage.total for found in outcome.spans] == [10_000, 20_000, 20_000, 10_000]
    n = sum(found.n_decoded for found in outcome.spans)
    assert 12_000 < n < 30_000
    assert outcome.spans[2].coverage == Coverage(failed=20_000)
    details = [failure.detail.partition(" (")[0] for failure in outcome.failures]
    assert details == [
        f"header promises 60.000 s, data end at {n / RATE:.3f} s; embedded up to there",
        "header promises 60.000 s, data end before 30.000 s",
        "header promises 60.000 s, data end before 50.000 s",
    ]
    rows = pq.read_table(part_of(tmp_path / "out", outcome)).num_rows
    assert rows == len(starts_by_loop(RATE, RATE, 1, 1000, 500, "pad", n))


def test_what_was_promised_in_vain_counts_for_every_channel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = wav(b"\x01\x20" * 8000, rate_hz=RATE, channels=2)
    (tmp_path / "a.wav").write_bytes(body[: 44 + 2 * 5000])
    span = span_of(tmp_path / "a.wav")
    values: dict[str, Any] = {"input": {"channels": "each"}}
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", [span], window_encoder(), **values)
    (outcome,) = receipt.outcomes
    # 4000 samples of 2 channels were promised, 2500 came.
    assert outcome.spans[0].coverage == Coverage(embedded=5000, failed=3000)
    (failure,) = outcome.failures
    assert (failure.channel, failure.n_samples) == (None, 3000)


class LoudWindows(FakeWindows):
    """Answers a hundred million times louder where it hears a sample of 0.75."""

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        gain = torch.where((windows == 0.75).any(1, keepdim=True), 1e8, 1.0)
        return [gain * layer for layer in super().embed(windows)]


class LoudFrames(FakeFrames):
    """Its frames are a hundred million times louder where they hear a sample of 0.75."""

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        grid = self.facts.grid
        assert grid is not None
        seen = waves.unfold(1, grid.receptive, grid.stride)
        gain = torch.where((seen == 0.75).any(2, keepdim=True), 1e8, 1.0)
        return [gain * layer for layer in super().frames(waves)]


def loud_span(tmp_path: Path) -> Span:
    wave = sound(10_000)
    wave[2700] = 0.75
    return span_of(write_wave(tmp_path / "a.wav", wave, RATE))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_windows_beyond_the_stored_type_are_lost_and_never_stored_as_infinity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    receipt, planned, _ = one_shard(
        monkeypatch,
        tmp_path / "out",
        [loud_span(tmp_path)],
        LoudWindows(window_encoder().facts),
        embedding_dtype=dtype,
    )
    (outcome,) = receipt.outcomes
    table = pq.read_table(part_of(tmp_path / "out", outcome))
    vectors = table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert np.isfinite(vectors).all()
    if dtype == "float32":
        assert (table.num_rows, outcome.failures) == (20, ())
        return
    assert outcome.spans[0].coverage == Coverage(embedded=9500, failed=500)
    assert (table.num_rows, outcome.spans[0].n_rows) == (18, 18)
    (failure,) = outcome.failures
    assert (failure.reason, failure.start_s, failure.end_s) == (Reason.NONFINITE_VECTOR, 2.0, 3.5)
    assert failure.version == planned.outputs[0].embeddings.version
    assert failure.detail == (
        "2 windows: a value beyond 65504, the largest float16; set embedding_dtype: float32"
    )


def test_frames_beyond_the_stored_type_are_lost_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    receipt, _, _ = one_shard(
        monkeypatch,
        tmp_path / "out",
        [loud_span(tmp_path)],
        LoudFrames(frame_encoder().facts),
        encoder_frames="all",
    )
    frames, windows = receipt.outcomes
    table = pq.read_table(part_of(tmp_path / "out", frames))
    vectors = table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert np.isfinite(vectors).all()
    # Frames see 25 samples every 20: those at 2680 and 2700 see sample 2700.
    starts = [start for start in range(0, 10_000 - 24, 20) if start not in {2680, 2700}]
    assert table.column("sample").to_pylist() == starts
    (failure,) = frames.failures
    assert (failure.reason, failure.version) == (Reason.NONFINITE_VECTOR, frames.dataset.version)
    assert (failure.channel, failure.start_s, failure.end_s) == (0, 2.68, 2.725)
    assert failure.detail == (
        "2 frames: a value beyond 65504, the largest float16; set frame_dtype: float32"
    )
    # The windows are means in float32, which holds them.
    assert (windows.failures, windows.spans[0].coverage) == ((), Coverage(embedded=10_000))
    assert pq.read_metadata(part_of(tmp_path / "out", windows)).num_rows == 20
