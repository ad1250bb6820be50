"""TorchScript, ONNX and factories, against the network they were made from."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from bioembed_ray.config import EncoderConfig
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.base import Encoder
from bioembed_ray.errors import ConfigError, WeightsError
from tests.unit.transformers_fixtures import sounds

RATE: dict[str, Any] = {"rate_hz": 16_000, "window_s": 0.1}
N = 1_600


class Net(nn.Module):
    """A small network of one convolution that gives (B, D), (B, T, D), (B, D, H, W) or else."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 6, 50, stride=25)
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.conv(x.unsqueeze(1)))  # (B, 6, 63)
        if self.shape == "BTD":
            return y.transpose(1, 2)
        if self.shape == "BDHW":
            return y.reshape(y.shape[0], 6, 9, 7)
        if self.shape == "B":
            return y.mean(dim=(1, 2))
        return y.mean(dim=2)


class Coupled(nn.Module):
    """Its vectors depend on the batch, as with batch norm left in training mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :5] - x[:, :5].mean(dim=0)


class Forgetful(nn.Module):
    """Dropout that eval mode does not switch off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x[:, :5], 0.5, True)


def torchscript(path: Path, network: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))
    return path


def opened(path: Path | str, **options: Any) -> Encoder:
    config = EncoderConfig(model=str(path), **(RATE | options))
    return registry.load("e", config, registry.checkpoint("e", config), "cpu")


@pytest.mark.parametrize("suffix", [".pt", ".ts", ".torchscript", ".PT"])
def test_torchscript_vectors_equal_the_network(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    network = Net("BD").eval()
    windows = sounds(7, N)
    encoder = opened(torchscript(tmp_path / f"net{suffix}", network))
    torch.testing.assert_close(encoder.embed(windows)[0], network(windows), rtol=0, atol=1e-6)
    assert encoder.dim == 6
    assert encoder.batch_size == 8
    facts = encoder.facts
    assert (facts.rate_hz, facts.window_s, facts.hop_s, facts.grid) == (16_000, 0.1, 0.1, None)
    with pytest.raises(NotImplementedError, match="no frames"):
        encoder.frames(windows)


@pytest.mark.parametrize(("shape", "axes"), [("BTD", 1), ("BDHW", (2, 3))])
def test_maps_and_sequences_become_their_mean(tmp_path: Path, shape: str, axes: Any) -> None:
    network = Net(shape).eval()
    windows = sounds(3, N)
    got = opened(torchscript(tmp_path / "net.pt", network)).embed(windows)[0]
    torch.testing.assert_close(got, network(windows).mean(dim=axes), rtol=0, atol=1e-6)


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gives shape \(1,\); use one float tensor \(B, D\)"):
        opened(torchscript(tmp_path / "net.pt", Net("B")))


def test_bfloat16_runs_the_network_alone(tmp_path: Path) -> None:
    path = torchscript(tmp_path / "net.pt", Net("BD"))
    windows = sounds(3, N)
    exact = opened(path).embed(windows)[0]
    rough = opened(path, precision="bfloat16", batch_size=1).embed(windows)[0]
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0, atol=0.02)


def test_a_network_that_mixes_its_batch_is_fed_one_window_at_a_time(tmp_path: Path) -> None:
    path = torchscript(tmp_path / "net.pt", Coupled())
    with pytest.warns(UserWarning, match="depends on its batch, so windows are encoded one by one"):
        assert opened(path, batch_size=4).batch_size == 1
    traced = tmp_path / "one.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # `expand` freezes the batch of one that it saw.
        torch.jit.trace(lambda x: x.expand(1, N)[:, :4] * 2, torch.zeros(1, N)).save(str(traced))
    with pytest.warns(UserWarning, match="depends on its batch"):
        assert opened(traced).batch_size == 1


def test_a_network_that_forgets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="gives the same window another vector each time"):
        opened(torchscript(tmp_path / "net.pt", Forgetful()))


