"""What narrows a search: columns of recordings/, times, channels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray.errors import ConfigError
from bioembed_ray.rows import BOOKKEEPING

DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, slots=True)
class Among:
    """Which recordings are searched.

    Attributes:
        condition: On columns of recordings/; None takes all.
        n_without_zone: Recordings left out because a time with a zone cannot be compared with their
            recorder's own clock.
    """

    condition: pc.Expression | None
    n_without_zone: int = 0


def choose_recordings(
    recordings: pa.Table, pairs: Sequence[str], since: str | None, until: str | None
) -> Among:
    """Return which recordings some options name.

    Args:
        recordings: The table.
        pairs: `column=value`; several values of one column are alternatives, several columns all
            hold, an empty value is an unknown one.
        since: First time of `recorded_at`, ISO 8601.
        until: Time of `recorded_at` before which recordings began; of a day without a time, its end.

    Raises:
        ConfigError: no such column, a value of another type, or not a time.
    """
    values: dict[str, list[str]] = {}
    for pair in pairs:
        column, separator, value = pair.partition("=")
        if not separator or not column:
            raise ConfigError(f"--where {pair}: write column=value, e.g. site=marsh")
        values.setdefault(column, []).append(value)
    condition: pc.Expression | None = None
    for column, wanted in values.items():
        one = _is_any(recordings, column, wanted)
        condition = one if condition is None else condition & one
    if since is None and until is None:
        return Among(condition)
    names, n_without_zone = _began_between(recordings, since, until)
    inside = pc.field("recording").isin(names)
    return Among(inside if condition is None else condition & inside, n_without_zone)


def on_channel(channel: int | None) -> pc.Expression | None:
    """Return the condition that rows are of a channel; None where any will do."""
    return None if channel is None else pc.field("channel") == pa.scalar(channel, pa.int16())


def _is_any(recordings: pa.Table, column: str, wanted: list[str]) -> pc.Expression:
    known = [name for name in recordings.column_names if name not in BOOKKEEPING]
    if column not in known:
        raise ConfigError(f"--where {column}: no such column; recordings/ has {', '.join(known)}")
    kind = recordings.schema.field(column).type
    given = [text for text in wanted if text]
    try:
        values = pa.array(given, pa.string()).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ConfigError(
            f"--where {column}: got {', '.join(given)}; the column is {kind}"
        ) from None
    condition = pc.field(column).isin(values)
    return condition | pc.field(column).is_null() if "" in wanted else condition


def _began_between(
    recordings: pa.Table, since: str | None, until: str | None
) -> tuple[pa.Array, int]:
    """Return the recordings that began in [since, until), and how many cannot be told.

    A bound without a zone is compared with what the recorder's clock showed.
    """
    low = None if since is None else _moment(since, "since")
    high = None if until is None else _moment(until, "until")
    names, unknown = [], 0
    columns = ("recording", "recorded_at")
    for name, text in zip(*(recordings.column(c).to_pylist() for c in columns), strict=True):
        if text is None:
            continue
        at = datetime.fromisoformat(text)
        bounds = [bound for bound in (low, high) if bound is not None]
        if at.tzinfo is None and any(bound.tzinfo is not None for bound in bounds):
            unknown += 1
            continue
        if (low is None or _compared(at, low) >= low) and (
            high is None or _compared(at, high) < high
        ):
            names.append(name)
    return pa.array(names, pa.string()), unknown


def _compared(at: datetime, bound: datetime) -> datetime:
    return at.replace(tzinfo=None) if bound.tzinfo is None else at


def _moment(text: str, option: Literal["since", "until"]) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--{option}: got {text!r}; use e.g. 2024-05-12, 2024-05-12T04:30 or 2024-05-12T04:30+02:00"
        ) from None
    is_day = DATE.fullmatch(text) is not None
    return found + timedelta(days=1) if is_day and option == "until" else found
