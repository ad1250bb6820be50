from __future__ import annotations

import pytest

from bioembed_ray.audio.metadata import (
    Metadata,
    collect_metadata,
    parse_audiomoth,
    parse_guano,
    parse_name,
)


def at(metadata: Metadata) -> str | None:
    return None if metadata.recorded_at is None else metadata.recorded_at.isoformat()


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("20230512_043000.WAV", "2023-05-12T04:30:00"),
        ("20240903_193130T.WAV", "2024-09-03T19:31:30"),
        ("deep/er/20230512_043000.wav", "2023-05-12T04:30:00"),
        ("20230512-043000.flac", "2023-05-12T04:30:00"),
        ("5AEC3F80.WAV", "2018-05-04T11:09:52+00:00"),
        ("SMM03873_20220719_000000.wav", "2022-07-19T00:00:00"),
        ("SBT-6-76-18_0+1_0_20160621_080000.wav", "2016-06-21T08:00:00"),
        ("OWL_123456_2022-07-19_T00-00-00.WAV", "2022-07-19T00:00:00"),
        ("SwiftOne_20220719_000000_-0400.wav", "2022-07-19T00:00:00-04:00"),
        ("SwiftOne_20220719_000000_+0530.wav", "2022-07-19T00:00:00+05:30"),
        ("242A2604603691DD_20250503_031300.WAV", "2025-05-03T03:13:00"),
        ("birds_20210510_180000Z.flac", "2021-05-10T18:00:00+00:00"),
        ("SanctSound_CI05_04_finwhale_20191228T134133Z.wav", "2019-12-28T13:41:33+00:00"),
        ("20230512T043000+0100.wav", "2023-05-12T04:30:00+01:00"),
        ("PS_20130625111709_ch3.wav", "2013-06-25T11:17:09"),
        ("67416073.180502120000.wav", "2018-05-02T12:00:00"),
        ("20240229_120000.wav", "2024-02-29T12:00:00"),
        ("12345678_20230512_043000.wav", "2023-05-12T04:30:00"),
    ],
)
def test_file_names_give_their_time(name: str, time: str) -> None:
    assert at(parse_name(name)) == time


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a.wav",
        "20231312_043000.wav",  # month 13
        "20230230_043000.wav",  # 30 February
        "20230229_120000.wav",  # no leap year
        "20230512_243000.wav",  # hour 24
        "20230512_046000.wav",  # minute 60
        "20230512.wav",  # a day, not a time
        "120230512_0430001.wav",  # longer numbers
        "10230512_043000.wav",
        "67416073.flac",  # a serial number, though hexadecimal for 2024
        "50366825.wav",  # an iNaturalist id, hexadecimal for 2012
        "5aec3f80.wav",  # a digest's beginning, not what AudioMoth writes
        "5AEC3F80_2.wav",
        "0000000A.WAV",  # 1970
        "FFFFFFFF.WAV",  # 2106
        "XC564654.mp3",
        "20230512_043000/a.wav",  # a folder is not the recording
    ],
)
def test_no_time_is_made_up(name: str) -> None:
    assert parse_name(name).recorded_at is None


@pytest.mark.parametrize(
    "name", ["20230512_043000-0100.wav", "20230512_043000_-0401.wav", "20230512_043000_+1500.wav"]
)
def test_a_zone_is_only_given_where_there_is_no_other_reading(name: str) -> None:
    assert at(parse_name(name)) == "2023-05-12T04:30:00"


@pytest.mark.parametrize(
    ("name", "site", "device"),
    [
        ("north/SMM03873_20220719_000000.wav", "SMM03873", None),
        ("SITE_A_20230512_043000.wav", "SITE_A", None),
        ("SITE_1_20230512_043000.wav", "SITE_1", None),
        ("SBT-6-76-18_0+1_0_20160621_080000.wav", "SBT-6-76-18", None),
        ("242A2604603691DD_20250503_031300.WAV", None, "AudioMoth 242A2604603691DD"),
        ("SwiftOne_20220719_000000_-0400.wav", None, "SwiftOne"),
        ("20230512_043000.WAV", None, None),
        ("SITE_20231312_043000.wav", None, None),
    ],
)
def test_the_prefix_is_a_site_or_a_device(name: str, site: str | None, device: str | None) -> None:
    found = parse_name(name)
    assert (found.site, found.device) == (site, device)


