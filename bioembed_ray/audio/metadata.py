"""When, where and with what a recording was made: GUANO, AudioMoth comments, file names, bext.

Nothing is guessed. A time zone is only given where the source states one, an impossible date is
no date, and what nobody says is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of a recording besides its samples.

    Attributes:
        recorded_at: Start of the recording; aware where the source states a time zone, else naive
            (the recorder's own clock).
        device: Model and serial number of the recorder.
        site: Name that the recorder was given, from its settings or the file name's prefix.
        latitude: Degrees north, WGS84.
        longitude: Degrees east, WGS84.
        time_expansion: How many times slower than life the file plays, as GUANO says.
    """

    recorded_at: datetime | None = None
    device: str | None = None
    site: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    time_expansion: float | None = None


def merge(first: Metadata, second: Metadata) -> Metadata:
    """Return `first` with what it does not know taken from `second`; a position moves as a pair."""
    place = first if first.latitude is not None else second
    return Metadata(
        recorded_at=first.recorded_at or second.recorded_at,
        device=first.device or second.device,
        site=first.site or second.site,
        latitude=place.latitude,
        longitude=place.longitude,
        time_expansion=first.time_expansion or second.time_expansion,
    )


def collect_metadata(
    name: str,
    *,
    guano: str | None = None,
    comment: str | None = None,
    artist: str | None = None,
    bext: bytes | None = None,
) -> Metadata:
    """Return all that is known, GUANO before comment before file name before bext.

    Args:
        name: File name, with or without folders; "" where there is none.
        guano: Text of the `guan` chunk.
        comment: LIST/INFO ICMT, or the comment tag of other formats.
        artist: LIST/INFO IART, or the artist tag; AudioMoth writes its id there.
        bext: Body of the `bext` chunk. Last, since editors write the time of the cut there.
    """
    found = parse_guano(guano) if guano else Metadata()
    found = merge(found, parse_audiomoth(comment or "", artist or ""))
    found = merge(found, parse_name(name))
    return merge(found, Metadata(recorded_at=_bext_time(bext))) if bext else found


