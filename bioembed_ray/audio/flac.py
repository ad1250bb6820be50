"""Frames of a native FLAC file: where its sound truly ends, and where it goes on after damage.

Every frame carries its own position (RFC 9639, section 9.1), so that neither a header that lies nor
a damaged stretch moves what comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bioembed_ray.audio.bytefile import ByteFile, Patches

# A frame of eight channels of 32 bits, not compressed, is 2 MB; nearly all are below 64 kB.
SCAN_BYTES = 128 << 10
LARGEST_FRAME = 4 << 20
# The least a frame of digital silence takes: header, one constant subframe, CRC.
LEAST_FRAME = 11
# Where the header declares the length, bytes from "fLaC".
LENGTH_AT = 21
# Bytes within which a bisection ends and frames are walked.
NEAR_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The first metadata block (RFC 9639, section 8.2).

    Attributes:
        start: Byte at which "fLaC" stands.
        audio: Byte at which the first frame should stand.
        block_max: Samples per frame, at the most.
        rate_hz, channels, bits: Of all frames.
        n_samples: What the header declares, 0 where it does not say.
        body: The 34 bytes of the block.
    """

    start: int
    audio: int
    block_max: int
    rate_hz: int
    channels: int
    bits: int
    n_samples: int
    body: bytes

    @property
    def most_per_byte(self) -> float:
        """Samples per channel that one byte can hold at the most: digital silence."""
        return max(self.block_max, 16) / LEAST_FRAME

    def with_length(self, n_samples: int) -> bytes:
        """Return the five bytes from byte 21 of the file that declare a length."""
        return bytes([self.body[13] & 0xF0 | n_samples >> 32 & 0xF]) + (
            n_samples & 0xFFFFFFFF
        ).to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one frame stands: first byte, first sample, samples per channel."""

    byte: int
    sample: int
    n_samples: int


def read_info(file: ByteFile, start: int) -> StreamInfo | None:
    """Return what the header of a FLAC file says; None where it is none.

    Raises:
        StorageError: the store refused.
    """
    head = file.read_at(start, 42)
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
        return None
    body = head[8:42]
    bits = int.from_bytes(body[10:18], "big")
    audio, is_last = start + 42, bool(head[4] & 0x80)
    while not is_last:
        block = file.read_at(audio, 4)
        # 127 is forbidden, and the first two bits of a frame.
        if len(block) < 4 or block[0] & 0x7F == 127:
            break
        is_last = bool(block[0] & 0x80)
        audio += 4 + int.from_bytes(block[1:], "big")
    return StreamInfo(
        start=start,
        audio=min(audio, file.size),
        block_max=int.from_bytes(body[2:4], "big"),
        rate_hz=bits >> 44,
        channels=(bits >> 41 & 7) + 1,
        bits=(bits >> 36 & 31) + 1,
        n_samples=bits & (1 << 36) - 1,
        body=body,
    )


def true_end(file: ByteFile, info: StreamInfo) -> int | None:
    """Return the samples per channel up to the end of the last whole frame; None without frames.

    Raises:
        StorageError: the store refused.
    """
    width = SCAN_BYTES
    while True:
        first = max(info.audio, file.size - width)
        body = file.read_at(first, file.size - first)
        frames = list(_frames_in(body, info))
        if frames and (len(frames) > 1 or first == info.audio or width >= LARGEST_FRAME):
            last = frames[-1]
            stop = last.sample + last.n_samples
            # Junk may follow the last frame: then the header's word is as good as the checksum's.
            return stop if info.n_samples == stop or _is_whole(body[last.byte :]) else last.sample
        if first == info.audio or width >= LARGEST_FRAME:
            return None
        width *= 4


def next_frame(
    file: ByteFile, info: StreamInfo, byte: int, after: int = -1, before: int | None = None
) -> Frame | None:
    """Return the first frame from a byte on that starts behind sample `after`, and before another.

    Raises:
        StorageError: the store refused.
    """
    overlap = 16
    while byte < file.size:
        body = file.read_at(byte, SCAN_BYTES)
        for frame in _frames_in(body, info):
            if frame.sample > after and (before is None or frame.sample < before):
                return Frame(byte + frame.byte, frame.sample, frame.n_samples)
        if len(body) < SCAN_BYTES:
            return None
        byte += SCAN_BYTES - overlap
    return None


def locate(file: ByteFile, info: StreamInfo, sample: int) -> Frame | None:
    """Return the last frame that starts at or before a sample, else the first one of the file.

    Raises:
        StorageError: the store refused.
    """
    low, high = info.audio, file.size
    while high - low > NEAR_BYTES:
        middle = (low + high) // 2
        frame = next_frame(file, info, middle)
        if frame is None or frame.sample > sample or frame.byte >= high:
            high = middle
        else:
            low = frame.byte
    found = frame = next_frame(file, info, low)
    while frame is not None and frame.sample <= sample:
        found = frame
        frame = next_frame(file, info, frame.byte + 1, frame.sample)
    return found


def shortly_before(info: StreamInfo, byte: int) -> int:
    """Return a byte from which the frame is found that a decoder was in when it had read to `byte`."""
    largest = min(int.from_bytes(info.body[7:10], "big") or LARGEST_FRAME, LARGEST_FRAME)
    return max(info.audio, byte - 2 * largest - SCAN_BYTES)


def from_frame(info: StreamInfo, frame: Frame) -> tuple[int, Patches]:
    """Return where a file begins that holds only this frame and those after it, and its header."""
    body = bytearray(info.body)
    body[13:18] = info.with_length(0)
    # No digest: it covers the whole recording.
    body[18:] = bytes(16)
    head = b"fLaC\x80" + (34).to_bytes(3, "big") + bytes(body)
    begin = frame.byte - len(head)
    return begin, ((begin, head),)


_SIZES = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608} | {code: 1 << code for code in range(8, 16)}
_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
_RATES = (0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)


def _frames_in(body: bytes, info: StreamInfo) -> Iterator[Frame]:
    """Yield the frames whose header stands in some bytes; positions count from the first of them."""
    place = body.find(b"\xff")
    while 0 <= place < len(body) - 5:
        if body[place + 1] & 0xFE == 0xF8:
            frame = _frame_at(body, place, info)
            if frame is not None:
                yield frame
        place = body.find(b"\xff", place + 1)


def _frame_at(body: bytes, place: int, info: StreamInfo) -> Frame | None:
    """Return the frame whose header stands at `place` and belongs to this stream (section 9.1)."""
    is_variable = body[place + 1] & 1
    size_code, rate_code = body[place + 2] >> 4, body[place + 2] & 15
    channel_code, bits_code = body[place + 3] >> 4, body[place + 3] >> 1 & 7
    if body[place + 3] & 1 or not size_code or rate_code == 15 or channel_code > 10:
        return None
    if (channel_code + 1 if channel_code < 8 else 2) != info.channels:
        return None
    if bits_code and _BITS.get(bits_code) != info.bits:
        return None
    if 0 < rate_code < 12 and _RATES[rate_code] != info.rate_hz:
        return None
    number, at = _coded_number(body, place + 4)
    if number is None:
        return None
    n_samples = _SIZES.get(size_code, 0)
    if size_code in {6, 7}:
        n_samples = int.from_bytes(body[at : at + size_code - 5], "big") + 1
        at += size_code - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(body) or _crc8(body[place:at]) != body[at]:
        return None
    if not 0 < n_samples <= max(info.block_max, 16):
        return None
    return Frame(place, number if is_variable else number * info.block_max, n_samples)


def _coded_number(body: bytes, at: int) -> tuple[int | None, int]:
    """Return a number coded like UTF-8 of up to seven bytes, and where it ends."""
    if at >= len(body):
        return None, at
    first = body[at]
    n_ones = 8 - (first ^ 0xFF).bit_length()
    if n_ones == 0:
        return first, at + 1
    stop = at + n_ones
    if not 2 <= n_ones <= 7 or stop > len(body):
        return None, at
    number = first & 0x7F >> n_ones
    for byte in body[at + 1 : stop]:
        if byte & 0xC0 != 0x80:
            return None, at
        number = number << 6 | byte & 0x3F
    return number, stop


def _crc_table(width: int, polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << width - 8
        for _ in range(8):
            carry = value >> width - 1
            value = value << 1 & (1 << width) - 1
            value ^= polynomial if carry else 0
        table.append(value)
    return tuple(table)


# CRC-8 of a frame's header and CRC-16 of the whole frame (sections 9.1.8 and 9.3).
_CRC8, _CRC16 = _crc_table(8, 0x07), _crc_table(16, 0x8005)
# What may follow the last frame: tags of other formats, padding.
_TRAILERS = (b"TAG", b"APETAGEX", b"ID3", b"\0")


def _crc8(body: bytes) -> int:
    value = 0
    for byte in body:
        value = _CRC8[value ^ byte]
    return value


def _is_whole(body: bytes) -> bool:
    """Return True where a frame ends as its CRC says, at the end of the bytes or before a tag."""
    value = 0
    for place, byte in enumerate(body):
        value = value << 8 & 0xFFFF ^ _CRC16[value >> 8 ^ byte]
        # With its own CRC taken in, the sum over a whole frame is zero.
        if value == 0 and place > 8:
            rest = body[place + 1 : place + 9]
            if not rest or rest.startswith(_TRAILERS):
                return True
    return False
