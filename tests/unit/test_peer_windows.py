"""The windows of BirdNET-Analyzer and perch-hoplite, made by our rules: the same cuts, the same zeros.

Both packages are asked themselves where they are installed (`requirements/peers.txt`).
"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bioembed_ray.coverage import Coverage
from bioembed_ray.current import differences
from bioembed_ray.encode import encode
from bioembed_ray.errors import ConfigError
from bioembed_ray.outcomes import SpanOutcome
from bioembed_ray.windows import Clock, WindowRule
from tests.unit.one_shard import one_shard, part_of, settle
from tests.unit.references import FakeWindows, place_of, sound, span_of, window_encoder, write_wave

RATE = 1000


def inputs(rule: WindowRule, n: int) -> list[np.ndarray]:
    """Return what a network gets of a recording whose samples count from 1."""
    seen: list[np.ndarray] = []

    class Listening(FakeWindows):
        def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
            seen.extend(windows.numpy().copy())
            return super().embed(windows)

    encoder = Listening(window_encoder().facts)
    place = place_of(np.arange(1, n + 1, dtype=np.float32), Clock(RATE, RATE), n)
    encode(encoder, rule, [place], "cpu", 1, False)
    return seen


def lengths(seed: int) -> list[int]:
    rng = random.Random(seed)
    whole = [500 * k + off for k in range(1, 18) for off in (-1, 0, 1)]
    return [*whole, *(rng.randint(1, 9000) for _ in range(40))]


def split_by_birdnet(n: int, overlap: int, minlen: int) -> list[int]:
    """Return where `split_signal` of birdnet_analyzer/audio.py (2.4.0) begins its chunks of 3 s."""
    chunk, step = 3 * RATE, 3 * RATE - overlap
    last = int((n - chunk + step - 1) / step) * step
    if last < 0:
        last = 0
    elif n - last < minlen:
        last -= step
    return list(range(0, last + 1, step))


@pytest.mark.parametrize("overlap", [0, 500, 1000, 1500, 2500])
@pytest.mark.parametrize("minlen", [1000, 500, 3000])
def test_minlen_and_overlap_of_birdnet(overlap: int, minlen: int) -> None:
    rule = WindowRule(3 * RATE, 3 * RATE - overlap, "cover", minlen)
    for n in lengths(overlap):
        wanted = split_by_birdnet(n, overlap, minlen)
        if n < minlen:
            # BirdNET drops a recording shorter than `minlen`, or, where windows overlap by more
            # than half, keeps it; here it is always dropped.
            assert wanted in ([], [0])
            wanted = []
        found = inputs(rule, n)
        assert [int(wave[0]) - 1 for wave in found] == wanted, n
        for start, wave in zip(wanted, found, strict=True):
            rest = np.arange(start + 1, n + 1)[: 3 * RATE]
            assert np.array_equal(wave, np.pad(rest, (0, 3 * RATE - len(rest))))


def test_chunks_are_those_of_the_package_itself() -> None:
    audio = pytest.importorskip("birdnet_analyzer.audio")
    for overlap in (0, 500, 1000, 1500):
        rule = WindowRule(3 * RATE, 3 * RATE - overlap, "cover", RATE)
        for n in lengths(overlap):
            signal = np.arange(1, n + 1, dtype=np.float32)
            wanted = audio.split_signal(signal, RATE, 3.0, overlap / RATE, 1.0)
            found = inputs(rule, n)
            assert len(found) == len(wanted), n
            assert all(map(np.array_equal, found, wanted)), n


def frames_by_librosa(wave: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Return what `EmbeddingModel.frame_audio` of perch_hoplite/zoo/zoo_interface.py (1.0.2) does."""
    if len(wave) < window:
        wave = librosa.util.pad_center(wave, size=window)
    return librosa.util.frame(wave, frame_length=window, hop_length=hop).T  # type: ignore[no-any-return]


