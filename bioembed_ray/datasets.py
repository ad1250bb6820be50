"""What a job puts where: partitions, the outputs of an encoder, the encoder as the plan knows it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from bioembed_ray.config import EncoderConfig, Job, RandomWeights
from bioembed_ray.encoders.base import Facts, shortest_window
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.windows import WindowRule


@dataclass(frozen=True, slots=True, order=True)
class Dataset:
    """One partition of the output: the parts of one encoder, layer and version.

    Attributes:
        table: "embeddings", "frames", "tokens", or "fit_frames" while a codebook is fitted.
        encoder: Name of the output, e.g. "hubert" or "hubert.9"; of the codebook for tokens.
        version: Digest.
        content: What the digest is of, where the plan settled it.
    """

    table: str
    encoder: str
    version: str
    content: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def prefix(self) -> str:
        """Folder below the output."""
        key = "codebook" if self.table == "tokens" else "encoder"
        return f"{self.table}/{key}={self.encoder}/version={self.version}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A codebook that stands, applied to an output.

    Attributes:
        name: The codebook's name.
        folder: Where it stands.
        dataset: Where its tokens go.
        fit: What decided the codebook, where the plan settled it.
    """

    name: str
    folder: str
    dataset: Dataset
    fit: dict[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Output:
    """What one layer of an encoder gives.

    Attributes:
        name: The encoder's name, with the layer where there are several.
        layer: Transformer layer, None for the model's own output.
        embeddings: Where its window vectors go.
        frames: Where its frames go, None where they are not kept.
        fit_frames: Where all its frames stand while a codebook is fitted, None without frames.
        tokens: Codebooks applied to it.
    """

    name: str
    layer: int | None
    embeddings: Dataset
    frames: Dataset | None
    fit_frames: Dataset | None = None
    tokens: tuple[Tokens, ...] = ()

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All partitions that every shard owes."""
        tokens = tuple(applied.dataset for applied in self.tokens)
        frames = () if self.frames is None else (self.frames,)
        return (*frames, *tokens, self.embeddings)

    @property
    def all_datasets(self) -> tuple[Dataset, ...]:
        """The same, and the frames that are kept while a codebook is fitted."""
        return self.datasets if self.fit_frames is None else (self.fit_frames, *self.datasets)


@dataclass(frozen=True, slots=True)
class PlannedEncoder:
    """An encoder with everything settled but its weights not loaded: small and picklable."""

    name: str
    config: EncoderConfig
    facts: Facts
    checkpoint: Checkpoint
    rule: WindowRule
    outputs: tuple[Output, ...]

    @property
    def is_random(self) -> bool:
        """True where the weights are random."""
        return isinstance(self.config.weights, RandomWeights)

    @property
    def is_untrained(self) -> bool:
        """True where the model is trained here and does not stand yet."""
        return self.checkpoint.kind == "untrained"

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All partitions that every shard owes."""
        return tuple(dataset for output in self.outputs for dataset in output.datasets)

    @property
    def all_datasets(self) -> tuple[Dataset, ...]:
        """The same, and the frames that are kept while a codebook is fitted."""
        return tuple(dataset for output in self.outputs for dataset in output.all_datasets)


def placement(encoder: PlannedEncoder, job: Job) -> dict[str, Any]:
    """Return what decides where rows lie, as plain values: enough to check a part without the job."""
    grid = encoder.facts.grid
    return {
        "rate_hz": encoder.facts.rate_hz,
        **asdict(encoder.rule),
        "time_expansion": job.input.time_expansion,
        "channels": job.input.channels,
        "frames_stride": None if grid is None else grid.stride,
        "frames_receptive": None if grid is None else grid.receptive,
        "frames_per_step": None if grid is None else grid.per_step,
        "frames_block_s": None if grid is None else grid.block_s,
        "frames_context_s": None if grid is None else grid.context_s,
        "frames_joins_tail": None if grid is None else grid.joins_tail,
        "embeds": encoder.facts.embeds,
        "shortest": shortest_window(encoder.facts),
    }


def dataset_of(table: str, name: str, content: dict[str, Any]) -> Dataset:
    """Return the partition whose numbers `content` decides."""
    return Dataset(table, name, digest(content), content)


def digest(content: dict[str, Any]) -> str:
    """Return 48 bits of SHA-256 over canonical JSON, as hex."""
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:12]
