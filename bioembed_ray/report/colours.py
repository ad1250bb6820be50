"""What points of a map are coloured by: values of recordings, and values of single windows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bioembed_ray import schema
from bioembed_ray.report import daylight
from bioembed_ray.report.sampling import Points, tracks
from bioembed_ray.results import Results

Kind = Literal["category", "number", "hour"]
MISSING = 65_535
STEPS = 65_534
BY_POINT = ("hour of day", "day or night", "channel", "L2 norm", "time in recording")
NONE = np.zeros(0, np.uint16)
# More values than this are not told apart, nor listed.
MOST_LABELS = 50_000
# Columns of ours that say something of a recording; the manifest's come before them.
OWN = {
    "site": "site",
    "device": "device",
    "rate_hz": "sample rate (Hz)",
    "channels": "channels",
    "container": "container",
    "status": "status",
}
OWN_TECHNICAL = {"sample rate (Hz)", "channels", "container", "status"}
EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Colouring:
    """A value for every recording or every point.

    Attributes:
        title: What people choose.
        kind: `category`; `number` from `low` to `high`; `hour` of the day, 0 to 24.
        by: Whether there is a value per recording of the page or per point of the map, or whether
            it follows from the point's time: on the recorder's clock, or in the recording.
        values: uint16, empty where they follow from the time: index into `labels`, or steps of the range; 65535 is unknown.
        labels: Of categories, the most frequent first.
        low, high: What 0 and 65534 stand for.
        unit: Of a number.
        note: How it was found, where that is not plain.
    """

    title: str
    kind: Kind
    by: Literal["recording", "point", "clock", "start"]
    values: npt.NDArray[np.uint16]
    labels: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What is known of the recordings of a page.

    Attributes:
        names: Names, ascending.
        table: recordings/ in the same order; null where it does not know one.
        clock_s: Seconds since 1970 on the recorder's own clock; NaN where unknown.
        utc_s: Seconds since 1970, where the time zone is known too; else NaN.
        latitude, longitude: Degrees; NaN where unknown.
    """

    names: tuple[str, ...]
    table: pa.Table
    clock_s: npt.NDArray[np.float64]
    utc_s: npt.NDArray[np.float64]
    latitude: npt.NDArray[np.float64]
    longitude: npt.NDArray[np.float64]


def about(recordings: pa.Table, names: Sequence[str]) -> About:
    """Return what recordings/ says of some recordings, in the order of their names."""
    wanted = pa.array(names, pa.string())
    places = pc.index_in(wanted, recordings.column("recording").combine_chunks())
    table = recordings.take(places)
    times = [_time(value) for value in _column(table, "recorded_at")]
    clock = [
        np.nan if t is None else (t.replace(tzinfo=None) - EPOCH).total_seconds() for t in times
    ]
    utc = [np.nan if t is None or t.tzinfo is None else t.timestamp() for t in times]
    place = [
        np.array([np.nan if v is None else float(v) for v in _column(table, name)])
        for name in ("latitude", "longitude")
    ]
    return About(tuple(names), table, np.array(clock), np.array(utc), place[0], place[1])


def _column(table: pa.Table, name: str) -> list[Any]:
    if name not in table.column_names:
        return [None] * len(table)
    values: list[Any] = table.column(name).to_pylist()
    return values


def _time(value: object) -> datetime | None:
    return None if value is None else datetime.fromisoformat(str(value))


def manifest_columns(recordings: pa.Table) -> list[str]:
    """Return the columns of recordings/ that came with the manifest."""
    known = json.loads((recordings.schema.metadata or {}).get(b"bioembed.labels", b"[]"))
    others = [name for name in recordings.column_names if name not in schema.RECORDINGS.names]
    return [*others, *(f"label_{name}" for name in known if f"label_{name}" in OWN)]


def of_recordings(known: About) -> list[Colouring]:
    """Return everything recordings differ by."""
    found = []
    taken = {"folder", "date", "recording", *BY_POINT}
    for name in [*manifest_columns(known.table), *OWN]:
        title = f"{name} (manifest)" if name in taken else OWN.get(name, name)
        made = _of_values(title, _column(known.table, name))
        if made is not None:
            found.append(made)
    folders = [name.rpartition("/")[0] or "(top)" for name in known.names]
    made = _of_values("folder", folders)
    found += [] if made is None else [made]
    days = _scaled("date", known.clock_s / 86_400, "recording", unit="days since 1970")
    found += [] if days is None else [days]
    found.append(_categories("recording", list(known.names)))
    return found


def choose(found: Sequence[Colouring]) -> Colouring:
    """Return what colours the maps at first: what most recordings have, and what few of them share."""
    for one in found:
        known = float((one.values != MISSING).mean())
        if one.kind == "category" and one.title not in OWN_TECHNICAL and known >= 0.6:
            return one
    return found[-1]


def _of_values(title: str, values: Sequence[Any]) -> Colouring | None:
    """Return a colouring, None where all are alike or unknown."""
    values = [v if v is None or isinstance(v, (str, int, float)) else str(v) for v in values]
    distinct = {value for value in values if value is not None and value == value}
    if len(distinct) < 2 or len(distinct) > MOST_LABELS:
        return None
    is_number = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in distinct)
    if is_number and len(distinct) > 12:
        numbers = np.array([np.nan if v is None else float(v) for v in values])
        return _scaled(title, numbers, "recording")
    return _categories(title, [None if v is None or v != v else _label(v) for v in values])


