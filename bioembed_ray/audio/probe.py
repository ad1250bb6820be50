"""Read the header of a recording: rate, channels, length, who decodes it, and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bioembed_ray.audio.bytefile import ByteFile, Patches, open_source
from bioembed_ray.audio.metadata import Metadata, collect_metadata
from bioembed_ray.audio.readers import Reader, RefusedError, open_pyav, open_soundfile
from bioembed_ray.audio.riff import Layout, read_layout
from bioembed_ray.audio.sniff import DEMUXERS, Kind, sniff
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.inputs.listing import Source

_CHUNKED = frozenset({"WAV", "RIFX", "RF64", "BW64", "W64", "AIFF"})
# Codings in which every sample has its own bytes, so that a seek is exact.
_SEEKABLE_SUBTYPES = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"}
)


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a recording before it is decoded.

    Attributes:
        container: "WAV", "RF64", "BW64", "W64", "AIFF", "FLAC", "MP3", "OGG", "M4A" and so on.
        subtype: Coding of the samples, e.g. "PCM_16", "VORBIS", "AAC".
        rate_hz: Sample rate.
        channels: Channels.
        n_samples: Samples per channel, lying size fields put right; None where nothing says.
        seekable: Whether decoding may start anywhere and gives exactly the same samples.
        decoder: Who decodes it.
        patches: (position, bytes) to lay over the file so that the decoder sees its true sizes.
        n_promised: Samples per channel that a cut-off file should have had; `n_samples` elsewhere.
        is_estimate: `n_samples` comes from a bit rate or a duration, so that another length in
            the end is no sign of damage.
    """

    container: str
    subtype: str
    rate_hz: int
    channels: int
    n_samples: int | None
    seekable: bool
    decoder: Literal["soundfile", "pyav"]
    patches: Patches = ()
    n_promised: int | None = None
    is_estimate: bool = False


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
    if kind.container in _CHUNKED and kind.start == 0:
        layout = read_layout(file, kind.container)
        if layout.patches:
            file = open_source(source, layout.patches)
    header, tags = _read_header(file, kind, layout)
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
    file: ByteFile, kind: Kind, layout: Layout | None
) -> tuple[Header, dict[str, str]]:
    refusals = []
    patches = layout.patches if layout else ()
    if not kind.is_for_ffmpeg:
        try:
            reader: Reader = open_soundfile(file)
        except RefusedError as refusal:
            refusals.append(f"libsndfile: {refusal}")
        else:
            header = _header(reader, kind, "soundfile", patches)
            reader.close()
            if header.n_samples != 0:
                return replace(header, n_promised=_promised(header, layout)), reader.tags
            refusals.append("libsndfile: no samples")
    try:
        reader = open_pyav(file, DEMUXERS[kind.container])
    except RefusedError as refusal:
        refusals.append(f"FFmpeg: {refusal}")
    else:
        header = _header(reader, kind, "pyav", patches)
        reader.close()
        return header, reader.tags
    reason = Reason.DAMAGED
    if any(refusal.endswith("no samples") for refusal in refusals):
        reason = Reason.EMPTY
    elif any("no audio stream" in refusal or "no decoder" in refusal for refusal in refusals):
        reason = Reason.UNSUPPORTED
    raise RecordingError(reason, f"{kind.container} file; {'; '.join(refusals)}")


def _promised(header: Header, layout: Layout | None) -> int | None:
    """Scale the samples that are there by the bytes that a cut-off file should have had."""
    if header.n_samples is None or layout is None or not layout.n_bytes:
        return header.n_samples
    return header.n_samples * layout.n_bytes_promised // layout.n_bytes


def _header(
    reader: Reader, kind: Kind, decoder: Literal["soundfile", "pyav"], patches: Patches
) -> Header:
    if reader.rate_hz < 1 or reader.channels < 1:
        reader.close()
        raise RecordingError(
            Reason.DAMAGED, f"header gives {reader.rate_hz} Hz and {reader.channels} channels"
        )
    by_soundfile = decoder == "soundfile"
    return Header(
        container="WAV" if kind.container == "RIFX" else kind.container,
        subtype=reader.subtype,
        rate_hz=reader.rate_hz,
        channels=reader.channels,
        n_samples=reader.n_samples if kind.n_samples is None else kind.n_samples,
        seekable=by_soundfile
        and (
            kind.container == "FLAC"
            or (kind.container in _CHUNKED and reader.subtype in _SEEKABLE_SUBTYPES)
        ),
        decoder=decoder,
        patches=patches,
        is_estimate=not by_soundfile,
    )
