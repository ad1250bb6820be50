from __future__ import annotations

import csv
import io
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from bioembed_ray.audio.decode import native_blocks
from bioembed_ray.audio.probe import probe
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.inputs.listing import Source
from bioembed_ray.storage import list_objects
from tests.unit.audio_samples import (
    RATE,
    chunk,
    decode,
    encode,
    encode_av,
    noise,
    source_of,
    wav,
    without_xing,
)

SAMPLES = np.random.default_rng(0).integers(-9000, 9000, 5000, dtype="<i2").tobytes()
EXPECTED = np.frombuffer(SAMPLES, "<i2").astype(np.float32)[:, None] / 32768
LIST_CHUNK = chunk(b"LIST", b"INFO" + chunk(b"IART", b"AudioMoth 24E1440360379295\0"))


def refusal(path: Path, body: bytes) -> RecordingError:
    with pytest.raises(RecordingError) as caught:
        probe(source_of(path, body))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000024, 20_000])
@pytest.mark.parametrize("riff_size", [0, 8, 36, 0xFFFFFFFF, 12_345])
def test_a_wav_with_a_false_size_field_has_the_length_of_its_data(
    size: int, riff_size: int, tmp_path: Path
) -> None:
    body = bytearray(wav(SAMPLES, size))
    body[4:8] = struct.pack("<I", riff_size)
    source = source_of(tmp_path / "a.wav", bytes(body))
    header, _ = probe(source)
    assert (header.container, header.subtype, header.n_samples) == ("WAV", "PCM_16", 5000)
    assert header.seekable
    assert np.array_equal(decode(source)[0], EXPECTED)


