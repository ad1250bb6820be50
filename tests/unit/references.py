"""Slow, plain answers to compare with, and networks whose answers are known beforehand."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from bioembed_ray.apply import Place
from bioembed_ray.audio.probe import Header, probe
from bioembed_ray.audio.spans import Track
from bioembed_ray.config import EncoderConfig, Job, RandomWeights
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.encoders.base import Facts, FrameGrid
from bioembed_ray.encoders.weights import Checkpoint
from bioembed_ray.inputs.listing import Source
from bioembed_ray.plan import Work
from bioembed_ray.segments import Span
from bioembed_ray.shard_audio import decode_shard
from bioembed_ray.storage import stat_object
from bioembed_ray.windows import Clock, Tail, WindowRule
from bioembed_ray.work import Receipt, encode_shard

ODD_RATES = (8_000, 11_025, 16_000, 22_050, 44_100, 96_000, 250_001, 384_000, 500_000)


def starts_by_loop(
    rate_hz: int,
    encoder_hz: int,
    expansion: int,
    window: int,
    hop: int,
    tail: Tail,
    n_native: int,
    min_valid: int = 0,
) -> list[tuple[int, Fraction]]:
    """Return (first encoder sample, first native position) of every window of a recording."""
    duration = Fraction(n_native * expansion, rate_hz)  # encoder seconds
    found: list[int] = []
    at = 0
    while Fraction(at, encoder_hz) < duration:
        ends_inside = Fraction(at + window, encoder_hz) <= duration
        one_reached_the_end = bool(found) and Fraction(found[-1] + window, encoder_hz) >= duration
        if (
            ends_inside
            or tail == "pad"
            or (tail == "cover" and not one_reached_the_end)
            or (tail == "center" and at == 0)
        ):
            found.append(at)
        at += hop
    if tail == "shift" and n_native:
        end = math.ceil(duration * encoder_hz)
        if not found or found[-1] + window < end:
            found.append(max(0, end - window))
    found = [at for at in found if math.ceil(duration * encoder_hz) - at >= min_valid]
    return [(at, Fraction(at * rate_hz, encoder_hz * expansion)) for at in found]


def coverage_by_flags(
    clock: Clock,
    window: int,
    tail: Tail,
    starts: list[int],
    n_native: int,
    failed: set[int],
    absent: set[int],
) -> np.ndarray:
    """Return one letter per native sample: e(mbedded), p(added), f(ailed), s(kipped)."""
    letters = np.full(n_native, "s")
    end = n_native * clock.ratio
    if tail == "shift":
        end = Fraction(math.ceil(end))
    rank = {"s": 0, "f": 1, "p": 2, "e": 3}
    for start in starts:
        if start in absent:
            continue
        letter = "f" if start in failed else "e" if start + window <= end else "p"
        for native in range(n_native):
            if start <= native * clock.ratio < start + window:
                letters[native] = max(str(letters[native]), letter, key=rank.__getitem__)
    return letters


def header_of(
    n_samples: int | None, rate_hz: int = 16_000, channels: int = 1, **values: object
) -> Header:
    """Return the header of a plain WAV."""
    fields = {
        "container": "WAV",
        "subtype": "PCM_16",
        "seekable": True,
        "decoder": "soundfile",
        "n_promised": n_samples,
        **values,
    }
    return Header(rate_hz=rate_hz, channels=channels, n_samples=n_samples, **fields)  # type: ignore[arg-type]


def source_named(name: str, stamp: str = "1-1") -> Source:
    """Return a source that nobody opens."""
    return Source(f"/archive/{name}", stamp, 1000)


def span_of(path: Path, start: int = 0, stop: int | None = None) -> Span:
    """Return a span of a file, with the header that `probe` reads."""
    info = stat_object(str(path))
    source = Source(info.uri, info.stamp, info.size_bytes)
    return Span(path.name, source, probe(source)[0], start, stop)


def write_wave(path: Path, wave: np.ndarray, rate_hz: int, subtype: str = "FLOAT") -> Path:
    """Write (n,) or (n, channels) samples, the format by the file's extension."""
    sf.write(path, wave, rate_hz, subtype=subtype)
    return path


def sound(n: int, seed: int = 0, channels: int | None = None) -> np.ndarray:
    """Return noise, float32: every sample differs, so that a shift by one shows."""
    shape = n if channels is None else (n, channels)
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, shape)
    return wave.astype(np.float32)


def place_of(
    wave: np.ndarray,
    clock: Clock,
    n_native: int,
    start: int = 0,
    stop: int | None = None,
    reach: tuple[int, int] = (0, 0),
    span: int = 0,
    channel: int = 0,
) -> Place:
    """Return a span of a recording, given its whole waveform at the encoder's rate.

    Args:
        wave: (N,) the whole recording at the encoder's rate.
        clock: Rates.
        n_native: Native samples in the recording.
        start: First native sample of the span.
        stop: One past its last; None to the end.
        reach: Encoder samples held before and after the span.
        span: Index of the span in the shard.
        channel: Channel.
    """
    first = max(0, int(start * clock.ratio) - reach[0])
    last = len(wave) if stop is None else min(len(wave), clock.length(stop) + reach[1])
    # As in reading: the end is known where what is held runs up against it.
    met_end = stop is None or clock.length(stop) + reach[1] > len(wave)
    track = Track(channel, first, wave[first:last].astype(np.float32))
    return Place(span, clock, start, stop, n_native if met_end else None, track)


@dataclass
class FakeWindows:
    """A window encoder: mean, spread, first and last sample of each window, 4-d.

    `log` keeps the shape of every batch.
    """

    facts: Facts
    dim: int = 4
    batch_size: int = 3
    n_layers: int = 1
    log: list[tuple[int, ...]] = field(default_factory=list)

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        self.log.append(tuple(windows.shape))
        vectors = torch.stack(
            [windows.mean(1), windows.std(1), windows[:, 0], windows[:, -1]], dim=1
        )
        return [vectors * (layer + 1) for layer in range(self.n_layers)]

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError


