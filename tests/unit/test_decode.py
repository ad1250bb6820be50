from __future__ import annotations

import io
import tarfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from bioembed_ray.audio import bytefile
from bioembed_ray.audio import decode as decode_module
from bioembed_ray.audio.bytefile import FIRST_READ, LARGEST_READ, ByteFile, open_source
from bioembed_ray.audio.decode import native_blocks
from bioembed_ray.audio.probe import probe
from bioembed_ray.errors import ChangedError, RecordingError, StorageError
from bioembed_ray.inputs.listing import Source
from tests.unit.audio_samples import (
    RATE,
    decode,
    encode,
    encode_av,
    noise,
    source_of,
    wav,
    without_xing,
)

FORMATS = [
    *(("WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    *(("WAV", s) for s in ("ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM")),
    ("RF64", "PCM_24"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_S8"),
    ("AIFF", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("CAF", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def by_ffmpeg(body: bytes) -> np.ndarray:
    """Return (n, channels) as FFmpeg decodes a file, left alone."""
    with av.open(io.BytesIO(body)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1).T


def rate_for(subtype: str) -> int:
    return 48_000 if subtype == "OPUS" else RATE


@pytest.mark.parametrize(("container", "subtype"), FORMATS)
def test_blocks_are_one_whole_read_bit_for_bit_and_any_stretch_is_its_slice(
    container: str, subtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks that end at no round place, many of them.
    monkeypatch.setattr(decode_module, "BLOCK_VALUES", 2 * 1733)
    body = encode(container, subtype, noise(channels=2), rate_for(subtype))
    source = source_of(tmp_path / "a", body)
    whole, _ = sf.read(io.BytesIO(body), dtype="float32", always_2d=True)
    header, _ = probe(source)
    wave, ended, fault = decode(source)
    assert (ended, fault) == (True, None)
    if header.decoder == "ffmpeg":
        # Two decoders of lossy sound differ in the last bits; ours is FFmpeg, to the bit.
        assert np.abs(wave - whole).max() < 1e-5
        whole = by_ffmpeg(body)
    assert np.array_equal(wave, whole)
    assert header.n_samples == len(whole)
    for start, stop in ((0, 1), (1, 5001), (11_111, 22_222), (len(whole) - 7, None)):
        part, _, _ = decode(source, start, stop)
        assert np.array_equal(part, whole[start:stop])


@pytest.mark.parametrize(
    ("dtype", "offset", "scale", "subtype"),
    [("<i2", 0, 1 << 15, "PCM_16"), ("<i4", 0, 1 << 31, "PCM_32"), ("u1", 128, 128, "PCM_U8")],
)
def test_integers_are_divided_by_their_largest_magnitude(
    dtype: str, offset: int, scale: int, subtype: str, tmp_path: Path
) -> None:
    body = encode("WAV", subtype)
    raw = np.frombuffer(body[body.index(b"data") + 8 :], dtype).astype(np.float64)
    wave, _, _ = decode(source_of(tmp_path / "a.wav", body))
    assert wave.dtype == np.float32
    assert np.array_equal(wave[:, 0], ((raw - offset) / scale).astype(np.float32))


@pytest.mark.parametrize(
    ("container", "codec", "sample_format"),
    [
        ("matroska", "flac", "s16"),
        ("mp4", "alac", "s16p"),
        ("mov", "pcm_s16le", "s16"),
        ("mov", "pcm_s24le", "s32"),
        ("mov", "pcm_f32le", "flt"),
        ("mov", "pcm_f64le", "dbl"),
        ("avi", "pcm_u8", "u8"),
    ],
)
def test_ffmpeg_keeps_the_level_rule(
    container: str, codec: str, sample_format: str, tmp_path: Path
) -> None:
    wave = noise()[:, 0]
    scale, offset = {"s16": (2**15, 0), "s32": (2**31, 0), "u8": (128, 128)}.get(
        sample_format.rstrip("p"), (1, 0)
    )
    kind = {"s16": "i2", "s32": "i4", "u8": "u1", "flt": "f4", "dbl": "f8"}
    dtype = kind[sample_format.rstrip("p")]
    planes = (np.round(wave.astype(np.float64) * scale) + offset if scale > 1 else wave).astype(
        dtype
    )
    body = encode_av(container, codec, sample_format, planes[None])
    source = source_of(tmp_path / "a", body)
    header, _ = probe(source)
    assert (header.decoder, header.rate_hz, header.channels) == ("ffmpeg", RATE, 1)
    decoded, ended, fault = decode(source)
    assert (len(decoded), ended, fault) == (len(wave), True, None)
    step = 1 / 2**23 if codec == "pcm_s24le" else 0
    expected = ((planes.astype(np.float64) - offset) / scale).astype(np.float32)
    assert np.abs(decoded[:, 0] - expected).max() <= step


def test_aac_in_m4a_is_decoded_in_place(tmp_path: Path) -> None:
    wave = noise(RATE * 2)[:, 0]
    source = source_of(tmp_path / "a.m4a", encode_av("ipod", "aac", "fltp", wave[None]))
    header, _ = probe(source)
    assert (header.container, header.subtype, header.seekable) == ("M4A", "AAC", False)
    assert (header.n_samples, header.n_promised) == (len(wave), len(wave))
    decoded, _, _ = decode(source)
    lags = [
        float(np.dot(decoded[9000 + lag : 50_000 + lag, 0], wave[9000:50_000]))
        for lag in range(-20, 21)
    ]
    assert int(np.argmax(lags)) == 20
    part, _, _ = decode(source, 12_345, 20_000)
    assert np.array_equal(part, decoded[12_345:20_000])


def test_an_mp3_without_a_frame_count_is_decoded_to_its_end(tmp_path: Path) -> None:
    body = without_xing(encode("MP3", "MPEG_LAYER_III", noise(RATE * 10)))
    with av.open(io.BytesIO(body), format="mp3") as container:
        expected = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    source = source_of(tmp_path / "a.mp3", body)
    header, _ = probe(source)
    wave, ended, _ = decode(source)
    assert (header.decoder, header.n_promised, ended) == ("ffmpeg", None, True)
    assert len(wave) >= RATE * 10
    assert np.array_equal(wave[:, 0], expected)


def test_an_mp3_with_another_appended_is_decoded_to_its_end(tmp_path: Path) -> None:
    one = encode("MP3", "MPEG_LAYER_III", noise(RATE * 20))
    wave, _, _ = decode(source_of(tmp_path / "a.mp3", one + one))
    assert len(wave) > 39.9 * RATE


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("is_same", [True, False])
def test_chained_ogg_is_decoded_past_its_first_stream(
    subtype: str, is_same: bool, tmp_path: Path
) -> None:
    rate = rate_for(subtype)
    one = encode("OGG", subtype, noise(60_000), rate)
    two = one if is_same else encode("OGG", subtype, noise(40_000, seed=1), rate)
    whole = [sf.read(io.BytesIO(body), dtype="float32")[0] for body in (one, two)]
    source = source_of(tmp_path / "a.ogg", one + two)
    header, _ = probe(source)
    wave, ended, fault = decode(source)
    assert (header.decoder, ended, fault) == ("ffmpeg", True, None)
    # FFmpeg leaves up to one Vorbis block (128 samples) at the end of a stream that is not the last.
    n_more = len(wave) - sum(map(len, whole))
    assert 0 <= n_more <= 128
    assert header.n_samples == pytest.approx(len(wave), abs=1000)
    assert np.abs(wave[: len(whole[0]), 0] - whole[0]).max() < 1e-5
    assert np.abs(wave[len(whole[0]) + n_more + 2000 :, 0] - whole[1][2000:]).max() < 1e-5


def test_a_truncated_flac_gives_every_sample_before_the_cut(tmp_path: Path) -> None:
    body = encode("FLAC", "PCM_16", noise(200_000))
    whole, _ = sf.read(io.BytesIO(body), dtype="float32", always_2d=True)
    source = source_of(tmp_path / "a.flac", body[: len(body) // 2])
    header, _ = probe(source)
    wave, ended, fault = decode(source)
    assert 80_000 < len(wave) < 120_000
    # A FLAC has whole frames of 4096 samples; its header still has the length of the whole.
    assert len(wave) % 4096 == 0
    assert (header.n_samples, header.n_promised) == (len(wave), 200_000)
    assert np.array_equal(wave, whole[: len(wave)])
    assert ended
    assert fault == "flac decoder lost sync"
    beyond, ended, fault = decode(source, 150_000, 160_000)
    assert (len(beyond), ended, fault) == (0, True, None)


def test_a_damaged_flac_frame_costs_no_sample_of_the_stretches_around_it(tmp_path: Path) -> None:
    body = bytearray(encode("FLAC", "PCM_16", noise(200_000)))
    whole, _ = sf.read(io.BytesIO(bytes(body)), dtype="float32", always_2d=True)
    body[len(body) // 2] ^= 0xFF
    source = source_of(tmp_path / "a.flac", bytes(body))
    wave, ended, fault = decode(source)
    assert (len(wave), ended, fault) == (200_000, True, None)
    (place,) = np.unique(np.flatnonzero((wave != whole).any(axis=1)) // 4096)
    assert not wave[place * 4096 : (place + 1) * 4096].any()
    behind, _, fault = decode(source, 150_000, None)
    assert fault is None
    assert np.array_equal(behind, whole[150_000:])


def test_a_flac_that_does_not_know_its_length_is_decoded_to_its_end(tmp_path: Path) -> None:
    body = bytearray(encode("FLAC", "PCM_16", noise(50_000)))
    body[21] &= 0xF0
    body[22:26] = bytes(4)
    source = source_of(tmp_path / "a.flac", bytes(body))
    assert probe(source)[0].n_samples == 50_000
    wave, ended, fault = decode(source)
    assert (len(wave), ended, fault) == (50_000, True, None)
    assert np.array_equal(decode(source, 40_000, 41_000)[0], wave[40_000:41_000])
    assert len(decode(source, 60_000, None)[0]) == 0


@pytest.mark.parametrize(
    ("container", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("WAV", "PCM_16")]
)
def test_a_truncated_file_gives_what_is_there(container: str, subtype: str, tmp_path: Path) -> None:
    body = encode(container, subtype, noise(300_000))
    whole, _ = sf.read(io.BytesIO(body), dtype="float32", always_2d=True)
    wave, ended, _ = decode(source_of(tmp_path / "a", body[: len(body) // 2]))
    assert 100_000 < len(wave) < 160_000
    assert ended
    assert np.abs(wave - whole[: len(wave)]).max() < (1e-5 if container != "WAV" else 1e-30)


def test_numbers_that_are_none_pass_untouched(tmp_path: Path) -> None:
    wave = noise(1000)
    wave[3], wave[4], wave[5] = np.nan, np.inf, -np.inf
    decoded, _, _ = decode(source_of(tmp_path / "a.wav", encode("WAV", "FLOAT", wave)))
    assert np.array_equal(decoded, wave, equal_nan=True)


def test_the_name_decides_nothing(tmp_path: Path) -> None:
    body = encode("MP3", "MPEG_LAYER_III")
    source = source_of(tmp_path / "a.wav", body)
    assert probe(source)[0].container == "MP3"
    assert len(decode(source)[0]) == len(sf.read(io.BytesIO(body))[0])


def test_blocks_are_bounded_and_contiguous(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.wav", encode("WAV", "PCM_16", noise(700_000, channels=2)))
    blocks = list(native_blocks(source, probe(source)[0]))
    assert len(blocks) == 3
    assert all(block.nbytes <= 4 << 20 and block.flags.c_contiguous for block in blocks)


def test_a_stretch_behind_the_end_is_empty_and_says_so(tmp_path: Path) -> None:
    for container, subtype in (("WAV", "PCM_16"), ("MP3", "MPEG_LAYER_III")):
        source = source_of(tmp_path / "a", encode(container, subtype))
        wave, ended, fault = decode(source, 10**6, 10**6 + 5)
        assert (len(wave), ended, fault) == (0, True, None)
    with pytest.raises(ValueError, match="no stretch"):
        native_blocks(source, probe(source)[0], 5, 4)


BODIES = {
    "wav": lambda: encode("WAV", "PCM_16", noise(600_000)),
    "flac": lambda: encode("FLAC", "PCM_16", noise(600_000)),
    "mp3": lambda: encode("MP3", "MPEG_LAYER_III", noise(1_500_000)),
    "ogg": lambda: encode("OGG", "VORBIS", noise(1_500_000)),
    "avi": lambda: encode_av("avi", "pcm_u8", "u8", np.full((1, 600_000), 99, np.uint8)),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_store_that_fails_midway_is_an_error_not_a_shorter_recording(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / f"a.{name}", BODIES[name]())
    header, _ = probe(source)
    n_whole = len(decode(source, header=header)[0])
    read_range, left = bytefile.read_range, 0

    def count(uri: str, start: int, stop: int, stamp: str | None = None) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            raise StorageError("the store went away")
        return read_range(uri, start, stop, stamp)

    monkeypatch.setattr(bytefile, "read_range", count)
    outcomes = set()
    for n_good in range(9):
        left = n_good + 1
        try:
            assert len(decode(source, header=header)[0]) == n_whole
            outcomes.add("whole")
        except StorageError as error:
            assert str(error) == "the store went away"
            outcomes.add("error")
    assert outcomes == {"whole", "error"}
    left = 1
    with pytest.raises(StorageError, match="went away"):
        probe(source)


def test_a_recording_replaced_since_it_was_listed_is_an_error(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.wav", encode("WAV", "PCM_16"))
    header, _ = probe(source)
    (tmp_path / "a.wav").write_bytes(encode("WAV", "PCM_16", noise(5)))
    with pytest.raises(ChangedError, match="replaced since it was listed"):
        decode(source, header=header)


def test_an_object_shorter_than_listed_is_an_error(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.wav", encode("WAV", "PCM_16"))
    longer = Source(source.uri, source.stamp, source.size_bytes + 10)
    with pytest.raises(ChangedError, match="shorter than it was when listed"):
        probe(longer)


def test_members_of_a_tar_are_read_where_they_stand(tmp_path: Path) -> None:
    bodies = {"a.flac": encode("FLAC", "PCM_16"), "b.wav": encode("WAV", "PCM_16", noise(9999))}
    for mode, name in (("w", "t.tar"), ("w:gz", "t.tar.gz")):
        with tarfile.open(tmp_path / name, mode) as tar:
            for member, body in bodies.items():
                info = tarfile.TarInfo(member)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
        listed = source_of(tmp_path / name)
        with tarfile.open(tmp_path / name) as tar:
            for info in tar.getmembers():
                source = Source(listed.uri, listed.stamp, info.size, info.offset_data)
                expected, _ = sf.read(
                    io.BytesIO(bodies[info.name]), dtype="float32", always_2d=True
                )
                assert np.array_equal(decode(source)[0], expected)


def test_rows_of_a_parquet_table_are_recordings(tmp_path: Path) -> None:
    bodies = [encode("WAV", "PCM_16", noise(1000 + k, seed=k)) for k in range(11)]
    audio = pa.array(
        [{"bytes": body, "path": f"{k}.wav"} for k, body in enumerate(bodies)] + [None],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"audio": audio, "flat": pa.array([*bodies, b""], pa.large_binary())})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=5)
    listed = source_of(tmp_path / "t.parquet")
    for column in ("audio.bytes", "flat"):
        for row in [*range(11), 3, 10, 0]:
            source = Source(listed.uri, listed.stamp, 0, row=row, column=column)
            assert len(decode(source)[0]) == 1000 + row
        with pytest.raises(
            RecordingError, match=f"empty: Parquet row 11, column {column}: no bytes"
        ):
            probe(Source(listed.uri, listed.stamp, 0, row=11, column=column))
    with pytest.raises(RecordingError, match="damaged: Parquet row 12"):
        probe(Source(listed.uri, listed.stamp, 0, row=12, column="flat"))


def test_rows_in_order_read_a_parquet_table_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    cells = [rng.bytes(400_000) for _ in range(40)]
    pq.write_table(pa.table({"flat": cells}), tmp_path / "t.parquet", row_group_size=40)
    listed = source_of(tmp_path / "t.parquet")
    read_range, n_bytes = bytefile.read_range, 0

    def count(uri: str, start: int, stop: int, stamp: str | None = None) -> bytes:
        nonlocal n_bytes
        n_bytes += stop - start
        return read_range(uri, start, stop, stamp)

    monkeypatch.setattr(bytefile, "read_range", count)
    for row, cell in enumerate(cells):
        for _ in range(2):
            file = open_source(Source(listed.uri, listed.stamp, 0, row=row, column="flat"))
            assert file.read_at(0, 1 << 20) == cell
    assert n_bytes < 1.5 * listed.size_bytes


def test_a_byte_file_reads_like_the_file_whatever_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytefile, "FIRST_READ", 64)
    monkeypatch.setattr(bytefile, "LARGEST_READ", 512)
    rng = np.random.default_rng(0)
    body = bytearray(rng.bytes(5000))
    source = source_of(tmp_path / "a", bytes(body))
    patches = ((-20, b"x" * 30), (100, b"abcd"), (4998, b"zz"))
    plain = b"x" * 30 + body[10:100] + b"abcd" + body[104:4998] + b"zz"
    file, oracle = ByteFile(source, patches), io.BytesIO(plain)
    assert file.size == len(plain)
    for _ in range(2000):
        place, count = int(rng.integers(0, 5100)), int(rng.integers(0, 900))
        if rng.random() < 0.5:
            file.seek(place)
            oracle.seek(place)
        assert file.read(count) == oracle.read(count)
        assert file.tell() == oracle.tell()


def test_streaming_takes_few_requests_and_a_seek_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(40 << 20))
    source = source_of(path)
    lengths: list[int] = []
    read_range = bytefile.read_range

    def note(uri: str, start: int, stop: int, stamp: str | None = None) -> bytes:
        lengths.append(stop - start)
        return read_range(uri, start, stop, stamp)

    monkeypatch.setattr(bytefile, "read_range", note)
    file = ByteFile(source)
    while file.read(50_000):
        pass
    assert lengths[0] == FIRST_READ
    assert max(lengths) == LARGEST_READ
    assert len(lengths) <= 10
    assert sum(lengths) == 40 << 20
    lengths.clear()
    file = ByteFile(source)
    file.expect_until(21 << 20)
    file.seek(20 << 20)
    while file.tell() < 21 << 20:
        file.read(1 << 16)
    assert sum(lengths) == 1 << 20


def test_a_live_recording_is_read_to_the_end_of_the_object(tmp_path: Path) -> None:
    samples = np.arange(1000, dtype="<i2")
    wave, ended, _ = decode(source_of(tmp_path / "a.wav", wav(samples.tobytes(), size=0)))
    assert ended
    assert np.array_equal(wave[:, 0], samples.astype(np.float32) / 32768)
