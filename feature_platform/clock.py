"""The platform's clock: the wall clock, or for tests a simulated clock of another speed.

In every process, one clock decides whether a minute is closed, a row due or a gap old:
`get_settings().clock`. `database.connect` sets the same clock in the database, as
feature_platform.clock().
"""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE_MS = 60_000


def parse_time(text: str) -> datetime:
    """Read an ISO-8601 date or time, as a time in UTC; without an offset it is UTC.

    Raises ValueError if the text is no such time, or outside of the years 1 to 9999 in UTC.
    """
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).astimezone(UTC)
    except ValueError:
        raise ValueError(f"{text!r} is not an ISO-8601 time such as 2026-02-01T12:00Z") from None
    except OverflowError:
        raise ValueError(f"{text!r} is outside of the years 1 to 9999 in UTC") from None


class Clock(ABC):
    """A clock, and the wall-clock seconds until a time of it.

    speed: its seconds in one second of the wall clock.
    longest_nap: the longest sleep, in seconds of the wall clock, before it is read again.
    """

    speed: float = 1.0
    longest_nap: float = math.inf

    @abstractmethod
    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return _EPOCH + timedelta(milliseconds=self.milliseconds())

    def wall_seconds(self, seconds: float) -> float:
        """Return the wall-clock seconds that a number of this clock's seconds take; at least 0."""
        return max(0.0, seconds / self.speed)

    def wall_seconds_to_minute(self, second: float = 0.0) -> float:
        """Return the wall-clock seconds until the given second of the next minute."""
        passed = (self.milliseconds() - round(second * 1000)) % _MINUTE_MS
        return self.wall_seconds((_MINUTE_MS - passed) / 1000)


@dataclass(frozen=True)
class WallClock(Clock):
    """The clock of this machine."""

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class SimulatedClock(Clock):
    """A clock that runs at another speed than the wall clock.

    start: its time at the wall clock's `since`; both with an offset from UTC.
    """

    start: datetime
    since: datetime
    speed: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `START@SINCExSPEED`, as in 2026-03-01T00:00Z@2026-11-25T13:30Zx60.

        Raises ValueError with the fault.
        """
        match = _SIMULATED.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a clock; {_EXAMPLE}")
        start, since = (parse_time(match[name]) for name in ("start", "since"))
        speed = float(match["speed"])
        if not _SLOWEST <= speed <= _FASTEST:
            raise ValueError(f"a clock's speed is from {_SLOWEST} to {_FASTEST}, not {speed:g}")
        return cls(start, since, speed)

    def __str__(self) -> str:
        """Return the text that `parse` reads, without spaces."""
        start, since = (
            time.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
            for time in (self.start, self.since)
        )
        return f"{start}@{since}x{self.speed!r}"

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        passed = time.time_ns() // 1000 - _microseconds(self.since)
        return int(_microseconds(self.start) + passed * self.speed) // 1000


class ManualClock(Clock):
    """A clock that stands still until `advance` moves it.

    start: with an offset from UTC.
    """

    longest_nap = 0.01

    def __init__(self, start: datetime) -> None:
        self._milliseconds = round(start.timestamp() * 1000)

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        return self._milliseconds

    def advance(self, seconds: float) -> None:
        """Move the clock forward by some seconds."""
        self._milliseconds += round(seconds * 1000)


# With a faster clock, a microsecond of the wall clock would be more than 10 milliseconds here.
_SLOWEST, _FASTEST = 0.001, 10_000
_EXAMPLE = (
    "do not set it for the wall clock, or write its start, the wall-clock time of the start, and"
    " its speed, as in 2026-03-01T00:00Z@2026-11-25T13:30Zx60"
)
_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)"
_SIMULATED = re.compile(
    rf"\s*(?P<start>{_TIME})\s*@\s*(?P<since>{_TIME})\s*x\s*(?P<speed>\d+(?:\.\d+)?)\s*", re.ASCII
)


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
