"""Chunks of WAV, RF64, BW64, W64 and AIFF files: the true length, and what rides beside the samples.

Size fields lie in real archives: 0 or 0xFFFFFFFF where a recorder was cut off or still runs, a
32-bit size that wrapped at 4 GiB, more bytes promised than were uploaded. Each lie is answered by
patches to lay over the file, so that every decoder sees the true length.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from bioembed_ray.audio.bytefile import ByteFile, Patches
from bioembed_ray.errors import Reason, RecordingError

# A run of zero bytes must not be walked eight bytes at a time.
MAX_CHUNKS = 1000
LARGEST_TEXT = 1 << 20
# Bytes behind the sound that are in no chunk are sound, too, where they are more than this and a tenth
# of it.
UNCOUNTED_BYTES = 4096
# Sizes written before the length is known: 0, all ones, and the 2 GiB that sox, arecord and
# FFmpeg write to a pipe.
_PLACEHOLDERS = (range(1), range(0x7FFFF000, 0x80000100), range(0xFFFFFF00, 1 << 32))


def is_placeholder(size: int) -> bool:
    """Return whether a size was written before the length was known."""
    return any(size in sizes for sizes in _PLACEHOLDERS)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the chunks of one file say.

    Attributes:
        container: "WAV", "RF64", "BW64", "W64" or "AIFF".
        rate_hz: Sample rate of the header.
        channels: Channels of the header.
        n_bytes: True bytes of sound data.
        patches: What to lay over the file so that its sizes are true; empty where they are.
        n_bytes_promised: What a cut-off file should have had; equal to `n_bytes` elsewhere.
        format_tag: How samples are coded (mmreg.h), 0 in AIFF.
        n_align: Bytes of one sample of all channels, or of one block of a coding in blocks.
        n_stated: Samples per channel that a `fact` chunk states, 0 without one.
        chunks: Bodies of `guan` and `bext`, and of LIST/INFO entries under "INFO.ICMT" and so on.
    """

    container: str
    rate_hz: int
    channels: int
    n_bytes: int
    patches: Patches = ()
    n_bytes_promised: int = 0
    format_tag: int = 0
    n_stated: int = 0
    n_align: int = 1
    chunks: dict[str, bytes] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """Return a chunk as text, None where there is none."""
        body = self.chunks.get(name)
        return body.decode("utf-8", "replace").strip("\0 \r\n") if body else None


@dataclass(frozen=True, slots=True)
class _Chunk:
    name: bytes
    body: int
    size: int


