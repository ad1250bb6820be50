"""Globs against a slow matcher made of `fnmatch` on single parts."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bioembed_ray.inputs.globs import (
    compile_glob,
    depth_of,
    reaches,
    split_glob,
    takes_all_below,
)

ALPHABET = "aAbw.[]!-*?"
NAMES = st.text(alphabet="aAbBwW.[]!-", min_size=1, max_size=5)
PATHS = st.lists(NAMES, min_size=1, max_size=4)
GLOB_PARTS = st.one_of(
    st.just("**"),
    st.text(alphabet=ALPHABET, min_size=1, max_size=5),
    st.sampled_from(
        ["*", "*.wav", "a*", "?", "[ab]", "[!a]", "[]a]", "[a-b]*", "*.w[av]", "a.[Ww]"]
    ),
)
GLOBS = st.lists(GLOB_PARTS, min_size=1, max_size=4)


def matches(glob: list[str], path: list[str]) -> bool:
    """Say it with `fnmatch`, one part at a time; `**` at the end is one part or more."""
    if not glob:
        return not path
    if glob == ["**"]:
        return bool(path)
    if glob[0] == "**":
        return matches(glob[1:], path) or (len(path) > 0 and matches(glob, path[1:]))
    if not path:
        return False
    is_last = len(glob) == 1
    return part_matches(glob[0], path[0], is_last) and matches(glob[1:], path[1:])


def part_matches(glob: str, name: str, is_last: bool) -> bool:
    stem, dot, extension = glob.rpartition(".")
    # A dot inside [..] starts no extension.
    if not is_last or not dot or stem.rfind("[") > stem.rfind("]"):
        return fnmatchcase(name, glob)
    return any(
        fnmatchcase(name[:place], stem)
        and fnmatchcase(name[place + 1 :].lower(), extension.lower())
        for place, character in enumerate(name)
        if character == "."
    )


@settings(max_examples=2000, deadline=None)
@given(GLOBS, PATHS)
@example(["**", "*.wav"], ["a.WAV"])
@example(["**", "**", "a"], ["b", "b", "a"])
@example(["a", "**"], ["a"])
@example(["[!]a]"], ["b"])
def test_a_glob_means_what_fnmatch_says_part_by_part(glob: list[str], path: list[str]) -> None:
    got = compile_glob("/".join(glob)).fullmatch("/".join(path)) is not None
    assert got == matches(glob, path)


@settings(max_examples=200, deadline=None)
@given(GLOBS, PATHS)
def test_no_match_lies_deeper_than_the_depth_or_outside_the_prefix(
    glob: list[str], path: list[str]
) -> None:
    whole = "/".join(["s3:", "", "lab", *glob])
    root, below = split_glob(whole)
    assert whole == f"{root}/{below}"
    if compile_glob("/".join(glob)).fullmatch("/".join(path)):
        depth = depth_of("/".join(glob))
        assert depth is None or len(path) <= depth


def test_pathlib_agrees_on_a_real_tree(tmp_path: Path) -> None:
    for name in ("a.wav", "x/a.wav", "x/y/b.wav", "x/y/b.flac", "z/[1].wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    every = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    for glob in (
        "*.wav",
        "**/*.wav",
        "x/**/*.wav",
        "*/*.wav",
        "x/?/b.*",
        "**/[ab].wav",
        "z/[[]1].wav",
    ):
        expected = {p.relative_to(tmp_path).as_posix() for p in tmp_path.glob(glob) if p.is_file()}
        assert {name for name in every if compile_glob(glob).fullmatch(name)} == expected, glob


@settings(max_examples=2000, deadline=None)
@given(GLOBS, PATHS, PATHS)
@example(["a", "**"], ["a"], ["b"])
@example(["a.w", "**"], ["a.W"], ["b"])
@example(["**", "a", "**", "*"], ["b", "a"], ["c", "d"])
def test_a_folder_is_opened_where_a_glob_may_match_in_it(
    glob: list[str], folder: list[str], below: list[str]
) -> None:
    is_match = matches(glob, [*folder, *below])
    if is_match:
        assert reaches("/".join(glob), "/".join(folder))
    if takes_all_below("/".join(glob), "/".join(folder)):
        assert is_match
    # Said only where it is plain: the glob ends in `**`.
    if glob[-1] == "**" and len(glob) > 1 and glob[-2] != "**":
        stands_for = matches([*glob[:-1], "x"], [*folder, "x"])
        assert takes_all_below("/".join(glob), "/".join(folder)) >= stands_for
