"""Decode a stretch of a recording at its own rate, in blocks, exactly and with flat memory."""

from __future__ import annotations

from collections.abc import Iterator

from bioembed_ray.audio.bytefile import ByteFile, open_source
from bioembed_ray.audio.probe import Header
from bioembed_ray.audio.readers import Block, Reader, RefusedError, open_pyav, open_soundfile
from bioembed_ray.audio.sniff import DEMUXERS
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
        fault: After iteration: what the decoder complained about, else None. What came before is
            good.
    """

    def __init__(self, source: Source, header: Header, start: int, stop: int | None) -> None:
        self._source = source
        self._header = header
        self._start = start
        self._stop = stop
        self.ended = False
        self.fault: str | None = None

    def __iter__(self) -> Iterator[Block]:
        """Yield (n, channels) float32 blocks, C-contiguous.

        Raises:
            RecordingError: the decoder does not take the file, though it did when it was probed.
            StorageError: the store refused; never seen as a shorter recording.
        """
        n_block = max(1, BLOCK_VALUES // self._header.channels)
        left = None if self._stop is None else self._stop - self._start
        header = self._header
        n_known = header.n_samples
        if header.seekable and n_known is not None and self._start >= n_known:
            self.ended = True
            return
        reader, n_skip = self._open()
        try:
            while left is None or left > 0:
                if n_skip:
                    wanted = min(n_block, n_skip)
                else:
                    wanted = n_block if left is None else min(n_block, left)
                block = reader.read(wanted)
                if n_skip:
                    n_skip -= len(block)
                else:
                    left = None if left is None else left - len(block)
                    if len(block):
                        yield block
                if len(block) < wanted:
                    break
        finally:
            self.ended, self.fault = reader.ended, reader.fault
            reader.close()

    def _open(self) -> tuple[Reader, int]:
        """Return a reader and how many samples to throw away before `start`."""
        header, source = self._header, self._source
        file = open_source(source, header.patches)
        try:
            if header.decoder == "pyav":
                return open_pyav(file, DEMUXERS[header.container]), self._start
            reader = open_soundfile(file)
            if not header.seekable:
                # Only a seek to the start makes MP3 the same as one whole read, to the last bit.
                reader.seek(0)
                return reader, self._start
            if self._stop is not None and header.n_samples:
                file.expect_until(file.size * self._stop // header.n_samples + READ_MARGIN)
            if reader.seek(self._start):
                return reader, 0
            # A FLAC whose end is missing cannot be sought, but it can be read up to the damage.
            reader.close()
            return open_soundfile(open_source(source, header.patches)), self._start
        except RefusedError as refusal:
            raise RecordingError(Reason.DAMAGED, f"{header.container} file; {refusal}") from refusal


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
        Blocks of (n, channels) float32, full scale ±1, non-finite samples untouched; fewer samples
        where the sound ends before `stop`.
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"samples [{start}, {stop}) are no stretch")
    return Blocks(source, header, start, stop)
