"""The decoder of everything that libsndfile is not trusted with."""

from __future__ import annotations

from collections.abc import Callable

from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.audio.ffmpeg import FFmpegReader, open_ffmpeg
from bioembed_ray.audio.ogg_reader import OggReader, open_ogg
from bioembed_ray.audio.readers import RefusedError
from bioembed_ray.audio.sniff import DEMUXERS


def open_packets(again: Callable[[], ByteFile], container: str) -> FFmpegReader | OggReader:
    """Open a file whose packets FFmpeg decodes.

    Args:
        again: Opens the file, each time at its start.
        container: What `sniff` calls it.

    Raises:
        RefusedError: nobody takes it, or not one packet decodes.
        StorageError: the store refused.
    """
    if container == "OGG":
        try:
            return open_ogg(again())
        except RefusedError:
            pass  # a codec in Ogg that only FFmpeg's demuxer knows
    return open_ffmpeg(again, DEMUXERS[container])
