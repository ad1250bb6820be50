import copy
from pathlib import Path

import pytest
import torch
import yaml

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.base import Encoder
from bioembed_ray.encoders.efficientnet import fold_batch_norms
from bioembed_ray.errors import ConfigError
from tests.unit.encoder_fixtures import (
    EFFICIENTNET_AUDIO,
    efficientnet_spec,
    reference,
    relative,
    sounds,
    write_model,
)

NAME = "esp_aves2_effnetb0_all"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_model(tmp_path_factory.mktemp("efficientnet"), efficientnet_spec())


@pytest.fixture(scope="module")
def avex_model(saved: tuple[Path, Path]) -> torch.nn.Module:
    return reference(*saved)


def loaded(weights: Path | str, model: str = NAME, **options: object) -> Encoder:
    settings = EncoderConfig.model_validate({"model": model, "weights": str(weights), **options})
    return registry.load("e", settings, registry.checkpoint("e", settings), "cpu")


@pytest.mark.parametrize("n_samples", [401, 8000, 16000])
def test_a_window_vector_is_the_mean_of_avexs_map_of_that_window_alone(
    saved: tuple[Path, Path], avex_model: torch.nn.Module, n_samples: int
) -> None:
    windows = sounds(4, n_samples)
    got = loaded(saved[1]).embed(windows)
    with torch.no_grad():
        alone = torch.cat([avex_model(window[None]).mean((2, 3)) for window in windows])
    assert [vector.shape for vector in got] == [(4, 1280)]
    assert got[0].dtype == torch.float32
    assert relative(got[0], alone) < 1e-5


def test_a_batch_does_not_change_a_windows_vector(saved: tuple[Path, Path]) -> None:
    encoder = loaded(saved[1])
    windows = sounds(14, 16000)
    alone = torch.cat([encoder.embed(window[None])[0] for window in windows])
    seven = torch.cat([encoder.embed(windows[k : k + 7])[0] for k in (0, 7)])
    assert relative(seven, alone) < 1e-5
    assert relative(encoder.embed(windows.flip(0))[0].flip(0), alone) < 1e-5


def test_folding_leaves_no_batch_norm_and_the_same_map(avex_model: torch.nn.Module) -> None:
    # No parametrisation here, so that a copy is safe.
    folded = copy.deepcopy(avex_model.model.features)
    fold_batch_norms(folded)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    image = torch.rand(2, 3, 128, 101)
    with torch.no_grad():
        assert relative(folded(image), avex_model.model.features(image)) < 1e-5


def test_the_mel_stays_float32_under_autocast(
    saved: tuple[Path, Path], avex_model: torch.nn.Module
) -> None:
    encoder = loaded(saved[1], precision="bfloat16")
    images: list[torch.Tensor] = []
    encoder._features.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda _m, args: images.append(args[0])
    )
    windows = sounds(3, 16000)
    half = encoder.embed(windows)[0]
    assert images[0].dtype == torch.float32
    assert torch.equal(images[0], avex_model.process_audio(windows))
    exact = loaded(saved[1]).embed(windows)[0]
    assert half.dtype == torch.float32
    assert 0 < relative(half, exact) < 0.2


def test_embedding_does_not_change_the_network(saved: tuple[Path, Path]) -> None:
    encoder = loaded(saved[1])
    windows = sounds(3, 16000)
    assert torch.equal(encoder.embed(windows)[0], encoder.embed(windows)[0])
    assert not any(module.training for module in encoder._network.modules())  # type: ignore[attr-defined]


def test_untrained_weights_are_seeded_and_tell_sounds_apart() -> None:
    windows = sounds(4, 16000)
    first, again, other = (loaded(w).embed(windows)[0] for w in ("random", "random", "random:1"))
    assert torch.equal(first, again)
    assert relative(other, first) > 0.1
    assert float(first.norm(dim=1).min()) > 1e-2
    assert float(first.norm(dim=1).max()) < 1e4
    assert float(torch.nn.functional.cosine_similarity(first[0], first[1], dim=0)) < 0.99


def test_describe_has_no_frames() -> None:
    facts = registry.describe("e", EncoderConfig(model=NAME))
    assert (facts.family, facts.rate_hz, facts.grid) == ("efficientnet", 16000, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": "all"}, "encoders.e.frames: .* one vector per window and no frames"),
        ({"layer": 3}, "encoders.e.layer: got 3; .* gives its own output only"),
        ({"frame_unit": "patch"}, "encoders.e.frame_unit: got 'patch'"),
        ({"block_s": 10}, "encoders.e.block_s: .* no frames"),
        ({"window_s": 0.01}, "encoders.e.window_s: got 0.01; .* needs 0.0250625 s or more"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(options: dict[str, object], message: str) -> None:
    config = EncoderConfig.model_validate({"model": NAME, **options})
    with pytest.raises(ConfigError, match=message):
        registry.describe("e", config)


def test_resnet18_runs_as_avex_runs_it(tmp_path: Path) -> None:
    spec = {"name": "resnet18", "audio_config": EFFICIENTNET_AUDIO}
    config, weights = write_model(tmp_path, spec)
    windows = sounds(3, 16000)
    encoder = loaded(weights, str(config))
    with torch.no_grad():
        alone = torch.cat([reference(config, weights)(w[None]).mean((2, 3)) for w in windows])
    assert encoder.dim == 512
    assert relative(encoder.embed(windows)[0], alone) < 1e-5
    half = loaded(weights, str(config), precision="bfloat16").embed(windows)[0]
    assert 0 < relative(half, alone) < 0.1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("eat_hf", "remote code that fails with transformers 5"),
        ("resnet50", "builds a ResNet-18 under this name"),
        ("perch2", "rate_hz: 32000 and window_s: 5"),
        ("my_net", "unknown avex class 'my_net'"),
    ],
)
def test_other_avex_classes_say_why_they_do_not_run(
    tmp_path: Path, kind: str, message: str
) -> None:
    path = tmp_path / "other.yml"
    path.write_text(yaml.safe_dump({"model_spec": {"name": kind}}))
    with pytest.raises(ConfigError, match=f"encoders.o.model: .*{message}"):
        registry.describe("o", EncoderConfig(model=str(path)))


def test_a_registered_eat_model_says_why_it_does_not_run() -> None:
    with pytest.raises(ConfigError, match=r"o\.model: esp_aves2_eat_all .*transformers 5"):
        registry.describe("o", EncoderConfig(model="esp_aves2_eat_all"))
