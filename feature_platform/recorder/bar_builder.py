"""From what a stream says of minutes to bars of minutes that are over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from feature_platform.bar_rules import PRICES
from feature_platform.bars import MINUTE_US, StreamBar
from feature_platform.exchange.response import judge_rows

_log = logging.getLogger(__name__)

# How long what was said of a minute is remembered, to tell a correction from an old message.
_REMEMBERED = 15 * MINUTE_US
# So many minutes of which nothing is said once they are over are enough to tell a kind of stream.
_ENOUGH = 3
# How long trades that come late still find those of their minute.
_TRADES_KEPT = 2 * MINUTE_US

Values = tuple[float, float, float, float, float]


class Heard(NamedTuple):
    """Be what a stream said of a minute.

    row: as ccxt gives it: the minute in milliseconds, open, high, low, close and volume.
    at: when it was heard, in microseconds.
    final: whether the stream said that the minute is over; None where it says no such thing, and
        the moment decides.
    """

    symbol: str
    row: Sequence[Any]
    at: int
    final: bool | None = None


class Refused(NamedTuple):
    """Be what a stream said and cannot be a bar, and why not."""

    symbol: str
    reason: str
    text: str


@dataclass
class Due:
    """Hold what has become due.

    bars: of minutes that are over; also those that say something new of an older minute.
    doubts: minutes of which what was said may not be the last word: the exchange is to be asked.
        Symbol and minute.
    refused: what cannot be a bar.
    """

    bars: list[StreamBar] = field(default_factory=list)
    doubts: list[tuple[str, int]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


@dataclass(slots=True)
class _Said:
    """Hold what was said last of a market's minute.

    closed: whether that was of the minute when it was over.
    """

    values: Values
    closed: bool


class BarBuilder:
    """Collect what a stream says of each minute, and hand it out once the minute is over.

    grace: how long after its end a minute is over, for its last trades to arrive; microseconds.
    last_call: how long after its grace what was said of a minute before its end waits to be
        confirmed; microseconds.
    closers: whether the stream says something of each minute once it is over, as streams of bars
        do: then what was said before is not all there was. By default that is found out, or
        said: by streams that call a bar final.

    A stream repeats itself, and may do so out of order: what says less of a minute than is known,
    a smaller volume within the known range of prices, is taken for an old message.
    """

    def __init__(self, grace: int, last_call: int, *, closers: bool | None = None) -> None:
        self._grace = grace
        self._last_call = last_call
        self._closers = closers
        self._without_closers = 0
        self._minutes: dict[int, dict[str, _Said]] = {}
        self._handed: dict[int, dict[str, Values]] = {}
        self._due = Due()

    def say(self, rows: Sequence[Heard]) -> None:
        """Take in what was heard, in the order in which it came."""
        judged = judge_rows([heard.row for heard in rows])
        for bad in judged.bad:
            heard = rows[bad.line]
            self._due.refused.append(Refused(heard.symbol, bad.reason, str(heard.row)[:200]))
        columns = [getattr(judged, name).tolist() for name in ("line", "ts", *PRICES)]
        for line, ts, *values in zip(*columns, strict=True):
            symbol, _, at, final = rows[line]
            opening, high, low, close, vol = values
            if ts > at + MINUTE_US:
                reason = f"its minute begins {(ts - at) / 1e6:,.0f} s in the future"
                self._due.refused.append(Refused(symbol, reason, str(rows[line].row)[:200]))
                continue
            if ts < at - _REMEMBERED:
                continue  # history is fetched over REST, which has the last word on it
            if final is not None:
                self._closers = True
                if not final and self._is_closed(symbol, ts):
                    continue
            # What was said within a minute may be heard after it.
            closed = at >= ts + MINUTE_US if final is None else final
            self._say(symbol, ts, (opening, high, low, close, vol), closed=closed)

    def forget_open(self) -> None:
        """Forget the minutes that were not handed out: the stream broke off within them."""
        self._minutes.clear()

    def next_due(self) -> int | None:
        """Return when the oldest minute is over, in microseconds; None where there is none."""
        return min(self._minutes) + MINUTE_US + self._grace if self._minutes else None

    def take(self, now: int, heard: int) -> Due:
        """Return what is due at `now`, and forget it.

        heard: when the stream was last heard of. A stream that has said nothing since the end of
            a minute may be dead, and have broken off within it; times are in microseconds.
        """
        for ts in sorted(self._minutes):
            if now < ts + MINUTE_US + self._grace or heard < ts + MINUTE_US:
                break
            self._hand_out(ts, last_call=now >= ts + MINUTE_US + self._grace + self._last_call)
        for ts in [ts for ts in self._handed if ts < now - _REMEMBERED]:
            del self._handed[ts]
        due, self._due = self._due, Due()
        return due

    def _hand_out(self, ts: int, *, last_call: bool) -> None:
        """Hand out what is sure of a minute; at the last call, have the rest asked for."""
        said_of = self._minutes.pop(ts)
        if self._closers is not False:
            open_still = {symbol: said for symbol, said in said_of.items() if not said.closed}
            if last_call:
                self._due.doubts += [(symbol, ts) for symbol in open_still]
            elif open_still:
                self._minutes[ts] = open_still
            if self._closers is None:
                self._find_out_closers(2 * len(open_still) <= len(said_of), last_call)
            said_of = {symbol: said for symbol, said in said_of.items() if said.closed}
        values_of = {symbol: said.values for symbol, said in said_of.items()}
        self._due.bars += [StreamBar(symbol, ts, *values) for symbol, values in values_of.items()]
        if values_of:
            self._handed.setdefault(ts, {}).update(values_of)

    def _is_closed(self, symbol: str, ts: int) -> bool:
        """Tell whether the last word of a minute was said."""
        said = self._minutes.get(ts, {}).get(symbol)
        return symbol in self._handed.get(ts, {}) or (said is not None and said.closed)

    def _say(self, symbol: str, ts: int, values: Values, *, closed: bool) -> None:
        handed = self._handed.get(ts, {}).get(symbol)
        said = self._minutes.get(ts, {}).get(symbol)
        known = said.values if said is not None else handed
        if known is not None and _says_less(values, known):
            if handed is not None:
                self._due.doubts.append((symbol, ts))
        elif values != handed:
            self._minutes.setdefault(ts, {})[symbol] = _Said(values, closed)

    def _find_out_closers(self, found: bool, last_call: bool) -> None:
        if found and not last_call:
            self._closers = True
        elif last_call:
            self._without_closers += 1
            if self._without_closers >= _ENOUGH:
                self._closers = False


def _says_less(values: Values, known: Values) -> bool:
    """Tell whether values may be what was known of the minute at an earlier time."""
    opening, high, low, _, vol = values
    return opening == known[0] and high <= known[1] and low >= known[2] and vol < known[4]


@dataclass
class _Trades:
    """Sum up the trades of one market in one minute."""

    first: tuple[int, float]
    last: tuple[int, float]
    high: float
    low: float
    volume: Decimal
    ids: set[str]


class TradeSums:
    """Build rows of minutes from single trades, as a venue would that has no stream of bars.

    since: minutes that began earlier are left out, as their first trades were not heard;
        microseconds.
    """

    def __init__(self, since: int) -> None:
        self._since = since
        self._newest = since
        self._sums: dict[tuple[str, int], _Trades | None] = {}

    def add(self, symbol: str, trade: Mapping[str, Any]) -> list[float] | None:
        """Add a trade as ccxt gives it; return its minute's row so far, None where it has none.

        A trade that was heard before changes nothing. One that cannot be read spoils its minute,
        which is never told of again: the exchange has its bar.
        """
        time, price, amount = (trade.get(name) for name in ("timestamp", "price", "amount"))
        if not isinstance(time, int):
            _log.warning("%s: a trade without a time: %.200s", symbol, trade)
            return None
        minute = time * 1000 // MINUTE_US * MINUTE_US
        if minute < self._since:
            return None
        self._forget(minute)
        key = symbol, minute
        try:
            size = Decimal(repr(float(amount)))  # type: ignore[arg-type]
            paid = float(price)  # type: ignore[arg-type]
        except (TypeError, ValueError, InvalidOperation):
            _log.warning("%s: a trade that cannot be read: %.200s", symbol, trade)
            self._sums[key] = None
            return None
        sums = self._sums.setdefault(
            key, _Trades((time, paid), (time, paid), paid, paid, Decimal(0), set())
        )
        name = trade.get("id")
        if sums is None or name in sums.ids:
            return None
        if name is not None:
            sums.ids.add(name)
        if time < sums.first[0]:
            sums.first = time, paid
        if time >= sums.last[0]:
            sums.last = time, paid
        sums.high, sums.low = max(sums.high, paid), min(sums.low, paid)
        sums.volume += size
        row = [sums.first[1], sums.high, sums.low, sums.last[1], float(sums.volume)]
        return [minute // 1000, *row]

    def _forget(self, minute: int) -> None:
        """Forget what is long over, once a minute."""
        if minute <= self._newest:
            return
        self._newest = minute
        for key in [key for key in self._sums if key[1] < minute - _TRADES_KEPT]:
            del self._sums[key]
