"""Build one-minute rows from single trades, for exchanges that stream no bars."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from feature_platform.bar_rules import MINUTE_US

_log = logging.getLogger(__name__)

# How long a minute's sums stay in memory for trades that arrive late.
_RETAINED = 2 * MINUTE_US


@dataclass
class _MinuteSums:
    """The sums of one symbol's trades in one minute.

    first, last: time in milliseconds and price of the first and the last trade.
    """

    first: tuple[int, float]
    last: tuple[int, float]
    high: float
    low: float
    volume: Decimal
    ids: set[str]


class TradeSums:
    """Sum up trades by symbol and minute.

    since: trades of minutes that began earlier are ignored, because the first trades of such a
        minute are missing; microseconds.
    """

    def __init__(self, since: int) -> None:
        self._since = since
        self._newest = since
        self._sums: dict[tuple[str, int], _MinuteSums | None] = {}

    def add(self, symbol: str, trade: Mapping[str, Any]) -> list[float] | None:
        """Add a trade in ccxt's form; return its minute's row so far, None where there is none.

        A trade with a known id changes nothing. After a trade that cannot be read, its minute has
        no row any more: its bar comes over REST.
        """
        time, price, amount = (trade.get(name) for name in ("timestamp", "price", "amount"))
        if not isinstance(time, int):
            _log.warning("%s: a trade without a time: %.200s", symbol, trade)
            return None
        minute = time * 1000 // MINUTE_US * MINUTE_US
        if minute < self._since:
            return None
        self._discard_old(minute)
        key = symbol, minute
        try:
            size = Decimal(repr(float(amount)))  # type: ignore[arg-type]
            paid = float(price)  # type: ignore[arg-type]
        except (TypeError, ValueError, InvalidOperation):
            _log.warning("%s: a trade that cannot be read: %.200s", symbol, trade)
            self._sums[key] = None
            return None
        sums = self._sums.setdefault(
            key, _MinuteSums((time, paid), (time, paid), paid, paid, Decimal(0), set())
        )
        trade_id = trade.get("id")
        if sums is None or trade_id in sums.ids:
            return None
        if trade_id is not None:
            sums.ids.add(trade_id)
        if time < sums.first[0]:
            sums.first = time, paid
        if time >= sums.last[0]:
            sums.last = time, paid
        sums.high, sums.low = max(sums.high, paid), min(sums.low, paid)
        sums.volume += size
        row = [sums.first[1], sums.high, sums.low, sums.last[1], float(sums.volume)]
        return [minute // 1000, *row]

    def _discard_old(self, minute: int) -> None:
        """Discard the sums of old minutes; does so once a minute."""
        if minute <= self._newest:
            return
        self._newest = minute
        for key in [key for key in self._sums if key[1] < minute - _RETAINED]:
            del self._sums[key]