def parse_guano(text: str) -> Metadata:
    r"""Return what a GUANO block says.

    Keys and formats are those of the GUANO 1.0 specification (guano-md.org); a value that does not
    parse is left out alone. A position of exactly 0, 0 is what recorders write without a fix.

    >>> parse_guano("GUANO|Version: 1.0\nLoc Position: 54.1 -2.5").latitude
    54.1
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        value = value.strip().strip("\0").strip()
        if colon and value:
            fields.setdefault(key.strip().strip("\0"), value)
    latitude, longitude = _position(fields.get("Loc Position", ""))
    recorded_at = _iso_time(fields.get("Timestamp", ""))
    if recorded_at is None and "Original Filename" in fields:
        recorded_at = parse_name(fields["Original Filename"]).recorded_at
    model = fields.get("Model") or fields.get("Make")
    return Metadata(
        recorded_at=recorded_at,
        device=" ".join(part for part in (model, fields.get("Serial")) if part) or None,
        site=fields.get("WA|Song Meter|Prefix"),
        latitude=latitude,
        longitude=longitude,
        time_expansion=_positive(fields.get("TE", "")),
    )


def _iso_time(text: str) -> datetime | None:
    try:
        return _plausible(datetime.fromisoformat(text))
    except ValueError:
        return None


def _position(text: str) -> tuple[float, float] | tuple[None, None]:
    numbers = re.fullmatch(r"([+-]?\d+(?:\.\d*)?)[\s,]+([+-]?\d+(?:\.\d*)?)", text)
    if numbers is None:
        return None, None
    latitude, longitude = float(numbers[1]), float(numbers[2])
    if abs(latitude) > 90 or abs(longitude) > 180 or (latitude, longitude) == (0, 0):
        return None, None
    return latitude, longitude


def _positive(text: str) -> float | None:
    number = re.fullmatch(r"\d+(?:\.\d*)?", text)
    return float(text) or None if number else None


# Firmware 1.0 has no zone, 1.0.1 to 1.1 "(UTC)", 1.2 on "(UTC-3)" or "(UTC+5:30)"; GPS firmware
# adds milliseconds. "during deployment X" stands where a custom id was set.
_AUDIOMOTH = re.compile(
    r"Recorded at (\d\d):(\d\d):(\d\d)(?:\.(\d{1,3}))? (\d\d)/(\d\d)/(\d{4})"
    r"(?: \((UTC)(?:([+-])(\d{1,2})(?::?(\d\d))?)?\))?",
    re.ASCII,
)
_AUDIOMOTH_ID = re.compile(r"AudioMoth ([0-9A-Fa-f]{16})\b")


def parse_audiomoth(comment: str, artist: str = "") -> Metadata:
    """Return time and device from an AudioMoth comment, of any firmware from 1.0 on.

    >>> parse_audiomoth("Recorded at 22:08:00 20/09/2022 (UTC+8) by AudioMoth 24E1440360379295 "
    ...                 "at low gain while battery was 3.6V").recorded_at.isoformat()
    '2022-09-20T22:08:00+08:00'
    """
    device = _AUDIOMOTH_ID.search(comment) or _AUDIOMOTH_ID.search(artist)
    return Metadata(
        recorded_at=_audiomoth_time(comment),
        device=f"AudioMoth {device[1].upper()}" if device else None,
    )


def _audiomoth_time(comment: str) -> datetime | None:
    match = _AUDIOMOTH.search(comment)
    if match is None:
        return None
    hour, minute, second, fraction, day, month, year, utc, sign, hours, minutes = match.groups()
    zone = _zone(sign or "+", hours or "0", minutes or "0") if utc else None
    if utc and zone is None:
        return None
    return _date((year, month, day, hour, minute, second), zone, (fraction or "0").ljust(6, "0"))


# YYYYMMDD and HHMMSS, also with dashes inside (OWL: 2022-07-19_T00-00-00), joined by "_", "-",
# "T" or nothing, then perhaps a zone: Z, _-0400 (SwiftOne), +0200, or -0400 in ISO style only,
# since "20230512_043000-0100" may as well be the hundredth piece.
_NAME_TIME = re.compile(
    r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<dash>-?)(?P<month>\d\d)(?P=dash)(?P<day>\d\d)"
    r"(?P<join>_T|[_\- ]|T|)"
    r"(?P<hour>\d\d)(?P<colon>[-:]?)(?P<minute>\d\d)(?P=colon)(?P<second>\d\d)(?!\d)"
    r"(?:(?P<utc>Z)(?![A-Za-z])|(?P<zone>_?[+-]\d{4})(?!\d))?",
    re.ASCII,
)
# Song Meters with two microphones add "_0+1_0".
_SONG_METER = re.compile(r"(?P<prefix>.+?)(?:_\d\+\d(?:_\d)?)?_\d{8}_\d{6}(?!\d)", re.ASCII)
_HEX_DEVICE = re.compile(r"[0-9A-F]{16}")
_UNIX_HEX = re.compile(r"(?=.*[A-F])[0-9A-F]{8}")
_SOUNDTRAP = re.compile(r"\d{3,10}\.(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)", re.ASCII)
_OLDEST_HEX, _NEWEST_HEX = datetime(2010, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)


def parse_name(name: str) -> Metadata:
    """Return time, site and device that a file name states in one of the usual ways.

    Eight hexadecimal digits are seconds since 1970 (first AudioMoths) only as a whole name, in
    capitals, with a letter among them and between 2010 and 2040: any other is a serial number.

    >>> parse_name("north/SMM03873_20220719_000000.wav").site
    'SMM03873'
    """
    stem = name.rstrip("/").rpartition("/")[2]
    if re.search(r"\.\w*[A-Za-z]\w*$", stem):
        stem = stem.rpartition(".")[0]
    if _UNIX_HEX.fullmatch(stem):
        stamp = datetime.fromtimestamp(int(stem, 16), UTC)
        return Metadata(stamp if _OLDEST_HEX <= stamp < _NEWEST_HEX else None)
    if soundtrap := _SOUNDTRAP.fullmatch(stem):
        year, *rest = soundtrap.groups()
        return Metadata(_date((f"20{year}", *rest), None))
    recorded_at = next(
        (time for match in _NAME_TIME.finditer(stem) if (time := _time(match))), None
    )
    found = Metadata(recorded_at)
    song_meter = _SONG_METER.match(stem)
    if song_meter is None or recorded_at is None:
        return found
    prefix = song_meter["prefix"]
    if _HEX_DEVICE.fullmatch(prefix):
        return replace(found, device=f"AudioMoth {prefix}")
    if prefix == "SwiftOne":
        return replace(found, device=prefix)
    return replace(found, site=prefix)


def _time(match: re.Match[str]) -> datetime | None:
    zone: timezone | None = UTC if match["utc"] else None
    if text := match["zone"]:
        offset = text.lstrip("_")
        states_zone = text[0] == "_" or offset[0] == "+" or match["join"] == "T"
        zone = _zone(offset[0], offset[1:3], offset[3:5]) if states_zone else None
    return _date(match.group("year", "month", "day", "hour", "minute", "second"), zone)


def _zone(sign: str, hours: str, minutes: str) -> timezone | None:
    """Return a time zone that exists on Earth, else None."""
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    if offset > timedelta(hours=14) or int(minutes) not in {0, 15, 30, 45}:
        return None
    return timezone(-offset if sign == "-" else offset)


def _date(parts: Sequence[str], zone: timezone | None, microsecond: str = "0") -> datetime | None:
    """Return year, month, day, hour, minute, second as a time, None where there is no such time."""
    year, month, day, hour, minute, second = (int(part) for part in parts)
    try:
        return _plausible(
            datetime(year, month, day, hour, minute, second, int(microsecond), tzinfo=zone)
        )
    except ValueError:
        return None


def _plausible(time: datetime) -> datetime | None:
    # 1970, 1980 and 2000 are also where clocks start that were never set, but recordings of those
    # years exist; only a year without field recorders is no date.
    return time if 1900 <= time.year < 2100 else None


def _bext_time(body: bytes) -> datetime | None:
    """Return OriginationDate and OriginationTime (EBU Tech 3285: bytes 320-337), naive."""
    text = body[320:338].decode("ascii", "replace")
    match = re.fullmatch(
        r"(\d{4})[-_:. /](\d\d)[-_:. /](\d\d)(\d\d)[-_:. /](\d\d)[-_:. /](\d\d)", text
    )
    return _date(match.group(1, 2, 3, 4, 5, 6), None) if match else None
