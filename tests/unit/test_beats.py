import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.base import Encoder, FrameGrid
from bioembed_ray.errors import ConfigError
from tests.unit.encoder_fixtures import beats_spec, reference, relative, sounds, write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_model(tmp_path_factory.mktemp("beats"), beats_spec())


@pytest.fixture(scope="module")
def avex_model(tiny: tuple[Path, Path]) -> torch.nn.Module:
    return reference(*tiny)


def loaded(config: Path | str, **options: object) -> Encoder:
    settings = EncoderConfig.model_validate({"model": str(config), **options})
    return registry.load("beats", settings, registry.checkpoint("beats", settings), "cpu")


def digest(encoder: Encoder) -> str:
    """Every weight to the bit; vectors would differ in the last one with the number of threads."""
    weights = encoder._network.state_dict().values()  # type: ignore[attr-defined]
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights)).hexdigest()


def block_outputs(model: torch.nn.Module, waves: torch.Tensor) -> dict[int, torch.Tensor]:
    """Layers by avex's own route: tgt_layer makes its encoder list what enters and leaves blocks."""
    encoder = model.backbone.encoder
    inputs: list[torch.Tensor] = []
    handle = encoder.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    with torch.no_grad():
        model(waves)
        handle.remove()
        _, results = encoder.extract_features(inputs[0], tgt_layer=len(encoder.layers) - 1)
    return {k: x.transpose(0, 1) for k, (x, _) in enumerate(results)}


def test_a_window_vector_is_the_mean_of_the_tokens_avex_gives(
    tiny: tuple[Path, Path], avex_model: torch.nn.Module
) -> None:
    windows = sounds(5, 16000)
    got = loaded(tiny[0]).embed(windows)
    with torch.no_grad():
        alone = torch.stack([avex_model(window[None])[0].mean(0) for window in windows])
    assert len(got) == 1
    assert got[0].shape == (5, 64)
    assert got[0].dtype == torch.float32
    assert relative(got[0], alone) < 1e-6


@pytest.mark.parametrize("n_samples", [2800, 5360, 16000, 52345])
def test_frames_are_avex_tokens_in_time_order(
    tiny: tuple[Path, Path], avex_model: torch.nn.Module, n_samples: int
) -> None:
    waves = sounds(3, n_samples)
    with torch.no_grad():
        tokens = avex_model(waves)
    n_steps = (n_samples - 2800) // 2560 + 1
    patches = loaded(tiny[0], frame_unit="patch").frames(waves)[0]
    steps = loaded(tiny[0]).frames(waves)[0]
    assert patches.shape == (3, n_steps * 8, 64)
    assert torch.equal(patches, tokens)
    assert steps.shape == (3, n_steps, 64)
    by_hand = torch.stack([tokens[:, 8 * t : 8 * t + 8].mean(1) for t in range(n_steps)], 1)
    assert relative(steps, by_hand) < 1e-6


def test_every_layer_is_the_block_output_and_the_last_is_the_models_own(
    tiny: tuple[Path, Path], avex_model: torch.nn.Module
) -> None:
    waves = sounds(2, 16000)
    wanted = block_outputs(avex_model, waves)
    got = loaded(tiny[0], layer=[2, 0, 3, 1], frame_unit="patch").frames(waves)
    for layer, tokens in zip([2, 0, 3, 1], got, strict=True):
        assert torch.equal(tokens, wanted[layer]), layer
    own = loaded(tiny[0], frame_unit="patch").frames(waves)[0]
    assert torch.equal(own, wanted[3])
    assert relative(wanted[2], wanted[3]) > 0.1


def test_blocks_above_the_highest_layer_are_not_run(tiny: tuple[Path, Path]) -> None:
    alone = loaded(tiny[0], layer=1)
    assert len(alone._network.backbone.encoder.layers) == 1  # type: ignore[attr-defined]
    waves = sounds(2, 16000)
    together = loaded(tiny[0], layer=[1, 3]).embed(waves)
    assert torch.equal(alone.embed(waves)[0], together[0])


@pytest.mark.parametrize("layer", [None, 2])
def test_a_batch_does_not_change_a_windows_vector(
    tiny: tuple[Path, Path], layer: int | None
) -> None:
    encoder = loaded(tiny[0], layer=layer)
    # 48 windows of 1 s have 48 tokens each: there avex's own layer outputs mix windows.
    windows = sounds(48, 16000)
    alone = torch.cat([encoder.embed(window[None])[0] for window in windows])
    seven = torch.cat([encoder.embed(windows[k : k + 7])[0] for k in range(0, 48, 7)])
    reversed_order = encoder.embed(windows.flip(0))[0].flip(0)
    for batched in (seven, reversed_order, encoder.embed(windows)[0]):
        assert relative(batched, alone) < 1e-5


def test_the_network_is_in_eval_mode_and_draws_no_random_numbers(tiny: tuple[Path, Path]) -> None:
    encoder = loaded(tiny[0])
    assert not any(module.training for module in encoder._network.modules())  # type: ignore[attr-defined]
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = encoder.embed(sounds(2, 16000))[0]
    assert all(torch.equal(first, encoder.embed(sounds(2, 16000))[0]) for _ in range(12))
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_bfloat16_moves_vectors_a_little_and_stays_float32_outside(
    tiny: tuple[Path, Path],
) -> None:
    windows = sounds(4, 16000)
    exact = loaded(tiny[0]).embed(windows)[0]
    half = loaded(tiny[0], precision="bfloat16").embed(windows)[0]
    assert half.dtype == torch.float32
    assert 0 < relative(half, exact) < 0.05


