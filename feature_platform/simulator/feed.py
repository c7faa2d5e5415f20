"""What the simulated exchange sends by itself: the trades and bars of markets, as time goes on.

One task makes the events of all markets, each once, whoever listens; a listener takes its texts.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, Protocol

import numpy as np

from feature_platform.simulator.binance_events import (
    agg_trade_event,
    kline_event,
    trade_event,
)
from feature_platform.simulator.markets import Market
from feature_platform.simulator.trades import Trades, bar_so_far, trades_of
from feature_platform.simulator.truth import MINUTE_MS, MinuteBars
from feature_platform.simulator.venue import Venue

_log = logging.getLogger(__name__)

Kind = Literal["kline_1m", "trade", "aggTrade"]
KINDS: tuple[Kind, ...] = ("kline_1m", "trade", "aggTrade")

# The truth is asked for so many minutes at once: one costs hardly less.
_BLOCK = 32

# Further back, nothing is made up for: whoever slept that long asks over REST.
_LONGEST_SLEEP = 1440


class Listener(Protocol):
    """Take the events of streams."""

    def take(self, stream: str, event: str) -> None:
        """Take one event, JSON without the wrapping of combined streams."""
        ...


@dataclass
class _Symbol:
    """Hold what is known of one market that somebody has listened to.

    block: its bars of some minutes, of which the last is before `block_end`.
    bar, trades: of the minute that goes on; no bar where the venue has none.
    sent: how many of the trades are out.
    """

    symbol: str
    market: Market
    block: MinuteBars
    block_end: int
    minute: int = -1
    bar: MinuteBars | None = None
    trades: Trades | None = None
    sent: int = 0


@dataclass(order=True)
class _Due:
    """Be a closed bar that goes out at a moment."""

    at: int
    number: int
    state: _Symbol = field(compare=False)
    bar: MinuteBars = field(compare=False)


class Feed:
    """Make events of the streams that somebody listens to, and give them to him.

    update_seconds: of the wall clock, between updates of the bars that are still open, where
        there were trades; closed bars go out on the minute whatever it is.
    """

    def __init__(self, venue: Venue, update_seconds: float = 1.0) -> None:
        self._venue = venue
        self._update_seconds = update_seconds
        self._listeners: dict[str, set[Listener]] = defaultdict(set)
        self._symbols: dict[str, _Symbol] = {}
        self._by_stream_id = {market.id.lower(): market for market in venue.truth.markets.values()}
        self._due: list[_Due] = []
        self._numbers = count()
        self._now = 0
        self._task: asyncio.Task[None] | None = None

    def join(self, listener: Listener, streams: Iterable[str]) -> None:
        """Have a listener take the events of streams from now on; unknown markets have none."""
        if self._task is None:
            self._now = self._venue.clock.milliseconds()
            self._task = asyncio.get_running_loop().create_task(self._run())
        for stream in streams:
            self._listeners[stream].add(listener)
            market = self._by_stream_id.get(stream.partition("@")[0])
            if market is not None and market.symbol not in self._symbols:
                self._symbols[market.symbol] = self._enter(market)

    def leave(self, listener: Listener, streams: Iterable[str]) -> None:
        """Have a listener take no more events of streams."""
        for stream in streams:
            self._listeners[stream].discard(listener)

    async def _run(self) -> None:
        """Make events for ever: a market that was listened to once may be again."""
        clock = self._venue.clock
        while True:
            to_minute = clock.wall_seconds_to_minute()
            await asyncio.sleep(min(to_minute, self._update_seconds, clock.longest_nap))
            self._advance(clock.milliseconds())

    def _advance(self, now: int) -> None:
        """Make the events of the time since the last call, in order."""
        if now - self._now > _LONGEST_SLEEP * MINUTE_MS:
            _log.warning("feed jumped minutes=%d", (now - self._now) // MINUTE_MS)
            self._now = now - _LONGEST_SLEEP * MINUTE_MS
        while self._now < now:
            end = min(now, (self._now // MINUTE_MS + 1) * MINUTE_MS)
            self._send_due(end - 1)
            for state in self._symbols.values():
                self._send_trades(state, end)
            if end % MINUTE_MS == 0:
                for state in self._symbols.values():
                    self._close(state, end)
            self._send_due(end)
            self._now = end

    def _enter(self, market: Market) -> _Symbol:
        """Begin with a market in the middle of a minute."""
        minute = self._now // MINUTE_MS
        block = self._venue.truth.minutes(market.symbol, minute, minute + _BLOCK)
        state = _Symbol(market.symbol, market, block, minute + _BLOCK)
        self._open(state, minute)
        if state.trades is not None:
            state.sent = state.trades.until(self._now)
        return state

    def _open(self, state: _Symbol, minute: int) -> None:
        if minute >= state.block_end:
            state.block = self._venue.truth.minutes(state.symbol, minute, minute + _BLOCK)
            state.block_end = minute + _BLOCK
        at = int(np.searchsorted(state.block.minute, minute))
        found = at < len(state.block) and int(state.block.minute[at]) == minute
        state.minute = minute
        state.bar = state.block.take(slice(at, at + 1)) if found else None
        state.trades = None if state.bar is None else trades_of(state.market, state.bar)
        state.sent = 0

    def _send_trades(self, state: _Symbol, end: int) -> None:
        """Send the trades before a moment that are not out yet, and what they made of the bar."""
        trades, bar = state.trades, state.bar
        if trades is None or bar is None:
            return
        until = trades.until(end)
        if until == state.sent:
            return
        for kind, event in _TRADES.items():
            stream = _stream(state.market, kind)
            if self._listeners.get(stream):
                for at in range(state.sent, until):
                    self._send(stream, event(state.market, trades, at, end))
        state.sent = until
        if end % MINUTE_MS != 0:
            stream = _stream(state.market, "kline_1m")
            if self._listeners.get(stream):
                so_far = bar_so_far(bar, trades, until)
                self._send(stream, kline_event(state.market, so_far, end, closed=False))

    def _close(self, state: _Symbol, end: int) -> None:
        """End the minute of a market, and begin its next one."""
        if state.bar is not None:
            heapq.heappush(self._due, _Due(end, next(self._numbers), state, state.bar))
        self._open(state, end // MINUTE_MS)

    def _send_due(self, until: int) -> None:
        while self._due and self._due[0].at <= until:
            due = heapq.heappop(self._due)
            event = kline_event(due.state.market, due.bar, due.at, closed=True)
            self._send(_stream(due.state.market, "kline_1m"), event)

    def _send(self, stream: str, event: str) -> None:
        for listener in self._listeners.get(stream, ()):
            listener.take(stream, event)


def _stream(market: Market, kind: Kind) -> str:
    return f"{market.id.lower()}@{kind}"


_TRADES: dict[Kind, Callable[[Market, Trades, int, int], str]] = {
    "trade": trade_event,
    "aggTrade": agg_trade_event,
}
