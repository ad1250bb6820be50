"""What a file is, by its content: containers, MPEG frames, chained Ogg, and what is no audio at all.

Names are not asked: MP3 under the name .wav, Git LFS pointers under .flac and web pages under .mp3
all occur.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.errors import Reason, RecordingError

HEAD_BYTES = 64 << 10
# Reading an Ogg file of this size whole costs one request more than reading its ends.
OGG_WALK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is.

    Attributes:
        container: Short name, e.g. "WAV", "FLAC", "MP3".
        start: Where it starts; ID3 tags or junk may stand before.
        is_for_ffmpeg: Libsndfile cannot read it, or measures it wrongly.
        n_samples: Samples per channel where they had to be counted already, else None.
    """

    container: str
    start: int = 0
    is_for_ffmpeg: bool = False
    n_samples: int | None = None


# (position, bytes, container, FFmpeg's demuxer, whether only FFmpeg reads it)
_MAGIC: tuple[tuple[int, bytes, str, str, bool], ...] = (
    (8, b"WAVE", "WAV", "wav", False),
    (8, b"AIFF", "AIFF", "aiff", False),
    (8, b"AIFC", "AIFF", "aiff", False),
    (8, b"8SVX", "SVX", "iff", False),
    (8, b"16SV", "SVX", "iff", False),
    (8, b"AVI ", "AVI", "avi", True),
    (0, b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb", "W64", "w64", False),
    (0, b"fLaC", "FLAC", "flac", False),
    (0, b"OggS", "OGG", "ogg", False),
    (0, b"caff", "CAF", "caf", False),
    (0, b".snd", "AU", "au", False),
    (0, b"NIST_1A", "NIST", "nistsphere", False),
    (0, b"Creative Voice File", "VOC", "voc", False),
    (0, b"\x64\xa3", "IRCAM", "ircam", False),
    (4, b"ftypM4A", "M4A", "mov", True),
    (4, b"ftyp", "MP4", "mov", True),
    (4, b"moov", "MOV", "mov", True),
    (4, b"mdat", "MOV", "mov", True),
    (4, b"wide", "MOV", "mov", True),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA", "asf", True),
    (0, b"wvpk", "WAVPACK", "wv", True),
    (0, b"\x1a\x45\xdf\xa3", "MATROSKA", "matroska", True),
    (0, b"TTA1", "TTA", "tta", True),
    (0, b"MAC ", "APE", "ape", True),
    (0, b"MPCK", "MPC8", "mpc8", True),
    (0, b"MP+", "MPC", "mpc", True),
    (0, b"tBaK", "TAK", "tak", True),
    (0, b"#!AMR", "AMR", "amr", True),
    (0, b"FLV\x01", "FLV", "flv", True),
)
# FFmpeg is always told the container: left to guess, it also tries formats that open other files,
# such as playlists.
DEMUXERS: dict[str, str] = {
    **{container: demuxer for _, _, container, demuxer, _ in _MAGIC},
    **dict.fromkeys(("RIFX", "RF64", "BW64"), "wav"),
    "MP3": "mp3",
    "AAC": "aac",
}
_NOT_AUDIO: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "Git LFS pointer (text)"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"7z\xbc\xaf", "7-Zip archive"),
    (b"%PDF", "PDF document"),
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"PAR1", "Parquet table"),
    (b"\x89HDF", "HDF5 file"),
    (b"SQLite format 3", "SQLite database"),
    (b"WAac", "Wildlife Acoustics WAC, which only their converter reads"),
    (b"#EXTM3U", "playlist (text)"),
)


def sniff(file: ByteFile) -> Kind:
    """Return what a file is.

    Raises:
        RecordingError: it is empty, or nothing that a decoder knows (unsupported); the detail says
            what it looks like.
        StorageError: the store refused.
    """
    if file.size == 0:
        raise RecordingError(Reason.EMPTY, "zero bytes")
    start = _after_id3(file)
    head = file.read_at(start, HEAD_BYTES)
    for position, magic, container, _, is_for_ffmpeg in _MAGIC:
        if head[position : position + len(magic)] != magic:
            continue
        if magic == b"WAVE":
            # The first four letters tell RF64, BW64 and big-endian RIFX from plain RIFF.
            family = {b"RIFF": "WAV", b"RIFX": "RIFX", b"RF64": "RF64", b"BW64": "BW64"}
            container = family.get(head[:4], "")
        if container == "OGG" and _is_chained(file, start):
            return Kind("OGG", start, True, _count_ogg(file, start))
        if container:
            return Kind(container, start, is_for_ffmpeg)
    if not any(head.startswith(magic) for magic, _ in _NOT_AUDIO):
        place = _find_mpeg(head, file.size - start)
        if place is not None:
            return _mp3(file, head, start, place)
        if _is_adts(head):
            return Kind("AAC", start, True)
    raise RecordingError(*_describe(head))


def _describe(head: bytes) -> tuple[Reason, str]:
    for magic, what in _NOT_AUDIO:
        if head.startswith(magic):
            return Reason.UNSUPPORTED, f"{what}, not audio" if "WAC" not in what else what
    if not any(head):
        return Reason.DAMAGED, "zero bytes where the header should be"
    opening = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what in (
        (b"<!doctype html", "web page (HTML)"),
        (b"<html", "web page (HTML)"),
        (b"<?xml", "XML"),
        (b"{", "JSON (text)"),
    ):
        if opening.startswith(magic):
            return Reason.UNSUPPORTED, f"{what}, not audio"
    sample = head[:512]
    if all(byte in b"\t\r\n" or 32 <= byte < 127 or byte >= 128 for byte in sample):
        try:
            sample[:500].decode("utf-8")
            return (
                Reason.UNSUPPORTED,
                f"text, not audio: {sample[:30].decode('utf-8', 'replace')!r}",
            )
        except UnicodeDecodeError:
            pass
    return Reason.UNSUPPORTED, f"unknown format, starts with {head[:8].hex(' ')}"


