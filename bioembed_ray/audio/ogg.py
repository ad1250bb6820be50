"""Pages and packets of an Ogg file (RFC 3533): what is whole, where it ends, and what is missing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from bioembed_ray.audio.bytefile import ByteFile

# The largest page: 27 bytes, 255 segments, 255 bytes in each.
PAGE_BYTES = 27 + 255 + 255 * 255
# Reading a file of this size whole costs one request more than reading its ends.
WALK_BYTES = 1 << 20
# A packet of sound is a few kB; comments with pictures may be some MB.
LARGEST_PACKET = 64 << 20
SCAN_BYTES = 256 << 10
# Places in a row that look like a page and are none, each of which costs a checksum.
MOST_BAD_PAGES = 2000
# A file that says to be this many times longer than its first page lets expect is not believed.
MOST_TIMES = 20


@dataclass(frozen=True, slots=True)
class Page:
    """One page (RFC 3533, section 6).

    Attributes:
        serial: Which stream it belongs to.
        is_first, is_last: Whether a stream begins or ends with it.
        continues: Whether it begins inside a packet.
        granule: Position at its end, codec units; -1 where no packet ends.
        number: How many pages of the stream come before it.
        start, stop: Bytes of the file.
        sizes: Lengths of its segments.
    """

    serial: int
    is_first: bool
    is_last: bool
    continues: bool
    granule: int
    number: int
    start: int
    stop: int
    sizes: bytes


def page_at(file: ByteFile, position: int) -> Page | None:
    """Return the page that stands at a byte, None where none does or it is cut off.

    Raises:
        StorageError: the store refused.
    """
    head = file.read_at(position, 27)
    if len(head) < 27 or head[:5] != b"OggS\0":
        return None
    flags = head[5]
    granule, serial, number = struct.unpack("<qII", head[6:22])
    sizes = file.read_at(position + 27, head[26])
    stop = position + 27 + len(sizes) + sum(sizes)
    if stop > file.size:
        return None
    kinds = bool(flags & 2), bool(flags & 4), bool(flags & 1)
    return Page(serial, *kinds, granule, number, position, stop, sizes)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def is_intact(body: bytes) -> bool:
    """Return whether a page has the checksum that it states: CRC-32 with its bits in the other order."""
    stated = int.from_bytes(body[22:26], "little")
    turned = (body[:22] + bytes(4) + body[26:]).translate(_REVERSED)
    found = zlib.crc32(turned, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2) == stated


def pages(file: ByteFile, start: int) -> Iterator[tuple[Page, bytes, bool]]:
    """Yield (page, its bytes behind the header, whether something damaged stands before it).

    Raises:
        StorageError: the store refused.
    """
    position, is_behind_damage = start, False
    n_bad = 0
    while position < file.size and n_bad < MOST_BAD_PAGES:
        page = page_at(file, position)
        if page is not None:
            body = file.read_at(page.start, page.stop - page.start)
            if is_intact(body):
                yield page, body[27 + len(page.sizes) :], is_behind_damage
                position, is_behind_damage, n_bad = page.stop, False, 0
                continue
        is_behind_damage, n_bad = True, n_bad + 1
        while True:
            position += 1
            scanned = file.read_at(position, SCAN_BYTES)
            found = scanned.find(b"OggS\0")
            if found >= 0:
                position += found
                break
            if len(scanned) < SCAN_BYTES:
                return
            position += SCAN_BYTES - 8


class Packets:
    """Puts the packets of one stream together from its pages."""

    def __init__(self) -> None:
        self._open: list[bytes] | None = None
        self._n_open = 0

    def take(self, page: Page, body: bytes) -> Iterator[bytes]:
        """Yield the packets that end in a page; one whose beginning is lost is left out."""
        if not page.continues:
            self.drop()
        elif self._open is None:
            # What continues began in a page that is lost: it is read past.
            self._n_open = -1
        place = 0
        is_inside = page.continues
        for size in page.sizes:
            piece, place = body[place : place + size], place + size
            if not is_inside:
                self._open, self._n_open = [], 0
            is_inside = True
            if self._open is not None:
                self._open.append(piece)
                self._n_open += size
                if self._n_open > LARGEST_PACKET:
                    self._open = None
            if size < 255:
                if self._open is not None:
                    yield b"".join(self._open)
                self.drop()
                is_inside = False

    def drop(self) -> None:
        """Forget a packet that has only begun."""
        self._open, self._n_open = None, 0


def last_page(file: ByteFile, start: int, is_timed: bool = False) -> Page | None:
    """Return the last whole page of a file, None where there is none near its end.

    Args:
        file: The file.
        start: Where its first page stands.
        is_timed: Ask for the last page that has a position.

    Raises:
        StorageError: the store refused.
    """
    first = max(start, file.size - 2 * PAGE_BYTES)
    tail = file.read_at(first, file.size - first)
    place = tail.rfind(b"OggS\0")
    for _ in range(MOST_BAD_PAGES):
        if place < 0:
            break
        page = page_at(file, first + place)
        if (
            page is not None
            and (page.granule >= 0 or not is_timed)
            and is_intact(tail[place : place + page.stop - page.start])
        ):
            return page
        place = tail.rfind(b"OggS\0", 0, place)
    return None


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


def count_granules(file: ByteFile, start: int) -> tuple[int, int]:
    """Return (granules of all streams of a file, how many streams follow each other).

    A live stream may start at any granule; what is then missing is less than its first page. Only
    the ends of a file with one stream are read.

    Raises:
        StorageError: the store refused.
    """
    total = first = last = 0
    n_streams, position, is_head = 1, start, True
    reads_all = is_chained(file, start)
    while (page := page_at(file, position)) is not None:
        position = page.stop
        if page.is_first and not is_head:
            total, first, last, n_streams = total + last - first, 0, 0, n_streams + 1
        # Header pages have granule 0, pages without a packet's end have -1.
        if page.granule > 0:
            if last == 0 and page.granule > 1_000_000:
                first = page.granule
            last = page.granule
            if not reads_all:
                break
        is_head = page.is_first
    if not reads_all:
        end = last_page(file, start, is_timed=True)
        if page is not None and end is not None and end.granule > last:
            # As far as the first page with sound lets one expect from the bytes behind it.
            n_bytes = max(1, page.stop - page.start)
            likely = MOST_TIMES * (last - first) * (file.size - page.start) // n_bytes
            last = min(end.granule, first + likely)
    return total + last - first, n_streams


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