@pytest.mark.parametrize(
    ("comment", "time", "device"),
    [
        ("Recorded at 10:25:00 07/05/2018 by AudioMoth 0FE081F80FE081F0 at gain setting 2 while battery state was 4.5V", "2018-05-07T10:25:00", "0FE081F80FE081F0"),
        ("Recorded at 10:25:00 07/05/2018 (UTC) by AudioMoth 0FE081F80FE081F0 at gain setting 2 while battery state was > 5.0V", "2018-05-07T10:25:00+00:00", "0FE081F80FE081F0"),
        ("Recorded at 05:45:00 02/07/2021 (UTC-3) by AudioMoth 24E144085F256419 at medium gain while battery was greater than 4.9V and temperature was 9.4C.", "2021-07-02T05:45:00-03:00", "24E144085F256419"),
        ("Recorded at 05:45:00 02/07/2021 (UTC+5:30) by AudioMoth 24E144085F256419 at low-medium gain.", "2021-07-02T05:45:00+05:30", "24E144085F256419"),
        ("Recorded at 05:45:00 02/07/2021 (UTC-3:30) by AudioMoth 24E144085F256419", "2021-07-02T05:45:00-03:30", "24E144085F256419"),
        ("Recorded at 05:45:00 02/07/2021 (UTC+0530) by AudioMoth 24E144085F256419", "2021-07-02T05:45:00+05:30", "24E144085F256419"),
        ("Recorded at 05:45:00 02/07/2021 (UTC) during deployment 0011223344556677 at medium gain.", "2021-07-02T05:45:00+00:00", None),
        ("Recorded at 15:00:00.500 01/02/2023 (UTC) by AudioMoth 24E144085F256419", "2023-02-01T15:00:00.500000+00:00", "24E144085F256419"),
        ("Recorded at 19:31:30 03/09/2024 (UTC+1) by AudioMoth 24E144055E080032 at medium gain while battery was 4.3V and temperature was 18.7C. High-pass filter with frequency of 15.0kHz applied.", "2024-09-03T19:31:30+01:00", "24E144055E080032"),
        ("Recorded at 25:31:30 03/09/2024 (UTC+1) by AudioMoth 24E144055E080032", None, "24E144055E080032"),
        ("Recorded at 10:31:30 03/13/2024 (UTC+1)", None, None),
        ("Recorded at 10:31:30 03/09/2024 (UTC+99)", None, None),
        ("Fade in 5ms, Fade out 5ms.", None, None),
        ("", None, None),
    ],
)  # fmt: skip
def test_comments_of_every_firmware_are_read(
    comment: str, time: str | None, device: str | None
) -> None:
    found = parse_audiomoth(comment)
    assert at(found) == time
    assert found.device == (None if device is None else f"AudioMoth {device}")


def test_the_artist_names_the_device_where_the_comment_does_not() -> None:
    found = parse_audiomoth("Recorded at 05:45:00 02/07/2021 (UTC)", "AudioMoth 24E144055E080032")
    assert found.device == "AudioMoth 24E144055E080032"
    assert parse_audiomoth("", "Jane Doe").device is None


GUANO = """GUANO|Version: 1.0
Timestamp: 2017-04-29T22:15:30-05:00
Make: Wildlife Acoustics, Inc.
Model: Song Meter Mini Bat
Serial: SMU01234
TE: 10
Loc Position: 32.1878016 -86.1057312
WA|Song Meter|Prefix: MARSH-3
Note: a: b: c
"""


def test_guano_is_read() -> None:
    assert parse_guano(GUANO) == Metadata(
        recorded_at=parse_guano("Timestamp:2017-04-29T22:15:30-05:00").recorded_at,
        device="Song Meter Mini Bat SMU01234",
        site="MARSH-3",
        latitude=32.1878016,
        longitude=-86.1057312,
        time_expansion=10.0,
    )
    assert at(parse_guano(GUANO)) == "2017-04-29T22:15:30-05:00"


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("Timestamp: 2017-04-29T22:15:30", "2017-04-29T22:15:30"),
        ("Timestamp: 2017-04-29T22:15:30Z", "2017-04-29T22:15:30+00:00"),
        ("Timestamp:2017-04-29 22:15:30.250", "2017-04-29T22:15:30.250000"),
        ("Timestamp: 2017-13-29T22:15:30", None),
        ("Timestamp: yesterday", None),
        ("Timestamp:", None),
        ("Original Filename: 20240903_193130T.WAV", "2024-09-03T19:31:30"),
    ],
)
def test_guano_times_are_aware_only_where_they_say_so(line: str, time: str | None) -> None:
    assert at(parse_guano(line + "\0")) == time


@pytest.mark.parametrize("value", ["0.0 0.0", "91 5", "5 181", "somewhere", "12.5", ""])
def test_an_impossible_position_is_none(value: str) -> None:
    found = parse_guano(f"Loc Position: {value}")
    assert (found.latitude, found.longitude) == (None, None)


@pytest.mark.parametrize("value", ["0", "-1", "ten", "nan", ""])
def test_an_impossible_time_expansion_is_none(value: str) -> None:
    assert parse_guano(f"TE: {value}").time_expansion is None


def test_guano_goes_before_the_comment_before_the_name_before_bext() -> None:
    guano = "Timestamp: 2021-01-01T00:00:01Z"
    comment = "Recorded at 00:00:02 01/01/2021 (UTC) by AudioMoth 24E144055E080032"
    name = "MARSH_20210101_000003.wav"
    bext = bytes(320) + b"2021-01-0100:00:04" + bytes(300)
    everything = collect_metadata(name, guano=guano, comment=comment, bext=bext)
    assert (at(everything), everything.device, everything.site) == (
        "2021-01-01T00:00:01+00:00",
        "AudioMoth 24E144055E080032",
        "MARSH",
    )
    assert at(collect_metadata(name, comment=comment, bext=bext)) == "2021-01-01T00:00:02+00:00"
    assert at(collect_metadata(name, bext=bext)) == "2021-01-01T00:00:03"
    assert at(collect_metadata("a.wav", bext=bext)) == "2021-01-01T00:00:04"
    assert collect_metadata("a.wav", bext=bytes(602)) == Metadata()
    assert collect_metadata("") == Metadata()
