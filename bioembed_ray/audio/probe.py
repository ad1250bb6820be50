"""Read the header of a recording: rate, channels, length, who decodes it, and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bioembed_ray.audio import flac
from bioembed_ray.audio.bytefile import ByteFile, Patches, open_source
from bioembed_ray.audio.declared import declared_seconds, missing_bytes
from bioembed_ray.audio.ffmpeg import FFmpegReader
from bioembed_ray.audio.metadata import Metadata, collect_metadata
from bioembed_ray.audio.ogg_reader import OggReader
from bioembed_ray.audio.packets import open_packets
from bioembed_ray.audio.readers import Reader, RefusedError, open_soundfile
from bioembed_ray.audio.riff import Layout, read_layout
from bioembed_ray.audio.sniff import Kind, sniff
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.inputs.listing import Source

_CHUNKED = frozenset({"WAV", "RIFX", "RF64", "BW64", "W64", "AIFF"})
# Codings in which every sample has its own bytes, so that a seek is exact.
_SEEKABLE_SUBTYPES = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"}
)

# Codings of a WAV (mmreg.h): MPEG layers, and ADPCM in blocks, of which the last one may be cut off.
_MPEG_TAGS = frozenset({0x50, 0x55})
_IMA_ADPCM_TAG = 0x11
# No recorder of sound is slower, and one sample a second would become hours at an encoder's rate.
LEAST_RATE_HZ = 40
# A file may lack this many times what is there before its header is held to be wrong.
_MOST_TIMES = 1000


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a recording before it is decoded.

    Attributes:
        container: "WAV", "RF64", "BW64", "W64", "AIFF", "FLAC", "MP3", "OGG", "M4A" and so on.
        subtype: Coding of the samples, e.g. "PCM_16", "VORBIS", "AAC".
        rate_hz: Sample rate.
        channels: Channels.
        n_samples: Samples per channel to plan with: lies put right, and no more than the bytes can
            hold; None where nothing says.
        seekable: Whether decoding may start anywhere and gives exactly the same samples.
        decoder: Who decodes it.
        patches: (position, bytes) to lay over the file so that the decoder sees its true sizes.
        n_promised: Samples per channel that the recording should have: what is less in the end is
            lost. None where nothing promises any.
        slack: Samples of a promise that may be missing without a loss.
        flaw: What says that its end is missing, where nobody knows how much; else None.
    """

    container: str
    subtype: str
    rate_hz: int
    channels: int
    n_samples: int | None
    seekable: bool
    decoder: Literal["soundfile", "ffmpeg"]
    patches: Patches = ()
    n_promised: int | None = None
    slack: int = 0
    flaw: str | None = None


def probe(source: Source, name: str | None = None) -> tuple[Header, Metadata]:
    """Return header and metadata of a recording; reads its ends, not the samples between.

    Args:
        source: Where the bytes are.
        name: File name for times and sites; by default that of the object, and nothing for a
            member of a tar or a row of a table, whose object has another name.

    Raises:
        RecordingError: not audio or not a known format (unsupported), no samples (empty), or a
            known format that no decoder takes (damaged).
        StorageError: the store refused.
    """
    file = open_source(source)
    kind = sniff(file)
    layout: Layout | None = None
    patches: Patches = ()
    if kind.container in _CHUNKED and kind.start == 0:
        layout = read_layout(file, kind.container)
        patches = layout.patches
    elif kind.container == "AU":
        # Its sound goes to the end of the file, whatever size it declares.
        patches = ((kind.start + 8, b"\xff\xff\xff\xff"),)
    header, tags = _read_header(source, kind, layout, patches)
    if name is None:
        is_whole_object = source.row is None and source.offset == 0
        name = source.uri.rpartition("/")[2] if is_whole_object else ""
    metadata = collect_metadata(
        name,
        guano=layout.text("guan") if layout else None,
        comment=(layout and layout.text("INFO.ICMT")) or tags.get("comment"),
        artist=(layout and layout.text("INFO.IART")) or tags.get("artist"),
        bext=layout.chunks.get("bext") if layout else None,
    )
    return header, metadata


def _read_header(
    source: Source, kind: Kind, layout: Layout | None, patches: Patches
) -> tuple[Header, dict[str, str]]:
    refusals = []
    bare, file = open_source(source), open_source(source, patches)
    if not (kind.is_for_ffmpeg or (layout is not None and _is_misread(layout))):
        try:
            if kind.container == "FLAC":
                return _read_flac(bare, source, kind)
            header, tags = _read_by_soundfile(file, bare, kind, layout, patches)
        except RefusedError as refusal:
            refusals.append(f"libsndfile: {refusal}")
        else:
            if header.n_samples != 0:
                return header, tags
            refusals.append("libsndfile: no samples")
    try:
        reader = open_packets(lambda: open_source(source, patches), kind.container)
    except RefusedError as refusal:
        refusals.append(f"FFmpeg: {refusal}")
    else:
        found = _ffmpeg_header(reader, bare, kind, layout, patches), reader.tags
        reader.close()
        return found
    reason = Reason.DAMAGED
    if any(refusal.endswith("no samples") for refusal in refusals):
        reason = Reason.EMPTY
    elif any("no audio stream" in refusal or "no decoder" in refusal for refusal in refusals):
        reason = Reason.UNSUPPORTED
    raise RecordingError(reason, f"{kind.container} file; {'; '.join(refusals)}")


