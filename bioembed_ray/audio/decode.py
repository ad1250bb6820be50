"""Decode a stretch of a recording at its own rate, in blocks, exactly and with flat memory.

Damage costs the damaged stretch and nothing after it: a hole is filled with zeros, so that what
follows keeps its place, and is reported.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bioembed_ray.audio import flac
from bioembed_ray.audio.bytefile import ByteFile, open_source
from bioembed_ray.audio.packets import open_packets
from bioembed_ray.audio.probe import Header
from bioembed_ray.audio.readers import (
    Block,
    Reader,
    RefusedError,
    SoundFileReader,
    open_soundfile,
)
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.inputs.listing import Source

__all__ = ["Blocks", "ByteFile", "native_blocks", "open_source"]

# Samples of all channels per block: 2 MB of float32.
BLOCK_VALUES = 1 << 19
# Bytes read past the estimate of where a seekable stretch ends: header, uneven FLAC frames.
READ_MARGIN = 256 << 10


class Blocks:
    """The native samples [start, stop) of a recording, decoded while it is iterated, once.

    Attributes:
        ended: After iteration: whether the end of the sound was met.
        fault: After iteration: what the decoder complained about at that end, else None. What came
            before is good.
        holes: [start, stop) of the stretches that could not be decoded, ascending, native samples of
            the recording; their samples came as zeros.
    """

    def __init__(self, source: Source, header: Header, start: int, stop: int | None) -> None:
        self._source = source
        self._header = header
        self._start = start
        self._stop = stop
        self.ended = False
        self.fault: str | None = None
        self.holes: list[tuple[int, int]] = []
        # The sample behind which a FLAC was damaged last, and the frame that was tried from there.
        self._after, self._resumed = -1, flac.Frame(0, -1, 0)

    def __iter__(self) -> Iterator[Block]:
        """Yield (n, channels) float32 blocks, C-contiguous.

        Raises:
            RecordingError: the decoder does not take the file, though it did when it was probed.
            StorageError: the store refused; never seen as a shorter recording.
        """
        header = self._header
        if header.seekable and header.n_samples is not None and self._start >= header.n_samples:
            self.ended = True
            return
        at, stop = self._start, self._stop
        for position, block in self._decoded():
            for hole in self._zeros(at, position):
                yield hole
                at += len(hole)
            if position < at:
                block = block[at - position :]
            if stop is not None:
                block = block[: max(0, stop - at)]
            if len(block):
                yield block
                at += len(block)

    def _zeros(self, at: int, position: int) -> Iterator[Block]:
        """Yield what lies between, where there is anything, as silence."""
        until = position if self._stop is None else min(position, self._stop)
        if at < until:
            self.holes.append((at, until))
        n_block = self._n_block
        for first in range(at, until, n_block):
            yield np.zeros((min(n_block, until - first), self._header.channels), np.float32)

    @property
    def _n_block(self) -> int:
        return max(1, BLOCK_VALUES // self._header.channels)

    def _decoded(self) -> Iterator[tuple[int, Block]]:
        """Yield (position, block), ascending, from at or before the start to the stop or the end."""
        reader = self._open()
        last = 0
        try:
            while self._stop is None or last < self._stop:
                wanted = self._n_block
                if self._stop is not None and last >= self._start:
                    wanted = min(wanted, self._stop - last)
                position, block = reader.read(wanted)
                if len(block):
                    last = position + len(block)
                    yield position, block
                if reader.ended:
                    self.ended, self.fault = True, reader.fault
                    return
                if reader.fault is not None:
                    successor = self._past(reader)
                    if successor is None:
                        self.ended, self.fault = True, reader.fault
                        return
                    reader.close()
                    reader = successor
        finally:
            reader.close()

    def _open(self) -> Reader:
        """Return a reader whose first sample lies at or before `start`."""
        header, source = self._header, self._source
        try:
            if header.decoder == "ffmpeg":
                return self._open_packets()
            file = open_source(source, header.patches)
            reader = open_soundfile(file)
            if not header.seekable:
                return reader
            if self._stop is not None and header.n_samples:
                file.expect_until(file.size * self._stop // header.n_samples + READ_MARGIN)
            if reader.seek(self._start):
                return reader
            reader.close()
            return self._sought()
        except RefusedError as refusal:
            raise RecordingError(Reason.DAMAGED, f"{header.container} file; {refusal}") from refusal

    def _open_packets(self) -> Reader:
        header, source = self._header, self._source
        return open_packets(lambda: open_source(source, header.patches), header.container)

    def _sought(self) -> Reader:
        """Return a reader from the frame that holds `start`, where libFLAC's own seek gave up."""
        file = open_source(self._source)
        info = self._flac_info(file)
        frame = None if info is None else flac.locate(file, info, self._start)
        if info is None or frame is None:
            return open_soundfile(open_source(self._source, self._header.patches))
        return self._from_frame(info, frame)

    def _past(self, reader: Reader) -> Reader | None:
        """Return a reader for what follows the damage that another one stopped at, None where nothing does.

        FLAC goes on at its next whole frame. What else libsndfile reads is left to FFmpeg from there.
        """
        if not isinstance(reader, SoundFileReader):
            return None
        try:
            if self._header.container != "FLAC":
                return self._open_packets()
            file = open_source(self._source)
            info = self._flac_info(file)
            if info is None:
                return None
            if reader.position > self._resumed.sample:
                after = reader.position
                byte = max(self._resumed.byte, flac.shortly_before(info, reader.byte))
            else:
                # Nothing came of the last frame: it was none, and its position is not to be trusted.
                after, byte = self._after, self._resumed.byte + 1
            frame = flac.next_frame(file, info, byte, after, self._header.n_samples)
            if frame is None:
                return None
            self._after, self._resumed = after, frame
            return self._from_frame(info, frame)
        except RefusedError:
            return None

    def _flac_info(self, file: ByteFile) -> flac.StreamInfo | None:
        if self._header.container != "FLAC":
            return None
        head = file.read_at(0, READ_MARGIN)
        return flac.read_info(file, max(0, head.find(b"fLaC")))

    def _from_frame(self, info: flac.StreamInfo, frame: flac.Frame) -> Reader:
        begin, patches = flac.from_frame(info, frame)
        return open_soundfile(open_source(self._source, patches, begin), frame.sample)


def native_blocks(
    source: Source, header: Header, start: int = 0, stop: int | None = None
) -> Blocks:
    """Return the native samples [start, stop) of a recording as blocks of bounded size.

    Only PCM, A-law, µ-law and FLAC are sought; everything else is decoded from its start, without
    a seek, since its seeks are not exact.

    Args:
        source: Where the bytes are.
        header: What `probe` said of the same source.
        start: First sample per channel, at the recording's own rate.
        stop: One past the last; None reads to wherever decoding ends.

    Returns:
        Blocks of (n, channels) float32, full scale ±1, non-finite samples untouched, zeros in holes;
        fewer samples where the sound ends before `stop`.
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"samples [{start}, {stop}) are no stretch")
    return Blocks(source, header, start, stop)
