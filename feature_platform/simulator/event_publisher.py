"""The events of the simulated exchange's streams: trades and bars, as time passes.

One task makes the events of all symbols, each once, and gives them to the subscribed connections.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Literal, Protocol

import numpy as np

from feature_platform.simulator.binance_events import (
    agg_trade_event,
    damaged_kline,
    kline_event,
    trade_event,
)
from feature_platform.simulator.faults import (
    ConnectionFault,
    Dropped,
    Duplicated,
    Impossible,
    Lost,
    Reordered,
    Stalled,
    StreamFault,
    Undecodable,
)
from feature_platform.simulator.markets import Market
from feature_platform.simulator.published import PublishedBars
from feature_platform.simulator.trades import Trades, bar_so_far, trades_of
from feature_platform.simulator.truth import MINUTE_MS, MinuteBars

_log = logging.getLogger(__name__)

Kind = Literal["kline_1m", "trade", "aggTrade"]
KINDS: tuple[Kind, ...] = ("kline_1m", "trade", "aggTrade")

# Minutes that are read from the truth at once: a single one costs nearly as much.
_BLOCK = 32

# Seconds of the wall clock: with a fast clock, clients must still be able to read all events.
_SHORTEST_NAP = 0.25

# Minutes: after a longer sleep older events are not sent; clients request them over REST.
_LONGEST_SLEEP = 1440


class Subscriber(Protocol):
    """A connection that receives the events of streams."""

    def take(self, stream: str, event: str | bytes) -> None:
        """Receive one event, JSON without the wrapping of combined streams, or a binary frame."""
        ...

    def drop(self, code: int | None) -> None:
        """Close the connection with a code, or reset it."""
        ...

    def stall(self, *, pongs: bool) -> None:
        """Keep the connection open without sending events; with pongs, answer pings."""
        ...

    def resume(self) -> None:
        """End a stall; the events of that time are lost."""
        ...


@dataclass
class _Symbol:
    """The state of one symbol that a connection has subscribed to.

    block: its bars of some minutes, before the minute `block_end`.
    bar, trades: of the current minute; None if the exchange publishes none.
    shown: whether its open bar is published.
    sent: the number of trades that have been sent.
    faults: the faults of the minute, for a generation of the faults.
    """

    market: Market
    block: MinuteBars
    block_end: int
    minute: int = -1
    bar: MinuteBars | None = None
    trades: Trades | None = None
    shown: bool = False
    sent: int = 0
    faults: list[StreamFault] = field(default_factory=list)
    generation: int = -1


@dataclass(order=True)
class _Due:
    """A planned call, and its time in milliseconds since 1970-01-01 UTC."""

    at: int
    number: int
    happen: Callable[[], None] = field(compare=False)


class EventPublisher:
    """Make the events of subscribed streams, and give them to their connections.

    update_seconds: the time between updates of the current minute (its trades, and after trades
        its bar), by the exchange's clock; at most four updates a second of the wall clock.
        Closed bars are sent at the end of the minute.
    now: the time up to which all events have been sent, in milliseconds since 1970-01-01 UTC.
    """

    def __init__(self, published: PublishedBars, update_seconds: float = 1.0) -> None:
        self._published = published
        self._update_seconds = update_seconds
        self._subscribers: dict[str, set[Subscriber]] = defaultdict(set)
        self._symbols: dict[str, _Symbol] = {}
        self._by_name = {market.id.lower(): market for market in published.truth.markets.values()}
        self._due: list[_Due] = []
        self._numbers = count()
        self.now = 0
        self._task: asyncio.Task[None] | None = None

    def join(self, subscriber: Subscriber, streams: Iterable[str]) -> None:
        """Send the events of streams to a connection; unknown symbols have no events."""
        if self._task is None:
            self.now = self._published.clock.milliseconds()
            self._task = asyncio.get_running_loop().create_task(self._run())
        for stream in streams:
            self._subscribers[stream].add(subscriber)
            market = self._by_name.get(stream.partition("@")[0])
            if market is not None and market.symbol not in self._symbols:
                self._symbols[market.symbol] = self._enter(market)

    def leave(self, subscriber: Subscriber, streams: Iterable[str]) -> None:
        """Stop sending the events of streams to a connection."""
        for stream in streams:
            self._subscribers[stream].discard(subscriber)

    async def _run(self) -> None:
        """Make events until the loop ends, also while no connection is subscribed."""
        clock = self._published.clock
        try:
            while True:
                update = max(clock.wall_seconds(self._update_seconds), _SHORTEST_NAP)
                await asyncio.sleep(min(update, clock.wall_seconds_to_minute(), clock.longest_nap))
                self._advance(clock.milliseconds())
        except Exception:
            _log.exception("events failed: no more events are sent")  # no caller awaits this task
            raise

    def _advance(self, now: int) -> None:
        """Make the events of the time since the last call, in order of time."""
        if now - self.now > _LONGEST_SLEEP * MINUTE_MS:
            _log.warning("events skipped minutes=%d", (now - self.now) // MINUTE_MS)
            self.now = now - _LONGEST_SLEEP * MINUTE_MS
        while self.now < now:
            end = min(now, (self.now // MINUTE_MS + 1) * MINUTE_MS)
            for at, fault in self._published.faults.of_connections(self.now, end):
                self._advance_within(at)
                self._hit(fault, at)
            self._advance_within(end)
            if end % MINUTE_MS == 0:
                for state in self._symbols.values():
                    self._close(state)
                    self._open(state, end // MINUTE_MS)
            self._happen(end)
            self.now = end

    def _advance_within(self, end: int) -> None:
        """Make the events before a time within the current minute, or before its end."""
        self._happen(end - 1)
        for state in self._symbols.values():
            self._send_trades(state, end)

    def _enter(self, market: Market) -> _Symbol:
        """Return the state of a symbol that begins in the middle of a minute."""
        minute = self.now // MINUTE_MS
        state = _Symbol(
            market, self._published.truth.minutes(market.symbol, minute, minute), block_end=0
        )
        # Bars of earlier minutes that are published later.
        for before in range(minute - self._published.longest_delay(market.symbol), minute):
            self._open(state, before)
            self._close(state, after=self.now)
        self._open(state, minute)
        if state.trades is not None:
            state.sent = state.trades.until(self.now)
        return state

    def _open(self, state: _Symbol, minute: int) -> None:
        symbol = state.market.symbol
        if minute >= state.block_end:
            state.block = self._published.truth.minutes(symbol, minute, minute + _BLOCK)
            state.block_end = minute + _BLOCK
        at = int(np.searchsorted(state.block.minute, minute))
        found = at < len(state.block) and int(state.block.minute[at]) == minute
        state.minute, state.sent, state.generation = minute, 0, -1
        state.bar = state.trades = None
        if found and not self._published.is_out(symbol, minute):
            state.bar = state.block.take(slice(at, at + 1))
            state.trades = trades_of(state.market, state.bar)
            state.shown = self._published.is_open_shown(symbol, state.bar)

    def _faults_of(self, state: _Symbol) -> list[StreamFault]:
        faults = self._published.faults
        if state.generation != faults.generation:
            state.faults = faults.of_stream(state.market.symbol, state.minute)
            state.generation = faults.generation
        return state.faults

    def _send_trades(self, state: _Symbol, end: int) -> None:
        """Send the new trades before a time, and the bar that they give."""
        trades, bar = state.trades, state.bar
        if trades is None or bar is None:
            return
        until = trades.until(end)
        if until == state.sent:
            return
        for kind, event in _TRADES.items():
            stream = _stream(state.market, kind)
            if self._subscribers.get(stream):
                for at in _in_order(self._faults_of(state), range(state.sent, until)):
                    self._send(stream, event(state.market, trades, at, end))
        state.sent = until
        lost = any(isinstance(one, Lost) and one.updates for one in self._faults_of(state))
        if end % MINUTE_MS != 0 and state.shown and not lost:
            stream = _stream(state.market, "kline_1m")
            if self._subscribers.get(stream):
                so_far = bar_so_far(bar, trades, until)
                self._send(stream, kline_event(state.market, so_far, end, closed=False))

    def _close(self, state: _Symbol, after: int = 0) -> None:
        """Plan the events of a closed bar at its publications later than `after`."""
        if state.bar is None:
            return
        market, stream = state.market, _stream(state.market, "kline_1m")
        faults = self._faults_of(state)
        if any(isinstance(fault, Lost) for fault in faults):
            return
        stale = bar_so_far(state.bar, state.trades, len(state.trades) - 1) if state.trades else None
        for published in self._published.publications(market.symbol, state.bar):
            at, copies = published.at, 1
            bar = kline_event(market, published.bar, at, closed=True)
            events: list[str | bytes] = [bar]
            for fault in faults:
                match fault:
                    case Duplicated():
                        copies += fault.times
                    case Impossible():
                        damage = fault.damages[state.minute % len(fault.damages)]
                        events[0] = damaged_kline(bar, damage)
                    case Reordered():
                        # After the bar of the next minute, which is sent in time.
                        at += (MINUTE_MS + 1) * (state.minute % 2 == 0)
                        if stale is not None:
                            events.append(kline_event(market, stale, at, closed=False))
                    case Undecodable():
                        events.append(b"\xff" * 1000 if fault.binary else fault.text)
            if at > after:
                self._plan(at, partial(self._send_all, stream, events[:1] * copies + events[1:]))

    def _hit(self, fault: ConnectionFault, at: int) -> None:
        """Apply a fault to its connections."""
        for subscriber in self._concerned(fault.symbol):
            match fault:
                case Dropped():
                    subscriber.drop(fault.code)
                case Stalled():
                    subscriber.stall(pongs=fault.pongs)
                    self._plan(at + int(fault.seconds * 1000), subscriber.resume)

    def _concerned(self, symbol: str | None) -> set[Subscriber]:
        return {
            subscriber
            for stream, subscribers in self._subscribers.items()
            for subscriber in subscribers
            if symbol is None or symbol.replace("/", "").lower() == stream.partition("@")[0]
        }

    def _plan(self, at: int, happen: Callable[[], None]) -> None:
        heapq.heappush(self._due, _Due(at, next(self._numbers), happen))

    def _happen(self, until: int) -> None:
        while self._due and self._due[0].at <= until:
            heapq.heappop(self._due).happen()

    def _send_all(self, stream: str, events: list[str | bytes]) -> None:
        for event in events:
            self._send(stream, event)

    def _send(self, stream: str, event: str | bytes) -> None:
        for subscriber in self._subscribers.get(stream, ()):
            subscriber.take(stream, event)


def _stream(market: Market, kind: Kind) -> str:
    return f"{market.id.lower()}@{kind}"


def _in_order(faults: list[StreamFault], trades: range) -> list[int]:
    """Return the numbers of trades in the order of sending, repeated ones included."""
    order = list(trades)
    for fault in faults:
        match fault:
            case Duplicated():
                order = [at for at in order for _ in range(1 + fault.times)]
            case Reordered():
                pairs = (order[first : first + 2] for first in range(0, len(order), 2))
                order = [at for pair in pairs for at in reversed(pair)]
            case Lost():
                order = []
    return order


_TRADES: dict[Kind, Callable[[Market, Trades, int, int], str]] = {
    "trade": trade_event,
    "aggTrade": agg_trade_event,
}