@dataclass(slots=True)
class _Walker:
    """Reads the chunks of one file in order."""

    file: ByteFile
    order: str
    is_w64: bool

    def chunk_at(self, position: int) -> _Chunk | None:
        """Return the chunk whose header stands at `position`, None where none does."""
        width = 24 if self.is_w64 else 8
        head = self.file.read_at(position, width)
        name = head[:4]
        # W64 names are GUIDs that begin with the RIFF name.
        if len(head) < width or not all(32 <= byte < 127 for byte in name):
            return None
        if self.is_w64:
            return _Chunk(name, position + 24, max(0, struct.unpack("<Q", head[16:])[0] - 24))
        return _Chunk(name, position + 8, struct.unpack(self.order + "I", head[4:])[0])

    def after(self, chunk: _Chunk, size: int) -> int:
        """Return where the next chunk starts; some writers leave out the pad byte."""
        end = chunk.body + size
        padded = end + (-end % 8 if self.is_w64 else size % 2)
        return end if padded != end and not self.fits(padded) and self.fits(end) else padded

    def fits(self, position: int) -> bool:
        """Return True where a whole chunk stands at `position`."""
        chunk = self.chunk_at(position)
        return chunk is not None and chunk.body + chunk.size <= self.file.size

    def reaches_end(self, position: int) -> bool:
        """Return True where whole chunks stand from `position` exactly to the end of the file."""
        for _ in range(MAX_CHUNKS):
            if self.file.size - 1 <= position <= self.file.size + 1:
                return True
            chunk = self.chunk_at(position) if self.fits(position) else None
            if chunk is None:
                return False
            position = self.after(chunk, chunk.size)
        return False

    def promised_size(self, chunk: _Chunk, declared: int, size: int) -> int:
        """Return the bytes of sound that a cut-off file promises; `size` where none was cut off.

        The size of the whole file, which stands in its first bytes, must promise them too: a
        data size that stands alone is a writer's mistake or a placeholder.
        """
        if self.is_w64:
            body = self.file.read_at(16, 8)
            end = int.from_bytes(body, "little")
        else:
            body = self.file.read_at(4, 4)
            end = int.from_bytes(body, "big" if self.order == ">" else "little") + 8
        is_cut = declared > size and not is_placeholder(declared)
        is_cut = is_cut and end >= chunk.body + declared
        return declared if is_cut else size

    def true_size(self, chunk: _Chunk, declared: int) -> int:
        """Return how many bytes the sound data really have, whatever the header says."""
        available = self.file.size - chunk.body
        if declared > available:
            return available
        # An SSND chunk holds eight bytes of its own before the samples.
        is_open = is_placeholder(declared) or (chunk.name == b"SSND" and declared == 8)
        wraps = (available - declared) >> 32 if not self.is_w64 else 0
        if available - declared > max(declared // 10, UNCOUNTED_BYTES):
            # More than a writer's notes: it was cut off before it corrected the size.
            is_open = True
        if (is_open or wraps) and not self.reaches_end(chunk.body + declared):
            return available if is_open else declared + (wraps << 32)
        return declared


def read_layout(file: ByteFile, container: str) -> Layout:
    """Walk the chunks of a file and return what they say.

    Args:
        file: The file, unpatched.
        container: "WAV", "RIFX" (big-endian WAV), "RF64", "BW64", "W64" or "AIFF".

    Raises:
        RecordingError: no format chunk or a format that cannot be (damaged), no sound data (empty).
        StorageError: the store refused.
    """
    walker = _Walker(file, ">" if container in {"AIFF", "RIFX"} else "<", container == "W64")
    found: dict[bytes, _Chunk] = {}
    texts: dict[str, bytes] = {}
    position = 40 if walker.is_w64 else 12
    size = promised = 0
    for _ in range(MAX_CHUNKS):
        chunk = walker.chunk_at(position)
        if chunk is None:
            break
        length = chunk.size
        if chunk.name in {b"data", b"SSND"} and chunk.name not in found:
            declared = _declared(file, chunk, found.get(b"ds64"))
            length = size = walker.true_size(chunk, declared)
            promised = walker.promised_size(chunk, declared, size)
        elif chunk.name in {b"guan", b"bext", b"LIST", b"list"}:
            _read_texts(file, chunk, texts)
        found.setdefault(chunk.name, chunk)
        position = walker.after(chunk, length)
    if container == "AIFF":
        layout = _aiff(file, found, size, texts)
    else:
        layout = _wave(file, container, found, size, texts)
    return replace(layout, n_bytes_promised=layout.n_bytes + promised - size)


def _declared(file: ByteFile, chunk: _Chunk, ds64: _Chunk | None) -> int:
    """Return the size that the header gives: in RF64 it stands in the ds64 chunk."""
    if ds64 is None or chunk.size != 0xFFFFFFFF:
        return chunk.size
    body = file.read_at(ds64.body, 16)
    return int(struct.unpack("<Q", body[8:16])[0]) if len(body) == 16 else chunk.size


def _read_texts(file: ByteFile, chunk: _Chunk, texts: dict[str, bytes]) -> None:
    body = file.read_at(chunk.body, min(chunk.size, LARGEST_TEXT))
    if chunk.name in {b"guan", b"bext"}:
        texts.setdefault(chunk.name.decode(), body)
    elif body[:4] == b"INFO":
        place = 4
        while place + 8 <= len(body):
            name, size = struct.unpack("<4sI", body[place : place + 8])
            value = body[place + 8 : place + 8 + size].split(b"\0")[0]
            texts.setdefault(f"INFO.{name.decode('ascii', 'replace')}", value)
            place += 8 + size + size % 2


def _check_format(rate_hz: int, channels: int) -> None:
    # Libsndfile stops at 1024 channels; no recorder is above some 10 MHz.
    if not 1 <= rate_hz <= 100_000_000:
        raise RecordingError(Reason.DAMAGED, f"header gives a sample rate of {rate_hz} Hz")
    if not 1 <= channels <= 1024:
        raise RecordingError(Reason.DAMAGED, f"header gives {channels} channels")


def _need_sound(file: ByteFile, chunk: _Chunk | None, size: int) -> _Chunk:
    if chunk is None:
        raise RecordingError(Reason.EMPTY, f"header without sound data ({file.size} bytes in all)")
    if size == 0:
        promised = f", {chunk.size:,} bytes promised" if chunk.size else ""
        raise RecordingError(Reason.EMPTY, f"no sound after the header{promised}")
    return chunk


def _wave(
    file: ByteFile, container: str, found: dict[bytes, _Chunk], size: int, texts: dict[str, bytes]
) -> Layout:
    format_chunk = found.get(b"fmt ")
    order = ">" if container == "RIFX" else "<"
    head = file.read_at(format_chunk.body, min(format_chunk.size, 4096)) if format_chunk else b""
    if len(head) < 16:
        raise RecordingError(Reason.DAMAGED, f"{container} file without a format chunk")
    tag, channels, rate_hz, _, n_align = struct.unpack(order + "HHIIH", head[:14])
    _check_format(rate_hz, channels)
    sound = _need_sound(file, found.get(b"data"), size)
    if size < n_align:
        raise RecordingError(Reason.EMPTY, f"{size} bytes of sound, not one whole sample")
    declared = _declared(file, sound, found.get(b"ds64"))
    follows = sound.body + size < file.size
    if container in {"WAV", "RIFX"}:
        if declared == size:
            patches: Patches = ()
        elif size < 0xFFFFFF00:
            patches = ((sound.body - 4, struct.pack(order + "I", size)),)
        else:
            patches = (_rf64_header(head, sound.body, size),)
    # Libsndfile does not know BW64, and takes chunks after the data of a W64 for samples.
    elif declared != size or container == "BW64" or (container == "W64" and follows):
        patches = (_rf64_header(head, sound.body, size),)
    else:
        patches = ()
    name = "WAV" if container == "RIFX" else container
    fact = found.get(b"fact")
    n_stated = int.from_bytes(file.read_at(fact.body, 4), "little") if fact else 0
    about = (tag, n_stated, max(1, n_align))
    return Layout(name, rate_hz, channels, size, patches, 0, *about, texts)


def _rf64_header(format_body: bytes, data_start: int, size: int) -> tuple[int, bytes]:
    """Return a patch: a fresh RF64 header (EBU Tech 3306) that ends where the sound data begin.

    It is longer than the header of a plain WAV, so it may start before byte 0 of the file.
    """
    format_body += bytes(len(format_body) % 2)
    tail = b"fmt " + struct.pack("<I", len(format_body)) + format_body + b"data\xff\xff\xff\xff"
    # A filler chunk, where the old header was the longer one.
    filler = max(0, data_start - 48 - len(tail) - 8)
    filler += filler % 2
    length = 48 + 8 + filler + len(tail)
    sizes = struct.pack("<IQQQI", 28, length - 8 + size, size, 0, 0)
    junk = b"JUNK" + struct.pack("<I", filler) + bytes(filler)
    header = b"RF64\xff\xff\xff\xffWAVEds64" + sizes + junk + tail
    return data_start - len(header), header


def _aiff(file: ByteFile, found: dict[bytes, _Chunk], size: int, texts: dict[str, bytes]) -> Layout:
    common = found.get(b"COMM")
    head = file.read_at(common.body, min(common.size, 64)) if common else b""
    if len(head) < 18:
        raise RecordingError(Reason.DAMAGED, "AIFF file without a COMM chunk")
    channels, _, bits = struct.unpack(">hIh", head[:8])
    _check_format(_extended(head[8:18]), channels)
    sound = _need_sound(file, found.get(b"SSND"), size)
    # Eight bytes of offset and block size stand before the samples.
    if size - 8 < max(1, (bits + 7) // 8 * channels):
        raise RecordingError(Reason.EMPTY, "no sound after the header")
    patches: Patches = ()
    if sound.size != size:
        patches = ((sound.body - 4, struct.pack(">I", min(size, 0xFFFFFFFF))),)
    return Layout("AIFF", _extended(head[8:18]), channels, size - 8, patches, chunks=texts)


def _extended(body: bytes) -> int:
    """Return an 80-bit IEEE 754 extended number, rounded; 0 where it is none that a rate can be."""
    exponent, mantissa = struct.unpack(">HQ", body)
    shift = 16383 + 63 - exponent
    return round(mantissa / 2**shift) if 0 <= shift <= 63 else 0
