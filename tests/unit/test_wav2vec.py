"""wav2vec 2.0, HuBERT and WavLM against transformers' own extractor and network, called directly."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.base import FrameGrid
from bioembed_ray.encoders.wav2vec import frame_geometry, standardise
from bioembed_ray.errors import ConfigError, RecordingError, WeightsError
from tests.hub import loopback_hub
from tests.unit.transformers_fixtures import SPEECH, edit_json, opened, sounds, speech_folder

KINDS = [
    pytest.param("wav2vec2", False, id="wav2vec2"),
    pytest.param("wav2vec2", True, id="wav2vec2-layer-norm"),
    pytest.param("hubert", False, id="hubert"),
    pytest.param("hubert", True, id="hubert-layer-norm"),
    pytest.param("wavlm", False, id="wavlm"),
    pytest.param("wavlm", True, id="wavlm-layer-norm"),
]


def reference(folder: Path, model_type: str, wave: torch.Tensor) -> Any:
    """Return transformers' own output for one waveform, all hidden states."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    network = SPEECH[model_type][1].from_pretrained(folder)
    given = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return network(given.input_values, output_hidden_states=True)


@pytest.mark.parametrize(("model_type", "layer_norm"), KINDS)
def test_every_layer_and_the_output_equal_transformers(
    tmp_path: Path, model_type: str, layer_norm: bool
) -> None:
    folder = speech_folder(tmp_path / "m", model_type, layer_norm=layer_norm)
    wave = sounds(1, 16_000)
    expected = reference(folder, model_type, wave[0])
    got = opened(folder, layer=(0, 1, 2, 3, 4)).frames(wave)
    for mine, theirs in zip(got, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    (last,) = opened(folder).frames(wave)
    torch.testing.assert_close(last, expected.last_hidden_state, rtol=0, atol=1e-5)
    differs = not torch.equal(expected.last_hidden_state, expected.hidden_states[-1])
    assert differs == (layer_norm), "the large kind ends in one more norm"


@pytest.mark.parametrize(("model_type", "layer_norm"), KINDS)
def test_leaving_out_blocks_changes_no_bit(
    tmp_path: Path, model_type: str, layer_norm: bool
) -> None:
    folder = speech_folder(tmp_path / "m", model_type, layer_norm=layer_norm)
    wave = sounds(1, 8_000)
    inputs = standardise(wave)
    with torch.no_grad():
        whole = SPEECH[model_type][1].from_pretrained(folder)(inputs, output_hidden_states=True)
    for layer in range(5):
        encoder = opened(folder, layer=layer)
        assert torch.equal(encoder.frames(wave)[0], whole.hidden_states[layer]), layer
        assert len(encoder._network.encoder.layers) == max(1, layer)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model_type", "layer_norm"), KINDS)
def test_a_stretch_gives_the_same_alone_and_in_a_batch(
    tmp_path: Path, model_type: str, layer_norm: bool
) -> None:
    encoder = opened(speech_folder(tmp_path / "m", model_type, layer_norm=layer_norm), layer=(2, 4))
    waves = sounds(5, 12_345)
    together = encoder.frames(waves)
    for row in range(5):
        for layer, alone in zip(together, encoder.frames(waves[row : row + 1]), strict=True):
            torch.testing.assert_close(layer[row : row + 1], alone, rtol=0, atol=1e-5)


def test_number_of_frames_follows_the_kernels(tmp_path: Path) -> None:
    kernels, strides = (10, 4, 3), (4, 3, 2)
    assert frame_geometry(kernels, strides) == (24, 10 + 3 * 4 + 2 * 12)
    folder = speech_folder(
        tmp_path / "m", conv_dim=(16,) * 3, conv_kernel=kernels, conv_stride=strides
    )
    encoder = opened(folder, block_s=3, context_s=0)
    grid = encoder.facts.grid
    assert grid == FrameGrid(3, 0, joins_tail=True, stride=24, receptive=46)
    for n_samples in (46, 69, 70, 71, 93, 94, 500, 777):
        (frames,) = encoder.frames(sounds(1, n_samples))
        assert frames.shape == (1, (n_samples - 46) // 24 + 1, 32)
    with pytest.raises(RecordingError, match="too_short: 45 samples hold no frame of wav2vec2"):
        encoder.frames(sounds(1, 45))


def test_a_frame_depends_on_no_sample_outside_its_receptive_field(tmp_path: Path) -> None:
    # The convolutions alone: with norm and attention every frame sees the whole stretch.
    folder = speech_folder(tmp_path / "m", layer_norm=True)
    stem = transformers.Wav2Vec2Model.from_pretrained(folder).feature_extractor
    wave = sounds(1, 4_000)
    changed = wave.clone()
    changed[0, 320 * 5 + 400] += 1.0  # the first sample after frame 5
    with torch.no_grad():
        same = (stem(wave) == stem(changed)).all(dim=1)[0]
    assert same[:6].all()
    assert not same[6]


def test_standardising_equals_the_extractor() -> None:
    extractor = transformers.Wav2Vec2FeatureExtractor()
    waves = sounds(3, 30_000)
    waves[2] *= 1e-5  # quiet rows are not brought to variance 1
    for row in waves:
        theirs = extractor(row.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        torch.testing.assert_close(standardise(row[None]), theirs, rtol=0, atol=2e-6)
    silence = standardise(torch.full((1, 1000), 0.25))
    assert torch.equal(silence, torch.zeros(1, 1000))


def test_do_normalize_is_read_from_the_preprocessor(tmp_path: Path) -> None:
    wave = 0.01 * sounds(1, 8_000)
    for do_normalize in (True, False):
        folder = speech_folder(
            tmp_path / str(do_normalize), layer_norm=True, do_normalize=do_normalize
        )
        expected = reference(folder, "wav2vec2", wave[0]).last_hidden_state
        torch.testing.assert_close(opened(folder).frames(wave)[0], expected, rtol=0, atol=1e-5)
    edit_json(tmp_path / "True" / "preprocessor_config.json", do_normalize="yes")
    with pytest.raises(WeightsError, match="do_normalize is 'yes', not bool"):
        opened(tmp_path / "True")


def test_a_processor_saved_by_transformers_5_is_read(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m", do_normalize=False)
    plain = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"no preprocessor_config\.json that gives a sampling"):
        opened(folder)
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": plain}))
    wave = sounds(1, 4_000)
    with torch.no_grad():
        expected = transformers.Wav2Vec2Model.from_pretrained(folder)(wave).last_hidden_state
    assert torch.equal(opened(folder).frames(wave)[0], expected)


def test_facts_come_from_json_alone(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m", "hubert")
    (folder / "model.safetensors").unlink()
    config = EncoderConfig(model=str(folder), layer=3)
    facts = registry.describe("e", config)
    assert (facts.family, facts.rate_hz, facts.window_s, facts.hop_s) == ("hubert", 16_000, 1, 0.5)
    assert facts.grid == FrameGrid(20, 2, joins_tail=True, stride=320, receptive=400)
    assert not facts.embeds
    assert facts.keeps["bfloat16"] >= 0.999
    whole = registry.describe("e", config.model_copy(update={"block_s": "whole"}))
    assert whole.grid == FrameGrid(None, 0, joins_tail=True, stride=320, receptive=400)
    with pytest.raises(WeightsError, match=r"has neither model\.safetensors nor pytorch_model\.b"):
        registry.checkpoint("e", config)


def test_the_driver_imports_neither_torch_nor_transformers() -> None:
    code = """
import sys
from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
for name in ("facebook/hubert-base-ls960", "microsoft/wavlm-base", "openai/whisper-base",
             "MIT/ast-finetuned-audioset-10-10-0.4593"):
    config = EncoderConfig(model=name, weights="random", layer=4)
    assert registry.architecture("e", config, registry.checkpoint("e", config))
    registry.describe("e", config)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_heads_are_left_aside_and_torch_files_are_read(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m", model_class=transformers.Wav2Vec2ForCTC)
    wave = sounds(1, 4_000)
    expected = opened(folder).frames(wave)[0]
    state = load_file(folder / "model.safetensors")
    assert any(name.startswith("lm_head.") for name in state)
    (folder / "model.safetensors").unlink()
    # Files from before torch 2 name the two halves of the positional convolution otherwise.
    halves = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    for new, old in halves.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    assert any(name.endswith("weight_v") for name in state)
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(opened(folder).frames(wave)[0], expected)


def test_half_precision_weights_run_in_float32(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype="float16")
    encoder = opened(folder)
    assert encoder.frames(sounds(1, 4_000))[0].dtype == torch.float32
    assert {p.dtype for p in encoder._network.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    assert not encoder._network.training  # type: ignore[attr-defined]


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("should-not-exist",)


def test_a_checkpoint_with_gaps_is_refused(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    state = load_file(path)

    def refused(changed: dict[str, torch.Tensor], message: str) -> None:
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            opened(folder)

    half = {k: v for k, v in state.items() if ".layers.3." not in k}
    refused(half, "lacks 16 tensors of Wav2Vec2Model, such as encoder.layers.3.attention.k_proj")
    more = state | {
        k.replace(".3.", ".4."): v.clone() for k, v in state.items() if ".layers.3." in k
    }
    refused(more, r"holds 16 encoder tensors that config\.json has no place for, such as encoder")
    name = "encoder.layers.0.feed_forward.output_dense.weight"
    refused(
        state | {name: torch.zeros(32, 63)},
        "holds tensors of other shapes than .*, such as " + name,
    )
    refused(state | {name: torch.full((32, 64), torch.nan)}, "the weights hold NaN or infinity")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not weights of this Wav2Vec2Model"):
        opened(folder)
    save_file({k: v for k, v in state.items() if k != "masked_spec_embed"}, path)
    opened(folder)


def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = speech_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"encoder": _Code()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds more than plain tensors"):
        opened(folder)
    assert not (tmp_path / "should-not-exist").exists()


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m", model_class=transformers.Wav2Vec2ForCTC)
    with pytest.raises(WeightsError, match=r"holds a wav2vec2 model, facebook/hubert-.* is hubert"):
        config = EncoderConfig(model="facebook/hubert-base-ls960", weights=str(folder))
        registry.checkpoint("e", config)
    edit_json(folder / "config.json", model_type="hubert")
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors of HubertModel"):
        opened(folder)
    edit_json(folder / "config.json", model_type="bert")
    with pytest.raises(
        ConfigError, match="has model_type 'bert'; use one of wav2vec2, hubert, wav"
    ):
        registry.describe("e", EncoderConfig(model=str(folder)))


def test_local_weights_stand_in_for_a_hub_name(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m", "hubert")
    config = EncoderConfig(model="facebook/hubert-base-ls960", weights=str(folder))
    pinned = registry.checkpoint("e", config)
    assert (pinned.kind, pinned.path) == ("local", str(folder))
    wave = sounds(1, 4_000)
    got = registry.load("e", config, pinned, "cpu").frames(wave)[0]
    assert torch.equal(got, opened(folder).frames(wave)[0])


def test_the_digest_follows_the_weights_and_not_what_lies_beside(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m")
    config = EncoderConfig(model=str(folder))
    first = registry.checkpoint("e", config)
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "README.md").write_text("x")
    assert registry.checkpoint("e", config) == first
    text = registry.architecture("e", config, first)
    edit_json(folder / "config.json", transformers_version="1.0")
    assert registry.architecture("e", config, first) == text
    speech_folder(folder, seed=1)
    assert registry.checkpoint("e", config).digest != first.digest
    with pytest.raises(WeightsError, match="plan it again"):
        registry.load("e", config, first, "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 5}, r"encoders\.e\.layer: got 5; .* has layers 0 to 4"),
        ({"rate_hz": 48_000}, r"encoders\.e\.rate_hz: got 48000; .* hears 16000 Hz only"),
        ({"frame_unit": "patch"}, r"encoders\.e\.frame_unit: got 'patch'; .* one frame per time"),
        ({"revision": "main"}, r"encoders\.e\.revision: got 'main'; .* is not read from the hub"),
        ({"block_s": "whole", "context_s": 1}, r"encoders\.e\.context_s: got 1 with block_s: who"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = speech_folder(tmp_path / "m")
    with pytest.raises(ConfigError, match=message):
        registry.describe("e", EncoderConfig(model=str(folder), **options))


def test_blocks_must_start_on_a_frame(tmp_path: Path) -> None:
    kernels, strides = (10, 7, 7), (10, 7, 7)
    folder = speech_folder(
        tmp_path / "m", conv_dim=(16,) * 3, conv_kernel=kernels, conv_stride=strides
    )
    with pytest.raises(
        ConfigError, match="block_s: got 20; at 16000 Hz it must be a multiple of 4"
    ):
        registry.describe("e", EncoderConfig(model=str(folder)))


def test_an_adapter_is_left_out_where_a_layer_is_asked_for(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m", add_adapter=True)
    with pytest.raises(ConfigError, match="ends in an adapter with a frame rate of its own"):
        registry.describe("e", EncoderConfig(model=str(folder)))
    wave = sounds(1, 4_000)
    expected = reference(folder, "wav2vec2", wave[0]).hidden_states[4]
    got = opened(folder, layer=4).frames(wave)[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_half_precision_stays_close_and_gives_float32(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "m")
    wave = sounds(2, 8_000)
    exact = opened(folder, layer=(2, 4)).frames(wave)
    rough = opened(folder, layer=(2, 4), precision="bfloat16").frames(wave)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert torch.cosine_similarity(a, b, dim=-1).min() > 0.995


RANDOM = """
import sys, hashlib, torch
torch.set_num_threads(1)
from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
config = EncoderConfig(model=sys.argv[1], weights="random:7")
pinned = registry.checkpoint("e", config)
encoder = registry.load("e", config, pinned, "cpu")
frames = encoder.frames(torch.sin(torch.arange(4000) / 9.0)[None])[0]
print(pinned.digest, hashlib.sha256(frames.numpy().tobytes()).hexdigest())
"""


def test_random_weights_are_the_same_in_every_process_and_leave_the_generator(
    tmp_path: Path,
) -> None:
    folder = speech_folder(tmp_path / "m")
    done = subprocess.run(
        [sys.executable, "-c", RANDOM, str(folder)], capture_output=True, text=True, check=True
    )
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    config = EncoderConfig(model=str(folder), weights="random:7")
    pinned = registry.checkpoint("e", config)
    assert (pinned.kind, pinned.seed) == ("random", 7)
    encoder = registry.load("e", config, pinned, "cpu")
    assert torch.equal(torch.rand(1), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    frames = encoder.frames(torch.sin(torch.arange(4000) / 9.0)[None])[0]
    torch.set_num_threads(threads)
    digest = hashlib.sha256(frames.numpy().tobytes()).hexdigest()
    assert done.stdout.split() == [pinned.digest, digest]
    edit_json(folder / "config.json", hidden_act="relu")
    with pytest.raises(WeightsError, match="settings changed since this run was planned"):
        registry.load("e", config, pinned, "cpu")
    other = EncoderConfig(model=str(folder), weights="random:8")
    assert registry.checkpoint("e", other).digest != pinned.digest


def test_a_known_name_with_random_weights_needs_no_hub_and_has_full_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    config = EncoderConfig(model="facebook/wav2vec2-base", weights="random", layer=1)
    encoder = registry.load("e", config, registry.checkpoint("e", config), "cpu")
    assert (encoder.dim, encoder.batch_size) == (768, 1)
    assert encoder.frames(sounds(1, 400))[0].shape == (1, 1, 768)
    stem = encoder._network.feature_extractor  # type: ignore[attr-defined]
    default = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(num_hidden_layers=1))
    shapes = [p.shape for p in default.feature_extractor.parameters()]
    assert [p.shape for p in stem.parameters()] == shapes


def test_windows_are_refused(tmp_path: Path) -> None:
    encoder = opened(speech_folder(tmp_path / "m"))
    with pytest.raises(NotImplementedError, match="windows are their means"):
        encoder.embed(sounds(1, 16_000))


def test_weights_come_from_the_hub_at_a_pinned_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = speech_folder(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    wave = sounds(1, 4_000)
    expected = opened(folder).frames(wave)[0]
    with loopback_hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "tf_model.h5").write_bytes(b"large")
        commit = hub.publish_folder("lab/tiny", folder)
        config = EncoderConfig(model="lab/tiny", layer=None)
        assert registry.describe("e", config).family == "wav2vec2"
        pinned = registry.checkpoint("e", config)
        assert pinned.commit == commit
        assert pinned.files == ("config.json", "model.safetensors", "preprocessor_config.json")
        speech_folder(folder, seed=1)
        hub.publish_folder("lab/tiny", folder)
        assert registry.checkpoint("e", config).digest != pinned.digest
        got = registry.load("e", config, pinned, "cpu").frames(wave)[0]
        assert torch.equal(got, expected)
        assert not any("pytorch_model.bin" in line or "tf_model" in line for line in hub.log)
        with pytest.raises(WeightsError, match="no repository lab/none"):
            registry.describe("e", EncoderConfig(model="lab/none"))


def test_a_repository_with_a_torch_file_only_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = speech_folder(tmp_path / "m", "hubert")
    wave = sounds(1, 4_000)
    expected = opened(folder).frames(wave)[0]
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with loopback_hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        hub.publish_folder("lab/old", folder)
        config = EncoderConfig(model="lab/old")
        pinned = registry.checkpoint("e", config)
        assert pinned.files == ("config.json", "preprocessor_config.json", "pytorch_model.bin")
        got = registry.load("e", config, pinned, "cpu").frames(wave)[0]
    np.testing.assert_array_equal(got.numpy(), expected.numpy())