@pytest.mark.parametrize("tail", [LIST_CHUNK, b"\0" * 999, b"\xff\x00\x12 no chunk"])
def test_what_stands_behind_the_data_is_no_sound(tail: bytes, tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.wav", wav(SAMPLES, tail=tail))
    assert np.array_equal(decode(source)[0], EXPECTED)


@pytest.mark.parametrize("declared", ["true", 0, 1000 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_rf64_and_bw64_have_their_true_length(
    declared: int | str, magic: bytes, tmp_path: Path
) -> None:
    body = bytearray(encode("RF64", "PCM_24"))
    body[:4] = magic
    place = body.index(b"ds64") + 16
    if isinstance(declared, int):
        body[place : place + 8] = struct.pack("<Q", declared)
    source = source_of(tmp_path / "a.wav", bytes(body))
    header, _ = probe(source)
    assert (header.container, header.n_samples) == (magic.decode(), 30_000)
    assert np.abs(decode(source)[0] - noise()).max() < 2**-22


@pytest.mark.parametrize("declared", [0, 24, 1 << 63, (1 << 64) - 1])
def test_w64_has_its_true_length(declared: int, tmp_path: Path) -> None:
    body = bytearray(encode("W64", "PCM_16"))
    place = body.index(b"data") + 16
    body[place : place + 8] = struct.pack("<Q", declared)
    source = source_of(tmp_path / "a.w64", bytes(body))
    assert probe(source)[0].n_samples == 30_000
    assert np.abs(decode(source)[0] - noise()).max() < 2**-14


def test_chunks_behind_the_data_of_a_w64_are_no_sound(tmp_path: Path) -> None:
    guid = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    tail = b"bext" + guid + struct.pack("<Q", 24 + 400) + bytes([7]) * 400
    source = source_of(tmp_path / "a.w64", encode("W64", "PCM_16") + tail)
    assert probe(source)[0].n_samples == 30_000
    assert np.abs(decode(source)[0] - noise()).max() < 2**-14


@pytest.mark.parametrize("declared", [0, 8, 0xFFFFFFFF])
def test_aiff_has_its_true_length(declared: int, tmp_path: Path) -> None:
    body = bytearray(encode("AIFF", "PCM_16"))
    place = body.index(b"SSND") + 4
    body[place : place + 4] = struct.pack(">I", declared)
    body[22:26] = bytes(4)
    source = source_of(tmp_path / "a.aif", bytes(body))
    header, _ = probe(source)
    assert (header.container, header.n_samples, header.seekable) == ("AIFF", 30_000, True)
    assert np.abs(decode(source)[0] - noise()).max() < 2**-14


@pytest.mark.parametrize("size", ["wrapped", 0, 0xFFFFFFFF])
def test_a_plain_wav_beyond_4_gib_is_read_to_its_end(size: int | str, tmp_path: Path) -> None:
    n_bytes = 5 << 30
    path = tmp_path / "day.wav"
    path.write_bytes(wav(b"", n_bytes % 2**32 if size == "wrapped" else int(size)))
    with path.open("r+b") as file:
        file.truncate(44 + n_bytes)
        file.seek(44 + n_bytes - 8)
        file.write(struct.pack("<4h", 1, 2, 3, 4))
    source = source_of(path)
    header, _ = probe(source)
    assert (header.container, header.n_samples, header.seekable) == ("WAV", n_bytes // 2, True)
    wave, ended, _ = decode(source, n_bytes // 2 - 6, None)
    assert (wave[:, 0] * 32768).tolist() == [0, 0, 1, 2, 3, 4]
    assert ended


def test_big_endian_wav_is_read(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.wav", encode("WAV", "PCM_16", endian="BIG"))
    header, _ = probe(source)
    assert (header.container, header.n_samples, header.seekable) == ("WAV", 30_000, True)


@pytest.mark.parametrize(
    ("container", "subtype", "seekable"),
    [
        ("FLAC", "PCM_16", True),
        ("MP3", "MPEG_LAYER_III", False),
        ("OGG", "VORBIS", False),
        ("WAV", "IMA_ADPCM", False),
        ("WAV", "ULAW", True),
        ("AU", "PCM_16", False),
    ],
)
def test_the_header_says_what_the_file_is(
    container: str, subtype: str, seekable: bool, tmp_path: Path
) -> None:
    body = encode(container, subtype, noise(channels=2))
    n_samples = sf.info(io.BytesIO(body)).frames
    header, _ = probe(source_of(tmp_path / "x", body))
    assert (header.container, header.subtype) == (
        container,
        subtype.replace("MPEG_LAYER_III", "MP3"),
    )
    assert (header.rate_hz, header.channels, header.n_samples) == (RATE, 2, n_samples)
    assert header.decoder == ("ffmpeg" if container in {"MP3", "OGG"} else "soundfile")
    assert header.seekable is seekable
    assert header.n_promised == (None if container == "OGG" else n_samples)


def test_tags_before_the_sound_are_skipped(tmp_path: Path) -> None:
    tag = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)
    header, _ = probe(source_of(tmp_path / "x", tag + encode("FLAC", "PCM_16")))
    assert (header.container, header.n_samples) == ("FLAC", 30_000)
    mp3 = without_xing(encode("MP3", "MPEG_LAYER_III"))
    for before in (tag, tag + bytes(500), b"\x01\x02\xff\xfb junk" * 20):
        header, _ = probe(source_of(tmp_path / "x", before + mp3))
        assert (header.container, header.decoder) == ("MP3", "ffmpeg")


def test_a_link_to_nowhere_says_so_and_is_not_tried_again_until_its_target_is_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.wav").symlink_to("annexed.wav")

    def listed() -> Source:
        (found,) = (one for one in list_objects(str(tmp_path)) if one.key == "a.wav")
        return Source(found.uri, found.stamp, found.size_bytes)

    before = listed()
    with pytest.raises(RecordingError, match="empty: a link whose target is not there") as caught:
        probe(before)
    assert not caught.value.reason.is_transient
    (tmp_path / "annexed.wav").write_bytes(wav(SAMPLES))
    assert listed().stamp != before.stamp
    assert probe(listed())[0].n_samples == 5000


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (b"", Reason.EMPTY, "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid", Reason.UNSUPPORTED, "Git LFS pointer (text), not audio"),
        (b"\n<!DOCTYPE html><html>", Reason.UNSUPPORTED, "web page (HTML), not audio"),
        (b"<?xml version='1.0'?><Error>", Reason.UNSUPPORTED, "XML, not audio"),
        (b"#EXTM3U\nfile:///etc/passwd\n", Reason.UNSUPPORTED, "playlist (text), not audio"),
        (b"PK\x03\x04" + bytes(99), Reason.UNSUPPORTED, "ZIP archive, not audio"),
        (b"time,species\n", Reason.UNSUPPORTED, "text, not audio: 'time,species"),
        (b"WAac" + bytes(99), Reason.UNSUPPORTED, "Wildlife Acoustics WAC"),
        (bytes(5000), Reason.DAMAGED, "zero bytes where the header should be"),
        (random.Random(0).randbytes(50_000), Reason.UNSUPPORTED, "unknown format, starts with"),
        (wav(b""), Reason.EMPTY, "no sound after the header"),
        (wav(b"", 60_000), Reason.EMPTY, "60,000 bytes promised"),
        (wav(b"", 0, tail=LIST_CHUNK), Reason.EMPTY, "no sound after the header"),
        (wav(b"x", 116), Reason.EMPTY, "1 bytes of sound, not one whole sample"),
        (wav(b"")[:40], Reason.EMPTY, "header without sound data (40 bytes in all)"),
        (wav(b"")[:20], Reason.DAMAGED, "WAV file without a format chunk"),
        (wav(SAMPLES, rate_hz=0), Reason.DAMAGED, "a sample rate of 0 Hz"),
        (wav(SAMPLES, rate_hz=2_000_000_000), Reason.DAMAGED, "a sample rate of 2000000000 Hz"),
        (wav(SAMPLES, channels=0), Reason.DAMAGED, "0 channels"),
        (encode("AIFF", "PCM_16")[:54], Reason.EMPTY, "no sound after the header"),
        (b"fLaC", Reason.DAMAGED, "FLAC file; libsndfile:"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused_in_words(
    body: bytes, reason: Reason, words: str, tmp_path: Path
) -> None:
    error = refusal(tmp_path / "a.wav", body)
    assert error.reason is reason
    assert words in error.detail


def test_an_unknown_wav_codec_is_unsupported(tmp_path: Path) -> None:
    body = bytearray(wav(SAMPLES))
    body[20:22] = b"\x99\x09"
    error = refusal(tmp_path / "a.wav", bytes(body))
    assert error.reason is Reason.UNSUPPORTED
    assert "no decoder" in error.detail


def test_a_truncated_m4a_is_damaged(tmp_path: Path) -> None:
    body = encode_av("ipod", "aac", "fltp", noise(RATE * 2).T)
    error = refusal(tmp_path / "a.m4a", body[: len(body) // 2])
    assert error.reason is Reason.DAMAGED
    assert "M4A file; FFmpeg:" in error.detail


def test_chunks_on_both_sides_of_the_data_are_read(tmp_path: Path) -> None:
    comment = (
        b"Recorded at 19:31:30 03/09/2024 (UTC+1) by AudioMoth 24E144055E080032 at medium gain\0"
    )
    before = chunk(b"LIST", b"INFO" + chunk(b"ICMT", comment))
    guano = (
        b"GUANO|Version:1.0\nTimestamp:2024-09-03T19:31:31+01:00\nTE: 10\nLoc Position: 54.1 -2.5"
    )
    # Some writers leave out the pad byte after an odd chunk.
    bext = b"bext" + struct.pack("<I", 603) + bytes(603)
    source = source_of(
        tmp_path / "a.wav", wav(SAMPLES, before=before, tail=bext + chunk(b"guan", guano))
    )
    _, metadata = probe(source)
    assert metadata.recorded_at is not None
    assert metadata.recorded_at.isoformat() == "2024-09-03T19:31:31+01:00"
    assert metadata.device == "AudioMoth 24E144055E080032"
    assert (metadata.latitude, metadata.longitude, metadata.time_expansion) == (54.1, -2.5, 10)
    assert np.array_equal(decode(source)[0], EXPECTED)


def test_comments_of_other_formats_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    with sf.SoundFile(path, "w", RATE, 1, format="FLAC") as file:
        file.comment = "Recorded at 22:08:00 20/09/2022 (UTC) by AudioMoth 24E1440360379295"
        file.write(noise())
    _, metadata = probe(source_of(path))
    assert metadata.recorded_at is not None
    assert metadata.recorded_at.isoformat() == "2022-09-20T22:08:00+00:00"


def test_the_name_of_a_tar_is_not_that_of_its_members(tmp_path: Path) -> None:
    path = tmp_path / "SITE_20230512_043000.tar"
    path.write_bytes(bytes(512) + wav(SAMPLES))
    listed = source_of(path)
    member = Source(listed.uri, listed.stamp, listed.size_bytes - 512, offset=512)
    assert probe(member)[1].recorded_at is None
    named = probe(member, "in/OTHER_20240101_010203.wav")[1]
    assert (named.site, str(named.recorded_at)) == ("OTHER", "2024-01-01 01:02:03")
    assert probe(source_of(tmp_path / "SITE_20230512_043000.wav", wav(SAMPLES)))[1].site == "SITE"


FUZZED = {
    "wav": lambda: wav(SAMPLES, tail=LIST_CHUNK),
    "rf64": lambda: encode("RF64", "PCM_24", noise(4000)),
    "w64": lambda: encode("W64", "PCM_16", noise(4000)),
    "adpcm": lambda: encode("WAV", "IMA_ADPCM", noise(4000)),
    "aiff": lambda: encode("AIFF", "PCM_16", noise(4000)),
    "flac": lambda: encode("FLAC", "PCM_16", noise(20_000)),
    "mp3": lambda: encode("MP3", "MPEG_LAYER_III"),
    "bare mp3": lambda: without_xing(encode("MP3", "MPEG_LAYER_III")),
    "ogg": lambda: encode("OGG", "VORBIS"),
    "chain": lambda: encode("OGG", "VORBIS") * 2,
    "m4a": lambda: encode_av("ipod", "aac", "fltp", noise().T),
    "mkv": lambda: encode_av("matroska", "flac", "s16", (noise().T * 32767).astype(np.int16)),
}


@pytest.mark.parametrize("name", FUZZED)
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(name: str, tmp_path: Path) -> None:
    body = FUZZED[name]()
    # Not hash(): it differs from run to run.
    rng = random.Random(name)
    for _ in range(25):
        broken = bytearray(body)
        place = rng.randrange(len(body))
        match rng.randrange(4):
            case 0:
                for _ in range(rng.choice((1, 5, 30))):
                    broken[rng.randrange(len(body))] = rng.randrange(256)
            case 1:
                broken[rng.randrange(min(200, len(body)))] = rng.randrange(256)
            case 2:
                del broken[max(1, place) :]
            case 3:
                broken[place:place] = rng.randbytes(rng.randrange(3000))
        source = source_of(tmp_path / "broken", bytes(broken))
        try:
            header, _ = probe(source)
            for start, stop in ((0, None), (3000, 3100)):
                for block in native_blocks(source, header, start, stop):
                    assert block.dtype == np.float32
                    assert block.shape[1] == header.channels
        except RecordingError as error:
            assert "\n" not in str(error)


def audio_folder() -> Path:
    return Path(os.environ.get("AUDIO_DIR", "/nowhere"))


@pytest.mark.skipif(not (audio_folder() / "MANIFEST.csv").exists(), reason="AUDIO_DIR is not set")
def test_real_recordings_are_what_their_manifest_says() -> None:
    with (audio_folder() / "MANIFEST.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        source = source_of(audio_folder() / row["file"])
        if row["frames"] in {"", "0"}:
            with pytest.raises(RecordingError):
                probe(source)
            continue
        header, _ = probe(source)
        whole, _ = sf.read(audio_folder() / row["file"], dtype="float32", always_2d=True)
        # Opus is decoded at 48 kHz whatever rate it was made from (RFC 7845, section 5.1).
        times = 48_000 // int(row["sample_rate"]) if header.subtype == "OPUS" else 1
        about = [int(row[key]) for key in ("sample_rate", "channels", "frames")]
        assert (header.rate_hz, header.channels) == (about[0] * times, about[1])
        assert header.n_samples == about[2] * times
        wave, ended, fault = decode(source)
        if times > 1:
            assert (len(wave), ended, fault) == (about[2] * times, True, None)
            continue
        assert (ended, fault) == (True, None)
        assert wave.shape == whole.shape
        assert np.abs(wave - whole).max() < (1e-5 if header.decoder == "ffmpeg" else 1e-30)