def _label(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _categories(title: str, values: Sequence[str | None]) -> Colouring:
    counts = Counter(value for value in values if value is not None)
    labels = sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS]
    place = {label: index for index, label in enumerate(labels)}
    codes = [MISSING if value is None else place.get(value, MISSING) for value in values]
    return Colouring(title, "category", "recording", np.array(codes, np.uint16), tuple(labels))


def _scaled(
    title: str,
    values: npt.NDArray[np.float64],
    by: Literal["recording", "point"],
    unit: str = "",
    note: str = "",
) -> Colouring | None:
    is_known = np.isfinite(values)
    if not is_known.any():
        return None
    low, high = float(values[is_known].min()), float(values[is_known].max())
    if low == high:
        return None
    steps = np.rint((np.where(is_known, values, low) - low) / (high - low) * STEPS)
    codes = np.where(is_known, steps, MISSING).astype(np.uint16)
    return Colouring(title, "number", by, codes, (), low, high, unit, note)


def of_points(
    points: Points, known: About, tokens: dict[str, npt.NDArray[np.int64]]
) -> list[Colouring]:
    """Return what windows differ by.

    Args:
        points: Windows.
        known: The recordings of the page, those of the points among them.
        tokens: Codebook -> (N,) most frequent token, -1 for none.
    """
    place = np.searchsorted(np.array(known.names), np.array(points.names))
    row = place[points.recording] if len(points) else np.zeros(0, np.int64)
    clock = known.clock_s[row] + points.start_s
    found: list[Colouring | None] = []
    hour = (clock % 86_400) / 3600
    if np.isfinite(hour).any():
        found.append(Colouring("hour of day", "hour", "clock", NONE, (), 0, 24, "h"))
    found.append(_daylight(points, known, row, hour))
    for name, values in tokens.items():
        shown = [None if value < 0 else str(value) for value in values]
        made = _categories(f"token of {name}", shown)
        found.append(
            Colouring(
                made.title,
                "category",
                "point",
                made.values,
                tuple(f"u{label}" for label in made.labels),
                note="the most frequent of the tokens that start in the window",
            )
        )
    if len(np.unique(points.channel)) > 1:
        made = _categories("channel", [str(value) for value in points.channel])
        found.append(Colouring(made.title, "category", "point", made.values, made.labels))
    lengths = np.linalg.norm(points.vectors.astype(np.float64), axis=1)
    found.append(_scaled("L2 norm", lengths, "point"))
    if len(points) and np.ptp(points.start_s) > 0:
        low, high = float(points.start_s.min()), float(points.start_s.max())
        found.append(Colouring("time in recording", "number", "start", NONE, (), low, high, "s"))
    return [one for one in found if one is not None]


def _daylight(
    points: Points, known: About, row: npt.NDArray[np.int64], hour: npt.NDArray[np.float64]
) -> Colouring | None:
    codes = daylight.by_clock(hour)
    utc = known.utc_s[row] + points.start_s
    sun = daylight.by_sun(utc, known.latitude[row], known.longitude[row])
    is_sunny = sun != daylight.UNKNOWN
    codes = np.where(is_sunny, sun, codes)
    if (codes == daylight.UNKNOWN).all():
        return None
    n_known = int((codes != daylight.UNKNOWN).sum())
    note = (
        f"by the sun's elevation for {is_sunny.sum() / n_known:.0%} of the points (place and time "
        "zone known; night below -6°), by the recorder's clock, 6 to 18 h, for the rest"
    )
    values = np.where(codes == daylight.UNKNOWN, MISSING, codes).astype(np.uint16)
    return Colouring("day or night", "category", "point", values, daylight.NAMES, note=note)


def window_tokens(results: Results, codebook: str, points: Points) -> npt.NDArray[np.int64]:
    """Return the most frequent token that starts in each window: (N,), -1 where there is none.

    Tokens are read segment by segment; those of the segment in which the window starts count.
    """
    found = np.full(len(points), -1, np.int64)
    where = {(name, channel): rows for name, channel, rows in tracks(points)}
    for batch in results.tokens(codebook).batches(batch_rows=64):
        for segment in batch.to_pylist():
            rows = where.get((segment["recording"], segment["channel"]))
            if rows is None:
                continue
            codes = np.array([-1 if t is None else t for t in segment["tokens"]], np.int64)
            steps = codes.reshape(-1, segment["per_step"])
            first, hop = segment["start_s"], segment["hop_s"]
            starts = points.start_s[rows]
            inside = rows[(starts >= first - 1e-9) & (starts < first + len(steps) * hop)]
            for row in inside:
                low = int(np.ceil((points.start_s[row] - first) / hop - 1e-6))
                high = int(np.ceil((points.end_s[row] - first) / hop - 1e-6))
                heard = steps[low:high].ravel()
                heard = heard[heard >= 0]
                if len(heard):
                    found[row] = np.bincount(heard).argmax()
    return found
