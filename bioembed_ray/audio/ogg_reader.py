"""Sound in Ogg: its pages are read here, its packets are decoded by FFmpeg.

Every page states the position at its end, so that a page that is lost leaves a hole of just its
length. FFmpeg's own demuxer guesses positions inside pages, and trims streams of a single page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np

from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.audio.ffmpeg import scaled
from bioembed_ray.audio.ogg import SCAN_BYTES, Packets, Page, count_granules, pages
from bioembed_ray.audio.readers import Block, RefusedError

# The most samples per channel that a byte can hold: silence at the codec's least bit rate.
_MOST_PER_BYTE = {"opus": 768, "vorbis": 2048, "flac": 6000, "speex": 640}
# Samples of all channels in a page; an encoder puts a second or two into one.
MOST_VALUES = 1 << 26
# An encoder leaves out packets of silence (Opus sends one each 0.4 s), a live stream drops some.
LONGEST_PAUSE_S = 10


class _Coding(NamedTuple):
    """A codec in Ogg: how its first packet begins, and how many packets of headers it has."""

    name: str
    magic: bytes
    n_headers: int


_CODINGS = (
    _Coding("vorbis", b"\x01vorbis", 3),
    _Coding("opus", b"OpusHead", 2),
    _Coding("flac", b"\x7fFLAC", 2),
    _Coding("speex", b"Speex   ", 2),
)


class _Stream:
    """One logical stream: its headers, then its decoder.

    Attributes:
        serial: Its number.
        coding: Its codec.
        pre_skip: Samples that the encoder's delay puts before the sound.
        next_number: Of the page that should come next.
    """

    def __init__(self, serial: int, coding: _Coding) -> None:
        self.serial, self.coding = serial, coding
        self.packets = Packets()
        self.headers: list[bytes] = []
        self.pre_skip = 0
        self.next_number = 0
        self._n_headers = coding.n_headers
        self._context: av.AudioCodecContext | None = None

    def is_open(self) -> bool:
        """Whether all headers are read, so that what follows is sound."""
        return self._context is not None

    def take_header(self, packet: bytes) -> None:
        """Enter a packet of headers; the last one opens the decoder.

        Raises:
            RefusedError: headers that the decoder does not take.
        """
        self.headers.append(packet)
        first = self.headers[0]
        if self.coding.name == "flac" and len(first) >= 51:
            # Packets of metadata that follow, 0 where nobody counted them.
            self._n_headers = 1 + (int.from_bytes(first[7:9], "big") or 1)
        if len(self.headers) < self._n_headers:
            return
        context = av.CodecContext.create(self.coding.name, "r")
        context.extradata = self._extradata()
        if self.coding.name == "opus" and len(first) >= 19:
            # FFmpeg's decoder leaves these out itself; positions count them (RFC 7845, section 4).
            self.pre_skip = int.from_bytes(first[10:12], "little")
        self._context = context

    def _extradata(self) -> bytes:
        first = self.headers[0]
        if self.coding.name == "flac":
            return first[17:51]
        if self.coding.name != "vorbis":
            return first
        # Xiph's lacing: how many packets there are but one, the sizes of all but the last.
        sizes = [
            b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
            for packet in self.headers[:2]
        ]
        return b"\x02" + b"".join(sizes) + b"".join(self.headers)

    def decode(self, packet: bytes) -> list[av.AudioFrame]:
        """Return the frames of a packet, none where it does not decode."""
        assert self._context is not None
        try:
            return list(self._context.decode(av.Packet(packet)))
        except av.FFmpegError:
            return []

    def comments(self) -> dict[str, str]:
        """Return the tags (Vorbis comments), names in small letters."""
        body = b"".join(self.headers[1:2])
        skip = {"vorbis": 7, "opus": 8, "flac": 4}.get(self.coding.name, 0)
        return _comments(body[skip:])


def _comments(body: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 4 + int.from_bytes(body[:4], "little")
    n_comments = int.from_bytes(body[place : place + 4], "little")
    place += 4
    for _ in range(min(n_comments, 1000)):
        size = int.from_bytes(body[place : place + 4], "little")
        if place + 4 + size > len(body) or len(body) < place + 4:
            break
        text = body[place + 4 : place + 4 + size].decode("utf-8", "replace")
        name, _, value = text.partition("=")
        found.setdefault(name.lower(), value[:10_000])
        place += 4 + size
    return found


class OggReader:
    """The first sound of an Ogg file, with the streams that are chained to it; see `readers.Reader`.

    Attributes:
        most: Samples per channel that the file's bytes can hold at the codec's least bit rate.
        is_stated: Whether its length is promised: no header has it.
        slack: How many samples of a promise may be missing without a loss.
    """

    def __init__(self, file: ByteFile, start: int) -> None:
        self._file, self._start = file, start
        self._expected = 0
        self._base: int | None = None
        self.rate_hz = self.channels = 0
        self.n_samples: int | None = None
        self.most = self.slack = 0
        self.is_stated = False
        self.subtype = ""
        self.tags: dict[str, str] = {}
        self.fault: str | None = None
        self.ended = False
        self._stretches = self._decode()
        self._pending = next(self._stretches, None)
        if self._pending is None:
            raise RefusedError(self.fault or "no samples")
        granules, n_streams = count_granules(file, start)
        n_samples = granules - n_streams * self._pre_skip
        self.n_samples = min(n_samples, self.most) if n_samples > 0 else None

    def _decode(self) -> Iterator[tuple[int, Block]]:
        stream: _Stream | None = None
        is_lost = False
        for page, body, is_behind_damage in pages(self._file, self._start):
            if page.is_first and (stream is None or stream.is_open()):
                stream = _begin(page, body) or stream
                is_lost = False
            if stream is None or page.serial != stream.serial:
                continue
            if is_behind_damage or page.number != stream.next_number:
                stream.packets.drop()
                is_lost = is_lost or stream.is_open()
            stream.next_number = page.number + 1
            frames: list[av.AudioFrame] = []
            for packet in stream.packets.take(page, body):
                if not stream.is_open():
                    self._take_header(stream, packet)
                elif len(packet):
                    frames += stream.decode(packet)
                if _n_values(frames) > MOST_VALUES:
                    self.fault = "a page of more sound than any encoder writes"
                    return
            if not frames:
                continue
            if not self.rate_hz:
                self._settle(stream, frames[0])
            if (frames[0].rate, frames[0].layout.nb_channels) != (self.rate_hz, self.channels):
                self.fault = (
                    f"changes from {self.rate_hz} Hz and {self.channels} channels to "
                    f"{frames[0].rate} Hz and {frames[0].layout.nb_channels}"
                )
                return
            yield from self._place(stream, page, frames, is_lost)
            is_lost = False

    def _take_header(self, stream: _Stream, packet: bytes) -> None:
        stream.take_header(packet)
        if stream.is_open():
            self._base = None

    def _settle(self, stream: _Stream, frame: av.AudioFrame) -> None:
        self.rate_hz, self.channels = frame.rate, frame.layout.nb_channels
        self.subtype, self.tags = stream.coding.name.upper(), stream.comments()
        self.most = self._file.size * _MOST_PER_BYTE[stream.coding.name]
        self._pre_skip = stream.pre_skip

    def _place(
        self, stream: _Stream, page: Page, frames: list[av.AudioFrame], is_behind_gap: bool
    ) -> Iterator[tuple[int, Block]]:
        """Yield the sound of a page, which ends where the page says."""
        block = np.concatenate([scaled(frame) for frame in frames])
        if self._base is None:
            self._base = self._expected
            block = self._less_delay(stream, page, block, is_behind_gap)
        stop = self._base + page.granule - stream.pre_skip
        late = stop - len(block) - self._expected
        if not len(block) or page.granule < 0:
            late = 0
        if late < 0 and page.is_last:
            # The encoder filled its last block up.
            block = block[: max(0, len(block) + late)]
        elif 0 < late <= self._most_late(is_behind_gap) - len(block):
            self._expected += late
        else:
            # Nothing lost; a clock that was set back, or a position that the bytes cannot hold.
            self._base -= late
        if len(block):
            yield self._expected, block
            self._expected += len(block)

    def _most_late(self, is_behind_gap: bool) -> int:
        """Return how far a page may lie behind the one before: where none is lost, a pause at most."""
        most = self.most - self._expected
        return most if is_behind_gap else min(most, LONGEST_PAUSE_S * self.rate_hz)

    def _less_delay(self, stream: _Stream, page: Page, block: Block, is_behind_gap: bool) -> Block:
        """Return the first page's sound where the recording begins with it, and settle its clock."""
        assert self._base is not None
        if is_behind_gap and not self._expected:
            return block
        first = page.granule - stream.pre_skip - len(block)
        if first > 0:
            # It was cut out of a longer one.
            self._base -= first
        elif first < 0 and not page.is_last:
            block = block[min(-first, len(block)) :]
        return block

    def read(self, n: int) -> tuple[int, Block]:
        """See `Reader.read`."""
        found, self._pending = self._pending, None
        if found is None:
            try:
                found = next(self._stretches, None)
            finally:
                self._file.check()
        if found is None:
            self.ended = True
            return 0, np.empty((0, self.channels), np.float32)
        position, block = found
        if len(block) > n:
            self._pending = position + n, block[n:]
        return position, np.ascontiguousarray(block[:n])

    def close(self) -> None:
        """Free the decoder."""
        self._stretches = iter(())


def _n_values(frames: list[av.AudioFrame]) -> int:
    """Return about how many samples of all channels some frames hold."""
    return len(frames) * frames[-1].samples * frames[-1].layout.nb_channels if frames else 0


def _begin(page: Page, body: bytes) -> _Stream | None:
    """Return the stream that begins with a page, None where it is no sound that is known."""
    coding = next((one for one in _CODINGS if body.startswith(one.magic)), None)
    return None if coding is None else _Stream(page.serial, coding)


def open_ogg(file: ByteFile) -> OggReader:
    """Open an Ogg file.

    Raises:
        RefusedError: no stream of sound whose codec is known, or not one packet decodes.
        StorageError: the store refused.
    """
    try:
        return OggReader(file, max(0, file.read_at(0, SCAN_BYTES).find(b"OggS")))
    except av.FFmpegError as error:
        raise RefusedError(error.strerror or type(error).__name__) from error
    finally:
        file.check()
