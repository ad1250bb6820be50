"""What an encoder's numbers depend on, as a digest; and the encoder as the plan knows it.

A version changes when, and only when, the numbers do: weights, architecture, layer, pooling,
window, hop, tail, block grid, resampler, time expansion, channels, precision, stored type.
"""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from typing import Any

from bioembed_ray import storage
from bioembed_ray.audio.spans import PIECE_S
from bioembed_ray.config import (
    EncoderConfig,
    Job,
    LocalWeights,
    Pretrained,
    exact,
    title,
)
from bioembed_ray.datasets import Output, PlannedEncoder, Tokens, dataset_of, digest
from bioembed_ray.encoders import mel_patches, registry, vqvae
from bioembed_ray.encoders.base import Facts
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.errors import ConfigError
from bioembed_ray.vqvae.model_file import MODEL_KEY
from bioembed_ray.windows import WindowRule

# Raised by hand when decoding, resampling, windowing or pooling move any number.
PREPROCESS_VERSION = 2
# Raised by hand when the reader learns formats or salvages more; permanent failures are then retried.
READER_VERSION = 2
# Raised by hand when training a VQ-VAE moves any number.
TRAINING_VERSION = 1
# What a worker is built to hold of a recording at once, and so the most that `segment_s` may be.
LONGEST_WINDOW_S = 3600
# Recorders begin a new file once a day at least: beyond it, only first windows would be left.
LONGEST_HOP_S = 86_400


def plan_encoder(name: str, job: Job) -> PlannedEncoder:
    """Settle one encoder: facts, checkpoint (the hub's newest commit is resolved here), versions.

    Raises:
        ConfigError: a window, hop or block that the encoder cannot take.
        WeightsError: the checkpoint is missing or unreachable.
    """
    config = settled(name, job)
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
                dataset_of("embeddings", called, windowed),
                dataset_of("frames", called, {**content, "stored": job.frame_dtype})
                if config.frames == "all"
                else None,
                None
                if facts.grid is None
                else dataset_of("fit_frames", called, {**content, "stored": "float32"}),
                _own_tokens(name, checkpoint, content),
            )
        )
    return PlannedEncoder(name, config, facts, checkpoint, rule, tuple(outputs))


def settled(name: str, job: Job) -> EncoderConfig:
    """Return an encoder's settings, pointing at its model where this job trains one and it stands."""
    config = job.encoders[name]
    if name in trained_here(job):
        folder = model_folder(name, job)
        if storage.exists(storage.join(folder, MODEL_KEY)):
            update = {"weights": LocalWeights(path=folder), "training": None}
            return config.model_copy(update=update)
    return config


def trained_here(job: Job) -> list[str]:
    """Return the encoders whose model the job trains."""
    return [
        name
        for name, config in job.encoders.items()
        if config.model == vqvae.MODEL and isinstance(config.weights, Pretrained)
    ]


def model_folder(name: str, job: Job) -> str:
    """Return where the model that this job trains for an encoder stands.

    Its version covers settings and front end, not the archive: new recordings train nothing anew,
    a raised `edition` does.
    """
    config = job.encoders[name]
    training, rule = mel_patches.settings(config)
    content = {
        "preprocess": PREPROCESS_VERSION,
        "training": TRAINING_VERSION,
        "mel": [mel_patches.MEL_VERSION, asdict(rule)],
        # How many train together is no setting of the model.
        **training.model_dump(exclude={"workers"}),
        "time_expansion": job.input.time_expansion,
        "channels": job.input.channels,
    }
    return storage.join(job.output, "models", name, f"version={digest(content)}")


def plan_patches(name: str, job: Job) -> PlannedEncoder:
    """Return the front end of an encoder that is to be trained, as an encoder of its own."""
    config = job.encoders[name]
    config = EncoderConfig(
        model=mel_patches.MODEL,
        rate_hz=config.rate_hz,
        training=config.training,
        tail="drop",
        pool=config.pool,
    )
    facts = registry.describe(name, config)
    checkpoint = registry.checkpoint(name, config)
    patch = round(facts.window_s * facts.rate_hz)
    content = _content(config, facts, checkpoint, "", None, job)
    # Among the frames that stand only while something is fitted on them.
    patches = dataset_of("fit_frames", name, {**content, "patch": patch})
    rule = WindowRule(patch, patch, config.tail)
    return PlannedEncoder(
        name, config, facts, checkpoint, rule, (Output(name, None, patches, None),)
    )


def _own_tokens(name: str, checkpoint: Checkpoint, content: dict[str, Any]) -> tuple[Tokens, ...]:
    """Return the codes that a trained model brings along."""
    if content["family"] != vqvae.MODEL or checkpoint.path is None:
        return ()
    dataset = dataset_of("tokens", name, {**content, "codes": "own"})
    return (Tokens(name, checkpoint.path, dataset),)


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
