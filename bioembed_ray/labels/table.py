"""What recordings are called: a label each, from a column of recordings/ or from a table of one's own."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from bioembed_ray import storage
from bioembed_ray.errors import ConfigError, InputError
from bioembed_ray.inputs.manifest import read_manifest
from bioembed_ray.inputs.names import parent
from bioembed_ray.rows import BOOKKEEPING

# What people put between the labels of a recording that has several.
SEVERAL = re.compile(r"\s*[;|]\s*")
TABLE = re.compile(r"\.(csv|tsv|txt|parquet)$", re.IGNORECASE)
# Shown in messages; a column of coordinates has thousands.
MOST_NAMED = 12


@dataclass(frozen=True, slots=True)
class Labels:
    """A label for some recordings.

    Attributes:
        name: The column that they come from.
        of: Recording -> label; recordings without one are not in it.
        n_strangers: Rows of the table that name no recording of the output.
    """

    name: str
    of: dict[str, str]
    n_strangers: int = 0


def read_labels(recordings: pa.Table, written: str, option: str = "--labels") -> Labels:
    """Return the labels that an option names.

    Args:
        recordings: recordings/ of the output.
        written: `COLUMN` of recordings/, or `TABLE:COLUMN`, a CSV or Parquet with a column `uri`.
        option: Its name, for messages.

    Raises:
        ConfigError: no such column; gives the nearest spelling.
        InputError: the table cannot be read, or gives one recording two labels.
    """
    table, colon, column = written.rpartition(":")
    if colon and TABLE.search(table):
        return _from_table(recordings, storage.absolute(table), column, option)
    if TABLE.search(written):
        raise ConfigError(f"{option}: got {written!r}; name the column too: {written}:COLUMN")
    known = [name for name in recordings.column_names if name not in BOOKKEEPING]
    _check_column(written, known, f"{option}: recordings/ has no column")
    names = recordings.column("recording").to_pylist()
    values = recordings.column(written).to_pylist()
    found = {n: text for n, value in zip(names, values, strict=True) if (text := _text(value))}
    return Labels(written, found)


def _from_table(recordings: pa.Table, uri: str, column: str, option: str) -> Labels:
    rows = read_manifest(uri)
    _check_column(column, list(rows[0][2]), f"{option}: {uri} has no column")
    places = _Places(recordings, parent(uri))
    found: dict[str, str] = {}
    n_strangers = 0
    for line, written, values in rows:
        try:
            name = places.find(written)
        except ValueError as error:
            raise InputError(f"{uri}: row {line}: {error}") from None
        text = _text(values[column])
        if name is None:
            n_strangers += 1
        elif text and found.setdefault(name, text) != text:
            raise InputError(
                f"{uri}: row {line} calls {name} {text!r}, a row before it {found[name]!r}; "
                f"a recording has one {column}"
            )
    if n_strangers == len(rows):
        raise InputError(
            f"{uri}: none of its {len(rows)} rows names a recording of this output; write paths as "
            f"recordings/ has them, e.g. {next(iter(places.names), 'none')}"
        )
    return Labels(column, found, n_strangers)


class _Places:
    """Recordings by all the ways in which a table may name them."""

    def __init__(self, recordings: pa.Table, folder: str) -> None:
        self.names: list[str] = recordings.column("recording").to_pylist()
        self._folder = folder
        self._known = set(self.names)
        uris = recordings.column("uri").to_pylist() if "uri" in recordings.column_names else []
        self._by_uri: dict[str, str] = dict(zip(uris, self.names, strict=False))
        self._by_last: dict[str, list[str]] = {}
        for name in self.names:
            self._by_last.setdefault(name.rpartition("/")[2], []).append(name)

    def find(self, written: str) -> str | None:
        """Return the recording of that name, URI, path from the table's folder, or last path parts.

        Raises:
            ValueError: the last path parts are those of several recordings.
        """
        short = written.removeprefix("./")
        if short in self._known:
            return short
        beside = storage.join(self._folder, posixpath.normpath(written))
        for uri in (written, beside):
            if uri in self._by_uri:
                return self._by_uri[uri]
        ending = [
            name
            for name in self._by_last.get(short.rpartition("/")[2], [])
            if name.endswith(f"/{short}")
        ]
        if len(ending) > 1:
            raise ValueError(
                f"{written!r} may be {ending[0]} or {ending[1]}; write the path as recordings/ has it"
            )
        return ending[0] if ending else None


def one_of_several(labels: Labels, chosen: str | None, option: str = "--labels") -> Labels:
    """Return labels with one value each.

    Args:
        labels: Labels, some of which may be several, as in `robin; wren`.
        chosen: Makes two classes of them: recordings that have this label among theirs, and the
            rest, `not …`. None takes the labels as they are.
        option: Its name, for messages.

    Raises:
        InputError: a recording has several and none is chosen, or no recording has the chosen one.
    """
    split = {name: set(SEVERAL.split(text.strip())) for name, text in labels.of.items()}
    if chosen is not None:
        known = sorted(set().union(*split.values()) - {""})
        if chosen not in known:
            raise InputError(
                f"--against-rest: no {labels.name} is {chosen!r}; {_hint(chosen, known)}"
            )
        rest = f"not {chosen}"
        return Labels(
            labels.name,
            {name: chosen if chosen in several else rest for name, several in split.items()},
            labels.n_strangers,
        )
    several = [name for name, values in split.items() if len(values - {""}) > 1]
    if several:
        raise InputError(
            f"{option} {labels.name}: {len(several)} recordings have several labels, e.g. {several[0]} "
            f"{labels.of[several[0]]!r}; probe one against the rest with --against-rest NAME"
        )
    return labels


def nearest_name(got: str, known: Sequence[str]) -> str:
    """Return what to say of a name that is none of the known ones.

    >>> nearest_name("speces", ["species", "site"])
    "did you mean 'species'?"
    """
    return _hint(got, known)


def _hint(got: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(got, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is {', '.join(_few(known)) or 'none'}"


def _few(names: Sequence[str]) -> Iterator[str]:
    yield from names[:MOST_NAMED]
    if len(names) > MOST_NAMED:
        yield f"and {len(names) - MOST_NAMED} more"


def _check_column(got: str, known: Sequence[str], what: str) -> None:
    if got not in known:
        raise ConfigError(f"{what} {got!r}; {_hint(got, known)}")


def _text(value: object) -> str:
    """Return a cell as text; "" for an empty one."""
    return "" if value is None else str(value).strip()
