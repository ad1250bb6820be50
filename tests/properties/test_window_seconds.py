"""`valid_s >= end_s - start_s` holds for full windows and for no other, at any rate and position."""

from __future__ import annotations

from fractions import Fraction

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioembed_ray.window_seconds import window_seconds
from bioembed_ray.windows import Clock

quick = settings(deadline=None, max_examples=300)
MONTH_S = 30 * 86_400
CLOCKS = st.builds(
    Clock,
    st.sampled_from([8000, 11_025, 22_050, 44_100, 48_000, 250_001, 384_000, 500_000]),
    st.sampled_from([16_000, 22_050, 32_000, 44_100, 48_000]),
    st.sampled_from([1, 3, 7, 10, 20]),
)


@quick
@given(CLOCKS, st.integers(0, MONTH_S * 48_000), st.integers(1, 60 * 48_000))
def test_a_full_window_holds_what_it_is_long(clock: Clock, start: int, window: int) -> None:
    start_s, end_s, valid_s = window_seconds(clock, start, window, Fraction(window))
    scale = clock.encoder_hz * clock.time_expansion
    assert start_s == float(Fraction(start, scale))
    assert end_s == float(Fraction(start + window, scale))
    assert valid_s >= end_s - start_s
    # Both ends are rounded once, so that this is all that the length may be off by.
    assert abs(Fraction(valid_s) - Fraction(window, scale)) <= Fraction(np.spacing(end_s))


@quick
@given(CLOCKS, st.integers(0, MONTH_S * 48_000), st.integers(1, 60 * 48_000), st.data())
def test_any_other_window_holds_less(
    clock: Clock, start: int, window: int, data: st.DataObject
) -> None:
    # One native sample is the least that can be missing, in encoder samples.
    missing = data.draw(st.integers(1, 10**6)) * clock.ratio
    valid = max(Fraction(window) - missing, Fraction(0))
    start_s, end_s, valid_s = window_seconds(clock, start, window, valid)
    assert 0 <= valid_s < end_s - start_s
    wanted = valid / (clock.encoder_hz * clock.time_expansion)
    assert abs(Fraction(valid_s) - wanted) <= Fraction(np.spacing(end_s))


@pytest.mark.parametrize("hour", [0, 1, 24])
def test_full_ast_windows_are_found_by_sql(hour: int) -> None:
    clock, window = Clock(44_100, 16_000), 163_840
    first = hour * 3600 * 16_000 // window
    rows = [
        window_seconds(clock, k * window, window, Fraction(window))
        for k in range(first, first + 500)
    ]
    rows.append(window_seconds(clock, (first + 500) * window, window, Fraction(window - 1)))
    windows = pa.table(
        dict(zip(("start_s", "end_s", "valid_s"), zip(*rows, strict=True), strict=True))
    )
    full = duckdb.sql("select count(*) from windows where valid_s >= end_s - start_s").fetchall()
    assert windows.num_rows == 501
    assert full == [(500,)]
