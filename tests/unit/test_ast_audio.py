"""AST against transformers' own extractor and network, called directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import model_folder, registry
from bioembed_ray.encoders.ast_audio import Fbank
from bioembed_ray.errors import ConfigError, RecordingError, WeightsError
from tests.unit.transformers_fixtures import ast_folder, edit_json, opened, sounds

LENGTHS = (400, 559, 560, 7_777, 16_000, 20_479, 20_480)


def reference(folder: Path, wave: torch.Tensor) -> Any:
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    network = transformers.ASTModel.from_pretrained(folder)
    given = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return network(given.input_values, output_hidden_states=True)


@pytest.mark.parametrize("n_samples", LENGTHS)
def test_the_front_end_equals_the_extractor_at_any_length(tmp_path: Path, n_samples: int) -> None:
    folder = ast_folder(tmp_path / "m", mean=-6.8, std=5.5)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    front_end = Fbank(model_folder.settings(EncoderConfig(model=str(folder))), "cpu")
    waves = sounds(3, n_samples)
    waves[2] = 0
    theirs = extractor(list(waves.numpy()), sampling_rate=16_000, return_tensors="pt").input_values
    torch.testing.assert_close(front_end(waves), theirs, rtol=0, atol=1e-6)
    for row in range(3):
        alone = front_end(waves[row : row + 1])[0]
        torch.testing.assert_close(alone, theirs[row], rtol=0, atol=1e-6)


def test_the_published_front_end_equals_the_extractor_with_1022_frames() -> None:
    config = EncoderConfig(model="MIT/ast-finetuned-audioset-10-10-0.4593", weights="random")
    front_end = Fbank(model_folder.settings(config), "cpu")
    extractor = transformers.ASTFeatureExtractor()
    waves = sounds(2, 163_840)
    theirs = extractor(list(waves.numpy()), sampling_rate=16_000, return_tensors="pt").input_values
    mine = front_end(waves)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    zeros_after_normalising = 4.2677393 / (2 * 4.5689974)
    padded = (mine - zeros_after_normalising).abs().amax(dim=-1) < 1e-6
    assert padded.sum(dim=1).tolist() == [2, 2]


@pytest.mark.parametrize("n_samples", LENGTHS)
def test_every_layer_and_the_output_equal_transformers(tmp_path: Path, n_samples: int) -> None:
    folder = ast_folder(tmp_path / "m")
    wave = sounds(1, n_samples)
    expected = reference(folder, wave[0])
    (pooled,) = opened(folder).embed(wave)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)
    for layer in range(4):
        (got,) = opened(folder, layer=layer).embed(wave)
        state = expected.hidden_states[layer]
        torch.testing.assert_close(got, (state[:, 0] + state[:, 1]) / 2, rtol=0, atol=1e-5)


def test_several_layers_of_one_pass_equal_single_ones(tmp_path: Path) -> None:
    folder = ast_folder(tmp_path / "m")
    wave = sounds(2, 9_000)
    config_layers = (2, 0, 3)
    together = opened(folder, layer=config_layers).embed(wave)
    for got, layer in zip(together, config_layers, strict=True):
        assert torch.equal(got, opened(folder, layer=layer).embed(wave)[0])


def test_a_window_gives_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    encoder = opened(ast_folder(tmp_path / "m"), layer=None)
    waves = sounds(5, 20_480)
    (together,) = encoder.embed(waves)
    for row in range(5):
        (alone,) = encoder.embed(waves[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_silence_after_a_sound_is_not_the_sound_alone(tmp_path: Path) -> None:
    """Why windows go in unpadded: the network takes its own padding for something else."""
    encoder = opened(ast_folder(tmp_path / "m"))
    wave = sounds(1, 8_000)
    padded = torch.nn.functional.pad(wave, (0, 12_480))
    alone, followed = encoder.embed(wave)[0], encoder.embed(padded)[0]
    assert float((alone - followed).norm() / alone.norm()) > 0.05


def test_lengths_beyond_the_network_are_refused(tmp_path: Path) -> None:
    encoder = opened(ast_folder(tmp_path / "m"))
    with pytest.raises(RecordingError, match="too_short: 399 samples; ast needs 400"):
        encoder.embed(sounds(1, 399))
    with pytest.raises(RecordingError, match="too_long: 20481 samples; ast takes 20480"):
        encoder.embed(sounds(1, 20_481))
    with pytest.raises(NotImplementedError, match="no frames"):
        encoder.frames(sounds(1, 400))


def test_facts_of_the_published_model_need_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    config = EncoderConfig(model="MIT/ast-finetuned-audioset-10-10-0.4593", weights="random")
    facts = registry.describe("e", config)
    assert (facts.family, facts.rate_hz) == ("ast", 16_000)
    assert (facts.window_s, facts.hop_s, facts.max_window_s) == (10.24, 10.24, 10.24)
    assert (facts.embeds, facts.pads, facts.grid) == (True, False, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 10.25}, r"window_s: got 10\.25; .* takes at most 10\.24 s at once"),
        ({"window_s": 0.02}, r"window_s: got 0\.02; .* needs at least 0\.025 s"),
        ({"layer": 13}, "layer: got 13; .* has layers 0 to 12"),
        ({"block_s": 20}, "block_s: .* gives one vector per window and no frames"),
        ({"context_s": 2}, "context_s: .* gives one vector per window and no frames"),
        ({"frames": "all"}, "frames: .* gives one vector per window and no frames"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    name = "MIT/ast-finetuned-audioset-10-10-0.4593"
    with pytest.raises(ConfigError, match=message):
        registry.describe("e", EncoderConfig(model=name, weights="random", **options))


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    folder = ast_folder(tmp_path / "m")
    edit_json(folder / "preprocessor_config.json", max_length=1024)
    with pytest.raises(WeightsError, match=r"says max_length 1024, config\.json 128"):
        registry.describe("e", EncoderConfig(model=str(folder)))


def test_a_checkpoint_with_gaps_is_refused(tmp_path: Path) -> None:
    folder = ast_folder(tmp_path / "m")
    edit_json(folder / "config.json", num_hidden_layers=4)
    with pytest.raises(WeightsError, match=r"lacks 16 tensors of ASTModel, such as layers\.3"):
        opened(folder)
    edit_json(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(
        WeightsError, match=r"holds 16 encoder tensors that config\.json has no place"
    ):
        opened(folder)
