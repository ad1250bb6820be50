"""What a listing leaves out, counted by kind, with a few examples: nothing is left out in silence.

Counts and examples only, so that ten million objects cost no more memory than a hundred.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bioembed_ray.inputs.names import extension_of, is_hidden, seems_audio
from bioembed_ray.store.uris import shown_uri

N_EXAMPLES = 3
# More different extensions than this are numbers or dates; what comes later counts as one.
N_EXTENSIONS = 200
OTHERS = "…"


class Kind(StrEnum):
    """Why something is no recording, in the order in which it is reported."""

    UNREADABLE = "unreadable"
    """A folder, or a link, that cannot be read: what lies there is not known."""
    UNFINISHED = "unfinished"
    """Hidden, or under the name of an unfinished copy, but named like audio: `~x.wav`, `x.wav.part`."""
    LINK = "link"
    """A link inside a tar that is named like audio."""
    NOT_SELECTED = "not_selected"
    """Audio or a container, but not selected by `include` and `exclude`; folders end in `/`."""
    COMPANION = "companion"
    """`._x.wav`: what macOS keeps beside a file on foreign disks, no sound."""
    HIDDEN = "hidden"
    """Hidden or temporary, or a system's folder, which ends in `/`."""
    NOT_AUDIO = "not_audio"
    """No extension of an audio format, or a Parquet without audio."""


_TEXTS = {
    Kind.UNREADABLE: "that cannot be read",
    Kind.UNFINISHED: "hidden or unfinished but named like audio",
    Kind.LINK: "links in tars",
    Kind.NOT_SELECTED: "not selected by include and exclude",
    Kind.COMPANION: "companions of macOS",
    Kind.HIDDEN: "hidden or temporary",
    Kind.NOT_AUDIO: "not audio",
}


@dataclass(slots=True)
class LeftOut:
    """How much was left out, and what for instance.

    Attributes:
        extensions: Per kind, how many objects by extension, "" for none.
        examples: Per kind, the first few paths met.
    """

    extensions: dict[Kind, Counter[str]] = field(default_factory=dict)
    examples: dict[Kind, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, path: str) -> None:
        """Count one; a folder's path ends in `/`."""
        self._count(kind, extension_of(path), 1)
        self._show(kind, path)

    def add_unheard(self, path: str) -> None:
        """Count one that is hidden or no audio, under the kind that its path tells."""
        if path.rpartition("/")[2].startswith("._"):
            self.add(Kind.COMPANION, path)
        elif seems_audio(path):
            self.add(Kind.UNFINISHED, path)
        else:
            self.add(Kind.HIDDEN if is_hidden(path) else Kind.NOT_AUDIO, path)

    def merge(self, other: LeftOut) -> None:
        """Add what another listing left out."""
        for kind, counts in other.extensions.items():
            for extension, n in counts.items():
                self._count(kind, extension, n)
        for kind, paths in other.examples.items():
            for path in paths:
                self._show(kind, path)

    def _count(self, kind: Kind, extension: str, n: int) -> None:
        counts = self.extensions.setdefault(kind, Counter())
        is_kept = extension in counts or len(counts) < N_EXTENSIONS
        counts[extension if is_kept else OTHERS] += n

    def _show(self, kind: Kind, path: str) -> None:
        shown = self.examples.setdefault(kind, [])
        if len(shown) < N_EXAMPLES:
            shown.append(path)

    def count(self, *kinds: Kind) -> int:
        """Return how many were left out for one of these reasons, without any for all."""
        counts = [self.extensions.get(kind, Counter()) for kind in kinds or Kind]
        return sum(one.total() for one in counts)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values: by kind the number, the extensions and the examples."""
        return {
            kind.value: {
                "n": self.count(kind),
                "extensions": dict(self.extensions[kind].most_common()),
                "examples": self.examples[kind],
            }
            for kind in Kind
            if kind in self.extensions
        }

    def __bool__(self) -> bool:
        return self.count() > 0

    def __str__(self) -> str:
        """Return one line for people, "" where nothing was left out."""
        return ", ".join(self._text(kind) for kind in Kind if kind in self.extensions)

    def _text(self, kind: Kind) -> str:
        n, counts, shown = self.count(kind), self.extensions[kind], self.examples[kind]
        if kind is Kind.NOT_AUDIO:
            listed = [shown_extension(*one) for one in counts.most_common(N_EXAMPLES)]
            is_more = len(counts) > N_EXAMPLES
        else:
            listed, is_more = [shown_uri(path) for path in shown], n > len(shown)
        return f"{n:,} {_TEXTS[kind]} ({', '.join([*listed, *(['…'] if is_more else [])])})"


def shown_extension(extension: str, n: int) -> str:
    """Return the number of files of an extension for people.

    >>> shown_extension("txt", 4000), shown_extension("", 1)
    ('4,000 .txt', '1 without extension')
    """
    return f"{n:,} {f'.{shown_uri(extension)}' if extension else 'without extension'}"


def from_json(raw: dict[str, Any]) -> LeftOut:
    """Return what `LeftOut.to_json` gave."""
    return LeftOut(
        {Kind(kind): Counter(one["extensions"]) for kind, one in raw.items()},
        {Kind(kind): list(one["examples"]) for kind, one in raw.items()},
    )
