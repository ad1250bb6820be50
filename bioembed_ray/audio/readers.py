"""What a decoder is, and libsndfile as one: for PCM and FLAC, and what is kept in their containers.

All give float32 at full scale ±1, shape (n, channels), at the recording's own rate, and keep the
same level rule: an integer format is divided by its largest magnitude, a float format is left.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from bioembed_ray.audio.bytefile import ByteFile

Block = npt.NDArray[np.float32]

# What libsndfile and FFmpeg say for "unknown".
_NO_LENGTH = (1 << 63) - 1


class RefusedError(Exception):
    """A decoder does not take the file; the text says why."""


class Reader(Protocol):
    """An open decoder.

    Attributes:
        rate_hz: Sample rate.
        channels: Channels.
        n_samples: Samples per channel that the decoder expects, None where it cannot know.
        subtype: How samples are coded, e.g. "PCM_16" or "AAC".
        tags: Tags of the file, lower-case names.
        fault: What the decoder complained about; None while all is well.
        ended: Whether the sound is at its end.
    """

    rate_hz: int
    channels: int
    n_samples: int | None
    subtype: str
    tags: dict[str, str]
    fault: str | None
    ended: bool

    def read(self, n: int) -> tuple[int, Block]:
        """Return the position of the next sample that decodes, and up to n samples from there.

        The position is more than where the last block stopped where samples between are lost; the
        block is (n, channels), empty at the end and at a fault that the decoder cannot pass.

        Raises:
            StorageError: the store refused; never seen as an early end.
        """
        ...

    def close(self) -> None:
        """Free the decoder."""
        ...


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that is not sought behind the caller's back.

    soundfile seeks after each read of a seekable file, and a seek in MP3, Vorbis and Opus does not
    come back to exactly the same samples.
    """

    def seekable(self) -> bool:
        return False


class SoundFileReader:
    """libsndfile. `seek` is exact in PCM and FLAC only.

    Attributes:
        position: The sample that comes next.

    Args:
        file: What `stream` reads.
        stream: The open decoder.
        position: Where its first sample lies in the recording.
    """

    def __init__(self, file: ByteFile, stream: _Stream, position: int = 0) -> None:
        self._file = file
        self._stream = stream
        self._first = self.position = position
        self.rate_hz = int(stream.samplerate)
        self.channels = int(stream.channels)
        self.n_samples = None if stream.frames == _NO_LENGTH else int(stream.frames)
        self.subtype = str(stream.subtype)
        self.tags: dict[str, str] = stream.copy_metadata()
        self.fault: str | None = None
        self.ended = False

    @property
    def byte(self) -> int:
        """The byte of the recording up to which it was read."""
        return self._file.place()

    def seek(self, start: int) -> bool:
        """Go to a sample; False where libsndfile cannot, which leaves the reader unusable."""
        try:
            self._stream.seek(start)
        except soundfile.LibsndfileError:
            return False
        finally:
            self._file.check()
        self.position = start
        return True

    def read(self, n: int) -> tuple[int, Block]:
        """See `Reader.read`."""
        start = self.position
        block = np.empty((n, self.channels), np.float32)
        try:
            got = len(self._stream.read(out=block))
        except soundfile.LibsndfileError as error:
            self.fault = error.error_string.removeprefix("Error : ").rstrip(".")
            # What came before the fault stands in the block, and the position tells how much.
            got = min(max(0, self._first + self._stream.tell() - start), n)
        finally:
            self._file.check()
        self.position += got
        self.ended = got < n and self.fault is None
        return start, block[:got]

    def close(self) -> None:
        """Free the decoder."""
        self._stream.close()


def open_soundfile(file: ByteFile, position: int = 0) -> SoundFileReader:
    """Open a file with libsndfile.

    Args:
        file: The file.
        position: Where its first sample lies in the recording.

    Raises:
        RefusedError: libsndfile does not take it.
        StorageError: the store refused.
    """
    file.seek(0)
    try:
        stream = _Stream(file)
    except soundfile.LibsndfileError as error:
        raise RefusedError(error.error_string.removeprefix("Error : ").rstrip(".")) from error
    finally:
        file.check()
    return SoundFileReader(file, stream, position)
