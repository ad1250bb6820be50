"""The number format a network runs in; front ends and outputs stay float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def is_emulated(precision: str) -> bool:
    """Return whether this machine's CPU is one of x86 without instructions for a precision.

    torch then converts back and forth: with AVX2 alone, BEATs took 9 times and EfficientNet 27 times as
    long in bfloat16 as in float32 (benchmarks/kernels.py).
    """
    if precision == "float32":
        return False
    import torch

    has: Mapping[str, Any] = torch.cpu.get_capabilities()
    if has["architecture"] != "x86_64":
        return False
    if precision == "bfloat16":
        return not all(has[kind] for kind in ("avx512_bw", "avx512_vl", "avx512_dq"))
    return not (has["avx512_fp16"] or has["amx_fp16"])


@contextlib.contextmanager
def network_precision(device: torch.device, precision: str) -> Iterator[None]:
    """Run what is inside without gradients, in one of the precision classes of a job file.

    Args:
        device: Where the network is.
        precision: "float32", "bfloat16" or "float16"; the last two by autocast.
    """
    import torch

    with torch.inference_mode():
        if precision != "float32":
            with torch.autocast(device.type, dtype=getattr(torch, precision)):
                yield
            return
        # cuDNN rounds the inputs of float32 convolutions to 10 bits unless told not to, which
        # would make "float32" on a GPU as coarse as half precision.
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before