@pytest.mark.parametrize("hop", [1000, 2500, 5000])
def test_centred_padding_of_perch(hop: int) -> None:
    rule = WindowRule(5 * RATE, hop, "center", RATE)
    model = SimpleNamespace(sample_rate=RATE)
    try:
        from perch_hoplite.zoo.zoo_interface import EmbeddingModel
    except ImportError:
        EmbeddingModel = None
    for n in lengths(hop):
        wave = np.arange(1, n + 1, dtype=np.float32)
        # `min_audio_len_s`, 1 s: what is shorter is not embedded.
        wanted = frames_by_librosa(wave, 5 * RATE, hop) if n >= RATE else []
        if EmbeddingModel is not None and n >= RATE:
            wanted = EmbeddingModel.frame_audio(model, wave, 5.0, hop / RATE)
        found = inputs(rule, n)
        assert len(found) == len(wanted), n
        assert all(map(np.array_equal, found, wanted)), n


def test_an_encoder_that_pads_by_itself_gets_short_sound_as_it_is() -> None:
    encoder = window_encoder(pads=False)
    place = place_of(sound(300), Clock(RATE, RATE), 300)
    windows, _, _ = encode(encoder, WindowRule(RATE, RATE, "center"), [place], "cpu", 1, False)
    assert encoder.log == [(1, 300)]
    np.testing.assert_allclose(windows.vectors[0][0, 0], place.track.samples.mean(), atol=1e-6)


def test_a_run_writes_no_windows_below_the_least_and_accounts_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spans = [
        span_of(write_wave(tmp_path / "a.wav", sound(2300), RATE)),
        span_of(write_wave(tmp_path / "b.wav", sound(399, 1), RATE)),
    ]
    values = {"encoder_min_valid_s": 0.4, "encoder_hop_s": 1.0}
    receipt, _, _ = one_shard(monkeypatch, tmp_path / "out", spans, window_encoder(), **values)
    (outcome,) = receipt.outcomes
    table = pq.read_table(part_of(tmp_path / "out", outcome))
    assert table.column("start_s").to_pylist() == [0.0, 1.0]
    assert outcome.spans == (
        SpanOutcome("a.wav", 2300, 2300, 0, 2, Coverage(embedded=2000, skipped=300)),
        SpanOutcome("b.wav", 399, 399, 0, 0, Coverage(skipped=399)),
    )
    assert outcome.failures == ()


def test_each_rule_has_a_version_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings: list[dict[str, object]] = [
        {},
        {"encoder_min_valid_s": 0.4},
        {"encoder_min_valid_s": 0.5},
        {"encoder_pad": "cover"},
        {"encoder_pad": "center"},
        {"encoder_tail": "drop"},
    ]
    found = [
        settle(monkeypatch, window_encoder(), tmp_path, **one)[0].outputs[0].embeddings.version
        for one in settings
    ]
    assert len(set(found)) == len(settings)


def test_a_new_least_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plans = [
        settle(monkeypatch, window_encoder(), tmp_path, **values)[0]
        for values in ({}, {"encoder_min_valid_s": 0.4, "encoder_pad": "cover"})
    ]
    old, new = (
        {"checkpoint": {}, "content": planned.outputs[0].embeddings.content} for planned in plans
    )
    assert differences(old, new) == [
        "min_valid_s moved from null to 0.4",
        "tail moved from pad to cover",
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"encoder_min_valid_s": 1.5}, "encoders.fake.min_valid_s: got 1.5; a window has 1 s"),
        (
            {"encoder_min_valid_s": 0.0004},
            "encoders.fake.min_valid_s: got 0.0004, not a whole number of samples at 1000 Hz; use 0.001",
        ),
        (
            {"encoder_pad": "center", "encoder_tail": "drop"},
            "pad: got 'center'; is for tail: pad, not for tail: drop",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: dict[str, object], text: str
) -> None:
    with pytest.raises((ConfigError, ValueError)) as caught:
        settle(monkeypatch, window_encoder(), tmp_path, **values)
    assert text in str(caught.value)