def _after_id3(file: ByteFile) -> int:
    """Return where the content starts behind ID3v2 tags (id3.org, section 3.1) and their padding."""
    start = 0
    for _ in range(16):
        head = file.read_at(start, 10)
        if len(head) < 10 or head[:3] != b"ID3":
            break
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size + (10 if head[5] & 0x10 else 0)
    if start:
        padding = file.read_at(start, HEAD_BYTES)
        start += len(padding) - len(padding.lstrip(b"\0"))
    return start


# kbit/s by bit rate index 1 to 14 (ISO 11172-3 table 2.4.2.3, ISO 13818-3): (MPEG-1?, layer).
_BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_frame(head: bytes, place: int) -> tuple[int, bytes] | None:
    """Return (length in bytes, the header bits that all frames share), or None for no frame."""
    if len(head) < place + 4 or head[place] != 0xFF or head[place + 1] & 0xE0 != 0xE0:
        return None
    second, third = head[place + 1], head[place + 2]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    rate_index, bits_index = third >> 2 & 3, third >> 4
    if version == 1 or layer == 4 or rate_index == 3 or bits_index in {0, 15}:
        return None
    rate_hz = (44100, 48000, 32000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    bits = _BIT_RATES[version == 3, layer][bits_index - 1] * 1000
    padding = third >> 1 & 1
    if layer == 1:
        return (12 * bits // rate_hz + padding) * 4, bytes([second & 0xFE, third & 0x0C])
    unit = 72 if layer == 3 and version != 3 else 144
    return unit * bits // rate_hz + padding, bytes([second & 0xFE, third & 0x0C])


def _find_mpeg(head: bytes, size: int) -> int | None:
    """Return where three MPEG audio frames follow each other (fewer where the file ends before)."""
    place = head.find(b"\xff")
    while place >= 0:
        frame, here, n_frames = _mpeg_frame(head, place), place, 0
        shared = frame[1] if frame else b""
        while frame is not None and frame[1] == shared and n_frames < 3:
            here, n_frames = here + frame[0], n_frames + 1
            frame = _mpeg_frame(head, here)
        if n_frames == 3 or (n_frames and place == 0 and here >= size):
            return place
        place = head.find(b"\xff", place + 1)
    return None


def _mp3(file: ByteFile, head: bytes, start: int, place: int) -> Kind:
    """Return who may decode an MP3: libsndfile only where a Xing or Info header counts its frames.

    Without one libsndfile estimates the length and stops there: it lost half of a variable-rate
    file. With one it stops where the count ends, which loses what was appended to the file.
    """
    first = _mpeg_frame(head, place)
    assert first is not None
    second, is_mono = head[place + 1], head[place + 3] >> 6 == 3
    is_mpeg1 = second >> 3 & 3 == 3
    # The header stands behind the side information of the first frame.
    tag = place + 4 + ((17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17))
    counts = False
    if head[tag : tag + 4] in {b"Xing", b"Info"} and len(head) >= tag + 16:
        flags, _, n_bytes = struct.unpack(">III", head[tag + 4 : tag + 16])
        # Tags with pictures may follow the sound, whence the allowance.
        beyond = file.size - start - place - n_bytes
        counts = flags & 1 == 1 and (flags & 2 == 0 or beyond <= 0.05 * n_bytes + HEAD_BYTES)
    return Kind("MP3", start + place, not counts or place > 0)


def _is_adts(head: bytes) -> bool:
    """Return True for three AAC frames with ADTS headers (ISO 13818-7) in a row."""
    place = 0
    for _ in range(3):
        if len(head) < place + 7 or head[place] != 0xFF or head[place + 1] & 0xF6 != 0xF0:
            return False
        place += (head[place + 3] & 3) << 11 | head[place + 4] << 3 | head[place + 5] >> 5
    return True


@dataclass(frozen=True, slots=True)
class _Page:
    """One Ogg page (RFC 3533, section 6)."""

    serial: int
    is_first: bool
    granule: int
    stop: int


def _page_at(file: ByteFile, position: int) -> _Page | None:
    head = file.read_at(position, 27)
    if len(head) < 27 or head[:5] != b"OggS\0":
        return None
    flags, granule, serial = head[5], *struct.unpack("<qI", head[6:18])
    sizes = file.read_at(position + 27, head[26])
    return _Page(serial, bool(flags & 2), granule, position + 27 + len(sizes) + sum(sizes))


def _is_chained(file: ByteFile, start: int) -> bool:
    """Return True where another Ogg stream follows the first one; libsndfile would stop there."""
    serials, position = set(), start
    while (page := _page_at(file, position)) is not None and page.is_first:
        serials.add(page.serial)
        position = page.stop
    tail_start = max(start, file.size - 2 * HEAD_BYTES)
    if file.size <= OGG_WALK_BYTES:
        while (page := _page_at(file, position)) is not None:
            if page.is_first:
                return True
            position = page.stop
        return False
    tail = file.read_at(tail_start, 2 * HEAD_BYTES)
    last = _page_at(file, tail_start + max(0, tail.rfind(b"OggS\0")))
    return last is not None and last.serial not in serials


def _count_ogg(file: ByteFile, start: int) -> int:
    """Return the samples of all chained streams, by the granule positions of their pages.

    A live stream may start at any granule; what is then missing is less than its first page.
    """
    total = first = last = 0
    position, is_head = start, True
    while (page := _page_at(file, position)) is not None:
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
