"""TorchScript and ONNX files as functions from windows (B, N) to vectors (B, D)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioembed_ray.encoders.precision import network_precision
from bioembed_ray.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def load_torchscript(
    path: Path, precision: str, device: str
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Return the network of a TorchScript file, in eval mode on its device.

    Raises:
        WeightsError: no TorchScript, or damaged.
    """
    import torch

    read: Any = torch.jit.load
    try:
        with warnings.catch_warnings():
            # torch.jit is discouraged for new files; those that exist are still to be read.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = read(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a whole TorchScript file ({_line(error)}); save it with torch.jit.save, or load plain weights through module:factory"
        ) from None

    def call(windows: torch.Tensor) -> list[torch.Tensor]:
        with network_precision(torch.device(device), precision):
            return [pooled(network(windows), str(path))]

    return call


def pooled(output: object, where: str) -> torch.Tensor:
    """Return (B, D): as it is, the mean over time of (B, T, D), or over both axes of (B, D, H, W).

    Raises:
        WeightsError: any other output.
    """
    import torch

    if isinstance(output, torch.Tensor) and output.is_floating_point():
        if output.ndim == 2:
            return output.float()
        if output.ndim == 3:
            return output.float().mean(dim=1)
        if output.ndim == 4:
            return output.float().mean(dim=(2, 3))
    got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output)
    raise WeightsError(
        f"{where}: gives {got}; use one float tensor (B, D), (B, T, D) or (B, D, H, W)"
    )


def tensors_beside(path: Path) -> list[Path]:
    """Return the files in which torch and optimum keep tensors too large for an ONNX file."""
    names = (f"{path.name}.data", f"{path.name}_data")
    return [path.with_name(name) for name in names if path.with_name(name).is_file()]


def load_onnx(
    path: Path, n_samples: int, device: str
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Return the network of an ONNX file through onnxruntime.

    Args:
        path: The file; its one input takes (B, N) float32, with B free or fixed to 1.
        n_samples: N that the job file asks for.
        device: Where windows come from; on "cuda" the CUDA provider is used if it is installed.

    Raises:
        ConfigError: the file takes windows of another length.
        WeightsError: no ONNX file, damaged, or with inputs or outputs of other kinds.
    """
    import onnxruntime
    import torch

    wanted = onnxruntime.SessionOptions()
    # The pool's thread count holds here too: another count moves the last bits of a vector.
    wanted.intra_op_num_threads = torch.get_num_threads()
    wanted.inter_op_num_threads = 1
    wanted.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    errors = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        session = onnxruntime.InferenceSession(str(path), wanted, providers=providers)
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
    ) as error:
        raise WeightsError(f"{path}: onnxruntime cannot load it ({_line(error)})") from None
    one_by_one = _check_input(session, n_samples, path)
    entry, output = session.get_inputs()[0].name, _choose_output(session, path)

    def call(windows: torch.Tensor) -> list[torch.Tensor]:
        rows = windows.cpu().numpy()
        batches = [rows[i : i + 1] for i in range(len(rows))] if one_by_one else [rows]
        vectors = [
            pooled(torch.from_numpy(session.run([output], {entry: batch})[0]), str(path))
            for batch in batches
        ]
        return [torch.cat(vectors).to(windows.device)]

    return call


def _check_input(session: Any, n_samples: int, path: Path) -> bool:
    """Return whether the file takes one window at a time."""
    entries = session.get_inputs()
    shapes = ", ".join(f"{entry.name} {entry.shape} {entry.type}" for entry in entries)
    if len(entries) != 1 or len(entries[0].shape) != 2 or entries[0].type != "tensor(float)":
        raise WeightsError(f"{path}: takes {shapes}; use one float32 input (B, N)")
    n_rows, length = entries[0].shape
    if isinstance(n_rows, int) and n_rows != 1:
        raise WeightsError(f"{path}: takes batches of {n_rows}; save it with B free or 1")
    if isinstance(length, int) and length != n_samples:
        raise ConfigError(
            f"window_s: gives {n_samples} samples, {path.name} takes {length}; set window_s to {length} / rate_hz"
        )
    return isinstance(n_rows, int)


def _choose_output(session: Any, path: Path) -> str:
    """Return the output named "embedding", or the first with a vector per window."""
    outputs = session.get_outputs()
    for output in outputs:
        if output.name.lower() in ("embedding", "embeddings"):
            return str(output.name)
    for output in outputs:
        if len(output.shape) == 2:
            return str(output.name)
    shapes = ", ".join(f"{output.name} {output.shape}" for output in outputs)
    raise WeightsError(
        f"{path}: gives {shapes}; use an output (B, D), or name the right one embedding"
    )


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
