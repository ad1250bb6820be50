"""Inputs: which recordings and containers an input names, and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bioembed_ray.config import InputConfig
from bioembed_ray.errors import (
    InputError,
    NoBucketError,
    NotFoundError,
    Reason,
    RecordingError,
)
from bioembed_ray.inputs.listing import Listing, Recording, Source, list_input, unique


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "archive")
    return f"{request.getfixturevalue('s3').uri}/archive"


def fill(root: str, *names: str) -> None:
    from bioembed_ray import storage

    for name in names:
        storage.put(f"{root}/{name}", name.encode())


def listing(uri: str | tuple[str, ...], **options: object) -> Listing:
    return list_input(InputConfig.model_validate({"uri": uri, **options}))


def counts(found: Listing) -> dict[str, int]:
    """Return how much was left out, by kind."""
    return {kind: one["n"] for kind, one in found.left_out.to_json().items()}


def names(uri: str | tuple[str, ...], **options: object) -> list[str]:
    return [one.name for one in listing(uri, **options).recordings]


# ---- folders and prefixes --------------------------------------------------------------------


def test_folder_gives_audio_by_extension_of_any_case_in_name_order(root: str) -> None:
    fill(root, "b.wav", "a/z.FLAC", "a/c.Mp3", "notes.txt", "c.wac", "noext", "b.WAV.bak")
    found = listing(root)
    assert [one.name for one in found.recordings] == ["a/c.Mp3", "a/z.FLAC", "b.wav", "c.wac"]
    assert (counts(found), found.root) == ({"not_audio": 3}, root)
    assert found.containers == []
    first = found.recordings[0]
    assert first.source.uri == f"{root}/a/c.Mp3"
    assert first.source.size_bytes == len("a/c.Mp3")
    assert first.source == Source(first.source.uri, first.source.stamp, 7)
    assert first.labels == {}


def test_trailing_slash_changes_no_name(root: str) -> None:
    fill(root, "a/b.wav")
    assert names(root + "/") == names(root) == ["a/b.wav"]


def test_hidden_files_are_skipped_and_counted(root: str) -> None:
    fill(root, "a.wav", "._a.wav", ".trash/b.wav", "x/.c.wav", "~d.wav", "x~y/e.wav", "f.wav.tmp")
    found = listing(root)
    assert [one.name for one in found.recordings] == ["a.wav", "x~y/e.wav"]
    assert counts(found) == {"companion": 1, "unfinished": 4}


def test_a_hidden_folder_above_the_root_hides_nothing(root: str) -> None:
    fill(root, ".cache/site/a.wav")
    assert names(f"{root}/.cache/site") == ["a.wav"]


def test_zero_byte_recordings_are_kept_so_that_they_fail_in_the_open(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    assert names(str(tmp_path)) == ["empty.wav"]


def test_include_and_exclude_are_globs_below_the_root(root: str) -> None:
    fill(root, "a.wav", "x/b.WAV", "x/night/c.wav", "x/d.flac", "raw/e.dat")
    assert names(root, include=["**/*.wav"]) == ["a.wav", "x/b.WAV", "x/night/c.wav"]
    assert names(root, include=["*.wav"]) == ["a.wav"]
    assert names(root, include=["x/**"], exclude=["**/night/**"]) == ["x/b.WAV", "x/d.flac"]
    assert names(root, exclude=["**/*.wav"]) == ["x/d.flac"]
    assert names(root, include=["raw/*.dat"]) == ["raw/e.dat"]
    assert counts(listing(root, include=["x/**"])) == {"not_selected": 1, "not_audio": 1}


def test_one_file_is_named_by_itself_whatever_its_extension(root: str) -> None:
    fill(root, "x/a.wav", "x/b.bin", "x/.c.wav")
    assert names(f"{root}/x/a.wav") == ["a.wav"]
    assert names(f"{root}/x/b.bin") == ["b.bin"]
    assert names(f"{root}/x/.c.wav") == [".c.wav"]
    assert listing(f"{root}/x/a.wav").root == f"{root}/x"


def test_local_paths_may_be_relative_or_file_uris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path), "in/a.wav")
    monkeypatch.chdir(tmp_path)
    for uri in (".", "in/..", f"file://{tmp_path}"):
        assert names(uri) == ["in/a.wav"]
    assert listing("in").recordings[0].source.uri == str(tmp_path / "in" / "a.wav")


def test_odd_names_are_kept_and_raw_bytes_become_text(tmp_path: Path) -> None:
    fill(str(tmp_path), " a #1%20.wav ", "日本.wav", "🐸[1].wav", "new\nline.wav")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.wav", "wb") as file:
        file.write(b"raw")
    found = listing(str(tmp_path))
    assert [one.name for one in found.recordings] == [
        "caf%E9.wav",
        "new\nline.wav",
        "日本.wav",
        "🐸[1].wav",
    ]
    for one in found.recordings:
        (one.name + one.source.uri).encode()


def test_names_below_a_folder_of_raw_bytes(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/sit\xe9"
    Path(os.fsdecode(folder)).mkdir()
    for name in (b"a.wav", b"b\xff.wav"):
        with open(folder + b"/" + name, "wb"):
            pass
    assert names(os.fsdecode(folder)) == ["a.wav", "b%FF.wav"]
    assert names((os.fsdecode(folder), os.fsdecode(folder + b"/a.wav"))) == ["a.wav", "b%FF.wav"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in (b"caf\xe9.wav", b"caf%E9.wav"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
            pass
    with pytest.raises(InputError, match=r"two inputs are named caf%E9\.wav: /.* and /"):
        listing(str(tmp_path))


# ---- globs -----------------------------------------------------------------------------------


def test_globs_name_recordings_below_their_literal_folder(root: str) -> None:
    fill(root, "s1/a.wav", "s1/x/b.wav", "s2/c.WAV", "t/d.wav", "s1/e.txt", "s1/f.bin")
    assert names(f"{root}/s*/*.wav") == ["s1/a.wav", "s2/c.WAV"]
    assert names(f"{root}/s1/**/*.wav") == ["a.wav", "x/b.wav"]
    assert names(f"{root}/s[12]/?.wav") == ["s1/a.wav", "s2/c.WAV"]
    assert names(f"{root}/s1/*.bin") == ["f.bin"]
    assert names(f"{root}/s1/*") == ["a.wav"]
    assert listing(f"{root}/s1/**/*.wav").root == f"{root}/s1"


def test_what_exists_literally_is_no_glob(root: str) -> None:
    fill(root, "rec[1].wav", "rec1.wav", "f?lder/x.wav", "folder/y.wav", "a*b.wav", "aXb.wav")
    assert names(f"{root}/rec[1].wav") == ["rec[1].wav"]
    assert names(f"{root}/f?lder") == ["x.wav"]
    assert names(f"{root}/a*b.wav") == ["a*b.wav"]
    assert names(f"{root}/rec[[]1].wav") == ["rec[1].wav"]


def test_a_glob_without_match_says_so(root: str) -> None:
    fill(root, "a.wav")
    with pytest.raises(InputError, match=r"no audio: nothing matches .*/\*\.flac$"):
        listing(f"{root}/*.flac")


def test_no_wildcard_in_the_bucket(s3) -> None:
    with pytest.raises(InputError, match=r"s3://\*/x\.wav: no wildcard is possible in the bucket"):
        listing("s3://*/x.wav")


# ---- lists -----------------------------------------------------------------------------------


def test_a_list_is_named_from_its_deepest_common_folder(root: str) -> None:
    fill(root, "y/s1/a.wav", "y/s2/b.wav", "y/s2/c.wav", "z/d.wav")
    assert names((f"{root}/y/s1/a.wav", f"{root}/y/s2")) == ["s1/a.wav", "s2/b.wav", "s2/c.wav"]
    assert names((f"{root}/y/s2/*.wav", f"{root}/z")) == ["y/s2/b.wav", "y/s2/c.wav", "z/d.wav"]
    assert names((f"{root}/y/s2/b.wav", f"{root}/y/s2/c.wav")) == ["b.wav", "c.wav"]


def test_what_a_list_names_twice_is_read_once(root: str) -> None:
    fill(root, "x/a.wav", "x/b.wav")
    assert names((root, f"{root}/x", f"{root}/x/a.wav", f"{root}/x/a.wav")) == [
        "x/a.wav",
        "x/b.wav",
    ]


def test_two_buckets_are_told_apart_by_name(s3) -> None:
    s3.client.create_bucket(Bucket=f"{s3.name}-two")
    fill(s3.uri, "a.wav")
    fill(f"{s3.uri}-two", "a.wav")
    assert names((s3.uri, f"{s3.uri}-two")) == [f"{s3.name}-two/a.wav", f"{s3.name}/a.wav"]


def test_a_list_of_disk_and_store_is_refused(s3, tmp_path: Path) -> None:
    fill(s3.uri, "a.wav")
    fill(str(tmp_path), "b.wav")
    with pytest.raises(InputError, match=r"mixes .* use one kind of store"):
        listing((s3.uri, str(tmp_path)))


def test_missing_members_of_a_list_are_counted_and_named(root: str) -> None:
    fill(root, "a.wav")
    gone = [f"{root}/gone{n}.wav" for n in range(4)]
    with pytest.raises(InputError) as caught:
        listing((f"{root}/a.wav", *gone, f"{root}/nofolder"))
    shown = ", ".join(gone[:3])
    assert str(caught.value) == f"input.uri: 5 of 6 listed do not exist: {shown} …"


def test_a_text_file_lists_uris_relative_to_its_folder(root: str) -> None:
    fill(root, "lists/x/a.wav", "lists/x/#b.wav", "lists/x y.wav", "other/c.wav")
    text = f"# all of it\n\nx/a.wav\r\n./x/#b.wav\nx y.wav\n{root}/other\n"
    from bioembed_ray import storage

    storage.put(f"{root}/lists/list.TXT", b"\xef\xbb\xbf" + text.encode())
    expected = ["lists/x y.wav", "lists/x/#b.wav", "lists/x/a.wav", "other/c.wav"]
    assert names(f"{root}/lists/list.TXT") == expected
    assert names((f"{root}/lists/list.TXT",)) == expected


def test_a_text_file_that_lists_nothing_or_is_no_text(root: str) -> None:
    from bioembed_ray import storage

    storage.put(f"{root}/list.txt", b"# nothing\n")
    with pytest.raises(InputError, match=r"list\.txt: lists nothing"):
        listing(f"{root}/list.txt")
    storage.put(f"{root}/list.txt", b"caf\xe9.wav\n")
    with pytest.raises(InputError, match=r"list\.txt: not UTF-8 at byte 3"):
        listing(f"{root}/list.txt")


def test_a_long_list_is_looked_up_by_one_listing(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    from bioembed_ray import storage
    from bioembed_ray.inputs import expand

    monkeypatch.setattr(expand, "LIST_ABOVE", 3)
    fill(s3.uri, *(f"in/{n}.wav" for n in range(6)))
    monkeypatch.setattr(storage, "stat_objects", None)
    assert names(tuple(f"{s3.uri}/in/{n}.wav" for n in range(5))) == [f"{n}.wav" for n in range(5)]


# ---- containers ------------------------------------------------------------------------------


def test_tars_are_containers_and_parquet_only_where_it_is_asked_for(root: str) -> None:
    fill(root, "a.tar", "b.TAR.GZ", "c.tgz", "metadata.parquet", "d.wav", "e.gz")
    found = listing(root)
    assert [one.name for one in found.containers] == ["a.tar", "b.TAR.GZ", "c.tgz"]
    assert [one.name for one in found.recordings] == ["d.wav"]
    assert counts(found) == {"not_audio": 2}
    [asked] = listing(root, include=["*.parquet"]).containers
    assert (asked.name, asked.is_named) == ("metadata.parquet", True)
    [by_glob] = listing(f"{root}/*.parquet").containers
    assert by_glob.is_named
    [by_name] = listing(f"{root}/metadata.parquet").containers
    assert by_name.is_named
    everything = {one.name: one.is_named for one in listing(root, include=["**"]).containers}
    assert everything["metadata.parquet"] is False


def test_a_container_reached_twice_is_opened_once(root: str) -> None:
    fill(root, "a.tar", "x/b.tar")
    found = listing((root, f"{root}/x"), exclude=["**/night/*"])
    assert [one.name for one in found.containers] == ["a.tar", "x/b.tar"]
    assert found.containers[0].exclude == ("**/night/*",)


# ---- manifests -------------------------------------------------------------------------------


def manifest(root: str, text: str, name: str = "table.csv") -> str:
    from bioembed_ray import storage

    storage.put(f"{root}/{name}", text.encode())
    return f"{root}/{name}"


def test_manifest_columns_ride_along_with_their_types(root: str) -> None:
    fill(root, "x/a.wav", "x/b.bin")
    table = manifest(
        root,
        "uri,site,depth,code,quiet,note,empty\n"
        'x/a.wav,north,3,001,true,"a, b",\n'
        "x/b.bin,,4.5,002,false,,\n",
    )
    found = listing(".", manifest=table)
    assert [one.name for one in found.recordings] == ["x/a.wav", "x/b.bin"]
    assert found.recordings[0].labels == {
        "site": "north",
        "depth": 3.0,
        "code": "001",
        "quiet": True,
        "note": "a, b",
        "empty": None,
    }
    assert found.recordings[1].labels["site"] is None
    assert found.root == root


def test_whole_numbers_stay_whole_and_semicolons_are_read(root: str) -> None:
    fill(root, "a.wav", "b.wav")
    table = manifest(root, "\ufeffuri;n\r\na.wav;1\r\n\r\nb.wav;\r\n")
    assert [one.labels for one in listing(".", manifest=table).recordings] == [
        {"n": 1},
        {"n": None},
    ]


def test_manifest_uris_start_from_input_uri(root: str) -> None:
    fill(root, "audio/x/a.wav", "audio/b.wav")
    table = manifest(root, "uri\n./x/a.wav\nb.wav\n", "tables/t.csv")
    assert names(f"{root}/audio/", manifest=table) == ["b.wav", "x/a.wav"]
    absolute = manifest(root, f"uri\n{root}/audio/b.wav\n", "tables/t2.csv")
    assert names(f"{root}/audio", manifest=absolute) == ["b.wav"]
    # Outside of it, the names fall back to what the uris share.
    beside = manifest(root, f"uri\n{root}/audio/b.wav\n../audio/x/a.wav\n", "tables/t3.csv")
    assert names(".", manifest=beside) == ["b.wav", "x/a.wav"]


def test_a_parquet_manifest_gives_the_same(root: str) -> None:
    from bioembed_ray import storage

    fill(root, "a.wav", "b.wav")
    table = pa.table(
        {
            "uri": ["a.wav", "b.wav"],
            "site": pa.array(["n", None]).dictionary_encode(),
            "level": [1.5, float("nan")],
            "day": pa.array([0, 1], pa.date32()),
            "boxes": [[1], [2]],
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.put(f"{root}/t.parquet", sink.getvalue().to_pybytes())
    found = listing(".", manifest=f"{root}/t.parquet")
    assert [one.labels for one in found.recordings] == [
        {"site": "n", "level": 1.5, "day": "1970-01-01"},
        {"site": None, "level": None, "day": "1970-01-02"},
    ]
    storage.put(f"{root}/t.parquet", b"PAR1 not at all")
    with pytest.raises(InputError, match=r"t\.parquet: not a Parquet table"):
        listing(".", manifest=f"{root}/t.parquet")


def test_manifest_rows_may_be_containers_and_pass_include_and_exclude(root: str) -> None:
    fill(root, "a.tar", "b.wav", "night/c.wav")
    table = manifest(root, "uri,site\na.tar,n\nb.wav,s\nnight/c.wav,s\n")
    found = listing(".", manifest=table, exclude=["night/*"])
    assert [(one.name, one.labels) for one in found.containers] == [("a.tar", {"site": "n"})]
    assert [(one.name, one.labels) for one in found.recordings] == [("b.wav", {"site": "s"})]
    assert counts(found) == {"not_selected": 1}


def test_rows_of_one_uri_collapse_unless_their_labels_differ(root: str) -> None:
    fill(root, "a.wav")
    assert names(".", manifest=manifest(root, "uri,s\na.wav,1\n./a.wav,1\n")) == ["a.wav"]
    table = manifest(root, "uri,s\na.wav,1\na.wav,2\n")
    with pytest.raises(InputError, match=r"rows 2 and 3 give a\.wav different labels$"):
        listing(".", manifest=table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,site\na.wav,n\n", r"no column 'uri'; its columns are file, site"),
        ("", r"no column 'uri'; its columns are none"),
        ("uri\n", r"table\.csv: no rows"),
        ("uri,site\na.wav\n", r"row 2 has 1 cells, the header 2"),
        ("uri,site\na.wav,n\n,s\n", r"row 3 has no uri"),
        ("uri,s,s\na.wav,1,2\n", r"two columns are called 's'"),
        (
            "uri\nb.wav\nc.wav\nd.wav\ne.wav\n",
            r"4 of 4 listed do not exist: .*b\.wav, .*d\.wav …$",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(root: str, text: str, message: str) -> None:
    fill(root, "a.wav")
    with pytest.raises(InputError, match=message):
        listing(".", manifest=manifest(root, text))


def test_what_a_manifest_names_in_vain_fails_alone_until_it_is_there(root: str) -> None:
    from bioembed_ray.audio.bytefile import open_source

    fill(root, "a.wav")
    table = manifest(root, "uri,site\na.wav,n\nsub/b.wav,s\n")
    found = {one.name: one for one in listing(".", manifest=table).recordings}
    assert sorted(found) == ["a.wav", "sub/b.wav"]
    assert found["sub/b.wav"].labels == {"site": "s"}
    with pytest.raises(RecordingError, match="names it, and nothing stands there") as caught:
        open_source(found["sub/b.wav"].source)
    assert caught.value.reason is Reason.MISSING
    fill(root, "sub/b.wav")
    again = {one.name: one for one in listing(".", manifest=table).recordings}
    assert again["a.wav"] == found["a.wav"]
    # Another stamp, so that the next run reads it.
    assert again["sub/b.wav"].source.stamp != found["sub/b.wav"].source.stamp


def test_a_manifest_that_is_missing_or_no_text(root: str) -> None:
    from bioembed_ray import storage

    with pytest.raises(NotFoundError, match=r"gone\.csv: not found"):
        listing(".", manifest=f"{root}/gone.csv")
    storage.put(f"{root}/t.csv", b"uri\ncaf\xe9.wav\n")
    with pytest.raises(InputError, match=r"t\.csv: not UTF-8 at byte 7; save it as UTF-8"):
        listing(".", manifest=f"{root}/t.csv")
    with pytest.raises(InputError, match="with a manifest, give the one folder"):
        listing((root, root), manifest=f"{root}/t.csv")


# ---- nothing to read -------------------------------------------------------------------------


def test_zero_matches_show_what_was_there(root: str) -> None:
    fill(root, *(f"{n}.jpg" for n in range(3)), "a.txt", "b.txt", "c", ".hidden.wav")
    with pytest.raises(InputError) as caught:
        listing(root)
    assert str(caught.value) == (
        f"no audio under {root}: 1 hidden or unfinished but named like audio (.hidden.wav), 6 not audio "
        "(3 .jpg, 2 .txt, 1 without extension); nothing ends in .wav .flac .mp3 .ogg …; set "
        "input.include or input.manifest"
    )


def test_zero_matches_of_include_name_the_globs(root: str) -> None:
    fill(root, "x/a.wav", "x/b.wav")
    with pytest.raises(InputError) as caught:
        listing(root, include=["*.wav"], exclude=["y/*"])
    assert str(caught.value).endswith(
        "2 not selected by include and exclude (x/a.wav, x/b.wav); nothing is selected by *.wav, "
        "not y/*; write **/*.wav to look into folders"
    )


def test_a_folder_of_parquet_says_how_to_read_it(root: str) -> None:
    fill(root, "train-0.parquet")
    with pytest.raises(InputError, match=r"set input\.include to \*\*/\*\.parquet$"):
        listing(root)


def test_an_empty_or_missing_place(tmp_path: Path, s3) -> None:
    with pytest.raises(InputError, match=rf"no audio under {tmp_path}: nothing is there"):
        listing(str(tmp_path))
    with pytest.raises(InputError, match=rf"no audio under {s3.uri}/x: nothing is there"):
        listing(f"{s3.uri}/x")
    with pytest.raises(NotFoundError, match=r"/gone: not found"):
        listing(str(tmp_path / "gone"))
    with pytest.raises(NoBucketError, match=r"s3://no-such-bucket: no such bucket"):
        listing("s3://no-such-bucket/x")
    with pytest.raises(InputError, match=r"input\.uri: names nothing"):
        listing(())


# ---- size ------------------------------------------------------------------------------------


def test_time_grows_with_the_number_of_recordings_not_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import time

    from bioembed_ray import storage

    def many(uri: str, depth: int | None = None, enters: object = None):
        for n in range(200_000):
            key = f"{n % 100:03d}/{n:07d}.wav"
            yield storage.ObjectInfo(key, f"{uri}/{key}", 10, "stamp")

    monkeypatch.setattr(storage, "list_objects", many)
    start = time.monotonic()
    found = listing("s3://lab/archive", exclude=["**/x*.wav"])
    assert len(found.recordings) == 200_000
    assert found.recordings[1].name == "000/0000100.wav"
    # A few seconds; a square would be hours.
    assert time.monotonic() - start < 60


def test_unique_sorts_and_refuses_two_recordings_of_one_name() -> None:
    one, two = (Recording("a.wav", Source(f"/{n}/a.wav", "s", 1)) for n in "xy")
    other = Recording("B.wav", Source("/B.wav", "s", 1))
    assert unique([one, other, one]) == [other, one]
    with pytest.raises(InputError, match=r"two inputs are named a\.wav: /x/a\.wav and /y/a\.wav"):
        unique([one, two])
