"""A user's own encoder: `package.module:factory` in the job file.

    def factory(config: EncoderConfig, device: str) -> object

returns anything with `embed(windows)`, which takes (B, N) float32 on `device` and gives (B, D), or
a list of one such tensor per layer of `config.layers`. `config` is the whole entry of the job file:
weights, layer and precision are the factory's to heed. Rate and window stand in the job file, or
as attributes `rate_hz` and `window_s` of the factory; the object may repeat them, and may say `dim`.
A factory that depends on more than its own source file should carry a `version` attribute.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioembed_ray.config import EncoderConfig, LocalWeights, RandomWeights
from bioembed_ray.encoders.base import Facts
from bioembed_ray.encoders.weights import Checkpoint, local_checkpoint, random_checkpoint
from bioembed_ray.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

FACTORY = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


def find(config: EncoderConfig) -> Any:
    """Return the factory, imported; on the driver too, so that a broken one is refused at once.

    Raises:
        ConfigError: no such module or name, or it cannot be called as a factory is.
    """
    module_name, name = config.model.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"model: {config.model}: {error}; the module must be on the Python path of the driver and of every worker"
        ) from None
    # A module of the user's own may raise anything while it is imported.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model: {config.model}: importing {module_name} raises {type(error).__name__}: {text}"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ConfigError(f"model: {module_name} has no function or class {name}")
    try:
        inspect.signature(factory).bind(config, "cpu")
    except TypeError as error:
        raise ConfigError(
            f"model: {config.model} cannot be called as {name}(config, device): {error}"
        ) from None
    except ValueError:  # compiled code does not say what it takes
        pass
    return factory


def number(holder: object, name: str, model: str) -> float | None:
    """Return a positive number that a factory or its object carries, None where it does not.

    Raises:
        ConfigError: the attribute is something else.
    """
    value = getattr(holder, name, None)
    # A class used as a factory may have a property of that name, which only its objects fill.
    if value is None or inspect.isdatadescriptor(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"model: {name} of {model} is {value!r}; use a number above 0")
    return float(value)


def whole_number(holder: object, name: str, model: str) -> int | None:
    """Return a positive whole number that a factory or its object carries; see `number`."""
    value = number(holder, name, model)
    if value is not None and value != int(value):
        raise ConfigError(f"model: {name} of {model} is {value!r}; use a whole number")
    return None if value is None else int(value)


def checkpoint(config: EncoderConfig) -> Checkpoint:
    """Return the digest of the source, the `version` attribute and the weights.

    Raises:
        ConfigError: no such factory, or no source to read.
        WeightsError: no such weights.
    """
    code = _code_digest(config)
    if isinstance(config.weights, RandomWeights):
        return random_checkpoint(config.weights.seed, code)
    if isinstance(config.weights, LocalWeights):
        weights = local_checkpoint(config.weights.path)
        digest = hashlib.sha256(f"{code} {weights.digest}".encode()).hexdigest()
        return Checkpoint("local", digest, path=weights.path, files=weights.files)
    return Checkpoint("local", code)


def _code_digest(config: EncoderConfig) -> str:
    """Return the digest of the module's source, of the factory's where that is another, and version."""
    factory = find(config)
    module = importlib.import_module(config.model.split(":")[0])
    sources: list[str] = []
    for holder in (module, inspect.unwrap(factory)):
        try:
            source = inspect.getsourcefile(holder)
        except TypeError:  # an object with __call__, or compiled code
            continue
        if source is not None and source not in sources:
            sources.append(source)
    if not sources:
        raise ConfigError(f"model: {config.model} has no source file that could name its version")
    version = getattr(factory, "version", None)
    digests = [hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources]
    text = json.dumps([digests, None if version is None else str(version)])
    return hashlib.sha256(text.encode()).hexdigest()


def load(
    config: EncoderConfig, facts: Facts, planned: Checkpoint, device: str
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Return the function of the object that the factory makes.

    Raises:
        ConfigError: the object lacks `embed` or says another rate, window or width.
        WeightsError: source or weights are not those the run was planned with.
    """
    model = config.model
    if checkpoint(config).digest != planned.digest:
        raise WeightsError(
            f"{model}: its source or weights on this machine are not those this run was planned with; plan it again"
        )
    made = find(config)(config, device)
    if not callable(getattr(made, "embed", None)):
        raise ConfigError(
            f"model: {model} made a {type(made).__name__}, which has no embed(windows)"
        )
    rate_hz, window_s = whole_number(made, "rate_hz", model), number(made, "window_s", model)
    for name, value, said in (
        ("rate_hz", rate_hz, facts.rate_hz),
        ("window_s", window_s, facts.window_s),
    ):
        if value is not None and value != said:
            raise ConfigError(f"{name}: got {said}; what {model} made has {value}")
    dim = whole_number(made, "dim", model)

    def call(windows: torch.Tensor) -> list[torch.Tensor]:
        return _checked(made.embed(windows), len(config.layers), dim, model)

    return call


def _checked(output: object, n_layers: int, dim: int | None, model: str) -> list[torch.Tensor]:
    import torch

    layers: list[torch.Tensor] = []
    for vectors in output if isinstance(output, list | tuple) else (output,):
        if not isinstance(vectors, torch.Tensor):
            raise ConfigError(
                f"model: embed of {model} gives {type(vectors).__name__}; use a (B, D) tensor, or a list of them"
            )
        if vectors.ndim != 2 or (dim is not None and vectors.shape[1] != dim):
            raise ConfigError(
                f"model: embed of {model} gives shape {tuple(vectors.shape)}; use (B, {dim or 'D'})"
            )
        layers.append(vectors.float())
    if len(layers) != n_layers:
        raise ConfigError(
            f"model: embed of {model} gives {len(layers)} tensors for {n_layers} layers; give one each"
        )
    return layers
