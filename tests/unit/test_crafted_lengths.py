"""Lengths that headers make up: planned by what the bytes can hold, decoded to where the sound ends."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bioembed_ray.audio.ogg import is_intact
from tests.damage import FORMATS, SECONDS, by_ffmpeg
from tests.unit.audio_samples import encode

# Planned and decoded in a process of its own, whose peak is read.
CODE = """
import json, sys
from bioembed_ray.audio.decode import native_blocks
from bioembed_ray.audio.probe import probe
from bioembed_ray.errors import RecordingError
from bioembed_ray.inputs.listing import Source
from bioembed_ray.segments import Cutting, form_shards, segment_bounds
from bioembed_ray.storage import stat_object

info = stat_object(sys.argv[1])
source = Source(sys.argv[1], info.stamp, info.size_bytes)
try:
    header, _ = probe(source)
except RecordingError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
cutting = Cutting(300, 1800.0, 1, "mix")
bounds = segment_bounds(header.n_samples, header.rate_hz, cutting)
shards = list(form_shards([("a", source, header, bounds)], cutting))
blocks = native_blocks(source, header)
n_decoded = sum(map(len, blocks))
# Not ru_maxrss, which begins at what the parent held.
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmHWM"))
print(json.dumps({
    "segments": len(bounds), "shards": len(shards), "decoded": n_decoded, "holes": blocks.holes,
    "promised": header.n_promised, "peak_mb": peak,
}))
"""


def flac(total: int) -> bytes:
    body = bytearray(FORMATS["flac"][2]())
    body[21] = body[21] & 0xF0 | total >> 32
    body[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(body)


def ogg(name: str, granule: int) -> bytes:
    """Return an Ogg whose last page lies about its position, with a checksum that agrees."""
    body = FORMATS[name][2]()
    place = body.rindex(b"OggS")
    page = bytearray(body[place:])
    page[6:14] = struct.pack("<q", granule)
    page[22:26] = crc(bytes(page)).to_bytes(4, "little")
    assert is_intact(bytes(page))
    return body[:place] + bytes(page)


def crc(page: bytes) -> int:
    """Return the checksum of an Ogg page, bit by bit (RFC 3533, section 6)."""
    value = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value >> 31 else value << 1) & 0xFFFFFFFF
    return value


def put(name: str, mark: bytes, skip: int, value: bytes) -> bytes:
    """Return a file with some bytes behind a mark replaced."""
    body = bytearray(FORMATS[name][2]())
    place = body.index(mark) + skip
    body[place : place + len(value)] = value
    return bytes(body)


def xing(name: str, count: int) -> bytes:
    body = FORMATS[name][2]()
    mark = b"Xing" if b"Xing" in body else b"Info"
    return put(name, mark, 8, struct.pack(">I", count))


CRAFTED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a FLAC of 2^36 - 1 samples": ("flac", lambda: flac(2**36 - 1)),
    "a FLAC of one sample": ("flac", lambda: flac(1)),
    "a FLAC of half its samples": ("flac", lambda: flac(SECONDS * 16_000)),
    "a Vorbis granule of 2^62": ("ogg vorbis", lambda: ogg("ogg vorbis", 2**62)),
    "a Vorbis granule below zero": ("ogg vorbis", lambda: ogg("ogg vorbis", -5)),
    "an Opus granule of 2^40": ("ogg opus", lambda: ogg("ogg opus", 2**40)),
    "an Opus granule of twenty minutes": ("ogg opus", lambda: ogg("ogg opus", 57_600_000)),
    "a Xing count of 2^32 - 1": ("mp3 vbr", lambda: xing("mp3 vbr", 2**32 - 1)),
    "a Xing count of one": ("mp3 cbr", lambda: xing("mp3 cbr", 1)),
    "a Matroska of 31 years": (
        "mka flac",
        lambda: put("mka flac", b"\x44\x89\x88", 3, struct.pack(">d", 1e12)),
    ),
    "an AU of 2 GiB": ("au", lambda: put("au", b".snd", 8, struct.pack(">I", 2**31 - 1))),
    "a CAF of 2^60 bytes": ("caf", lambda: put("caf", b"data", 4, struct.pack(">q", 2**60))),
    "a WAV of 4 GiB": ("wav pcm", lambda: put("wav pcm", b"data", 4, struct.pack("<I", 2**32 - 9))),
}


def planned(body: bytes, folder: Path) -> dict[str, object]:
    (folder / "a").write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder / "a")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CRAFTED)
def test_a_length_that_cannot_be_is_not_planned_on(name: str, tmp_path: Path) -> None:
    origin, make = CRAFTED[name]
    whole = len(by_ffmpeg(FORMATS[origin][2](), FORMATS[origin][0]))
    found = planned(make(), tmp_path)
    # A tenth of a second: padding that is cut off by the number that lies.
    assert abs(int(str(found["decoded"])) - whole) <= 4800, found
    assert found["shards"] == 1
    assert int(str(found["segments"])) <= 3
    assert int(str(found["peak_mb"])) < 300
    promised = found["promised"]
    assert promised is None or int(str(promised)) <= whole


def test_a_rate_that_no_recorder_has_is_refused(tmp_path: Path) -> None:
    body = bytearray(encode("WAV", "PCM_16", np.zeros((5_000_000, 1), np.float32)))
    body[24:28] = struct.pack("<I", 1)
    assert planned(bytes(body), tmp_path) == {
        "refused": "damaged: header gives 1 Hz and 1 channels"
    }
