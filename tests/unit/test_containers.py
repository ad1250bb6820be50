"""Members of tar and Parquet objects against what `tarfile` and pyarrow wrote."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bioembed_ray import storage
from bioembed_ray.audio import compressed
from bioembed_ray.audio.bytefile import open_source
from bioembed_ray.audio.compressed import member_bytes
from bioembed_ray.audio.containers import members
from bioembed_ray.errors import ChangedError, InputError, NotFoundError, Reason, RecordingError
from bioembed_ray.inputs.listing import Container, Recording

Files = dict[str, bytes]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return request.getfixturevalue("s3").uri


def tar_of(files: Files, mode: str = "w", kind: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=kind) as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return sink.getvalue()


def stored(root: str, name: str, body: bytes, **options: object) -> Container:
    storage.put(f"{root}/{name}", body)
    info = storage.stat_object(f"{root}/{name}")
    return Container(name, name, info.uri, info.size_bytes, info.stamp, **options)  # type: ignore[arg-type]


def recordings_in(container: Container) -> list[Recording]:
    return members(container).recordings


def body_of(one: Recording) -> bytes:
    if compressed.is_compressed(one.source.uri):
        return member_bytes(one.source)
    return open_source(one.source).read()


def wave(n: int, size: int = 1000) -> bytes:
    return b"RIFF" + bytes([n]) * size


AUDIO = {"a/000.wav": wave(1), "a/001.FLAC": wave(2, 3), "b.mp3": wave(3, 700_000), "c.wav": b""}


# ---- tar -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_named_and_placed(root: str, kind: int) -> None:
    container = stored(root, "x/shard.tar", tar_of(AUDIO, kind=kind))
    found = recordings_in(container)
    assert {one.name: body_of(one) for one in found} == {
        f"x/shard.tar/{name}": body for name, body in AUDIO.items()
    }
    assert [one.name for one in found] == sorted(one.name for one in found)
    assert {one.source.size_bytes for one in found} == {len(body) for body in AUDIO.values()}
    assert found[0].source.uri == container.uri


def test_compressed_members_read_in_any_order(root: str) -> None:
    for name, body in (
        ("s.tar.gz", tar_of(AUDIO, "w:gz")),
        ("s.TGZ", gzip.compress(tar_of(AUDIO), mtime=0)),
    ):
        found = recordings_in(stored(root, name, body))
        assert {one.name: body_of(one) for one in reversed(found)} == {
            f"{name}/{path}": content for path, content in AUDIO.items()
        }


def test_compressed_members_in_order_cost_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = stored(str(tmp_path), "s.tgz", tar_of(AUDIO, "w:gz"))
    found = sorted(recordings_in(container), key=lambda one: one.source.offset)
    read_range = storage.read_range
    starts = []

    def counted(uri: str, start: int, *rest: object) -> bytes:
        starts.append(start)
        return read_range(uri, start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(compressed, "read_range", counted)
    monkeypatch.setattr(compressed, "BLOCK_BYTES", 256)
    assert [body_of(one) for one in found] == list(AUDIO.values())
    assert starts.count(0) == 1
    assert starts == sorted(starts)


def test_a_long_tar_is_read_in_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{n:04d}.wav": wave(n % 256, 20_000) for n in range(200)}
    container = stored(str(tmp_path), "s.tar", tar_of(files))
    requests = []
    read_range = storage.read_range

    def counted(*args: object) -> bytes:
        requests.append(args)
        return read_range(*args)

    monkeypatch.setattr("bioembed_ray.audio.bytefile.read_range", counted)
    assert len(recordings_in(container)) == 200
    assert len(requests) < 40


def test_long_odd_and_hidden_names(root: str) -> None:
    files = {
        "d/" * 120 + "x.wav": b"1",
        "./dot/a #1.wav": b"2",
        "/lead.wav": b"3",
        "日本/🐸.wav": b"4",
        "._mac.wav": b"5",
        "d/.hidden/b.wav": b"6",
        "notes.md": b"7",
    }
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = recordings_in(stored(root, "s.tar", tar_of(files, kind=kind)))
        assert {one.name: body_of(one) for one in found} == {
            f"s.tar/{'d/' * 120}x.wav": b"1",
            "s.tar/dot/a #1.wav": b"2",
            "s.tar/lead.wav": b"3",
            "s.tar/日本/🐸.wav": b"4",
        }


def test_what_a_tar_holds_besides_is_counted_by_kind(root: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name in (
            *("a/000.wav", "a/000.json", "a/000.txt", "b.flac", "b.cls"),
            *("._b.flac", "~c.wav", "c.wav.part", ".DS_Store", "README.txt", "a/index.csv"),
            "night/d.wav",
        ):
            tar.addfile(tarfile.TarInfo(name))
        for name, kind in (("e.wav", tarfile.SYMTYPE), ("a", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a/000.wav"
            tar.addfile(info)
        # A link to a member is that member.
        info = tarfile.TarInfo("f.wav")
        info.type, info.linkname = tarfile.LNKTYPE, "a/000.wav"
        tar.addfile(info)
    found = members(stored(root, "s.tar", sink.getvalue(), exclude=("*/night/*",)))
    assert [one.name for one in found.recordings] == [
        f"s.tar/{name}" for name in ("a/000.wav", "b.flac", "f.wav")
    ]
    assert {kind: one["examples"] for kind, one in found.left_out.to_json().items()} == {
        "unfinished": ["s.tar/~c.wav", "s.tar/c.wav.part"],
        "link": ["s.tar/e.wav"],
        "not_selected": ["s.tar/night/d.wav"],
        "companion": ["s.tar/._b.flac"],
        "hidden": ["s.tar/.DS_Store"],
        # The .json, .txt and .cls of a sample became labels.
        "not_audio": ["s.tar/README.txt", "s.tar/a/index.csv"],
    }


def test_a_parquet_without_audio_is_counted(root: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"site": ["a"]}), sink)
    found = members(stored(root, "m.parquet", sink.getvalue().to_pybytes()))
    assert (found.recordings, str(found.left_out)) == ([], "1 not audio (1 .parquet)")


def test_names_that_are_no_text_become_text(tmp_path: Path) -> None:
    body = tar_of({"caf\udce9.wav": b"1"}, kind=tarfile.GNU_FORMAT)
    [one] = recordings_in(stored(str(tmp_path), "s.tar", body))
    assert one.name == "s.tar/caf%E9.wav"


def test_of_two_members_with_one_name_the_later_holds(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"old")
    command = ["tar", "-C", str(tmp_path), "-rf", str(tmp_path / "s.tar"), "a.wav"]
    subprocess.run(command, check=True)
    (tmp_path / "a.wav").write_bytes(b"newer")
    subprocess.run(command, check=True)
    [one] = recordings_in(stored(str(tmp_path), "s.tar", (tmp_path / "s.tar").read_bytes()))
    assert body_of(one) == b"newer"


def test_hard_links_share_the_bytes_and_other_kinds_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"body")
    (folder / "b.wav").hardlink_to(folder / "a.wav")
    (folder / "c.wav").symlink_to("a.wav")
    subprocess.run(
        ["tar", "-C", str(folder), "--sort=name", "-cf", str(tmp_path / "s.tar"), "."], check=True
    )
    found = recordings_in(stored(str(tmp_path), "s.tar", (tmp_path / "s.tar").read_bytes()))
    assert {one.name: body_of(one) for one in found} == {
        "s.tar/a.wav": b"body",
        "s.tar/b.wav": b"body",
    }


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.wav", "wb") as file:
        file.write(b"RIFF")
        file.truncate(4_000_000)
        file.seek(0, io.SEEK_END)
        file.write(b"end")
    subprocess.run(
        ["tar", "-C", str(tmp_path), "-S", "-cf", str(tmp_path / "s.tar"), "a.wav"], check=True
    )
    body = (tmp_path / "s.tar").read_bytes()
    assert len(body) < 1_000_000
    with pytest.raises(InputError, match=r"s\.tar/a\.wav: stored sparse; pack the tar without"):
        recordings_in(stored(str(tmp_path), "s.tar", body))


def test_sidecars_of_a_webdataset_become_labels(root: str) -> None:
    about = {
        "species": "Parus",
        "count": 2,
        "level": float("nan"),
        "wild": True,
        "box": [1],
        "x": None,
    }
    files = {
        "000.wav": b"1",
        "000.json": json.dumps(about).encode(),
        "000.cls": b"7\n",
        "000.txt": " räksmörgås \n".encode(),
        "d/2023.05.12.wav": b"2",
        "d/2023.05.12.cls": b"owl",
        "d/001.left.wav": b"3",
        "d/001.json": b'{"site": "n"}',
        "002.wav": b"4",
        "002.json": b"not json",
        "002.txt": b"\xff\xfe",
        "003.wav": b"5",
        "003.json": b"[1]",
    }
    container = stored(root, "s.tar", tar_of(files), labels={"site": "s", "deployment": 1})
    labels = {one.name.removeprefix("s.tar/"): one.labels for one in recordings_in(container)}
    base = {"site": "s", "deployment": 1}
    assert labels["000.wav"] == base | {
        "species": "Parus",
        "count": 2,
        "level": None,
        "wild": True,
        "x": None,
        "cls": 7,
        "txt": "räksmörgås",
    }
    assert labels["d/2023.05.12.wav"] == base | {"cls": "owl"}
    assert labels["d/001.left.wav"] == base | {"site": "n"}
    assert labels["002.wav"] == labels["003.wav"] == base


def test_members_may_be_excluded(tmp_path: Path) -> None:
    container = stored(str(tmp_path), "s.tar", tar_of(AUDIO), exclude=("**/a/*",))
    assert [one.name for one in recordings_in(container)] == ["s.tar/b.mp3", "s.tar/c.wav"]


def test_a_tar_without_audio_is_empty(root: str) -> None:
    assert recordings_in(stored(root, "s.tar", tar_of({"a.txt": b"1"}))) == []
    assert recordings_in(stored(root, "e.tar", tar_of({}))) == []
    assert recordings_in(stored(root, "e.tgz", tar_of({}, "w:gz"))) == []


def test_a_tar_without_its_end_marker_is_whole(tmp_path: Path) -> None:
    body = tar_of({"a.wav": wave(1, 508)})[:1024]
    [one] = recordings_in(stored(str(tmp_path), "s.tar", body))
    assert body_of(one) == wave(1, 508)


@pytest.mark.parametrize("cut", [512 + 1000 + 700, 512 + 1536 + 512 + 100])
def test_a_member_cut_off_keeps_what_is_there(root: str, cut: int) -> None:
    files = {"a.wav": wave(1, 1500), "b.wav": wave(2, 1500)}
    body = tar_of(files, kind=tarfile.USTAR_FORMAT)
    found = recordings_in(stored(root, "s.tar", body[: 512 + 2048 + cut]))
    bodies = {one.name: body_of(one) for one in found}
    kept = files["b.wav"][: max(0, cut - 512)]
    assert bodies["s.tar/a.wav"] == files["a.wav"]
    assert bodies["s.tar/b.wav"] == kept


def test_what_follows_damage_is_a_recording_that_will_fail(root: str) -> None:
    files = {"a.wav": wave(1), "b.wav": wave(2), "c.wav": wave(3)}
    body = bytearray(tar_of(files, kind=tarfile.USTAR_FORMAT))
    at = 512 + 1024
    assert body[at : at + 5] == b"b.wav"
    body[at : at + 512] = b"garbage!" * 64
    found = {one.name: one.source for one in recordings_in(stored(root, "s.tar", bytes(body)))}
    assert set(found) == {"s.tar", "s.tar/a.wav"}
    assert (found["s.tar"].offset, found["s.tar"].size_bytes) == (at, len(body) - at)
    [only] = recordings_in(stored(root, "t.tar", bytes(body[: at - 300])))
    assert (only.name, body_of(only)) == ("t.tar/a.wav", files["a.wav"][: 1024 - 300])


@pytest.mark.parametrize(
    "body", [b"", b"x", b"this is no tar" * 100, gzip.compress(b"no", mtime=0)]
)
def test_what_is_no_tar_is_a_recording_that_will_fail(tmp_path: Path, body: bytes) -> None:
    [one] = recordings_in(stored(str(tmp_path), "s.tar", body, labels={"a": 1}))
    assert (one.name, one.labels) == ("s.tar", {"a": 1})
    assert one.source.offset + one.source.size_bytes == len(body)


def test_a_damaged_compressed_tar_gives_what_came_before(root: str) -> None:
    noise = bytes((n * 7919 >> 3) % 251 for n in range(60_000))
    files = {"a.wav": noise, "b.wav": noise[::-1], "c.wav": noise}
    body = tar_of(files, "w:gz")
    found = {one.name: one for one in recordings_in(stored(root, "s.tgz", body[: len(body) // 2]))}
    assert {"s.tgz", "s.tgz/a.wav"} <= set(found)
    with pytest.raises(RecordingError, match="compressed tar is damaged before byte"):
        body_of(found.pop("s.tgz"))
    for name, one in found.items():
        whole = files[name.removeprefix("s.tgz/")]
        got = body_of(one)
        assert got
        assert whole.startswith(got)
    [rest] = recordings_in(stored(root, "n.tgz", b"not gzip at all"))
    with pytest.raises(RecordingError) as caught:
        body_of(rest)
    assert caught.value.reason is Reason.DAMAGED


def test_a_container_that_was_replaced_or_removed_is_noticed(root: str) -> None:
    for name, mode in (("s.tar", "w"), ("s.tgz", "w:gz")):
        container = stored(root, name, tar_of(AUDIO, mode))
        found = recordings_in(container)
        storage.put(container.uri, tar_of({"other.wav": wave(9, 5000)}, mode))
        with pytest.raises(ChangedError, match="replaced since it was listed"):
            recordings_in(container)
        if mode == "w:gz":
            compressed._here.stream = (None, None)
            with pytest.raises(ChangedError):
                body_of(found[0])
        storage.delete(container.uri)
        with pytest.raises(NotFoundError):
            recordings_in(container)


# ---- Parquet ---------------------------------------------------------------------------------


def parquet_of(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)  # type: ignore[arg-type]
    return sink.getvalue().to_pybytes()


def hugging_face(n: int) -> pa.Table:
    audio = [{"bytes": wave(k, k), "path": f"{k}.wav"} for k in range(n)]
    table = pa.table(
        {
            "audio": pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "image": pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array(range(n), pa.int64()),
            "site": pa.array(["n", None] * n, pa.string()).slice(0, n),
            "boxes": [[1.0]] * n,
        }
    )
    features = {
        "audio": {"_type": "Audio"},
        "image": {"_type": "Image"},
        "boxes": [{"dtype": "float32", "_type": "Value"}],
    }
    about = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": about})


def test_rows_of_a_hugging_face_parquet(root: str) -> None:
    table = hugging_face(10)
    container = stored(root, "d/t.parquet", parquet_of(table, row_group_size=3), labels={"y": 1})
    found = recordings_in(container)
    assert [one.name for one in found] == [f"d/t.parquet/{n:09d}" for n in range(10)]
    assert [body_of(one) for one in found] == [wave(n, n) for n in range(10)]
    assert found[1].labels == {"y": 1, "label": 1, "site": None, "path": "1.wav"}
    assert (found[4].source.row, found[4].source.column) == (4, "audio.bytes")
    assert found[4].source.size_bytes > 0


def test_a_column_of_another_name_and_plain_bytes(root: str) -> None:
    struct = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
    call = pa.array([{"bytes": b"1", "path": None}, None], struct)
    found = recordings_in(
        stored(root, "t.parquet", parquet_of(pa.table({"call": call, "n": [1, 2]})))
    )
    assert [one.source.column for one in found] == ["call.bytes"] * 2
    assert [one.labels for one in found] == [{"n": 1, "path": None}, {"n": 2, "path": None}]
    assert body_of(found[0]) == b"1"
    with pytest.raises(RecordingError) as caught:
        body_of(found[1])
    assert caught.value.reason is Reason.EMPTY
    plain = pa.table({"id": [1], "flac": [b"2"]})
    [one] = recordings_in(stored(root, "p.parquet", parquet_of(plain)))
    assert (one.source.column, one.labels, body_of(one)) == ("flac", {"id": 1}, b"2")


def test_a_parquet_without_audio_matters_only_where_it_was_asked_for(tmp_path: Path) -> None:
    body = parquet_of(pa.table({"uri": ["a.wav"], "site": ["n"]}))
    assert recordings_in(stored(str(tmp_path), "t.parquet", body)) == []
    with pytest.raises(
        InputError,
        match=r"^t\.parquet: no column holds audio files; its columns are uri, site; exp",
    ):
        recordings_in(stored(str(tmp_path), "t.parquet", body, is_named=True))


def test_several_audio_columns_are_not_guessed_between(tmp_path: Path) -> None:
    cell = pa.array([{"bytes": b"1"}], pa.struct([("bytes", pa.binary())]))
    body = parquet_of(pa.table({"left": cell, "right": cell}))
    with pytest.raises(InputError, match=r"audio could be in any of left, right"):
        recordings_in(stored(str(tmp_path), "t.parquet", body))


def test_what_is_no_parquet_is_a_recording_that_will_fail(root: str) -> None:
    for body in (b"", b"PAR1nothing", parquet_of(hugging_face(3))[:-20]):
        [one] = recordings_in(stored(root, "t.parquet", body, is_named=True))
        assert (one.name, one.source.row) == ("t.parquet", None)


def test_an_empty_parquet_holds_no_recordings(tmp_path: Path) -> None:
    assert recordings_in(stored(str(tmp_path), "t.parquet", parquet_of(hugging_face(0)))) == []


def test_a_parquet_that_was_replaced_is_noticed(root: str) -> None:
    container = stored(root, "t.parquet", parquet_of(hugging_face(3)))
    storage.put(container.uri, parquet_of(hugging_face(200)))
    with pytest.raises(ChangedError):
        recordings_in(container)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.parquet"])
def test_a_link_to_nowhere_fails_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("annexed")
    (info,) = storage.list_objects(str(tmp_path))
    (one,) = recordings_in(
        Container(name, name, info.uri, info.size_bytes, info.stamp, is_named=True)
    )
    assert one.name == name
    with pytest.raises(RecordingError, match="empty: a link whose target is not there"):
        open_source(one.source)
