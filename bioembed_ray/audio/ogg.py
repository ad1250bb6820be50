"""Pages of an Ogg file (RFC 3533): chained streams, their length, and an end that is missing."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bioembed_ray.audio.bytefile import ByteFile

# The largest page: 27 bytes, 255 segments, 255 bytes in each.
PAGE_BYTES = 27 + 255 + 255 * 255
# Reading a file of this size whole costs one request more than reading its ends.
WALK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """One page (RFC 3533, section 6).

    Attributes:
        serial: Which stream it belongs to.
        is_first, is_last: Whether a stream begins or ends with it.
        granule: Position at its end, codec units; -1 where no packet ends.
        start, stop: Bytes of the file.
    """

    serial: int
    is_first: bool
    is_last: bool
    granule: int
    start: int
    stop: int


def page_at(file: ByteFile, position: int) -> Page | None:
    """Return the page that stands at a byte, None where none does or it is cut off.

    Raises:
        StorageError: the store refused.
    """
    head = file.read_at(position, 27)
    if len(head) < 27 or head[:5] != b"OggS\0":
        return None
    flags, granule, serial = head[5], *struct.unpack("<qI", head[6:18])
    sizes = file.read_at(position + 27, head[26])
    stop = position + 27 + len(sizes) + sum(sizes)
    if stop > file.size:
        return None
    return Page(serial, bool(flags & 2), bool(flags & 4), granule, position, stop)


def last_page(file: ByteFile, start: int) -> Page | None:
    """Return the last whole page of a file, None where there is none near its end.

    Raises:
        StorageError: the store refused.
    """
    first = max(start, file.size - 2 * PAGE_BYTES)
    tail = file.read_at(first, file.size - first)
    place = tail.rfind(b"OggS\0")
    while place >= 0:
        page = page_at(file, first + place)
        if page is not None:
            return page
        place = tail.rfind(b"OggS\0", 0, place)
    return None


def audio_start(file: ByteFile, start: int) -> int:
    """Return the byte behind the pages of the codec's headers, which have no position of their own.

    Raises:
        StorageError: the store refused.
    """
    position = start
    while (page := page_at(file, position)) is not None and page.granule <= 0:
        position = page.stop
    return position


def is_chained(file: ByteFile, start: int) -> bool:
    """Return True where another stream follows the first one.

    Raises:
        StorageError: the store refused.
    """
    serials, position = set(), start
    while (page := page_at(file, position)) is not None and page.is_first:
        serials.add(page.serial)
        position = page.stop
    if file.size <= WALK_BYTES:
        while (page := page_at(file, position)) is not None:
            if page.is_first:
                return True
            position = page.stop
        return False
    last = last_page(file, start)
    return last is not None and last.serial not in serials


def count_samples(file: ByteFile, start: int) -> int:
    """Return the samples of all chained streams, by the granule positions of their pages.

    A live stream may start at any granule; what is then missing is less than its first page.

    Raises:
        StorageError: the store refused.
    """
    total = first = last = 0
    position, is_head = start, True
    while (page := page_at(file, position)) is not None:
        position = page.stop
        if page.is_first and not is_head:
            total, first, last = total + last - first, 0, 0
        # Header pages have granule 0, pages without a packet's end have -1.
        if page.granule > 0:
            if last == 0 and page.granule > 1_000_000:
                first = page.granule
            last = page.granule
        is_head = page.is_first
    return total + last - first


def flaw(file: ByteFile, start: int) -> str | None:
    """Return what says that a file was cut off, None where it ends as it should.

    Raises:
        StorageError: the store refused.
    """
    last = last_page(file, start)
    if last is None:
        return "no whole page near its end"
    if last.is_last:
        return None
    if last.stop < file.size:
        return "ends inside a page"
    return "no end-of-stream page"
