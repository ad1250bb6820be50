"""Day, twilight or night: by the sun where the place is known, by the clock where it is not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

DAY, TWILIGHT, NIGHT, UNKNOWN = 0, 1, 2, 255
NAMES = ("day", "twilight", "night")
# Centre of the sun at sunrise: refraction and half a disc. End of civil twilight.
SUNRISE_DEGREES, CIVIL_DEGREES = -0.833, -6.0
CLOCK_DAY_H = (6.0, 18.0)
_J2000 = 946_728_000.0


def sun_elevation(unix_s: Floats, latitude: Floats, longitude: Floats) -> Floats:
    """Return how high the sun stands, degrees above the horizon, without refraction.

    Args:
        unix_s: (N,) seconds since 1970, UTC.
        latitude: (N,) degrees north.
        longitude: (N,) degrees east.

    Source:
        "Approximate Solar Coordinates", The Astronomical Almanac, section C: good to 0.01 degrees
        between 1950 and 2050; sidereal time from the same almanac, section B.

    >>> noon = np.array([1718971320.0])  # 21 June 2024, 12:02 UTC, Greenwich: 90 - 51.48 + 23.44
    >>> float(sun_elevation(noon, np.array([51.48]), np.array([0.0])).round(1)[0])
    62.0
    """
    days = (unix_s - _J2000) / 86_400
    mean_longitude = np.radians((280.460 + 0.9856474 * days) % 360)
    anomaly = np.radians((357.528 + 0.9856003 * days) % 360)
    ecliptic = (
        mean_longitude
        + np.radians(1.915) * np.sin(anomaly)
        + np.radians(0.020) * np.sin(2 * anomaly)
    )
    tilt = np.radians(23.439 - 0.0000004 * days)
    ascension = np.arctan2(np.cos(tilt) * np.sin(ecliptic), np.cos(ecliptic))
    declination = np.arcsin(np.sin(tilt) * np.sin(ecliptic))
    sidereal_h = 18.697374558 + 24.06570982441908 * days
    hour_angle = np.radians((sidereal_h * 15 + longitude) % 360) - ascension
    phi = np.radians(latitude)
    sine = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(
        hour_angle
    )
    found: Floats = np.degrees(np.arcsin(np.clip(sine, -1, 1)))
    return found


def by_sun(unix_s: Floats, latitude: Floats, longitude: Floats) -> Codes:
    """Return DAY, TWILIGHT (civil) or NIGHT; UNKNOWN where a number is NaN."""
    height = sun_elevation(unix_s, latitude, longitude)
    codes = np.where(
        height >= SUNRISE_DEGREES, DAY, np.where(height >= CIVIL_DEGREES, TWILIGHT, NIGHT)
    )
    return np.where(np.isnan(height), UNKNOWN, codes).astype(np.uint8)


def by_clock(hour: Floats) -> Codes:
    """Return DAY from 6 to 18 h of the recorder's own clock, else NIGHT; UNKNOWN where NaN."""
    is_day = (hour >= CLOCK_DAY_H[0]) & (hour < CLOCK_DAY_H[1])
    return np.where(np.isnan(hour), UNKNOWN, np.where(is_day, DAY, NIGHT)).astype(np.uint8)
