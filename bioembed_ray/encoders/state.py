"""The tensors of a checkpoint file, and proof that a network holds exactly these.

Every loader this package builds on fills the gaps of a foreign or half a file with random numbers
and says so in a log line at most. So names, shapes and values are compared after loading.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bioembed_ray.errors import WeightsError

if TYPE_CHECKING:
    import torch


def few(names: Collection[str], limit: int = 5) -> str:
    """Return the first names in order, and how many more there are.

    >>> few(["c", "a", "b"], 2)
    'a, b and 1 more'
    """
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return (", ".join(ordered[:limit]) + more) or "nothing"


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from a seed inside the block, and go on as before after it.

    Networks are built on the CPU inside it, so that a seed means the same weights everywhere.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def read_state(path: Path) -> dict[str, object]:
    """Return the content of a .safetensors file, or of a torch file read with weights_only.

    Raises:
        WeightsError: missing, truncated, not of its format, or holding code instead of tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({_line(error)})") from None
    if not state:
        raise WeightsError(f"{path}: the file holds no tensors")
    return dict(state)


def _read_torch(path: Path) -> dict[str, object]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: not a torch file of plain tensors (weights_only); save model.state_dict(), best as .safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a whole torch file ({_line(error)})") from None
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path}: holds {type(content).__name__}, not names and tensors")
    return content


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def fill(
    network: torch.nn.Module, loaded: dict[str, torch.Tensor], *, allow: str, where: str
) -> None:
    """Load tensors into a network and prove that it holds them.

    Args:
        network: Built, with any weights.
        loaded: What the file holds, under the network's names.
        allow: See `verify_state`.
        where: The file, for messages.

    Raises:
        WeightsError: see `verify_state`.
    """
    _check_names(loaded, network.state_dict(), re.compile(allow), where)
    network.load_state_dict(loaded, strict=False)
    verify_state(loaded, network.state_dict(), allow=allow, where=where)


def verify_state(
    loaded: dict[str, torch.Tensor],
    model_state: dict[str, torch.Tensor],
    *,
    allow: str,
    where: str,
) -> None:
    """Raise unless the network holds exactly the tensors of the file.

    Args:
        loaded: What the file holds, under the network's names.
        model_state: `state_dict()` of the network after loading.
        allow: Regex of names that may be missing or foreign: heads that are never run, tables that
            are computed rather than learned.
        where: The file, for the message.

    Raises:
        WeightsError: a name is missing or foreign, a shape or value differs, or a value is not
            finite.
    """
    import torch

    _check_names(loaded, model_state, re.compile(allow), where)
    for name in loaded.keys() & model_state.keys():
        theirs, mine = loaded[name], model_state[name]
        if theirs.is_floating_point() and not bool(torch.isfinite(theirs).all()):
            raise WeightsError(f"{where}: {name} holds NaN or infinity")
        if not torch.equal(theirs.to(mine.device, mine.dtype), mine):
            raise WeightsError(f"{where}: {name} differs from the file after loading")


def _check_names(
    loaded: dict[str, torch.Tensor],
    model_state: dict[str, torch.Tensor],
    allowed: re.Pattern[str],
    where: str,
) -> None:
    present = {tensor.data_ptr() for name, tensor in model_state.items() if name in loaded}
    needed = [name for name in model_state if not allowed.match(name)]
    # A tensor shared by several layers may stand in the file once.
    missing = [n for n in needed if n not in loaded and model_state[n].data_ptr() not in present]
    foreign = [n for n in loaded if n not in model_state and not allowed.match(n)]
    if missing:
        extra = f"; it holds others, such as {few(foreign, 2)}" if foreign else ""
        raise WeightsError(
            f"{where}: has {len(needed) - len(missing)} of the network's {len(needed)} tensors, without {few(missing, 2)}{extra}"
        )
    if foreign:
        raise WeightsError(
            f"{where}: holds {len(foreign)} tensors that the network has not, such as {few(foreign, 2)}"
        )
    for name in loaded.keys() & model_state.keys():
        theirs, mine = tuple(loaded[name].shape), tuple(model_state[name].shape)
        if theirs != mine:
            raise WeightsError(f"{where}: {name} has shape {theirs}, the network needs {mine}")
