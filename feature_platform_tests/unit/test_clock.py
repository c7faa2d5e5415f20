"""Guards against a platform clock with a wrong time or speed."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_platform.bars import time_of
from feature_platform.clock import Clock, ManualClock, SimulatedClock, WallClock, parse_time
from feature_platform.errors import UserError
from feature_platform.settings import get_settings

CLOCK = "2026-03-01T00:00Z@2026-11-25T13:30Zx60"
MOMENTS = st.integers(0, 4 * 10**15).map(time_of)
START = datetime(2026, 3, 1, tzinfo=UTC)
SINCE = datetime(2026, 11, 25, 13, 30, tzinfo=UTC)


def test_the_wall_clock_is_the_default() -> None:
    assert get_settings().clock == WallClock()
    before = datetime.now(UTC)
    found = WallClock().now()
    assert before - timedelta(milliseconds=1) <= found <= datetime.now(UTC)


@pytest.mark.parametrize(
    "text",
    [
        CLOCK,
        " 2026-03-01T00:00Z @ 2026-11-25T13:30Z x 60 ",
        "2026-03-01 01:00:00+01:00@2026-11-25T08:30:00.000-05:00x60.0",
    ],
)
def test_the_setting_is_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_CLOCK", text)
    assert get_settings().clock == SimulatedClock(START, SINCE, 60.0)


@pytest.mark.parametrize(
    "text",
    [
        "fast",
        "x60",
        "now@nowx60",
        "2026-03-01T00:00Z",
        "2026-03-01T00:00@2026-11-25T13:30Zx60",  # without a zone
        "2026-03-01T00:00Z@2026-11-25T13:30Z",
        "2026-03-01T00:00Z@2026-11-25T13:30Zx-1",
        "2026-03-01T00:00Z@2026-11-25T13:30Zx1e3",
        "2026-03-01T00:00Z@2026-11-25T13:30Zx0",
        "2026-03-01T00:00Z@2026-11-25T13:30Zx99999",
        "2026-02-30T00:00Z@2026-11-25T13:30Zx60",
        f"{CLOCK};SELECT",
    ],
)
def test_an_invalid_clock_is_rejected_in_one_line(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_CLOCK", text)
    with pytest.raises(UserError, match=r"^FEATURE_PLATFORM_CLOCK: [^\n]+$"):
        get_settings()


@given(MOMENTS, MOMENTS, st.floats(0.001, 10_000))
def test_a_clock_is_read_back_from_its_text(start: datetime, since: datetime, speed: float) -> None:
    clock = SimulatedClock(start, since, speed)
    assert SimulatedClock.parse(str(clock)) == clock
    assert " " not in str(clock)


def test_a_simulated_clock_runs_at_its_speed() -> None:
    since = datetime.now(UTC)
    clock = SimulatedClock(START, since, 3600.0)
    before = datetime.now(UTC)
    found = clock.now()
    after = datetime.now(UTC)
    tick = timedelta(milliseconds=1)
    assert START + (before - since) * 3600 - tick <= found <= START + (after - since) * 3600 + tick


@pytest.mark.parametrize("clock", [WallClock(), SimulatedClock.parse(CLOCK)])
def test_a_wait_for_a_minute_ends_in_that_minute(clock: Clock) -> None:
    began = clock.milliseconds()
    wait = clock.wall_seconds_to_minute(1.0)
    there = clock.milliseconds() + wait * clock.speed * 1000
    assert 0 < wait <= 60 / clock.speed
    assert abs((there - 1000 + 30_000) % 60_000 - 30_000) < 5 * clock.speed
    assert began < there


def test_a_wait_for_a_past_minute_takes_no_time() -> None:
    for clock in (WallClock(), SimulatedClock.parse(CLOCK), ManualClock(START)):
        assert clock.wall_seconds(-3.0) == 0
    assert WallClock().wall_seconds(3.0) == 3.0
    assert SimulatedClock.parse(CLOCK).wall_seconds(3.0) == 0.05


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-03-01", START),
        ("2026-03-01T00:00", START),
        ("2026-03-01T00:00Z", START),
        ("2026-03-01 05:30+05:30", START),
    ],
)
def test_a_time_without_an_offset_is_utc(text: str, time: datetime) -> None:
    found = parse_time(text)
    assert (found, found.tzinfo) == (time, UTC)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("yesterday", "'yesterday' is not an ISO-8601 time such as 2026-02-01T12:00Z"),
        ("2026-13-01", "'2026-13-01' is not an ISO-8601 time such as 2026-02-01T12:00Z"),
        ("0001-01-01T00:00+01:00", "'0001-01-01T00:00+01:00' is outside of the years 1 to 9999"),
    ],
)
def test_a_text_that_is_no_time_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_time(text)