@dataclass
class FakeFrames:
    """A frame encoder whose frames depend on their receptive field alone: mean, first, last."""

    facts: Facts
    dim: int = 3
    batch_size: int = 3
    n_layers: int = 1
    log: list[tuple[int, ...]] = field(default_factory=list)

    def frames(self, waves: torch.Tensor) -> list[torch.Tensor]:
        self.log.append(tuple(waves.shape))
        grid = self.facts.grid
        assert grid is not None
        seen = waves.unfold(1, grid.receptive, grid.stride)  # (B, T, receptive)
        vectors = torch.stack([seen.mean(2), seen[..., 0], seen[..., -1]], dim=2)
        return [vectors * (layer + 1) for layer in range(self.n_layers)]

    def embed(self, windows: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError


def window_encoder(rate_hz: int = 1000, **values: object) -> FakeWindows:
    """Return a window encoder at a rate that makes numbers easy to read."""
    pads = bool(values.pop("pads", True))
    facts = Facts("fake", rate_hz, 1.0, 0.5, None, embeds=True, pads=pads)
    return FakeWindows(facts, **values)  # type: ignore[arg-type]


def frame_encoder(
    rate_hz: int = 1000,
    block_s: int | None = 4,
    context_s: int = 1,
    stride: int = 20,
    receptive: int = 25,
    **values: object,
) -> FakeFrames:
    """Return a frame encoder on a grid of short blocks."""
    grid = FrameGrid(block_s, context_s, joins_tail=True, stride=stride, receptive=receptive)
    facts = Facts("fake", rate_hz, 1.0, 0.5, grid, embeds=False)
    return FakeFrames(facts, **values)  # type: ignore[arg-type]


def frames_by_loop(wave: np.ndarray, stride: int, receptive: int) -> np.ndarray:
    """Return every frame of a whole recording, (T, 3)."""
    found = []
    for start in range(0, len(wave) - receptive + 1, stride):
        seen = wave[start : start + receptive].astype(np.float64)
        found.append([seen.mean(), seen[0], seen[-1]])
    return np.array(found).reshape(-1, 3)


def means_by_loop(
    wave: np.ndarray, rule: WindowRule, starts: list[int], stride: int, receptive: int
) -> dict[int, np.ndarray]:
    """Return window start -> mean of all frames whose centre lies in it, where there are any."""
    frames = frames_by_loop(wave, stride, receptive)
    centres = np.arange(len(frames)) * stride + receptive // 2
    found = {}
    for start in starts:
        inside = (centres >= start) & (centres < start + rule.window)
        if inside.any():
            found[start] = frames[inside].mean(axis=0)
    return found


def sparse_wave(path: Path, rate_hz: int, n_samples: int, marks: dict[int, int]) -> Path:
    """Write a mono 16-bit RF64 that is silent but for single samples; holes take no disk.

    Args:
        path: Where.
        rate_hz: Rate.
        n_samples: Samples, may be more than fit the disk.
        marks: Sample -> value.
    """
    n_bytes = 2 * n_samples
    sizes = struct.pack("<QQQI", 4 + 36 + 24 + 8 + n_bytes, n_bytes, n_samples, 0)
    form = struct.pack("<HHIIHH", 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    head = (
        b"RF64\xff\xff\xff\xffWAVE"
        + b"ds64"
        + struct.pack("<I", len(sizes))
        + sizes
        + b"fmt "
        + struct.pack("<I", len(form))
        + form
        + b"data\xff\xff\xff\xff"
    )
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + n_bytes)
        for sample, value in marks.items():
            file.seek(len(head) + 2 * sample)
            file.write(struct.pack("<h", value))
    return path


class FakeRegistry:
    """Stands in for `encoders.registry` in `versions`: known facts, no weights to look for.

    Attributes:
        facts: Encoder name -> facts.
        digests: Encoder name -> digest of its weights.
        shapes: Encoder name -> its architecture.
    """

    def __init__(self, facts: dict[str, Facts]) -> None:
        self.facts = facts
        self.digests = dict.fromkeys(facts, "w0")
        self.shapes = dict.fromkeys(facts, "{}")

    def describe(self, name: str, config: EncoderConfig) -> Facts:
        return self.facts[name]

    def checkpoint(self, name: str, config: EncoderConfig) -> Checkpoint:
        if isinstance(config.weights, RandomWeights):
            return Checkpoint("random", f"r{config.weights.seed}", seed=config.weights.seed)
        return Checkpoint("local", self.digests[name], path="/weights")

    def architecture(self, name: str, config: EncoderConfig, checkpoint: Checkpoint) -> str:
        return self.shapes[name]


def job_of(output: Path | str, name: str = "fake", **values: Any) -> Job:
    """Return a job with one encoder `name`; keys that start with `encoder_` are its settings."""
    encoder = {k.removeprefix("encoder_"): v for k, v in values.items() if k.startswith("encoder_")}
    rest = {k: v for k, v in values.items() if not k.startswith("encoder_")}
    raw = {"output": str(output), "encoders": {name: {"model": "fake", **encoder}}, **rest}
    return Job.model_validate(raw)


def done(
    work: Work, job: Job, planned: PlannedEncoder, encoder: FakeWindows | FakeFrames
) -> Receipt:
    """Decode and encode one shard in this process, and put its parts."""
    audios = decode_shard(work, (planned,), job)
    receipt = Receipt(work.shard.id)
    encode_shard(work, audios, planned, encoder, "cpu", job, receipt)
    assert receipt.put_error is None
    return receipt
