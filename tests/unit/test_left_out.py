"""What sniffing knows is listed; what a listing leaves out is counted by kind, and told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from bioembed_ray.audio.probe import probe
from bioembed_ray.audio.sniff import DEMUXERS
from bioembed_ray.config import InputConfig
from bioembed_ray.inputs.left_out import N_EXAMPLES, N_EXTENSIONS, Kind, LeftOut, from_json
from bioembed_ray.inputs.listing import list_input
from bioembed_ray.inputs.names import AUDIO_EXTENSIONS, EXTENSIONS, is_hidden, seems_audio
from tests.unit.audio_samples import encode, encode_av, noise

HALVES = np.round(noise()[:, 0] * 2**14).astype(np.int16)[None]


def by_soundfile(container: str, **options: str) -> Callable[[], bytes]:
    return lambda: encode(container, sf.default_subtype(container), rate_hz=48_000, **options)


def by_ffmpeg(muxer: str, codec: str, kind: str = "s16p") -> Callable[[], bytes]:
    planes = HALVES if kind.startswith("s16") else HALVES.astype(np.float32) / 2**15
    return lambda: encode_av(muxer, codec, kind, planes)


# What sniffing calls a container -> a whole file of it, as far as there is an encoder.
FILES = {
    **{name: by_soundfile(name) for name in ("WAV", "RF64", "W64", "AIFF", "FLAC", "OGG", "CAF")},
    **{name: by_soundfile(name) for name in ("AU", "NIST", "VOC", "IRCAM", "SVX", "MP3")},
    "RIFX": by_soundfile("WAV", endian="BIG"),
    "M4A": by_ffmpeg("ipod", "aac", "fltp"),
    "MP4": by_ffmpeg("mp4", "aac", "fltp"),
    "MOV": by_ffmpeg("mov", "pcm_s16le", "s16"),
    "AVI": by_ffmpeg("avi", "pcm_s16le", "s16"),
    "MATROSKA": by_ffmpeg("matroska", "flac", "s16"),
    "WMA": by_ffmpeg("asf", "pcm_s16le", "s16"),
    "WAVPACK": by_ffmpeg("wv", "wavpack", "fltp"),
    "TTA": by_ffmpeg("tta", "tta", "s16"),
    "AAC": by_ffmpeg("adts", "aac", "fltp"),
    "FLV": by_ffmpeg("flv", "aac", "fltp"),
}


def test_every_container_that_sniffing_knows_has_extensions() -> None:
    # WAC alone is listed in order to fail with its reason.
    assert EXTENSIONS.keys() - {"WAC"} == DEMUXERS.keys()
    assert all(EXTENSIONS.values())
    assert not any(is_hidden(f"a.{extension}") for extension in AUDIO_EXTENSIONS)


@pytest.mark.parametrize("container", FILES)
def test_files_of_a_container_are_listed_and_read_under_each_of_its_extensions(
    container: str, tmp_path: Path
) -> None:
    body = FILES[container]()
    wanted = {f"a.{extension}" for extension in EXTENSIONS[container].split()}
    for name in wanted:
        (tmp_path / name).write_bytes(body)
    found = list_input(InputConfig(uri=str(tmp_path)))
    assert {one.name for one in found.recordings} == wanted
    assert found.left_out.count() == 0
    for one in found.recordings:
        header, _ = probe(one.source)
        assert header.n_samples or header.is_estimate


def test_kinds_of_what_is_left_out(tmp_path: Path) -> None:
    names = {
        Kind.UNFINISHED: ["~x.wav", ".x.wav", "x.wav.tmp", ".x.wav.part", "x.wav.crdownload"],
        Kind.HIDDEN: [".DS_Store", "~$notes.docx", "scratch.tmp", ".cache/thumb.png"],
        Kind.COMPANION: ["._b.wav", "d/._c.txt"],
        Kind.NOT_AUDIO: ["a.txt", "b.TXT", "c.csv", "d/readme", "x.wav.bak", "e.parquet"],
        Kind.NOT_SELECTED: ["out/a.wav", "out/b.tar"],
    }
    names[Kind.UNFINISHED] += [".x.wav.Ab12Cd", ".syncthing.y.wav.tmp", "~syncthing~y.flac.tmp"]
    names[Kind.UNFINISHED] += [".Trashed/b.wav", "shard.tar.part"]
    for name in ("a.wav", *(name for kind in names.values() for name in kind)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_input(InputConfig(uri=str(tmp_path), exclude=("out/*",)))
    assert [one.name for one in found.recordings] == ["a.wav"]
    told = found.left_out.to_json()
    assert {kind: one["n"] for kind, one in told.items()} == {
        kind.value: len(names[kind]) for kind in names
    }
    assert all(set(told[kind]["examples"]) <= set(names[kind]) for kind in names)
    assert told["not_audio"]["extensions"] == {"txt": 2, "csv": 1, "": 1, "bak": 1, "parquet": 1}
    assert str(found.left_out) == (
        "10 hidden or unfinished but named like audio (.syncthing.y.wav.tmp, .x.wav, .x.wav.Ab12Cd, …), "
        "2 not selected by include and exclude (out/a.wav, out/b.tar), 2 companions of macOS (._b.wav, "
        "d/._c.txt), 4 hidden or temporary (.DS_Store, scratch.tmp, ~$notes.docx, …), 6 not audio "
        "(2 .txt, 1 .csv, 1 .parquet, …)"
    )


def test_a_system_folder_of_a_disk_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["lost+found", "System Volume Information", "$RECYCLE.BIN", ".snapshot"]
    folders += [".Trash-1000", ".Spotlight-V100", "x/@eaDir", "x/__MACOSX"]
    for name in (*folders, "x/.hidden"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.wav").touch()
    (tmp_path / "x/b.wav").touch()
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    found = list_input(InputConfig(uri=str(tmp_path)))
    assert [one.name for one in found.recordings] == ["x/b.wav"]
    assert {os.path.relpath(path, tmp_path) for path in opened} == {".", "x", "x/.hidden"}
    # A folder that was not opened counts as one.
    assert found.left_out.count(Kind.HIDDEN) == len(folders)
    assert found.left_out.count(Kind.UNFINISHED) == 1
    # Where it is what the input names, it is read.
    (named,) = list_input(InputConfig(uri=str(tmp_path / ".snapshot"))).recordings
    assert named.name == "a.wav"


def test_a_system_folder_of_a_store_is_left_out(s3) -> None:
    from bioembed_ray import storage

    for name in ("a.wav", "x/__MACOSX/b.wav", "x/__MACOSX/._c.wav", "@eaDir/thumb.jpg"):
        storage.put(f"{s3.uri}/in/{name}", b"x")
    found = list_input(InputConfig(uri=f"{s3.uri}/in"))
    assert [one.name for one in found.recordings] == ["a.wav"]
    counts = {kind: one["n"] for kind, one in found.left_out.to_json().items()}
    assert counts == {"unfinished": 1, "companion": 1, "hidden": 1}


def test_counts_stay_small_whatever_the_names() -> None:
    left_out = LeftOut()
    for number in range(50_000):
        left_out.add_unheard(f"folder/x.{number}")
        left_out.add_unheard(f"folder/~{number}.wav")
    again = from_json(json.loads(json.dumps(left_out.to_json())))
    assert again == left_out
    again.merge(left_out)
    assert again.count(Kind.NOT_AUDIO) == 100_000
    assert again.count(Kind.UNFINISHED) == 100_000
    assert len(again.extensions[Kind.NOT_AUDIO]) <= N_EXTENSIONS + 1
    assert all(len(examples) == N_EXAMPLES for examples in again.examples.values())
    assert len(json.dumps(again.to_json())) < 10_000


def test_odd_names_stay_on_one_line() -> None:
    left_out = LeftOut()
    left_out.add_unheard(".a\nb.wav")
    left_out.add_unheard("c.x\ny")
    assert "\n" not in str(left_out)
    assert str(LeftOut()) == ""


@pytest.mark.parametrize(
    ("name", "is_audio"),
    [
        ("~x.WAV", True),
        (".x.wav.Ab12Cd", True),
        ("x.wav~", True),
        ("x.wav.filepart", True),
        (".x.wav.swp", False),
        ("wav", False),
        (".wav", False),
        ("x.part", False),
        (".bashrc", False),
    ],
)
def test_what_a_name_that_is_left_out_may_hide(name: str, is_audio: bool) -> None:
    assert seems_audio(f"folder.wav/{name}") is is_audio