def _is_misread(layout: Layout) -> bool:
    """Return True where libsndfile guesses a WAV's length and stops there, or decodes what is not there."""
    is_cut = layout.n_bytes_promised > layout.n_bytes
    return layout.format_tag in _MPEG_TAGS or (is_cut and layout.format_tag == _IMA_ADPCM_TAG)


def _read_by_soundfile(
    file: ByteFile, bare: ByteFile, kind: Kind, layout: Layout | None, patches: Patches
) -> tuple[Header, dict[str, str]]:
    reader = open_soundfile(file)
    header = _header(reader, kind, "soundfile", patches)
    reader.close()
    n_promised = _promised(header, _bytes_of(bare, kind, layout), layout)
    return replace(header, n_promised=n_promised), reader.tags


def _bytes_of(file: ByteFile, kind: Kind, layout: Layout | None) -> tuple[int, int]:
    """Return (bytes of sound that are there, bytes of it that the header promises beyond)."""
    if layout is not None:
        there, missing = layout.n_bytes, layout.n_bytes_promised - layout.n_bytes
    else:
        there, missing = missing_bytes(file, kind.container, kind.start)
    # A size that no recorder reaches is a mistake of the writer.
    return there, missing if missing <= _MOST_TIMES * there else 0


def _promised(header: Header, n_bytes: tuple[int, int], layout: Layout | None) -> int:
    """Return the samples of a whole file, by those that are there and their bytes."""
    n_samples, (there, missing) = header.n_samples or 0, n_bytes
    if not n_samples or missing <= 0:
        return n_samples
    if header.subtype in _SEEKABLE_SUBTYPES:
        return (there + missing) // (there // n_samples)
    # Of a block that is cut off a decoder gives the whole.
    n_align = 1 if layout is None else layout.n_align
    return n_samples * ((there + missing) // n_align) // -(-there // n_align)


def _read_flac(file: ByteFile, source: Source, kind: Kind) -> tuple[Header, dict[str, str]]:
    """Read a FLAC's header, and its length off its last frame: the header may be wrong."""
    info = flac.read_info(file, kind.start)
    end = None if info is None else flac.true_end(file, info)
    if info is None or end is None:
        raise RefusedError("no whole frame near the end of the file")
    patches: Patches = ()
    if info.n_samples != end:
        patches = ((kind.start + flac.LENGTH_AT, info.with_length(end)),)
    reader = open_soundfile(open_source(source, patches))
    header = _header(reader, kind, "soundfile", patches)
    reader.close()
    is_likely = end < info.n_samples <= file.size * info.most_per_byte
    return replace(header, n_promised=info.n_samples if is_likely else end), reader.tags


def _ffmpeg_header(
    reader: FFmpegReader | OggReader,
    file: ByteFile,
    kind: Kind,
    layout: Layout | None,
    patches: Patches,
) -> Header:
    header = _header(reader, kind, "ffmpeg", patches)
    n_samples = reader.n_samples
    n_promised = n_samples if kind.counts and reader.is_stated else None
    declared_s = declared_seconds(file, kind.container, kind.start)
    if declared_s is not None and declared_s * header.rate_hz <= _MOST_TIMES * reader.most:
        n_promised = round(declared_s * header.rate_hz)
    there, missing = _bytes_of(file, kind, layout)
    is_of_bytes = layout is not None or header.subtype.startswith("PCM")
    if n_samples is not None and missing > 0 and is_of_bytes:
        # A length that is stated is that of the whole; one worked out from the bytes that of the rest.
        n_stated = layout.n_stated if layout is not None else 0
        known = replace(header, n_samples=n_samples)
        n_promised = n_stated or _promised(known, (there, missing), layout)
        n_samples = n_promised * there // (there + missing)
    return replace(
        header, n_samples=n_samples, n_promised=n_promised, slack=reader.slack, flaw=kind.flaw
    )


def _header(
    reader: Reader, kind: Kind, decoder: Literal["soundfile", "ffmpeg"], patches: Patches
) -> Header:
    if reader.rate_hz < LEAST_RATE_HZ or reader.channels < 1:
        reader.close()
        raise RecordingError(
            Reason.DAMAGED, f"header gives {reader.rate_hz} Hz and {reader.channels} channels"
        )
    return Header(
        container="WAV" if kind.container == "RIFX" else kind.container,
        subtype=reader.subtype,
        rate_hz=reader.rate_hz,
        channels=reader.channels,
        n_samples=reader.n_samples,
        seekable=kind.container == "FLAC"
        or (kind.container in _CHUNKED and reader.subtype in _SEEKABLE_SUBTYPES),
        decoder=decoder,
        patches=patches,
    )
