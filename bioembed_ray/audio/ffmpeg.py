"""FFmpeg through PyAV: everything but PCM, FLAC and Ogg, with the position of every sample.

A packet that is lost or does not decode moves nothing: the next frame's position comes from its
timestamp or, in streams of bare frames that have none (MP3, AAC), from the bytes between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np

from bioembed_ray.audio.bare_frames import BareFrames
from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.audio.readers import Block, RefusedError
from bioembed_ray.audio.timeline import Timeline

# Packets that may fail before the first one decodes: junk and cut frames at the start of streams.
BAD_PACKETS_AT_START = 200
# Positions in these are exact: an index has all packets, or each states its own.
_TRUSTED = frozenset({"mov", "wv", "tta", "ape", "tak", "mpc", "mpc8"})
# Lossless codecs, whose frames have checksums.
_CHECKED = frozenset({"flac", "tta", "wavpack", "ape", "tak", "mlp", "truehd"})
# The most samples per channel that a byte can hold: silence at the codec's least bit rate.
_MOST_PER_BYTE = {"opus": 768, "vorbis": 2048, "aac": 512, "mp3": 24, "mp2": 144}
_MOST_PER_BYTE_ELSE = 4096
# Priming and padding that a length in milliseconds may count, samples.
_SLACK = 4096


class FFmpegReader:
    """The first audio stream of a file, from its start to its end; see `readers.Reader`.

    Attributes:
        n_samples: Samples per channel that the file states, or that its first packet lets one expect.
        is_stated: Whether it states them, and its bytes could hold them.
        slack: How many of them may be missing without a loss.
    """

    def __init__(
        self,
        file: ByteFile,
        container: av.container.InputContainer,
        stream: av.AudioStream,
        again: Callable[[], ByteFile],
    ) -> None:
        self._file, self._container, self._stream, self._again = file, container, stream, again
        self._demuxer = str(container.format.name).partition(",")[0]
        context = stream.codec_context
        self._codec = str(context.codec.canonical_name)
        self._bare = BareFrames.of(self._demuxer, self._codec, again)
        self._timeline: Timeline | None = None
        self._origin = 0
        # The length that the first packet lets one expect.
        self._likely = 0
        self._stretches = self._decode()
        self._pending: tuple[int, Block] | None = None
        self.rate_hz = self.channels = 0
        self.n_samples: int | None = None
        self.is_stated, self.slack = True, 0
        self.subtype = self._codec.upper()
        tags = {**container.metadata, **stream.metadata}
        self.tags = {name.lower(): value for name, value in tags.items()}
        self.fault: str | None = None
        self.ended = False

    def start(self) -> bool:
        """Decode the first frame, which alone tells the true rate; False where there is none."""
        self._pending = self._next()
        if self._pending is None:
            return False
        self.n_samples = self._stated()
        return True

    @property
    def most(self) -> int:
        """Samples per channel that the file's bytes can hold at the codec's least bit rate."""
        if self._codec.startswith("pcm_"):
            return self._likely
        return self._file.size * _MOST_PER_BYTE.get(self._codec, _MOST_PER_BYTE_ELSE)

    def _stated(self) -> int:
        """Return the length that the stream or the container states, samples, else what is likely."""
        stream, container = self._stream, self._container
        tick = stream.time_base or Fraction(1, av.time_base)
        seconds: Fraction | None = None
        if stream.duration is not None:
            seconds = stream.duration * tick
        elif container.duration is not None:
            seconds = Fraction(container.duration, av.time_base)
        if seconds is None or not 0 < seconds * self.rate_hz <= self.most:
            self.is_stated = False
            return min(self._likely, self.most)
        if tick * self.rate_hz > 1:
            self.slack = _SLACK + int(2 * tick * self.rate_hz)
        return round(seconds * self.rate_hz)

    def _decode(self) -> Iterator[tuple[int, Block]]:
        n_bad = n_at_end = 0
        for packet in self._container.demux(self._stream):
            if self._bare is not None and not self._bare.take(packet):
                continue
            try:
                frames = cast(list[av.AudioFrame], packet.decode())
            except av.FFmpegError:
                n_bad, n_at_end = n_bad + 1, n_at_end + 1
                if not self.rate_hz and n_bad > BAD_PACKETS_AT_START:
                    raise
                if self._bare is not None:
                    self._bare.n_lost += 1
                continue
            if self._bare is not None and self._timeline is not None and packet.size:
                self._bare.n_lost += not frames
            n_at_end = 0 if frames else n_at_end
            for frame in frames:
                if self._timeline is None:
                    self._timeline = self._begin(packet, frame, n_bad)
                if (frame.rate, frame.layout.nb_channels) != (self.rate_hz, self.channels):
                    self.fault = (
                        f"changes from {self.rate_hz} Hz and {self.channels} channels to "
                        f"{frame.rate} Hz and {frame.layout.nb_channels}"
                    )
                    return
                position = None
                if self._bare is not None:
                    self._timeline.skip(self._bare.holes(packet, frame.samples))
                elif frame.pts is not None and frame.time_base is not None:
                    position = round(frame.pts * frame.time_base * self.rate_hz) - self._origin
                block = scaled(frame)
                if self._bare is not None and self._bare.is_near_end and self.n_samples is not None:
                    # FFmpeg cuts padding off by its own count, which lacks the frames that were lost.
                    block = block[: max(0, self.n_samples - self._timeline.expected)]
                yield from self._timeline.add(position, block)
        if self._timeline is not None:
            yield from self._timeline.finish()
        self.fault = None if self._bare is None else self._bare.fault
        if n_at_end:
            self.fault = self.fault or "its last packet cannot be decoded"

    def _begin(self, packet: av.Packet, frame: av.AudioFrame, n_bad: int) -> Timeline:
        """Settle rate, channels and where the recording starts, by its first frame."""
        self.rate_hz, self.channels = frame.rate, frame.layout.nb_channels
        tick = frame.time_base or Fraction(1, frame.rate)
        # The first frame may lack what an encoder puts before the sound.
        duration = (packet.duration or 0) * (packet.time_base or 0)
        n_samples = max(frame.samples, round(duration * frame.rate))
        self._likely = self._file.size * n_samples // max(1, packet.size)
        if frame.pts is not None:
            self._origin = round(frame.pts * tick * frame.rate)
        if n_bad and self._origin > 0:
            # What came before could not be decoded; else it was cut out of something longer.
            self._origin = 0
        if self._bare is not None:
            self._bare.begin()
        is_trusted = self._demuxer in _TRUSTED
        least = 1 if is_trusted else 16
        return Timeline(max(least, int(2 * tick * frame.rate)), self.most, is_trusted)

    def _next(self) -> tuple[int, Block] | None:
        try:
            return next(self._stretches, None)
        except av.FFmpegError as error:
            self.fault = error.strerror or type(error).__name__
            return None
        finally:
            self._file.check()

    def read(self, n: int) -> tuple[int, Block]:
        """See `Reader.read`."""
        found = self._next() if self._pending is None else self._pending
        self._pending = None
        if found is None:
            self.ended = True
            return 0, np.empty((0, self.channels), np.float32)
        parts, position, left = [found[1]], found[0], n - len(found[1])
        while left > 0:
            found = self._next()
            if found is None or found[0] != position + n - left:
                self._pending = found
                break
            parts.append(found[1])
            left -= len(found[1])
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if left < 0:
            self._pending = position + n, block[n:]
        return position, np.ascontiguousarray(block[:n])

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()


# Full scale of FFmpeg's integer formats; 24-bit codecs fill the upper bits of s32.
_FULL_SCALE = {"s16": 1 << 15, "s32": 1 << 31, "s64": 1 << 63}


def scaled(frame: av.AudioFrame) -> Block:
    """Return a frame as (n, channels) float32, full scale ±1.

    The frame's own format decides; FFmpeg's resampler is never used.
    """
    samples = frame.to_ndarray()
    if frame.format.is_planar:
        samples = samples.T
    else:
        samples = samples.reshape(-1, frame.layout.nb_channels)
    name = frame.format.name.removesuffix("p")
    if name in {"flt", "dbl"}:
        # A double beyond float32 becomes infinite and is dealt with as such later.
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(samples, np.float32)
    if name == "u8":
        return np.ascontiguousarray((samples.astype(np.float32) - 128) / 128)
    return np.ascontiguousarray(samples.astype(np.float32) / np.float32(_FULL_SCALE[name]))


def open_ffmpeg(again: Callable[[], ByteFile], demuxer: str) -> FFmpegReader:
    """Open a file with FFmpeg.

    Args:
        again: Opens the file, each time at its start.
        demuxer: FFmpeg's name of the container; it is not asked to guess.

    Raises:
        RefusedError: FFmpeg does not take it, or not one frame decodes.
        StorageError: the store refused.
    """
    file = again()
    try:
        container = av.open(
            file,
            format=demuxer,
            metadata_errors="replace",
            # The bytes come from `file`; nothing else may be opened.
            options={"protocol_whitelist": "none"},
            buffer_size=1 << 16,
        )
    except av.FFmpegError as error:
        raise RefusedError(error.strerror or type(error).__name__) from error
    finally:
        file.check()
    if not container.streams.audio:
        container.close()
        raise RefusedError("no audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        container.close()
        raise RefusedError("no decoder for its audio stream")
    if stream.codec_context.name in _CHECKED:
        # A frame whose checksum is wrong is noise, not sound.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    reader = FFmpegReader(file, container, stream, again)
    if not reader.start():
        reader.close()
        raise RefusedError(reader.fault or "no samples")
    return reader