def test_files_that_are_no_torchscript_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(Net("BD").state_dict(), path)
    with pytest.raises(WeightsError, match=r"not a whole TorchScript file .* module:factory"):
        opened(path)
    path.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="not a whole TorchScript file"):
        opened(path)
    with pytest.raises(WeightsError, match="no such file or folder"):
        opened(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate_hz": None}, r"encoders\.e\.rate_hz: is missing; .*net\.onnx does not say it"),
        ({"window_s": None}, r"encoders\.e\.window_s: is missing"),
        ({"weights": "random"}, r"encoders\.e\.weights: .*net\.onnx holds its own"),
        ({"layer": 3}, r"encoders\.e\.layer: got 3; .* gives its own output only"),
        ({"precision": "float16"}, r"encoders\.e\.precision: got 'float16'; an ONNX file runs at"),
        ({"revision": "main"}, r"encoders\.e\.revision: got 'main'; .* not read from the hub"),
        ({"frames": "all"}, r"encoders\.e\.frames: .* no frames"),
        ({"block_s": 20}, r"encoders\.e\.block_s: .* no frames"),
    ],
)
def test_options_a_file_cannot_take_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.describe("e", EncoderConfig(model="net.onnx", **(RATE | changed)))


def onnx_file(
    path: Path,
    *,
    entry: list[int | str],
    outputs: dict[str, list[int | str]],
    element: int = TensorProto.FLOAT,
) -> Path:
    """Save a network whose i-th output is the input times i + 1, cut to the output's last axis."""
    nodes, constants = [], []
    for i, (name, shape) in enumerate(outputs.items()):
        width = int(shape[-1])
        constants += [
            helper.make_tensor(f"scale{i}", element, [1], [i + 1.0]),
            helper.make_tensor(f"from{i}", TensorProto.INT64, [1], [0]),
            helper.make_tensor(f"to{i}", TensorProto.INT64, [1], [width]),
            helper.make_tensor(f"axis{i}", TensorProto.INT64, [1], [1]),
        ]
        nodes += [
            helper.make_node("Slice", ["wave", f"from{i}", f"to{i}", f"axis{i}"], [f"cut{i}"]),
        ]
        if len(shape) == 3:
            constants.append(helper.make_tensor(f"one{i}", TensorProto.INT64, [1], [1]))
            nodes.append(helper.make_node("Mul", [f"cut{i}", f"scale{i}"], [f"flat{i}"]))
            nodes.append(helper.make_node("Unsqueeze", [f"flat{i}", f"one{i}"], [name]))
        else:
            nodes.append(helper.make_node("Mul", [f"cut{i}", f"scale{i}"], [name]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("wave", element, entry)],
        [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def test_onnx_vectors_equal_the_session(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", entry=["batch", N], outputs={"out": ["batch", 5]})
    windows = sounds(6, N)
    encoder = opened(path)
    session = onnxruntime.InferenceSession(str(path))
    expected = session.run(None, {"wave": windows.numpy()})[0]
    assert torch.equal(encoder.embed(windows)[0], torch.from_numpy(expected))
    assert (encoder.dim, encoder.batch_size) == (5, 8)


def test_an_onnx_file_with_a_batch_of_one_takes_any_number_of_windows(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", entry=[1, N], outputs={"out": [1, 5]})
    windows = sounds(6, N)
    assert torch.equal(opened(path).embed(windows)[0], windows[:, :5])


def test_the_output_named_embedding_goes_before_the_first_vector(tmp_path: Path) -> None:
    shapes: dict[str, list[int | str]] = {"map": ["b", 1, 7], "label": ["b", 4]}
    windows = sounds(2, N)
    first = onnx_file(tmp_path / "a.onnx", entry=["b", N], outputs=shapes)
    assert torch.equal(opened(first).embed(windows)[0], 2 * windows[:, :4])
    named = onnx_file(tmp_path / "b.onnx", entry=["b", N], outputs=shapes | {"embedding": ["b", 3]})
    assert torch.equal(opened(named).embed(windows)[0], 3 * windows[:, :3])
    alone = onnx_file(tmp_path / "c.onnx", entry=["b", N], outputs={"map": ["b", 1, 7]})
    with pytest.raises(WeightsError, match=r"gives map \['b', 1, 7\]; use an output \(B, D\)"):
        opened(alone)


def test_onnx_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    outputs: dict[str, list[int | str]] = {"out": ["b", 5]}
    fixed = onnx_file(tmp_path / "a.onnx", entry=["b", 48_000], outputs=outputs)
    with pytest.raises(ConfigError, match=r"window_s: gives 1600 samples, a\.onnx takes 48000"):
        opened(fixed)
    eight = onnx_file(tmp_path / "b.onnx", entry=[8, N], outputs={"out": [8, 5]})
    with pytest.raises(WeightsError, match="takes batches of 8; save it with B free or 1"):
        opened(eight)
    double = onnx_file(
        tmp_path / "c.onnx", entry=["b", N], outputs=outputs, element=TensorProto.DOUBLE
    )
    with pytest.raises(WeightsError, match=r"tensor\(double\); use one float32 input \(B, N\)"):
        opened(double)
    broken = tmp_path / "d.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="onnxruntime cannot load it"):
        opened(broken)


def test_tensors_beside_an_onnx_file_are_part_of_its_digest(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", entry=["b", N], outputs={"out": ["b", 5]})
    config = EncoderConfig(model=str(path), **RATE)
    (tmp_path / "net.onnx.data").write_bytes(b"1")
    first = registry.checkpoint("e", config)
    assert first.files == ("net.onnx", "net.onnx.data")
    (tmp_path / "net.onnx.data").write_bytes(b"2")
    assert registry.checkpoint("e", config).digest != first.digest
    with pytest.raises(WeightsError, match="plan it again"):
        registry.load("e", config, first, "cpu")


SOURCE = """
import torch

class Mean:
    def __init__(self, config, device):
        self.layers = len(config.layers)
        self.gain = 1.0
        if config.weights.kind == "local":
            self.gain = float(open(config.weights.path).read())
    def embed(self, windows):
        vectors = self.gain * windows.reshape(len(windows), 4, -1).mean(dim=2)
        return [vectors * (k + 1) for k in range(self.layers)] if self.layers > 1 else vectors

def stated(config, device):
    made = Mean(config, device)
    made.rate_hz, made.window_s, made.dim = 16000, 0.1, 4
    return made
stated.rate_hz = 16000
stated.window_s = 0.1

def other_rate(config, device):
    made = Mean(config, device)
    made.rate_hz = 48000
    return made

def other_dim(config, device):
    made = Mean(config, device)
    made.dim = 5
    return made

def nothing(config, device):
    return object()

class Wrong:
    rate_hz = "fast"
    def __init__(self, config, device):
        pass
    def embed(self, windows):
        return windows.numpy()

class Flat(Mean):
    def embed(self, windows):
        return windows.mean(dim=1)

class Single(Mean):
    def embed(self, windows):
        return windows[:, :4]

class Lost(Mean):
    def embed(self, windows):
        return windows[:0, :4]

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write the module anew and return its name; it is imported afresh."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        (tmp_path / "my_encoders.py").write_text(source)
        monkeypatch.delitem(sys.modules, "my_encoders", raising=False)
        return "my_encoders"

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return write


def test_a_factory_with_its_own_rate_and_window(module: Callable[[str], str]) -> None:
    config = EncoderConfig(model=f"{module(SOURCE)}:stated")
    facts = registry.describe("e", config)
    assert (facts.rate_hz, facts.window_s) == (16_000, 0.1)
    encoder = registry.load("e", config, registry.checkpoint("e", config), "cpu")
    windows = sounds(3, N)
    expected = windows.reshape(3, 4, 400).mean(dim=2)
    assert torch.equal(encoder.embed(windows)[0], expected)
    assert encoder.dim == 4


def test_a_factory_gives_one_vector_per_layer(module: Callable[[str], str]) -> None:
    encoder = opened(f"{module(SOURCE)}:Mean", layer=(3, 7))
    windows = sounds(3, N)
    one, two = encoder.embed(windows)
    assert torch.equal(two, 2 * one)
    with pytest.raises(ConfigError, match="gives 1 tensors for 2 layers; give one each"):
        opened(f"{module(SOURCE)}:Single", layer=(3, 7))


def test_a_factory_without_rate_needs_it_in_the_job(module: Callable[[str], str]) -> None:
    config = EncoderConfig(model=f"{module(SOURCE)}:Mean", window_s=0.1)
    with pytest.raises(ConfigError, match=r"rate_hz: is missing; .* or give the factory that attr"):
        registry.describe("e", config)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("absent", ConfigError, "my_encoders has no function or class absent"),
        ("number", ConfigError, "my_encoders has no function or class number"),
        ("nothing", ConfigError, r"made a object, which has no embed\(windows\)"),
        ("other_rate", ConfigError, "rate_hz: got 16000; what my_encoders:other_rate made has 480"),
        ("other_dim", ConfigError, r"gives shape \(1, 4\); use \(B, 5\)"),
        ("Wrong", ConfigError, "rate_hz of my_encoders:Wrong is 'fast'; use a number above 0"),
        ("Flat", ConfigError, r"gives shape \(1,\); use \(B, D\)"),
        ("Lost", WeightsError, "gives 0 vectors for 1 windows"),
    ],
)
def test_a_factory_that_breaks_its_promise_is_refused(
    module: Callable[[str], str], name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(f"{module(SOURCE)}:{name}")


def test_a_module_that_cannot_be_imported_is_an_error_of_the_job() -> None:
    with pytest.raises(
        ConfigError, match="model: no_such_module:make: No module named 'no_such_mo"
    ):
        registry.describe("e", EncoderConfig(model="no_such_module:make", **RATE))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "model: my_encoders:make: importing my_encoders raises ZeroDivisionError: divis"),
        ("def make(config", "importing my_encoders raises SyntaxError: "),
        ("def make(): ...", r"cannot be called as make\(config, device\): too many positional arg"),
        ("def make(config, device, gain): ...", "missing a required argument: 'gain'"),
    ],
)
def test_a_broken_module_or_factory_is_refused_before_anything_is_loaded(
    module: Callable[[str], str], source: str, message: str
) -> None:
    config = EncoderConfig(model=f"{module(source)}:make", **RATE)
    with pytest.raises(ConfigError, match=message):
        registry.describe("e", config)


def test_a_factory_is_named_by_source_version_and_weights(
    tmp_path: Path, module: Callable[[str], str]
) -> None:
    def digest(source: str, **options: Any) -> str:
        config = EncoderConfig(model=f"{module(source)}:stated", **options)
        return registry.checkpoint("e", config).digest

    plain = digest(SOURCE)
    assert digest(SOURCE) == plain
    assert digest(SOURCE + "\n# changed\n") != plain
    versioned = {digest(f"{SOURCE}\nstated.version = {v!r}\n") for v in ("1", "2")}
    assert len(versioned) == 2
    (tmp_path / "gain").write_text("2.5")
    weighted = digest(SOURCE, weights=str(tmp_path / "gain"))
    assert weighted != plain
    (tmp_path / "gain").write_text("3.5")
    assert digest(SOURCE, weights=str(tmp_path / "gain")) != weighted
    config = EncoderConfig(model=f"{module(SOURCE)}:stated", weights="random:3")
    assert registry.checkpoint("e", config).kind == "random"


def test_local_weights_reach_the_factory_and_are_pinned(
    tmp_path: Path, module: Callable[[str], str]
) -> None:
    (tmp_path / "gain").write_text("2.5")
    config = EncoderConfig(model=f"{module(SOURCE)}:stated", weights=str(tmp_path / "gain"))
    pinned = registry.checkpoint("e", config)
    windows = sounds(2, N)
    got = registry.load("e", config, pinned, "cpu").embed(windows)[0]
    torch.testing.assert_close(got, 2.5 * windows.reshape(2, 4, 400).mean(dim=2))
    (tmp_path / "gain").write_text("3.5")
    with pytest.raises(WeightsError, match="not those this run was planned with"):
        registry.load("e", config, pinned, "cpu")


def test_names_that_are_nothing_get_the_registry_s_hint() -> None:
    with pytest.raises(ConfigError, match="is no model, file or module"):
        registry.describe("e", EncoderConfig(model="beatz"))
