"""The two decoders behind one interface: libsndfile for most files, FFmpeg for what it refuses.

Both give float32 at full scale ±1, shape (n, channels), at the recording's own rate, and keep the
same level rule: an integer format is divided by its largest magnitude, a float format is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

import av
import numpy as np
import numpy.typing as npt
import soundfile

from bioembed_ray.audio.bytefile import ByteFile

Block = npt.NDArray[np.float32]

# What libsndfile and FFmpeg say for "unknown".
_NO_LENGTH = (1 << 63) - 1
# Packets that may fail before the first one decodes: junk and cut frames at the start of streams.
_BAD_PACKETS_AT_START = 50


class RefusedError(Exception):
    """A decoder does not take the file; the text says why."""


class Reader(Protocol):
    """An open decoder.

    Attributes:
        rate_hz: Sample rate.
        channels: Channels.
        n_samples: Samples per channel that the decoder expects, None where it cannot know.
        subtype: How samples are coded, e.g. "PCM_16" or "AAC".
        tags: Tags of the file, lower-case names.
        fault: What the decoder complained about; None while all is well.
        ended: Whether the bytes of the file are used up.
    """

    rate_hz: int
    channels: int
    n_samples: int | None
    subtype: str
    tags: dict[str, str]
    fault: str | None
    ended: bool

    def read(self, n: int) -> Block:
        """Return the next (n, channels) samples, fewer only at the end or a fault.

        Raises:
            StorageError: the store refused; never seen as an early end.
        """
        ...

    def close(self) -> None:
        """Free the decoder."""
        ...


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that is not sought behind the caller's back.

    soundfile seeks after each read of a seekable file, and a seek in MP3, Vorbis and Opus does not
    come back to exactly the same samples.
    """

    def seekable(self) -> bool:
        return False


class SoundFileReader:
    """libsndfile. `seek` is exact in PCM and FLAC only."""

    def __init__(self, file: ByteFile, stream: _Stream) -> None:
        self._file = file
        self._stream = stream
        self._position = 0
        self.rate_hz = int(stream.samplerate)
        self.channels = int(stream.channels)
        self.n_samples = None if stream.frames == _NO_LENGTH else int(stream.frames)
        self.subtype = str(stream.subtype)
        self.tags: dict[str, str] = stream.copy_metadata()
        self.fault: str | None = None
        self.ended = False

    def seek(self, start: int) -> bool:
        """Go to a sample; False where libsndfile cannot, which leaves the reader unusable."""
        try:
            self._stream.seek(start)
        except soundfile.LibsndfileError:
            return False
        finally:
            self._file.check()
        self._position = start
        return True

    def read(self, n: int) -> Block:
        """See `Reader.read`."""
        block = np.empty((n, self.channels), np.float32)
        try:
            got = len(self._stream.read(out=block))
        except soundfile.LibsndfileError as error:
            self.fault = error.error_string.removeprefix("Error : ").rstrip(".")
            # What came before the fault stands in the block, and the position tells how much.
            got = min(max(0, self._stream.tell() - self._position), n)
        finally:
            self._file.check()
        self._position += got
        if got < n:
            self.ended = self.fault is None or self._file.tell() >= self._file.size
        return block[:got]

    def close(self) -> None:
        """Free the decoder."""
        self._stream.close()


def open_soundfile(file: ByteFile) -> SoundFileReader:
    """Open a file with libsndfile.

    Raises:
        RefusedError: libsndfile does not take it.
        StorageError: the store refused.
    """
    file.seek(0)
    try:
        stream = _Stream(file)
    except soundfile.LibsndfileError as error:
        raise RefusedError(error.error_string.removeprefix("Error : ").rstrip(".")) from error
    finally:
        file.check()
    return SoundFileReader(file, stream)


class PyAvReader:
    """FFmpeg through PyAV: the first audio stream, from its start to its end."""

    def __init__(
        self, file: ByteFile, container: av.container.InputContainer, stream: av.AudioStream
    ) -> None:
        self._file = file
        self._container = container
        self._blocks = self._decode(stream)
        self._pending: Block | None = None
        self.rate_hz = 0
        self.channels = 0
        self.n_samples: int | None = None
        self.subtype = stream.codec_context.codec.canonical_name.upper()
        tags = {**container.metadata, **stream.metadata}
        self.tags = {name.lower(): value for name, value in tags.items()}
        self.fault: str | None = None
        self.ended = False

    def start(self, duration_s: float | None) -> bool:
        """Decode the first frame, which alone tells the true rate; False where there is none."""
        self._pending = self._next()
        if duration_s is not None and duration_s > 0:
            self.n_samples = round(duration_s * self.rate_hz)
        return self._pending is not None

    def _decode(self, stream: av.AudioStream) -> Iterator[Block]:
        n_bad = 0
        for packet in self._container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                n_bad += 1
                if self.rate_hz or n_bad > _BAD_PACKETS_AT_START:
                    raise
                continue
            for frame in cast(list[av.AudioFrame], frames):
                if not self.rate_hz:
                    self.rate_hz, self.channels = frame.rate, frame.layout.nb_channels
                if (frame.rate, frame.layout.nb_channels) != (self.rate_hz, self.channels):
                    self.fault = (
                        f"changes from {self.rate_hz} Hz and {self.channels} channels to "
                        f"{frame.rate} Hz and {frame.layout.nb_channels}"
                    )
                    return
                yield _scaled(frame)

    def _next(self) -> Block | None:
        try:
            return next(self._blocks, None)
        except av.FFmpegError as error:
            self.fault = error.strerror or type(error).__name__
            return None
        finally:
            self._file.check()

    def read(self, n: int) -> Block:
        """See `Reader.read`."""
        parts: list[Block] = []
        left = n
        while left > 0 and not self.ended:
            block = self._next() if self._pending is None else self._pending
            if block is None:
                self.ended = self.fault is None or self._file.tell() >= self._file.size
                break
            parts.append(block[:left])
            self._pending = block[left:] if len(block) > left else None
            left -= len(parts[-1])
        if len(parts) == 1:
            return np.ascontiguousarray(parts[0])
        return np.concatenate(parts) if parts else np.empty((0, self.channels), np.float32)

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()


# Full scale of FFmpeg's integer formats; 24-bit codecs fill the upper bits of s32.
_FULL_SCALE = {"s16": 1 << 15, "s32": 1 << 31, "s64": 1 << 63}


def _scaled(frame: av.AudioFrame) -> Block:
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


def open_pyav(file: ByteFile, demuxer: str) -> PyAvReader:
    """Open a file with FFmpeg.

    Args:
        file: The file.
        demuxer: FFmpeg's name of the container; it is not asked to guess.

    Raises:
        RefusedError: FFmpeg does not take it, or not one frame decodes.
        StorageError: the store refused.
    """
    file.seek(0)
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
    reader = PyAvReader(file, container, stream)
    duration_s: float | None = None
    if stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / av.time_base
    if not reader.start(duration_s):
        reader.close()
        raise RefusedError(reader.fault or "no samples")
    return reader
