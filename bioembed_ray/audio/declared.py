"""What headers declare, where libsndfile and FFmpeg tell only what is there."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.audio.riff import MAX_CHUNKS, is_placeholder

# A run of bytes of sound: where it starts, how long it is said to be.
Run = tuple[int, int]


def missing_bytes(file: ByteFile, container: str, start: int) -> tuple[int, int]:
    """Return (bytes of sound that are there, bytes that the header declares beyond the file's end).

    Args:
        file: The file.
        container: "AU", "NIST", "VOC", "CAF" or "SVX"; nothing is missing of any other.
        start: Where it starts.

    Raises:
        StorageError: the store refused.
    """
    runs = _RUNS[container](file, start) if container in _RUNS else iter(())
    there = missing = 0
    for first, size in runs:
        here = min(max(0, file.size - first), size)
        there, missing = there + here, missing + size - here
    return there, missing


def _au(file: ByteFile, start: int) -> Iterator[Run]:
    # Sun's .snd: magic, offset of the sound, its size (all ones: not known).
    head = file.read_at(start, 12)
    if len(head) == 12:
        offset, size = struct.unpack(">II", head[4:])
        if not is_placeholder(size):
            yield start + offset, size


def _nist(file: ByteFile, start: int) -> Iterator[Run]:
    # NIST SPHERE: the size of the header on its second line, then "name -i value".
    head = file.read_at(start, 4096)
    size = re.match(rb"NIST_1A\n\s*(\d{1,9})\n", head)
    names = ("sample_count", "sample_n_bytes", "channel_count")
    found = [re.search(rf"\n{name} -i (\d{{1,15}})".encode(), head) for name in names]
    values = [int(match[1]) for match in found if match]
    if size and len(values) == len(names):
        yield start + int(size[1]), values[0] * values[1] * values[2]


def _svx(file: ByteFile, start: int) -> Iterator[Run]:
    place = start + 12
    for _ in range(MAX_CHUNKS):
        head = file.read_at(place, 8)
        if len(head) < 8:
            return
        size = int.from_bytes(head[4:], "big")
        if head[:4] == b"BODY":
            yield place + 8, size
            return
        place += 8 + size + size % 2


def _caf(file: ByteFile, start: int) -> Iterator[Run]:
    # Apple's Core Audio Format: chunks with signed 64-bit sizes, -1 for "to the end".
    place = start + 8
    for _ in range(MAX_CHUNKS):
        head = file.read_at(place, 12)
        if len(head) < 12:
            return
        size = int.from_bytes(head[4:], "big", signed=True)
        if head[:4] == b"data":
            # An edit count of four bytes stands before the samples.
            if size >= 4:
                yield place + 16, size - 4
            return
        if size < 0:
            return
        place += 12 + size


def _voc(file: ByteFile, start: int) -> Iterator[Run]:
    # Creative Voice: blocks of a type and 24 bits of size; 0 ends the file.
    place = start + int.from_bytes(file.read_at(start + 20, 2), "little")
    before_samples = {1: 2, 2: 0, 9: 12}
    for _ in range(MAX_CHUNKS):
        head = file.read_at(place, 4)
        if len(head) < 4 or head[0] == 0:
            return
        size = int.from_bytes(head[1:], "little")
        if head[0] in before_samples:
            skip = before_samples[head[0]]
            yield place + 4 + skip, max(0, size - skip)
        place += 4 + size


_RUNS: dict[str, Callable[[ByteFile, int], Iterator[Run]]] = {
    "AU": _au,
    "NIST": _nist,
    "SVX": _svx,
    "CAF": _caf,
    "VOC": _voc,
}


def declared_seconds(file: ByteFile, container: str, start: int) -> float | None:
    """Return the length that the header of a WMA or AVI declares; None where it does not.

    Raises:
        StorageError: the store refused.
    """
    if container not in {"WMA", "AVI"}:
        return None
    head = file.read_at(start, 64 << 10)
    if container == "AVI":
        # The header of the audio stream: scale, rate, start and length (AVISTREAMHEADER).
        place = head.find(b"auds", max(0, head.find(b"strh")))
        if place < 0 or len(head) < place + 36:
            return None
        scale, rate, _, length = struct.unpack("<IIII", head[place + 20 : place + 36])
        return length * scale / rate if length and rate else None
    # File properties (ASF specification, section 3.2): play time in 100 ns, preroll in ms.
    place = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if place < 0 or len(head) < place + 88:
        return None
    played, _, preroll = struct.unpack("<QQQ", head[place + 64 : place + 88])
    seconds = played / 1e7 - preroll / 1e3
    return seconds if seconds > 0 else None
