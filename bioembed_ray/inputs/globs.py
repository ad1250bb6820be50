"""Globs on `/`-separated paths, read the same way on a disk and on a store.

`*` and `?` stay within one part, `[ab]` and `[!ab]` are one character, `**` as a whole part is any
number of folders, none included. The case of the extension does not matter, the rest does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

MAGIC = re.compile(r"[*?\[]")


def is_glob(text: str) -> bool:
    """Return True where the text holds `*`, `?` or `[`."""
    return MAGIC.search(text) is not None


def split_glob(text: str) -> tuple[str, str]:
    """Return (the folders before the first wildcard, the glob below them).

    >>> split_glob("s3://lab/2024/site*/**/*.wav")
    ('s3://lab/2024', 'site*/**/*.wav')
    >>> split_glob("/*.wav")
    ('/', '*.wav')
    """
    first = MAGIC.search(text)
    head = text[: first.start()] if first else text
    folder, slash, _ = head.rpartition("/")
    return folder or slash, text[len(folder) + len(slash) :]


def depth_of(glob: str) -> int | None:
    """Return how many folders deep a glob can reach, None for any depth."""
    parts = glob.split("/")
    return None if "**" in parts else len(parts)


def compile_glob(glob: str) -> re.Pattern[str]:
    """Return the pattern that `fullmatch`es the paths a glob means.

    >>> [bool(compile_glob("**/*.wav").fullmatch(p)) for p in ("a.WAV", "x/y/a.wav", "a.flac")]
    [True, True, False]
    """
    *folders, last = glob.split("/")
    pattern = ""
    for folder, before in zip(folders, [None, *folders], strict=False):
        if folder != "**":
            pattern += _part(folder) + "/"
        elif before != "**":
            # Two in a row mean the same as one, and cost the matcher a power more.
            pattern += "(?:[^/]+/)*"
    if last == "**":
        return re.compile(pattern + "[^/]+(?:/[^/]+)*")
    stem, dot, extension = last.rpartition(".")
    if dot and stem.rfind("[") <= stem.rfind("]"):
        return re.compile(f"{pattern}{_part(stem)}\\.(?i:{_part(extension)})")
    return re.compile(pattern + _part(last))


def _part(glob: str) -> str:
    """Translate one part, as `fnmatch` does, but never across a `/`."""
    pattern = ""
    place = 0
    while place < len(glob):
        character = glob[place]
        place += 1
        if character == "*":
            pattern += "" if pattern.endswith("[^/]*") else "[^/]*"
        elif character == "?":
            pattern += "[^/]"
        elif character == "[":
            # A `]` right after the opening is one of the characters.
            start = place + (glob[place : place + 1] == "!")
            end = glob.find("]", start + 1)
            if end < 0:
                pattern += r"\["
                continue
            pattern += _characters(glob[place:end])
            place = end + 1
        else:
            pattern += re.escape(character)
    return pattern


def _characters(inside: str) -> str:
    """Translate what stands between `[` and `]`; ranges that run backwards hold nothing."""
    negated = inside.startswith("!")
    text = inside[negated:]
    pieces: list[str] = []
    place = 0
    while place < len(text):
        low = text[place]
        if place + 2 < len(text) and text[place + 1] == "-":
            high = text[place + 2]
            if low <= high:
                pieces.append(f"{re.escape(low)}-{re.escape(high)}")
            place += 3
        else:
            pieces.append(re.escape(low))
            place += 1
    if not pieces:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{''.join(pieces)}]"


def any_of(globs: Iterable[str]) -> Callable[[str], bool]:
    """Return a test: does a path match one of these globs?"""
    patterns = [compile_glob(glob) for glob in globs]
    return lambda path: any(pattern.fullmatch(path) for pattern in patterns)


def reaches(glob: str, folder: str) -> bool:
    """Return True where a glob may match something below a folder.

    >>> [reaches("site*/**/*.wav", f) for f in ("site1", "site1/x/y", "other")], reaches("*.wav", "site1")
    ([True, True, False], False)
    """
    parts = glob.split("/")
    for place, name in enumerate(folder.split("/")):
        if parts[place] == "**":
            return True
        if place == len(parts) - 1 or not re.fullmatch(_part(parts[place]), name):
            return False
    return True


def takes_all_below(glob: str, folder: str) -> bool:
    """Return True where a glob matches all that may lie below a folder: it ends in `/**`.

    >>> takes_all_below("**/raw/**", "site1/raw"), takes_all_below("raw/*", "raw")
    (True, False)
    """
    above = glob
    while above != (shorter := re.sub(r"(?:^|/)\*\*(?:/\*)?$", "", above)):
        above = shorter
    if above == glob:
        return False
    # The name of a folder is no extension, whose case would not matter.
    return not above or compile_glob(f"{above}/x").fullmatch(f"{folder}/x") is not None


def names_extension(glob: str, extension: str) -> bool:
    """Return True where a glob ends in this extension, letter by letter.

    >>> names_extension("**/*.Parquet", "parquet"), names_extension("**/*", "parquet")
    (True, False)
    """
    return extension != "" and glob.lower().endswith(f".{extension}")
