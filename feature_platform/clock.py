"""What time it is on the platform: the wall clock's time, or one that a test has run faster.

Whether a minute is over, a row due or a gap old is decided by one clock, `get_settings().clock`,
in every process; `database.connect` gives the same to the database, as feature_platform.clock().
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


class Clock(ABC):
    """Tell the time, and how long to wait for a later one.

    speed: how many of its seconds pass in one of the wall clock's.
    longest_nap: how long to sleep, in the wall clock's seconds, before looking at it again.
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
        """Return how long to sleep until so many seconds have passed here; never less than 0."""
        return max(0.0, seconds / self.speed)

    def wall_seconds_to_minute(self, second: float = 0.0) -> float:
        """Return how long to sleep until it is next so many seconds into a minute."""
        passed = (self.milliseconds() - round(second * 1000)) % _MINUTE_MS
        return self.wall_seconds((_MINUTE_MS - passed) / 1000)


@dataclass(frozen=True)
class WallClock(Clock):
    """Tell the time of this machine."""

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class SimulatedClock(Clock):
    """Tell a time that runs at another speed than the wall clock's.

    start: what it tells when the wall clock tells `since`; both with an offset from UTC.
    """

    start: datetime
    since: datetime
    speed: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `START@SINCExSPEED`, as in 2026-03-01T00:00Z@2026-11-25T13:30Zx60.

        Raises ValueError that says what is wrong.
        """
        match = _SIMULATED.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no clock; {_EXAMPLE}")
        start, since = (_moment(match[name]) for name in ("start", "since"))
        speed = float(match["speed"])
        if not _SLOWEST <= speed <= _FASTEST:
            raise ValueError(f"a clock's speed is from {_SLOWEST} to {_FASTEST}, not {speed:g}")
        return cls(start, since, speed)

    def __str__(self) -> str:
        """Return what `parse` reads, without spaces."""
        start, since = (
            moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
            for moment in (self.start, self.since)
        )
        return f"{start}@{since}x{self.speed!r}"

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        passed = time.time_ns() // 1000 - _microseconds(self.since)
        return int(_microseconds(self.start) + passed * self.speed) // 1000


class ManualClock(Clock):
    """Tell a time that stands still until it is moved.

    start: with an offset from UTC.
    """

    longest_nap = 0.01

    def __init__(self, start: datetime) -> None:
        self._milliseconds = round(start.timestamp() * 1000)

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        return self._milliseconds

    def advance(self, seconds: float) -> None:
        """Move on by so many seconds."""
        self._milliseconds += round(seconds * 1000)


# Beyond, a microsecond of the wall clock's is a matter of milliseconds here.
_SLOWEST, _FASTEST = 0.001, 10_000
_EXAMPLE = (
    "leave it out for the wall clock, or write what it tells, when on the wall, and its speed,"
    " as in 2026-03-01T00:00Z@2026-11-25T13:30Zx60"
)
_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)"
_SIMULATED = re.compile(
    rf"\s*(?P<start>{_TIME})\s*@\s*(?P<since>{_TIME})\s*x\s*(?P<speed>\d+(?:\.\d+)?)\s*", re.ASCII
)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no time: {error}") from None


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
