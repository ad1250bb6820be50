"""The encoder that made some windows, settled anew from what their parts say, to encode more sound."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bioembed_ray import storage
from bioembed_ray.audio.spans import SpanAudio
from bioembed_ray.config import EncoderConfig, InputConfig, Job, LocalWeights, Pretrained
from bioembed_ray.current import differences, read_description
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.external import ONNX, TORCHSCRIPT
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import InputError
from bioembed_ray.rows import Rows
from bioembed_ray.segments import Shard, Span
from bioembed_ray.threads import one_thread
from bioembed_ray.versions import plan_encoder
from bioembed_ray.vqvae.model_file import MODEL_KEY
from bioembed_ray.work import places_of

if TYPE_CHECKING:
    from bioembed_ray.apply import Windows


def planned_again(rows: Rows, weights: str | None) -> tuple[PlannedEncoder, Job, int]:
    """Return the encoder that made some windows, settled anew, its job, and which output they are.

    Raises:
        InputError: it would not make them again; says what moved.
        WeightsError: the weights are gone.
    """
    told = rows.metadata
    config, placement = EncoderConfig.model_validate_json(told["config"]), _placement(told)
    description = read_description(rows.output, rows.partition)
    commit = (description or {}).get("checkpoint", {}).get("commit")
    if weights is not None:
        path = storage.absolute(weights)
        # A TorchScript or ONNX file, or a folder, is model and weights in one.
        is_file = isinstance(config.weights, Pretrained) and is_path(config.model)
        update = {"model": path} if is_file else {"weights": LocalWeights(path=path)}
        config = config.model_copy(update=update)
    elif commit is not None:
        # The hub may have moved on since.
        config = config.model_copy(update={"revision": commit})
    elif isinstance(config.weights, LocalWeights):
        config = config.model_copy(update={"weights": _moved_along(config.weights, rows.output)})
    title = rows.partition.encoder
    name = title if len(config.layers) == 1 else title.rpartition(".")[0]
    stored = rows.arrow.schema.field("embedding").type.value_type
    job = Job(
        input=InputConfig(
            channels=placement["channels"], time_expansion=placement["time_expansion"]
        ),
        output=rows.output,
        encoders={name: config},
        embedding_dtype="float16" if pa.types.is_float16(stored) else "float32",
    )
    planned = plan_encoder(name, job)
    for number, output in enumerate(planned.outputs):
        if output.name == title:
            wanted = output.embeddings
            if wanted.version == rows.version:
                return planned, job, number
            new = {"checkpoint": _plain(planned.checkpoint), "content": wanted.content}
            moved = "; ".join(differences(description, new)) if description else "settings moved"
            raise InputError(
                f"{title}: what is at hand is version {wanted.version}, not {rows.version}: {moved}; "
                f"give --weights, or run again and search the new version"
            )
    raise InputError(f"{title}: its parts do not say which layer they are of; use --vector")


def is_path(model: str) -> bool:
    """Return whether a model is a file or folder of its own, not a name on the hub."""
    return Path(model).is_absolute() or Path(model).suffix.lower() in (*TORCHSCRIPT, *ONNX)


def _placement(told: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told["placement"])
    return found


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: one for key, one in asdict(checkpoint).items() if one}


def _moved_along(weights: LocalWeights, output: str) -> LocalWeights:
    """Return where a model that was trained here is, after its output was moved or copied."""
    if Path(weights.path).exists():
        return weights
    here = storage.join(output, "models", *weights.path.rpartition("/models/")[2].split("/"))
    return LocalWeights(path=here) if storage.exists(storage.join(here, MODEL_KEY)) else weights


def encode_again(planned: PlannedEncoder, job: Job, span: Span, audio: SpanAudio) -> Windows:
    """Return the windows of a decoded span, computed on one thread, as the actors of a run do.

    However short the sound is that is searched for: `min_valid_s` is of the archive's windows.

    Raises:
        WeightsError: the weights are gone, damaged or of another network.
    """
    import torch

    from bioembed_ray.encode import encode

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with one_thread():
        encoder = registry.load(planned.name, planned.config, planned.checkpoint, device)
        places = places_of(Shard((span,)), [audio], planned, job)
        rule = replace(planned.rule, min_valid=0)
        windows, _, _ = encode(encoder, rule, places, device, len(planned.outputs), False)
    return windows
