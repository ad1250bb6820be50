"""Streams of bare frames (MP3, AAC, and MP3 inside WAV or AVI): how many frames damage was.

Nothing in them says where a frame lies, so that a damaged stretch counts as the frames it had.
"""

from __future__ import annotations

from collections.abc import Callable

import av

from bioembed_ray.audio import mpeg
from bioembed_ray.audio.bytefile import ByteFile

_MPEG = frozenset({"mp1", "mp2", "mp3"})
# FFmpeg counts up the timestamps of these itself.
_DEMUXERS = frozenset({"mp3", "aac", "wav", "avi"})
# Chunks of an AVI that stand between packets, by their first bytes, are no damage.
_CHUNK_NAME = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ")


class BareFrames:
    """Counts the frames of one stream, and those that its damaged stretches were.

    Attributes:
        n_lost: Frames lost since the last one that decoded.
        fault: What is wrong with the end of the file, None where nothing is.
    """

    def __init__(self, demuxer: str, codec: str, again: Callable[[], ByteFile]) -> None:
        self._demuxer, self._is_mpeg, self._again = demuxer, codec in _MPEG, again
        self.n_lost = 0
        self.fault: str | None = None
        self._has_begun = self._knows_lengths = False
        self._lost_bytes = 0
        self._n_good = self._good_bytes = self._n_filled = 0
        self._longest = self._n_cut = self._n_given = 0
        self._stop = 0
        self._shared = b""
        # Frames that a Xing header counts; junk by the number of frames before it.
        self._n_counted: int | None = None
        self._junk: dict[int, int] | None = None
        self._behind: dict[int, tuple[int, int]] | None = None
        file = again()
        self._size = file.size
        if demuxer == "mp3":
            head = file.read_at(0, mpeg.SCAN_BYTES)
            place = mpeg.find_frames(head, len(head))
            self._n_counted = None if place is None else mpeg.xing_count(head, place)

    @classmethod
    def of(cls, demuxer: str, codec: str, again: Callable[[], ByteFile]) -> BareFrames | None:
        """Return a count for a stream that needs one, None where timestamps tell."""
        if demuxer not in _DEMUXERS or (demuxer == "wav" and codec not in _MPEG):
            return None
        return cls(demuxer, codec, again)

    def take(self, packet: av.Packet) -> bool:
        """Enter a packet; return False for bytes that are no frame."""
        if not packet.size or packet.pos is None:
            return True
        if self._demuxer == "avi" and self._has_begun and packet.pos - self._stop > 16:
            self._enter_gap(self._stop, packet.pos - 8)
        elif self._demuxer == "aac" and self._has_begun:
            self._enter_junk()
        self._stop = packet.pos + packet.size
        length = self._length(packet)
        self.fault = None
        if not self._has_begun:
            self._knows_lengths = packet.size == length
            self._n_good = self._good_bytes = 0
        elif self._knows_lengths and packet.size != length:
            if not length or packet.size > length or self._stop < self._size:
                self._lost_bytes += packet.size
                return False
            # What is missing of it may lie in the frames before: the decoder tells.
            self.fault = "ends inside a frame"
        self._n_good += 1
        self._good_bytes += packet.size
        return True

    def begin(self) -> None:
        """Forget what came before the first frame that decodes: it never was sound."""
        self._has_begun = True
        self.n_lost = self._lost_bytes = 0

    def holes(self, packet: av.Packet, n_samples: int) -> int:
        """Return how many samples are missing before a frame of `n_samples`, once.

        FFmpeg cuts padding off where a Xing header says the end is; a frame that is short for it and
        not the last leaves a hole, too.
        """
        n_lost, self.n_lost = self.n_lost, 0
        if self._lost_bytes:
            n_filled = self._frames_in_lost(packet)
            self._n_filled += n_filled
            self._lost_bytes, n_lost = 0, n_lost + n_filled
        self._longest = max(self._longest, n_samples)
        n_cut, self._n_cut = self._n_cut, self._longest - n_samples if self._n_given else 0
        self._n_given += 1
        return n_lost * self._longest + n_cut

    @property
    def is_near_end(self) -> bool:
        """Whether a file that lost frames is at the last two it counts, where padding is cut off."""
        if self._n_counted is None or not self._n_filled:
            return False
        return 0 <= self._n_counted - self._n_good - self._n_filled < 2

    def _frames_in_lost(self, packet: av.Packet) -> int:
        """Return how many frames the bytes were: by the file's own count, else by the mean length."""
        mean = self._good_bytes / self._n_good
        guess = max(1, round(self._lost_bytes / mean))
        after = self._behind_junk(packet)
        if self._n_counted is None or after is None:
            return guess
        n_after = after[0] + round(after[1] / mean)
        exact = self._n_counted - n_after - (self._n_good - 1 + self._n_filled)
        return exact if abs(exact - guess) <= 2 + guess // 2 else guess

    def _behind_junk(self, packet: av.Packet) -> tuple[int, int] | None:
        """Return (frames, bytes of further junk) from a packet that follows junk to the end of the file."""
        if self._n_counted is None or packet.pos is None:
            return None
        if self._behind is None:
            found, n_frames, n_junk = {}, 0, 0
            for byte, size in mpeg.walk(self._again(), self._stop - packet.size, self._length_at):
                if n_frames == 0 or size:
                    found[byte] = n_frames, n_junk + size
                n_frames, n_junk = n_frames + (not size), n_junk + size
            self._behind = {
                byte: (n_frames - before, n_junk - junk) for byte, (before, junk) in found.items()
            }
        return self._behind.get(packet.pos)

    def _length_at(self, body: bytes, place: int) -> int:
        frame = mpeg.frame_at(body, place)
        return frame.length if frame is not None and frame.shared == self._shared else 0

    def _length(self, packet: av.Packet) -> int:
        """Return the bytes that the frame's own header gives, 0 where there is none."""
        head = memoryview(packet)[: mpeg.HEADER_BYTES].tobytes()
        if self._is_mpeg:
            frame = mpeg.frame_at(head, 0)
            if frame is None:
                return 0
            self._shared = self._shared or frame.shared
            return frame.length
        return mpeg.adts_length(head) if self._demuxer == "aac" else 0

    def _enter_gap(self, start: int, stop: int) -> None:
        """Enter the bytes between two chunks of an AVI, unless they are another chunk."""
        if not _CHUNK_NAME.issuperset(self._again().read_at(start + start % 2, 4)):
            self._lost_bytes += stop - start

    def _enter_junk(self) -> None:
        """Enter the bytes that FFmpeg's AAC demuxer stepped over, without a word, before this packet."""
        if self._junk is None:
            self._junk, n_frames = {}, 0
            for _, size in mpeg.walk(self._again(), 0, mpeg.adts_length):
                if size:
                    self._junk[n_frames] = size
                n_frames += not size
        self._lost_bytes += self._junk.pop(self._n_good, 0)