def test_describe_follows_the_yaml() -> None:
    facts = registry.describe("beats", EncoderConfig(model="esp_aves2_sl_beats_all"))
    assert facts.rate_hz == 16000
    assert (facts.window_s, facts.hop_s, facts.embeds, facts.pads) == (1.0, 0.5, True, True)
    assert facts.dim == 768
    assert facts.grid == FrameGrid(10, 0, False, stride=2560, receptive=2800, per_step=1)
    patch = EncoderConfig(model="esp_aves2_sl_beats_all", frame_unit="patch", block_s="whole")
    assert registry.describe("beats", patch).grid == FrameGrid(None, 0, False, 2560, 2800, 8)
    bird = EncoderConfig(model="esp_aves2_sed_birdcode_beats_encoder")
    facts = registry.describe("beats", bird)
    # 32 kHz through a filter bank laid out for 16 kHz: the same samples, half the time.
    assert facts.rate_hz == 32000
    assert facts.grid == FrameGrid(5, 0, False, stride=2560, receptive=2800)
    aligned = EncoderConfig(model="esp_aves2_sl_beats_all", block_s=8, context_s=4)
    assert registry.describe("beats", aligned).grid == FrameGrid(8, 4, False, 2560, 2800)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 13}, "encoders.b.layer: got 13; esp_aves2_sl_beats_all has layers 0 to 12"),
        ({"window_s": 0.1}, "encoders.b.window_s: got 0.1; .* needs 0.175 s or more"),
        ({"rate_hz": 48000}, "encoders.b.rate_hz: got 48000; .* hears 16000 Hz only"),
        ({"context_s": 1}, "encoders.b.context_s: got 1 with block_s: 10; .* multiples of 0.16 s"),
        ({"weights": "/x.pt", "revision": "v1"}, "encoders.b.revision: got 'v1'; .* not read from"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(options: dict[str, object], message: str) -> None:
    config = EncoderConfig.model_validate({"model": "esp_aves2_sl_beats_all", **options})
    with pytest.raises(ConfigError, match=message) as caught:
        registry.describe("b", config)
    assert "\n" not in str(caught.value)


def test_a_misspelt_model_names_the_nearest() -> None:
    config = EncoderConfig(model="esp_aves2_sl_beets_all")
    with pytest.raises(ConfigError, match="did you mean 'esp_aves2_sl_beats_all'"):
        registry.describe("b", config)


def test_a_32_khz_yaml_runs_at_its_rate(tmp_path: Path) -> None:
    config, weights = write_model(tmp_path, beats_spec(rate_hz=32000, trained_s=5))
    encoder = loaded(config)
    assert encoder.facts.rate_hz == 32000
    windows = sounds(2, 32000, 32000)
    with torch.no_grad():
        wanted = reference(config, weights)(windows).mean(1)
    assert relative(encoder.embed(windows)[0], wanted) < 1e-6


def test_a_yaml_that_normalises_before_its_blocks_gives_its_own_output(tmp_path: Path) -> None:
    spec = beats_spec(layer_norm_first=True, deep_norm=False)
    config, weights = write_model(tmp_path, spec)
    model, windows = reference(config, weights), sounds(2, 16000)
    own, last = (
        loaded(config, layer=None).embed(windows)[0],
        loaded(config, layer=3).embed(windows)[0],
    )
    with torch.no_grad():
        assert relative(own, model(windows).mean(1)) < 1e-6
    assert relative(last, block_outputs(model, windows)[3].mean(1)) < 1e-6
    assert relative(own, last) > 0.01


def test_random_weights_are_the_same_in_every_process_and_leave_the_random_state(
    tiny: tuple[Path, Path],
) -> None:
    code = (
        "import torch\n"
        "from tests.unit.test_beats import digest, loaded\n"
        "torch.manual_seed(5)\n"
        f"encoder = loaded({str(tiny[0])!r}, weights='random:3')\n"
        "print(digest(encoder), torch.rand(1).item())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    there, drawn = run.stdout.split()[-2:]
    torch.manual_seed(123)
    here = loaded(tiny[0], weights="random:3")
    assert digest(here) == there
    assert torch.manual_seed(5) and torch.rand(1).item() == float(drawn)
    other = loaded(tiny[0], weights="random:4")
    waves = sounds(1, 16000)
    assert relative(other.embed(waves)[0], here.embed(waves)[0]) > 0.1


def test_reading_what_a_model_is_imports_neither_avex_nor_torch() -> None:
    code = (
        "import sys\n"
        "from bioembed_ray.config import EncoderConfig\n"
        "from bioembed_ray.encoders import registry\n"
        "for name in ('esp_aves2_sl_beats_all', 'esp_aves2_effnetb0_all'):\n"
        "    config = EncoderConfig(model=name, weights='random')\n"
        "    registry.describe('e', config)\n"
        "    registry.architecture('e', config, registry.checkpoint('e', config))\n"
        "print({'avex', 'torch', 'transformers'} & set(sys.modules))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"
