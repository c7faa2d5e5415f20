"""Binance's rate limit: each request has a weight; an address has a limit for each minute."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from feature_platform.clock import Clock

LIMIT = 6_000  # per address and minute

# An address with more rejected requests in a row is banned, each time for twice as long.
_PATIENCE = 10
_FIRST_BAN_MS = 2 * 60_000
_LONGEST_BAN_MS = 3 * 86_400_000
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about a request.

    status: 200, or the rejection: 429 for too much weight, 418 for a ban.
    used: the weight that the address has used in this minute.
    until: the end of the rejection, in milliseconds since 1970-01-01 UTC.
    retry_after: the same in seconds of the wall clock from now, at least 1.
    """

    status: Literal[200, 418, 429]
    used: int
    until: int = 0
    retry_after: int = 0


@dataclass(slots=True)
class _Usage:
    """The requests of one address.

    minute: the current minute, since 1970-01-01 UTC; used: its weight.
    rejected: the number of rejected requests in a row; bans: the number of bans.
    status, until: as in Verdict.
    """

    minute: int = 0
    used: int = 0
    rejected: int = 0
    bans: int = 0
    status: Literal[418, 429] = 429
    until: int = 0


class Weights:
    """The used weight and the bans of all addresses.

    limit: the weight that each address may use in a minute.
    """

    def __init__(self, clock: Clock, limit: int = LIMIT) -> None:
        self._clock = clock
        self.limit = limit
        self._usages: dict[str, _Usage] = {}

    def charge(self, address: str, weight: int) -> Verdict:
        """Count the weight of a request for its address, or reject the request."""
        now = self._clock.milliseconds()
        usage = self._usages.setdefault(address, _Usage())
        if usage.minute != now // _MINUTE_MS:
            usage.minute, usage.used = now // _MINUTE_MS, 0
        if now < usage.until:
            usage.rejected += 1
            if usage.rejected > _PATIENCE:
                self._ban(usage, now)
            return self._rejection(usage, now)
        if usage.until:
            usage.until = usage.rejected = 0
        usage.used += weight
        if usage.used > self.limit:
            return self.block(address, 429, (usage.minute + 1) * _MINUTE_MS)
        return Verdict(200, usage.used)

    def block(self, address: str, status: Literal[418, 429], until: int) -> Verdict:
        """Reject all requests of an address up to a time, in milliseconds since 1970-01-01 UTC.

        Returns the verdict of the current request.
        """
        usage = self._usages.setdefault(address, _Usage())
        usage.status, usage.until, usage.rejected = status, until, 1
        return self._rejection(usage, self._clock.milliseconds())

    def _ban(self, usage: _Usage, now: int) -> None:
        usage.status, usage.rejected = 418, 0
        usage.until = now + min(_FIRST_BAN_MS << usage.bans, _LONGEST_BAN_MS)
        usage.bans = min(usage.bans + 1, 30)

    def _rejection(self, usage: _Usage, now: int) -> Verdict:
        seconds = max(1, ceil(self._clock.wall_seconds((usage.until - now) / 1000)))
        return Verdict(usage.status, usage.used, usage.until, seconds)
