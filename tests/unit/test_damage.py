"""Damaged files against FFmpeg: what is kept, where it lies, and what is said of the rest."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import fftconvolve

from bioembed_ray.audio import flac
from bioembed_ray.audio.decode import native_blocks, open_source
from bioembed_ray.audio.holes import hole_samples
from bioembed_ray.audio.probe import Header, probe
from bioembed_ray.errors import RecordingError
from bioembed_ray.inputs.listing import Source
from bioembed_ray.segments import Span
from tests.damage import FORMATS, by_ffmpeg, damages
from tests.unit.audio_samples import source_of

TABLE = Path(__file__).with_name("damage_table.txt")
# A whole file is heard by all decoders alike, to this.
CLOSE = 2e-3
# Without a checksum or a pattern to look for, zeros decode like anything else.
BLIND = {"amr", "wav ima", "wav gsm"}
# Frames that FFmpeg gives though their checksum is wrong, or their sound is noise.
CHECKED = {"flac", "flac 24", "mka flac", "tta", "wavpack"}


@dataclass
class Heard:
    """A file decoded: its samples with zeros in holes, the holes, and what is said of its end."""

    source: Source
    header: Header
    wave: np.ndarray
    holes: tuple[tuple[int, int], ...]
    fault: str | None

    @property
    def n_kept(self) -> int:
        return len(self.wave) - hole_samples(self.holes)

    @property
    def n_missing(self) -> int:
        return Span("a", self.source, self.header, 0, None).missing(len(self.wave))

    @property
    def is_told(self) -> bool:
        return bool(self.holes or self.n_missing or self.fault or self.header.flaw)


def heard(source: Source, start: int = 0, stop: int | None = None) -> Heard:
    header, _ = probe(source)
    blocks = native_blocks(source, header, start, stop)
    wave = np.concatenate([np.zeros((0, 1), np.float32), *blocks])[:, 0]
    return Heard(source, header, wave, tuple(blocks.holes), blocks.fault)


def lag(wave: np.ndarray, whole: np.ndarray, at: int, n: int = 6000) -> int:
    """Return by how many samples a stretch of a wave lies off its place in the whole."""
    part = wave[at : at + n].astype(np.float64)
    low = max(0, at - 100_000)
    around = whole[low : at + n + 100_000]
    likeness = fftconvolve(around, part[::-1], mode="valid")
    energy = fftconvolve(around**2, np.ones(n), mode="valid")
    return low + int(np.argmax(likeness / np.sqrt(np.maximum(energy, 1e-6)))) - at


def check(name: str, what: str, body: bytes, whole: np.ndarray, folder: Path) -> str:
    """Compare one damaged file with FFmpeg and with the whole, and return its line of the table."""
    demuxer, n_block, _ = FORMATS[name]
    source = source_of(folder / "a", body)
    n_ffmpeg = len(by_ffmpeg(body, demuxer))
    try:
        found = heard(source)
    except RecordingError as error:
        assert n_ffmpeg == 0, (name, what)
        return (
            f"{name:11} {what:15} {len(whole):7} {n_ffmpeg:7} {0:7}       -  {error.reason.value}"
        )
    wave, holes = found.wave, found.holes
    # Padding that FFmpeg leaves in a damaged MP3 is no sound.
    slack = 2 * n_block if name in CHECKED else n_block if n_block == 2 or "mp3" in name else 0
    assert found.n_kept >= n_ffmpeg - slack, (name, what)
    n_same = min(len(wave), len(whole))
    for at in [*(stop + n_block for _, stop in holes[-1:]), n_same - 8000]:
        if at + 6000 <= n_same and not any(a < at + 6000 and b > at for a, b in holes):
            assert abs(lag(wave, whole, at)) <= 1, (name, what, at)
    if what in {"whole", "says half"}:
        # FFmpeg cuts padding off where an MP3 says its end is.
        n_cut = n_block if what == "says half" and "mp3" in name else 0
        assert hole_samples(holes) <= n_cut
        assert abs(len(wave) - len(whole)) <= found.header.slack + n_cut
        assert what == "says half" or not found.is_told
    elif what == "says twice":
        assert len(wave) >= len(whole)
    else:
        n_lost = len(whole) - (len(wave) - hole_samples(holes))
        n_told = hole_samples(holes) + found.n_missing
        if n_lost > n_block + found.header.slack:
            assert found.is_told, (name, what)
        if found.n_missing:
            assert abs(n_told - n_lost) <= n_block + found.header.slack, (name, what)
    # The same however it is cut.
    for cut in (len(wave) // 3, len(wave) // 2 + 1):
        first, second = heard(source, 0, cut), heard(source, cut, None)
        np.testing.assert_array_equal(np.concatenate([first.wave, second.wave]), wave)
        assert hole_samples(first.holes) + hole_samples(second.holes) == hole_samples(holes)
    said = found.fault or found.header.flaw or ""
    n_told = hole_samples(holes) + found.n_missing
    return f"{name:11} {what:15} {len(whole):7} {n_ffmpeg:7} {found.n_kept:7} {n_told:7}  {said}"


def table(folder: Path, name: str) -> list[str]:
    body = FORMATS[name][2]()
    source = source_of(folder / "whole", body)
    whole = heard(source).wave
    np.testing.assert_allclose(
        whole[:30_000], by_ffmpeg(body, FORMATS[name][0])[:30_000], atol=CLOSE
    )
    return [
        check(name, what, damaged, whole, folder).rstrip() for what, damaged in damages(name, body)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_damage_costs_the_damaged_stretch_and_is_told(name: str, tmp_path: Path) -> None:
    found = table(tmp_path, name)
    if os.environ.get("BIOEMBED_WRITE_TABLES"):
        kept = TABLE.read_text().splitlines() if TABLE.exists() else []
        kept = [line for line in kept if line[:11].rstrip() != name]
        TABLE.write_text("\n".join(sorted([*kept, *found])) + "\n")
    expected = [line for line in TABLE.read_text().splitlines() if line[:11].rstrip() == name]
    assert sorted(found) == expected


def test_damage_inside_an_object_of_many_is_that_of_the_file_alone(tmp_path: Path) -> None:
    body = bytearray(FORMATS["flac"][2]())
    for place in (0.2, 0.5, 0.53, 0.9):
        body[int(len(body) * place)] ^= 0x55
    alone = heard(source_of(tmp_path / "a.flac", bytes(body)))
    packed = source_of(tmp_path / "a.tar", bytes(5000) + bytes(body) + bytes(7000))
    inside = heard(replace(packed, size_bytes=len(body), offset=5000))
    assert len(alone.holes) == 4
    assert inside.holes == alone.holes
    np.testing.assert_array_equal(inside.wave, alone.wave)


def test_bytes_that_look_like_a_frame_of_flac_move_nothing(tmp_path: Path) -> None:
    body = bytearray(FORMATS["flac"][2]())
    whole = heard(source_of(tmp_path / "a", bytes(body)))
    # The header of a late frame inside a damaged early one.
    file = open_source(whole.source)
    info = flac.read_info(file, 0)
    assert info is not None
    late = flac.locate(file, info, len(whole.wave) - 10_000)
    early = flac.locate(file, info, 50_000)
    assert late is not None and early is not None
    body[early.byte + 100 : early.byte + 116] = body[late.byte : late.byte + 16]
    found = heard(source_of(tmp_path / "b", bytes(body)))
    assert found.holes == ((early.sample, early.sample + 4096),)
    rest = slice(early.sample + 4096, None)
    np.testing.assert_array_equal(found.wave[rest], whole.wave[rest])
