"""What time it is, from an object that can be given, so that time may run as a test wants."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Tell the time."""

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        ...


class WallClock:
    """Tell the time of this machine."""

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """Tell a time that stands still until it is moved.

    start: with an offset from UTC.
    """

    def __init__(self, start: datetime) -> None:
        self._milliseconds = round(start.timestamp() * 1000)

    def milliseconds(self) -> int:
        """Return the milliseconds since 1970-01-01 UTC."""
        return self._milliseconds

    def advance(self, seconds: float) -> None:
        """Move on by so many seconds."""
        self._milliseconds += round(seconds * 1000)
