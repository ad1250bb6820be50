"""Recordings in every container and codec that is read, and what happens to files in archives."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

import av
import numpy as np
import soundfile as sf
from scipy.signal import lfilter

SECONDS = 8
RATE = 32_000


def signal(rate_hz: int) -> np.ndarray:
    """Return (N,) float32: coloured noise of changing loudness, like itself at no other place."""
    n = rate_hz * SECONDS
    wave = lfilter([1], [1, -0.9], np.random.default_rng(0).standard_normal(n))
    loudness = 0.4 + 0.6 * np.abs(np.sin(np.arange(n) / rate_hz * 2 * np.pi * 0.37))
    return (wave / np.abs(wave).max() / 1.3 * loudness).astype(np.float32)


def _by_soundfile(container: str, subtype: str, rate_hz: int = RATE) -> bytes:
    body, wave = io.BytesIO(), signal(rate_hz)
    with sf.SoundFile(body, "w", rate_hz, 1, subtype, format=container) as file:
        for start in range(0, len(wave), 8192):
            file.write(wave[start : start + 8192])
    return body.getvalue()


_SCALES = {"s16": (32767, np.int16), "s32": (2**31 - 129, np.int32)}


def _by_ffmpeg(
    container: str,
    codec: str,
    rate_hz: int = RATE,
    frame: int = 1024,
    bit_rate: int = 96_000,
    options: dict[str, str] | None = None,
    sample_format: str | None = None,
) -> bytes:
    body, wave = io.BytesIO(), signal(rate_hz)
    with av.open(body, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate_hz)
        stream.layout, stream.bit_rate = "mono", bit_rate
        stream.codec_context.format = sample_format or stream.codec_context.format.name
        sample_format = stream.codec_context.format.name
        scale, kind = _SCALES.get(sample_format.rstrip("p"), (1, np.float32))
        for start in range(0, len(wave), frame):
            part = wave[None, start : start + frame].astype(np.float64) * scale
            planes = np.ascontiguousarray(np.round(part) if scale > 1 else part).astype(kind)
            made = av.AudioFrame.from_ndarray(planes, format=sample_format, layout="mono")
            made.sample_rate, made.pts = rate_hz, start
            output.mux(stream.encode(made))
        output.mux(stream.encode(None))
    return body.getvalue()


# Name -> (FFmpeg's demuxer, samples per packet, the file).
FORMATS: dict[str, tuple[str, int, Callable[[], bytes]]] = {
    "wav pcm": ("wav", 1, lambda: _by_soundfile("WAV", "PCM_16")),
    "wav float": ("wav", 1, lambda: _by_soundfile("WAV", "FLOAT")),
    "wav ulaw": ("wav", 1, lambda: _by_soundfile("WAV", "ULAW")),
    "wav ima": ("wav", 2041, lambda: _by_soundfile("WAV", "IMA_ADPCM")),
    "wav gsm": ("wav", 320, lambda: _by_soundfile("WAV", "GSM610", 8000)),
    "wav mp3": ("wav", 1152, lambda: _by_ffmpeg("wav", "libmp3lame")),
    "rf64": ("wav", 1, lambda: _by_soundfile("RF64", "PCM_24")),
    "w64": ("w64", 1, lambda: _by_soundfile("W64", "PCM_16")),
    "aiff": ("aiff", 1, lambda: _by_soundfile("AIFF", "PCM_16")),
    "au": ("au", 1, lambda: _by_soundfile("AU", "PCM_16")),
    "caf": ("caf", 1, lambda: _by_soundfile("CAF", "PCM_16")),
    "nist": ("nistsphere", 1, lambda: _by_soundfile("NIST", "PCM_16")),
    "voc": ("voc", 2, lambda: _by_soundfile("VOC", "PCM_16")),
    "svx": ("iff", 1, lambda: _by_soundfile("SVX", "PCM_16")),
    "flac": ("flac", 4096, lambda: _by_soundfile("FLAC", "PCM_16")),
    "flac 24": ("flac", 4096, lambda: _by_soundfile("FLAC", "PCM_24")),
    "ogg vorbis": ("ogg", 1024, lambda: _by_soundfile("OGG", "VORBIS")),
    "ogg opus": ("ogg", 960, lambda: _by_soundfile("OGG", "OPUS", 48_000)),
    "ogg flac": ("ogg", 2304, lambda: _by_ffmpeg("ogg", "flac")),
    "mp3 vbr": ("mp3", 1152, lambda: _by_soundfile("MP3", "MPEG_LAYER_III")),
    "mp3 cbr": ("mp3", 1152, lambda: _by_ffmpeg("mp3", "libmp3lame")),
    "mp3 bare": (
        "mp3",
        1152,
        lambda: _by_ffmpeg("mp3", "libmp3lame", options={"write_xing": "0"}),
    ),
    "mp2": ("mp3", 1152, lambda: _by_ffmpeg("mp2", "mp2", bit_rate=128_000)),
    "m4a aac": ("mov", 1024, lambda: _by_ffmpeg("ipod", "aac")),
    "m4a alac": ("mov", 4096, lambda: _by_ffmpeg("ipod", "alac")),
    "mov pcm": ("mov", 1024, lambda: _by_ffmpeg("mov", "pcm_s16le")),
    "wma": ("asf", 2048, lambda: _by_ffmpeg("asf", "wmav2", frame=2048)),
    "wavpack": (
        "wv",
        64_000,
        lambda: _by_ffmpeg("wv", "wavpack", frame=4096, sample_format="s16p"),
    ),
    "tta": ("tta", 33_436, lambda: _by_ffmpeg("tta", "tta", sample_format="s16")),
    "mka flac": ("matroska", 2304, lambda: _by_ffmpeg("matroska", "flac")),
    "mka aac": ("matroska", 1024, lambda: _by_ffmpeg("matroska", "aac")),
    "webm opus": ("matroska", 960, lambda: _by_ffmpeg("webm", "libopus", 48_000, 960)),
    "aac": ("aac", 1024, lambda: _by_ffmpeg("adts", "aac")),
    "avi pcm": ("avi", 1024, lambda: _by_ffmpeg("avi", "pcm_s16le")),
    "flv mp3": ("flv", 1152, lambda: _by_ffmpeg("flv", "libmp3lame", 44_100)),
    "amr": ("amr", 160, lambda: _by_ffmpeg("amr", "libopencore_amrnb", 8000, 160, 12_200)),
}


def by_ffmpeg(body: bytes, demuxer: str) -> np.ndarray:
    """Return (N,) what FFmpeg decodes of a file, past every packet that it cannot; none if it refuses."""
    parts: list[np.ndarray] = [np.zeros(0)]
    try:
        with av.open(io.BytesIO(body), format=demuxer) as container:
            for packet in container.demux(audio=0):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue
                for frame in frames:
                    samples = frame.to_ndarray().reshape(-1)
                    bits = {"s16": 15, "s32": 31}.get(frame.format.name.rstrip("p"), 0)
                    parts.append(samples / 2**bits)
    except (av.FFmpegError, IndexError):
        pass
    return np.concatenate(parts)


def damages(name: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (what happened, the file afterwards)."""
    middle = len(body) // 2
    yield "whole", body
    for share in (30, 60, 90):
        yield f"cut at {share} %", body[: len(body) * share // 100]
    flipped, zeroed = bytearray(body), bytearray(body)
    flipped[middle] ^= 0x55
    yield "a flipped byte", bytes(flipped)
    zeroed[middle : middle + 2000] = bytes(2000)
    yield "2 kB zeroed", bytes(zeroed)
    for what, times in (("says twice", 2.0), ("says half", 0.5)):
        declared = _declaring(name, body, times)
        if declared is not None:
            yield what, declared


def _declaring(name: str, body: bytes, times: float) -> bytes | None:
    """Return a file whose header declares `times` its length, None where no header does."""
    out = bytearray(body)

    def scale(place: int, code: str) -> None:
        (value,) = struct.unpack_from(code, out, place)
        struct.pack_into(code, out, place, type(value)(value * times))

    match name.split()[0]:
        case "wav":
            scale(4, "<I")
            scale(body.index(b"data") + 4, "<I")
        case "aiff":
            scale(4, ">I")
            scale(body.index(b"COMM") + 10, ">I")
            scale(body.index(b"SSND") + 4, ">I")
        case "au":
            scale(8, ">I")
        case "flac":
            total = int.from_bytes(body[21:26], "big") & (1 << 36) - 1
            out[21] &= 0xF0
            out[22:26] = int(total * times).to_bytes(4, "big")
        case "mp3" if name != "mp3 bare":
            scale(max(body.find(b"Xing"), body.find(b"Info")) + 8, ">I")
        case "mka" | "webm":
            scale(body.index(b"\x44\x89\x88") + 3, ">d")
        case _:
            return None
    return bytes(out)
