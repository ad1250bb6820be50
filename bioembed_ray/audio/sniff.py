"""What a file is, by its content: containers, MPEG frames, chained Ogg, and what is no audio at all.

Names are not asked: MP3 under the name .wav, Git LFS pointers under .flac and web pages under .mp3
all occur.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioembed_ray.audio import mpeg, ogg
from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.errors import Reason, RecordingError

HEAD_BYTES = 64 << 10
# Containers whose header or index states the length of the whole.
_COUNTING = frozenset(
    {
        "M4A",
        "MP4",
        "MOV",
        "MATROSKA",
        "WMA",
        "WAVPACK",
        "TTA",
        "APE",
        "MPC",
        "MPC8",
        "TAK",
        "FLV",
        "CAF",
    }
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is.

    Attributes:
        container: Short name, e.g. "WAV", "FLAC", "MP3".
        start: Where it starts; ID3 tags or junk may stand before.
        is_for_ffmpeg: Libsndfile cannot read it, or measures or resumes it wrongly.
        counts: Whether its length is counted in it: what is less in the end is lost.
        flaw: What says that its end is missing, None where nothing does.
    """

    container: str
    start: int = 0
    is_for_ffmpeg: bool = False
    counts: bool = False
    flaw: str | None = None


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
    (0, b"OggS", "OGG", "ogg", True),
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
        if container == "OGG":
            return Kind("OGG", start, True, flaw=ogg.flaw(file, start))
        if container:
            return Kind(container, start, is_for_ffmpeg, counts=container in _COUNTING)
    if not any(head.startswith(magic) for magic, _ in _NOT_AUDIO):
        place = mpeg.find_frames(head, file.size - start)
        if place is not None:
            counts = mpeg.xing_count(head, place) is not None
            return Kind("MP3", start + place, True, counts=counts)
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


def _is_adts(head: bytes) -> bool:
    """Return True for three AAC frames with ADTS headers in a row."""
    place = 0
    for _ in range(3):
        length = mpeg.adts_length(head, place)
        if not length:
            return False
        place += length
    return True
