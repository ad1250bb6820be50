"""What an encoder's numbers depend on, as a digest; and the encoder as the plan knows it.

A version changes when, and only when, the numbers do: weights, architecture, layer, pooling,
window, hop, tail, block grid, resampler, time expansion, channels, precision, stored type.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bioembed_ray.audio import PIECE_S
from bioembed_ray.config import EncoderConfig, Job, RandomWeights, exact, title
from bioembed_ray.encoders import registry
from bioembed_ray.encoders.base import Facts
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError
from bioembed_ray.windows import WindowRule

# Raised by hand when decoding, resampling, windowing or pooling move any number.
PREPROCESS_VERSION = 1
# Raised by hand when the reader learns formats or salvages more; permanent failures are then retried.
READER_VERSION = 1
# What a worker is built to hold of a recording at once, and so the most that `segment_s` may be.
LONGEST_WINDOW_S = 3600
# Recorders begin a new file once a day at least: beyond it, only first windows would be left.
LONGEST_HOP_S = 86_400


@dataclass(frozen=True, slots=True, order=True)
class Dataset:
    """One partition of the output: the parts of one encoder, layer and version.

    Attributes:
        table: "embeddings", "frames", "tokens", or "fit_frames" while a codebook is fitted.
        encoder: Name of the output, e.g. "hubert" or "hubert.9"; of the codebook for tokens.
        version: Digest.
    """

    table: str
    encoder: str
    version: str

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
    """

    name: str
    folder: str
    dataset: Dataset


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
        """True where the weights are untrained."""
        return isinstance(self.config.weights, RandomWeights)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All partitions that every shard owes."""
        return tuple(dataset for output in self.outputs for dataset in output.datasets)

    @property
    def all_datasets(self) -> tuple[Dataset, ...]:
        """The same, and the frames that are kept while a codebook is fitted."""
        return tuple(dataset for output in self.outputs for dataset in output.all_datasets)


def plan_encoder(name: str, job: Job) -> PlannedEncoder:
    """Settle one encoder: facts, checkpoint (the hub's newest commit is resolved here), versions.

    Raises:
        ConfigError: a window, hop or block that the encoder cannot take.
        WeightsError: the checkpoint is missing or unreachable.
    """
    config = job.encoders[name]
    facts = registry.describe(name, config)
    rule = WindowRule(
        _samples(name, "window_s", config.window_s or facts.window_s, facts.rate_hz),
        _samples(name, "hop_s", config.hop_s or _default_hop(config, facts), facts.rate_hz),
        config.tail,
    )
    _check(name, config, facts, rule, job)
    checkpoint = registry.checkpoint(name, config)
    shape = registry.architecture(name, config, checkpoint)
    outputs = []
    for layer in config.layers:
        called = title(name, config, layer)
        content = _content(config, facts, checkpoint, shape, layer, job)
        windowed = {**content, "window": rule.window, "hop": rule.hop, "tail": rule.tail}
        windowed["stored"] = job.embedding_dtype
        outputs.append(
            Output(
                called,
                layer,
                Dataset("embeddings", called, digest(windowed)),
                Dataset("frames", called, digest({**content, "stored": job.frame_dtype}))
                if config.frames == "all"
                else None,
                None
                if facts.grid is None
                else Dataset("fit_frames", called, digest({**content, "stored": "float32"})),
            )
        )
    return PlannedEncoder(name, config, facts, checkpoint, rule, tuple(outputs))


def _content(
    config: EncoderConfig,
    facts: Facts,
    checkpoint: Checkpoint,
    architecture: str,
    layer: int | None,
    job: Job,
) -> dict[str, Any]:
    """Return all that moves the frames' numbers; windows add their own."""
    grid = facts.grid
    return {
        "preprocess": PREPROCESS_VERSION,
        "family": facts.family,
        "weights": checkpoint.digest,
        "architecture": architecture,
        "layer": layer,
        "rate_hz": facts.rate_hz,
        "grid": None
        if grid is None
        else [
            grid.block_s,
            grid.context_s,
            grid.joins_tail,
            grid.stride,
            grid.receptive,
            grid.per_step,
        ],
        "resampler": f"soxr HQ, {PIECE_S} s pieces",
        "time_expansion": job.input.time_expansion,
        "channels": job.input.channels,
        "precision": config.precision,
    }


def digest(content: dict[str, Any]) -> str:
    """Return 48 bits of SHA-256 over canonical JSON, as hex."""
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _default_hop(config: EncoderConfig, facts: Facts) -> float:
    """Scale the encoder's hop with a window that was set alone, so that the overlap stays."""
    if config.window_s is None:
        return facts.hop_s
    return float(exact(config.window_s) * exact(facts.hop_s) / exact(facts.window_s))


def _samples(name: str, key: str, seconds: float, rate_hz: int) -> int:
    samples = exact(seconds) * rate_hz
    if samples.denominator != 1:
        raise ConfigError(
            f"encoders.{name}.{key}: got {seconds:g}, not a whole number of samples at {rate_hz} Hz; "
            f"use {float(_nearest(samples, rate_hz))}"
        )
    return int(samples)


def _nearest(samples: Fraction, rate_hz: int) -> Fraction:
    """Return the nearest seconds that are whole samples and can be written as a decimal number."""
    step = rate_hz
    for prime in (2, 5):
        while step % prime == 0:
            step //= prime
    return Fraction(max(1, round(samples / step)) * step, rate_hz)


def _check(name: str, config: EncoderConfig, facts: Facts, rule: WindowRule, job: Job) -> None:
    where = f"encoders.{name}"
    window_s, hop_s = rule.window / facts.rate_hz, rule.hop / facts.rate_hz
    if facts.max_window_s is not None and window_s > facts.max_window_s:
        raise ConfigError(
            f"{where}.window_s: got {window_s:g}; {facts.family} takes at most {facts.max_window_s:g} s"
        )
    for key, seconds, longest in (
        ("window_s", window_s, LONGEST_WINDOW_S),
        ("hop_s", hop_s, LONGEST_HOP_S),
    ):
        if seconds > longest:
            raise ConfigError(f"{where}.{key}: got {seconds:g}; use at most {longest} s")
    if config.frames == "all" and facts.grid is None:
        raise ConfigError(f"{where}.frames: got 'all'; {facts.family} has no frames, use \"none\"")
    grid = facts.grid
    if grid is None:
        return
    if rule.window < grid.receptive:
        raise ConfigError(
            f"{where}.window_s: got {window_s:g}; {facts.family} needs "
            f"{grid.receptive / facts.rate_hz:g} s or more"
        )
    if grid.block_s is None:
        return
    if job.segment_s % grid.block_s:
        raise ConfigError(
            f"segment_s: got {job.segment_s}; must be a multiple of {where}'s block of {grid.block_s} s"
        )
    if grid.joins_tail and (grid.block_s * facts.rate_hz) % grid.stride:
        raise ConfigError(f"{where}.block_s: got {grid.block_s}; frames must start with a block")


def reach_s(encoders: tuple[PlannedEncoder, ...]) -> tuple[float, float]:
    """Return the encoder seconds to read before and after a span, enough for every encoder.

    A window reaches beyond the span it starts in. A frame encoder reads whole blocks with their
    context, and the recording's last block may have taken half a block of tail along. A span may start
    and stop anywhere in a block: a job with another time expansion or segment length cut it.
    """
    before = after = 0.0
    for encoder in encoders:
        window_s = encoder.rule.window / encoder.facts.rate_hz
        grid = encoder.facts.grid
        after = max(after, window_s)
        needs_frames = not encoder.facts.embeds or encoder.config.frames == "all"
        if grid is None or grid.block_s is None or not needs_frames:
            continue
        margin = 1.5 * grid.block_s + grid.context_s + 1
        before = max(before, margin)
        after = max(after, margin + (0.0 if encoder.facts.embeds else window_s))
    return before, after
