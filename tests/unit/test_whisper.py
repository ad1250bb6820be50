"""Whisper's encoder against transformers' own extractor and network, called directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import model_folder, registry
from bioembed_ray.encoders.base import FrameGrid
from bioembed_ray.encoders.whisper import LogMel
from bioembed_ray.errors import ConfigError, RecordingError, WeightsError
from tests.unit.transformers_fixtures import edit_json, opened, sounds, whisper_folder

SHORT: dict[str, Any] = {"block_s": 1, "context_s": 0}


def reference(folder: Path, wave: torch.Tensor) -> Any:
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    encoder = transformers.WhisperModel.from_pretrained(folder).encoder
    given = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return encoder(given.input_features, output_hidden_states=True)


def test_the_front_end_equals_the_extractor(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    found = model_folder.settings(EncoderConfig(model=str(folder)))
    waves = sounds(3, 30_000)
    waves[1] *= 1e-3
    mine = LogMel(found, "cpu")(waves)
    theirs = extractor(list(waves.numpy()), sampling_rate=16_000, return_tensors="pt")
    torch.testing.assert_close(mine, theirs.input_features, rtol=0, atol=1e-5)
    for row in range(3):
        torch.testing.assert_close(
            LogMel(found, "cpu")(waves[row : row + 1])[0], mine[row], rtol=0, atol=1e-6
        )


def test_every_layer_and_the_output_equal_transformers(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    wave = sounds(1, 32_100)
    expected = reference(folder, wave[0])
    kept = slice(1, 100)  # frames centred on 320 ... 31,680 of 32,100 samples
    for layer in range(4):
        (got,) = opened(folder, layer=layer, **SHORT).frames(wave)
        assert got.shape == (1, 99, 32)
        torch.testing.assert_close(got, expected.hidden_states[layer][:, kept], rtol=0, atol=1e-5)
    (last,) = opened(folder, **SHORT).frames(wave)
    torch.testing.assert_close(last, expected.last_hidden_state[:, kept], rtol=0, atol=1e-5)
    several = opened(folder, layer=(3, 0, 1), **SHORT).frames(wave)
    for got, layer in zip(several, (3, 0, 1), strict=True):
        torch.testing.assert_close(got, expected.hidden_states[layer][:, kept], rtol=0, atol=1e-5)


def test_a_frame_is_where_the_grid_says_it_is(tmp_path: Path) -> None:
    """A click at a frame's centre moves that frame and one on either side, and no other."""
    folder = whisper_folder(tmp_path / "m")
    grid = registry.describe("e", EncoderConfig(model=str(folder), **SHORT)).grid
    assert grid == FrameGrid(1, 0, joins_tail=True, stride=320, receptive=640)
    encoder = opened(folder, layer=0, **SHORT)
    noise = 0.1 * sounds(1, 32_000)
    base = encoder.frames(noise)[0][0]
    for frame in (0, 7, 50, 98):
        centre = frame * grid.stride + grid.receptive // 2
        changed = noise.clone()
        changed[0, centre] += 0.01
        moved = (encoder.frames(changed)[0][0] - base).abs().amax(dim=-1)
        expected = [t for t in (frame - 1, frame, frame + 1) if 0 <= t <= 98]
        assert torch.nonzero(moved > 1e-4 * moved.max()).flatten().tolist() == expected


def test_number_of_frames(tmp_path: Path) -> None:
    encoder = opened(whisper_folder(tmp_path / "m"), **SHORT)
    for n_samples in (640, 959, 960, 16_000, 47_999, 48_000):
        assert encoder.frames(sounds(1, n_samples))[0].shape[1] == (n_samples - 640) // 320 + 1
    with pytest.raises(RecordingError, match="too_short: 639 samples hold no frame of whisper"):
        encoder.frames(sounds(1, 639))
    with pytest.raises(
        RecordingError, match=r"too_long: 3\.0 s; whisper reads at most 3 s at once"
    ):
        encoder.frames(sounds(1, 48_001))


def test_a_stretch_gives_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    encoder = opened(whisper_folder(tmp_path / "m"), layer=(1, 3), **SHORT)
    waves = sounds(4, 20_000)
    together = encoder.frames(waves)
    for row in range(4):
        for layer, alone in zip(together, encoder.frames(waves[row : row + 1]), strict=True):
            torch.testing.assert_close(layer[row : row + 1], alone, rtol=0, atol=1e-5)


def test_published_size_has_blocks_that_fit_its_30_s() -> None:
    config = EncoderConfig(model="openai/whisper-base", weights="random")
    facts = registry.describe("e", config)
    assert facts.grid == FrameGrid(15, 2, joins_tail=True, stride=320, receptive=640)
    assert (facts.family, facts.rate_hz, facts.embeds) == ("whisper", 16_000, False)
    fits = config.model_copy(update={"block_s": 17, "context_s": 3})
    assert registry.describe("e", fits).grid.block_s == 17  # type: ignore[union-attr]
    for block_s, context_s in ((26, 2), (20, 0), (18, 3)):
        long = config.model_copy(update={"block_s": block_s, "context_s": context_s})
        with pytest.raises(
            ConfigError, match=rf"block_s: got {block_s} with context_s {context_s}"
        ):
            registry.describe("e", long)
    whole = config.model_copy(update={"block_s": "whole"})
    assert registry.describe("e", whole).grid.block_s is None  # type: ignore[union-attr]


def test_random_weights_build_the_published_encoder_without_a_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    config = EncoderConfig(model="openai/whisper-tiny", weights="random", layer=1)
    encoder = registry.load("e", config, registry.checkpoint("e", config), "cpu")
    assert encoder.dim == 384
    assert encoder.frames(sounds(1, 16_000))[0].shape == (1, 49, 384)


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    edit_json(folder / "preprocessor_config.json", chunk_length=30)
    with pytest.raises(
        WeightsError, match=r"gives 30 s of 80 mel bands, config\.json wants 150 pos"
    ):
        registry.describe("e", EncoderConfig(model=str(folder)))


def test_an_encoder_with_gaps_is_refused(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    edit_json(folder / "config.json", encoder_layers=4)
    with pytest.raises(WeightsError, match="lacks 15 tensors of WhisperForAudioClassification"):
        opened(folder, **SHORT)
    edit_json(folder / "config.json", encoder_layers=2)
    with pytest.raises(
        WeightsError, match=r"holds 15 encoder tensors that config\.json has no place"
    ):
        opened(folder, **SHORT)


def test_windows_are_refused(tmp_path: Path) -> None:
    encoder = opened(whisper_folder(tmp_path / "m"), **SHORT)
    with pytest.raises(NotImplementedError, match="windows are their means"):
        encoder.embed(sounds(1, 16_000))
