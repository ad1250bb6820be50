"""MPEG audio frames (MP3, MP2, AAC with ADTS headers): where they are, and what a Xing header counts."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bioembed_ray.audio.bytefile import ByteFile

# kbit/s by bit rate index 1 to 14 (ISO 11172-3 table 2.4.2.3, ISO 13818-3): (MPEG-1?, layer).
_BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# The longest header: that of ADTS.
HEADER_BYTES = 7
# Headers are looked for this far at once.
SCAN_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class MpegFrame:
    """One frame's header.

    Attributes:
        length: Bytes of the whole frame.
        shared: The header bits that all frames of a file share.
        tag: Position inside the frame at which a Xing header would stand.
    """

    length: int
    shared: bytes
    tag: int


def frame_at(body: bytes, place: int) -> MpegFrame | None:
    """Return the frame whose header stands at `place`, None where none does."""
    if len(body) < place + 4 or body[place] != 0xFF or body[place + 1] & 0xE0 != 0xE0:
        return None
    second, third = body[place + 1], body[place + 2]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    rate_index, bits_index = third >> 2 & 3, third >> 4
    if version == 1 or layer == 4 or rate_index == 3 or bits_index in {0, 15}:
        return None
    padding = third >> 1 & 1
    is_mpeg1, is_mono = version == 3, body[place + 3] >> 6 == 3
    rate_hz = (44100, 48000, 32000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    bits = _BIT_RATES[is_mpeg1, layer][bits_index - 1] * 1000
    if layer == 1:
        length = (12 * bits // rate_hz + padding) * 4
    else:
        n_samples = 1152 if layer == 2 or is_mpeg1 else 576
        length = n_samples // 8 * bits // rate_hz + padding
    return MpegFrame(
        length=length,
        shared=bytes([second & 0xFE, third & 0x0C]),
        tag=4 + ((17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)),
    )


def find_frames(body: bytes, size: int) -> int | None:
    """Return where three frames follow each other (fewer where a file of `size` bytes ends before)."""
    place = body.find(b"\xff")
    while place >= 0:
        frame, here, n_frames = frame_at(body, place), place, 0
        shared = frame.shared if frame else b""
        while frame is not None and frame.shared == shared and n_frames < 3:
            here, n_frames = here + frame.length, n_frames + 1
            frame = frame_at(body, here)
        if n_frames == 3 or (n_frames and place == 0 and here >= size):
            return place
        place = body.find(b"\xff", place + 1)
    return None


def xing_count(body: bytes, place: int) -> int | None:
    """Return how many frames a Xing or Info header counts, itself left out; None without one.

    Args:
        body: Bytes of the file.
        place: Where its first frame stands.
    """
    frame = frame_at(body, place)
    if frame is None:
        return None
    tag = place + frame.tag
    if body[tag : tag + 4] not in {b"Xing", b"Info"} or len(body) < tag + 12:
        return None
    flags, count = struct.unpack(">II", body[tag + 4 : tag + 12])
    return count if flags & 1 else None


def walk(
    file: ByteFile, byte: int, length_at: Callable[[bytes, int], int]
) -> Iterator[tuple[int, int]]:
    """Yield (byte, 0) for every whole frame from a byte on, (its end, its size) for what is between two.

    Args:
        file: The file.
        byte: Where to begin.
        length_at: Returns the bytes of the frame whose header stands somewhere, 0 where none does.

    Raises:
        StorageError: the store refused.
    """
    base, body, n_junk = byte, b"", 0
    while byte < file.size:
        if byte + HEADER_BYTES > base + len(body):
            base, body = byte, file.read_at(byte, SCAN_BYTES)
        length = length_at(body, byte - base)
        if length and byte + length <= file.size:
            if n_junk:
                yield byte, n_junk
            yield byte, 0
            n_junk, byte = 0, byte + length
            continue
        found = body.find(b"\xff", byte - base + 1)
        stop = max(byte + 1, base + (found if found >= 0 else len(body)))
        n_junk, byte = n_junk + stop - byte, stop
    if n_junk:
        yield byte, n_junk


def adts_length(head: bytes, place: int = 0) -> int:
    """Return the bytes of an AAC frame by its ADTS header (ISO 13818-7), 0 where there is none."""
    head = head[place : place + HEADER_BYTES]
    if len(head) < HEADER_BYTES or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
