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
class _Account:
    minute: int = 0
    used: int = 0
    refused: int = 0
    bans: int = 0
    status: Literal[418, 429] = 429
    until: int = 0


class Weights:
    """The used weight and the bans of all addresses.

    limit: the weight that each may use in a minute.
    """

    def __init__(self, clock: Clock, limit: int = LIMIT) -> None:
        self._clock = clock
        self.limit = limit
        self._accounts: dict[str, _Account] = {}

    def charge(self, address: str, weight: int) -> Verdict:
        """Count the weight of a request for its address, or reject the request."""
        now = self._clock.milliseconds()
        account = self._accounts.setdefault(address, _Account())
        if account.minute != now // _MINUTE_MS:
            account.minute, account.used = now // _MINUTE_MS, 0
        if now < account.until:
            account.refused += 1
            if account.refused > _PATIENCE:
                self._ban(account, now)
            return self._refusal(account, now)
        if account.until:
            account.until = account.refused = 0
        account.used += weight
        if account.used > self.limit:
            return self.refuse(address, 429, (account.minute + 1) * _MINUTE_MS)
        return Verdict(200, account.used)

    def refuse(self, address: str, status: Literal[418, 429], until: int) -> Verdict:
        """Reject all requests of an address up to a time."""
        account = self._accounts.setdefault(address, _Account())
        account.status, account.until, account.refused = status, until, 1
        return self._refusal(account, self._clock.milliseconds())

    def _ban(self, account: _Account, now: int) -> None:
        account.status, account.refused = 418, 0
        account.until = now + min(_FIRST_BAN_MS << account.bans, _LONGEST_BAN_MS)
        account.bans = min(account.bans + 1, 30)

    def _refusal(self, account: _Account, now: int) -> Verdict:
        seconds = max(1, ceil(self._clock.wall_seconds((account.until - now) / 1000)))
        return Verdict(account.status, account.used, account.until, seconds)
