"""Recordings made on the spot, in the formats and states that real archives hold."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile as sf

from bioembed_ray.audio.decode import native_blocks
from bioembed_ray.audio.probe import Header, probe
from bioembed_ray.inputs.listing import Source
from bioembed_ray.storage import stat_object

RATE = 32_000


def noise(n: int = 30_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return (n, channels) float32, smooth enough for lossy coders."""
    rng = np.random.default_rng(seed)
    time = np.arange(n) / RATE
    tones = [0.3 * np.sin(2 * np.pi * (400 + 150 * c) * time) for c in range(channels)]
    wave = np.stack(tones, 1) + 0.05 * rng.standard_normal((n, channels))
    return wave.astype(np.float32)


def encode(
    container: str,
    subtype: str,
    wave: np.ndarray | None = None,
    rate_hz: int = RATE,
    **options: Any,
) -> bytes:
    """Return a file written by libsndfile, in small blocks: one long Vorbis write crashes it."""
    wave = noise() if wave is None else wave
    body = io.BytesIO()
    with sf.SoundFile(
        body, "w", rate_hz, wave.shape[1], subtype, format=container, **options
    ) as file:
        for start in range(0, len(wave), 8192):
            file.write(wave[start : start + 8192])
    return body.getvalue()


def encode_av(container: str, codec: str, sample_format: str, planes: np.ndarray) -> bytes:
    """Return a mono file written by FFmpeg; `planes` is (1, n) in the sample format's own type."""
    body = io.BytesIO()
    with av.open(body, "w", format=container) as output:
        stream = output.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        for start in range(0, planes.shape[1], 1024):
            part = np.ascontiguousarray(planes[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(part, format=sample_format, layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return body.getvalue()


def without_xing(mp3: bytes) -> bytes:
    """Return an MPEG-1 layer III file (32 kHz) less its first frame, which counts the others."""
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[mp3[2] >> 4]
    assert mp3[:2] == b"\xff\xfb"
    assert b"Xing" in mp3[:64] or b"Info" in mp3[:64]
    return mp3[144 * kbits * 1000 // RATE + (mp3[2] >> 1 & 1) :]


def wav(
    samples: bytes,
    size: int | None = None,
    tail: bytes = b"",
    rate_hz: int = RATE,
    channels: int = 1,
    before: bytes = b"",
) -> bytes:
    """Return a 16-bit WAV with any size field; `before` and `tail` are chunks around the data."""
    size = len(samples) if size is None else size
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate_hz, rate_hz * 2, 2 * channels, 16)
    body = b"WAVEfmt " + form + before + b"data" + struct.pack("<I", size) + samples + tail
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a RIFF chunk with its pad byte."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def source_of(path: Path, body: bytes | None = None) -> Source:
    """Return the source of a file, written first where `body` is given."""
    if body is not None:
        path.write_bytes(body)
    info = stat_object(str(path))
    return Source(info.uri, info.stamp, info.size_bytes)


def decode(
    source: Source, start: int = 0, stop: int | None = None, header: Header | None = None
) -> tuple[np.ndarray, bool, str | None]:
    """Return (samples, ended, fault) of a stretch."""
    header = probe(source)[0] if header is None else header
    blocks = native_blocks(source, header, start, stop)
    parts = list(blocks)
    wave = np.concatenate(parts) if parts else np.zeros((0, header.channels), np.float32)
    return wave, blocks.ended, blocks.fault
