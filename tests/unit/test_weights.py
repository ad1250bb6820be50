import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.state import fill, verify_state
from bioembed_ray.encoders.weights import (
    fetch,
    local_checkpoint,
    random_checkpoint,
    read_state,
    seeded,
)
from bioembed_ray.errors import WeightsError
from tests.unit.encoder_fixtures import (
    avex_network,
    beats_spec,
    relative,
    sounds,
    state_of,
    write_model,
)

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_model(tmp_path_factory.mktemp("weights"), beats_spec())


@pytest.fixture
def state(tiny: tuple[Path, Path]) -> Tensors:
    return load_file(tiny[1])


def load(config: Path, weights: Path | str | None = None) -> Any:
    options = {} if weights is None else {"weights": str(weights)}
    settings = EncoderConfig.model_validate({"model": str(config), **options})
    return registry.load("beats", settings, registry.checkpoint("beats", settings), "cpu")


def wrong_message(config: Path, weights: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load(config, weights)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("beats: ")
    assert str(weights) in message
    return message


def test_the_yamls_own_checkpoint_path_is_honoured(tiny: tuple[Path, Path]) -> None:
    windows = sounds(2, 16000)
    assert torch.equal(load(tiny[0]).embed(windows)[0], load(*tiny).embed(windows)[0])


def test_a_yaml_without_checkpoint_path_is_not_silently_random(tmp_path: Path) -> None:
    config = tmp_path / "bare.yml"
    config.write_text(yaml.safe_dump({"model_spec": beats_spec()}))
    with pytest.raises(WeightsError, match=r"beats: .*bare.yml: names no checkpoint_path"):
        load(config)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model_state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {k.removeprefix("backbone."): v for k, v in s.items()},
        lambda s: {**s, "classifier.weight": torch.ones(5, 64), "classifier.bias": torch.ones(5)},
        lambda s: {k: v for k, v in s.items() if "predictor" not in k and "fbank" not in k},
        lambda s: {
            k.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): v
            for k, v in s.items()
        },
        lambda s: {
            k: v
            for k, v in s.items()
            if not re.search(r"layers\.[12]\.self_attn\.relative_attention_bias", k)
        },
    ],
    ids=[
        "plain", "model_state_dict", "model", "module.", "no backbone.", "classifier",
        "no unused tensors", "old weight norm", "shared tensor stored once",
    ],
)  # fmt: skip
def test_every_form_that_avex_takes_gives_the_same_network(
    tiny: tuple[Path, Path], state: Tensors, tmp_path: Path, wrap: Any
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(wrap(state), path)
    windows = sounds(2, 16000)
    assert torch.equal(load(tiny[0], path).embed(windows)[0], load(tiny[0]).embed(windows)[0])


def test_a_foreign_file_is_refused(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({f"bert.layer.{k}.weight": torch.ones(3) for k in range(4)}, path)
    assert "has 0 of the network's" in wrong_message(tiny[0], path)


def test_half_a_file_is_refused(tiny: tuple[Path, Path], state: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    names = sorted(state)
    save_file({name: state[name] for name in names[: len(names) // 2]}, path)
    assert re.search(r"has \d+ of the network's \d+ tensors, without", wrong_message(tiny[0], path))


def test_one_missing_tensor_is_refused_by_name(
    tiny: tuple[Path, Path], state: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "gap.safetensors"
    del state["backbone.encoder.layers.2.fc2.bias"]
    save_file(state, path)
    assert "without backbone.encoder.layers.2.fc2.bias" in wrong_message(tiny[0], path)


def test_a_deeper_network_is_refused(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    _, weights = write_model(tmp_path, beats_spec(encoder_layers=4), "deep")
    message = wrong_message(tiny[0], weights)
    assert "tensors that the network has not, such as backbone.encoder.layers.3." in message


def test_a_wider_network_is_refused_by_shape(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    _, weights = write_model(tmp_path, beats_spec(encoder_ffn_embed_dim=256), "wide")
    message = wrong_message(tiny[0], weights)
    assert re.search(r"has shape \(.*256.*\), the network needs \(.*128.*\)", message)


def test_a_wrapped_dict_of_unknown_shape_is_refused(
    tiny: tuple[Path, Path], state: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "wrapped.pt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    message = wrong_message(tiny[0], path)
    assert "holds epoch, state_dict instead of tensors" in message


@pytest.mark.parametrize("content", [{"model_state_dict": 3}, {1: torch.ones(2)}, torch.ones(3)])
def test_something_else_in_a_torch_file_is_refused(
    tiny: tuple[Path, Path], tmp_path: Path, content: object
) -> None:
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    assert "not names and tensors" in (message := wrong_message(tiny[0], path)) or (
        "no names and tensors" in message
    )


def test_an_empty_safetensors_is_refused(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    save_file({}, path)
    assert "the file holds no tensors" in wrong_message(tiny[0], path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(
    tiny: tuple[Path, Path], state: Tensors, tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"cut{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "not a whole" in (message := wrong_message(tiny[0], path)) or "weights_only" in message


def test_a_torch_file_that_holds_code_is_not_run(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(avex_module_with_code(), path)
    assert "save model.state_dict()" in wrong_message(tiny[0], path)


class Trap:
    """Would create a file on being unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("must-not-exist"),)  # type: ignore[return-value]


def avex_module_with_code() -> dict[str, Any]:
    return {"weights": torch.ones(2), "trap": Trap()}


def test_nan_weights_are_refused(tiny: tuple[Path, Path], state: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    state["backbone.layer_norm.weight"][3] = float("nan")
    save_file(state, path)
    assert "backbone.layer_norm.weight holds NaN or infinity" in wrong_message(tiny[0], path)


def test_a_missing_file_is_one_line(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    assert "no such file or folder" in wrong_message(tiny[0], tmp_path / "gone.safetensors")


def test_a_folder_with_one_checkpoint_is_that_checkpoint(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(tiny[1].read_bytes())
    (tmp_path / "label_map.json").write_text("{}")
    windows = sounds(1, 16000)
    assert torch.equal(load(tiny[0], tmp_path).embed(windows)[0], load(*tiny).embed(windows)[0])
    (tmp_path / "other.safetensors").write_bytes(tiny[1].read_bytes())
    assert "set weights to one file" in wrong_message(tiny[0], tmp_path)


def test_half_precision_files_load_as_float32(
    tiny: tuple[Path, Path], state: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() for k, v in state.items()}, path)
    got, exact = (load(tiny[0], p).embed(sounds(2, 16000))[0] for p in (path, tiny[1]))
    assert got.dtype == torch.float32
    assert 0 < relative(got, exact) < 0.01


def test_a_value_that_did_not_arrive_is_noticed() -> None:
    layer = torch.nn.Linear(2, 2)
    loaded = {k: v + 1 for k, v in layer.state_dict().items()}
    with pytest.raises(WeightsError, match=r"f: (weight|bias) differs from the file after loading"):
        verify_state(loaded, layer.state_dict(), allow="none", where="f")
    fill(layer, loaded, allow="none", where="f")
    verify_state(loaded, layer.state_dict(), allow="none", where="f")


def test_reading_a_file_twice_gives_the_saved_tensors(tiny: tuple[Path, Path]) -> None:
    saved = state_of(avex_network(beats_spec()))
    content = read_state(tiny[1])
    assert content.keys() == saved.keys()
    assert all(torch.equal(content[name], saved[name]) for name in saved)  # type: ignore[arg-type]


def test_a_digest_is_the_content_not_the_name(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(tiny[1].read_bytes())
    digest = local_checkpoint(str(moved)).digest
    assert digest == hashlib.sha256(tiny[1].read_bytes()).hexdigest()
    with open(moved, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert local_checkpoint(str(moved)).digest != digest


def test_weights_that_changed_since_planning_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"first")
    pinned = local_checkpoint(str(path))
    assert fetch(pinned) == path
    path.write_bytes(b"later")
    with pytest.raises(WeightsError, match="not the weights this run was planned with"):
        fetch(pinned)
    path.unlink()
    with pytest.raises(WeightsError, match="no such file or folder on this machine"):
        fetch(pinned)


def test_a_folders_digest_covers_names_and_content_of_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    (tmp_path / ".hidden.json").write_text("x")
    (tmp_path / "README.md").write_text("x")
    pinned = local_checkpoint(str(tmp_path), ("*.json", "*.safetensors"))
    assert pinned.files == ("config.json", "model.safetensors")
    (tmp_path / "README.md").write_text("other")
    assert local_checkpoint(str(tmp_path), ("*.json", "*.safetensors")) == pinned
    (tmp_path / "config.json").write_text("{ }")
    assert local_checkpoint(str(tmp_path), ("*.json", "*.safetensors")).digest != pinned.digest
    with pytest.raises(WeightsError, match=r"holds none of \*.onnx"):
        local_checkpoint(str(tmp_path), ("*.onnx",))


def test_random_weights_are_named_by_seed_and_architecture() -> None:
    assert random_checkpoint(1, "a") == random_checkpoint(1, "a")
    digests = {random_checkpoint(s, a).digest for s, a in [(1, "a"), (2, "a"), (1, "b")]}
    assert len(digests) == 3


def test_seeding_leaves_the_random_numbers_outside_alone() -> None:
    torch.manual_seed(1)
    first = torch.rand(2)
    torch.manual_seed(1)
    with seeded(9):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), first)
    with seeded(9):
        assert torch.equal(torch.rand(2), inside)


def test_architecture_changes_with_what_moves_numbers_only(tmp_path: Path) -> None:
    def text(**changes: Any) -> str:
        path = tmp_path / "m.yml"
        path.write_text(yaml.safe_dump({"model_spec": {**beats_spec(), **changes}}))
        config = EncoderConfig(model=str(path), weights="random")  # type: ignore[arg-type]
        return registry.architecture("b", config, registry.checkpoint("b", config))

    assert text() == text(device="cpu", pretrained=True)
    assert text() != text(use_naturelm=True)
    assert text() != text(init_config={"encoder_layers": 2})
