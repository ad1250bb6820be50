"""Members of a tar or Parquet object that is what it was, without opening it again.

Each member carries how its container was listed. Globs that exclude more, and other labels of the
container, are applied to what is known; where members may be missing, the container is opened.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bioembed_ray.errors import RecordingError
from bioembed_ray.inputs.globs import any_of
from bioembed_ray.inputs.left_out import Kind, LeftOut, from_json
from bioembed_ray.inputs.listing import Container, Recording
from bioembed_ray.inputs.manifest import Label


@dataclass(frozen=True, slots=True)
class Opened:
    """What one container holds.

    Attributes:
        name: The container's name.
        recordings: Its members.
        left_out: Its members that are no recordings.
        refusal: Why it could not be opened, None where it was.
    """

    name: str
    recordings: list[Recording]
    left_out: LeftOut
    refusal: RecordingError | None = None


def as_opened(
    container: Container, found: Iterable[tuple[str, Recording]], left_out: LeftOut
) -> Opened:
    """Return the members of a container that are not excluded, with how it was listed.

    Args:
        container: The container.
        found: (path inside, "" for the whole object; recording with no labels but its own).
        left_out: What else it holds; excluded members are added.
    """
    is_excluded = any_of(container.exclude)
    kept = []
    for path, one in found:
        if is_excluded(f"{container.below}/{path}" if path else container.below):
            left_out.add(Kind.NOT_SELECTED, one.name)
        else:
            kept.append(one)
    listed = {**_asked(container), "left_out": left_out.to_json()}
    # One text for all members with the same labels, whose keys are few.
    texts: dict[tuple[str, ...], str] = {}
    recordings = []
    for one in sorted(kept, key=lambda one: one.name):
        own = tuple(one.labels)
        if own not in texts:
            texts[own] = json.dumps({**listed, "own": own})
        labels: dict[str, Label] = container.labels | one.labels
        recordings.append(replace(one, labels=labels, inside=texts[own]))
    return Opened(container.name, recordings, left_out)


def _asked(container: Container) -> dict[str, Any]:
    """Return what decides members and labels, beside the content of the container."""
    return {
        "below": container.below,
        "exclude": list(container.exclude),
        "labels": container.labels,
    }


def as_known(container: Container, known: Sequence[Recording]) -> Opened | None:
    """Return the members of a container from what is known of them, None where it must be opened.

    Args:
        container: The container as it is listed now, with the stamp that the members have.
        known: All members that are known.
    """
    head = f"{container.name}/"
    listed = known[0].inside
    if listed is None or not all(
        one.name.startswith(head) or one.name == container.name for one in known
    ):
        return None
    about = _read(listed)
    left_out = from_json(about["left_out"])
    if _asked(container).items() <= about.items():
        return Opened(container.name, list(known), left_out)
    is_narrower = about["below"] == container.below and set(about["exclude"]) <= set(
        container.exclude
    )
    if not is_narrower and left_out.count(Kind.NOT_SELECTED):
        return None
    return as_opened(container, ((one.name[len(head) :], _own(one)) for one in known), left_out)


def _own(one: Recording) -> Recording:
    """Return a member with the labels from beside it alone."""
    own = () if one.inside is None else _read(one.inside)["own"]
    return replace(one, labels={key: one.labels.get(key) for key in own})


@functools.lru_cache(64)
def _read(inside: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(inside)
    return found
