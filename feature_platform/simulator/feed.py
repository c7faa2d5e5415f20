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
from feature_platform.simulator.trades import Trades, bar_so_far, trades_of
from feature_platform.simulator.truth import MINUTE_MS, MinuteBars
from feature_platform.simulator.venue import Venue

_log = logging.getLogger(__name__)

Kind = Literal["kline_1m", "trade", "aggTrade"]
KINDS: tuple[Kind, ...] = ("kline_1m", "trade", "aggTrade")

# The truth is asked for so many minutes at once: one costs hardly less.
_BLOCK = 32

# Of the wall clock: a clock may be fast, but who listens has to keep up.
_SHORTEST_NAP = 0.25

# Further back, nothing is made up for: whoever slept that long asks over REST.
_LONGEST_SLEEP = 1440


class Listener(Protocol):
    """Take the events of streams over a connection."""

    def take(self, stream: str, event: str | bytes) -> None:
        """Take one event, JSON without the wrapping of combined streams, or a binary frame."""
        ...

    def drop(self, code: int | None) -> None:
        """Have the connection closed with a code, or reset."""
        ...

    def stall(self, *, pongs: bool) -> None:
        """Keep the connection open and send nothing; with pongs, answer pings all the same."""
        ...

    def resume(self) -> None:
        """End a stall; what there was to send in it is lost."""
        ...


@dataclass
class _Symbol:
    """Hold what is known of one market that somebody has listened to.

    block: its bars of some minutes, of which the last is before `block_end`.
    bar, trades: of the minute that goes on; none where the venue has none.
    shown: whether its open bar is published.
    sent: how many of the trades are out.
    faults: what hits the minute, as of a generation of the faults.
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
    """Be something that is to happen at a moment."""

    at: int
    number: int
    happen: Callable[[], None] = field(compare=False)


class Feed:
    """Make events of the streams that somebody listens to, and give them to him.

    update_seconds: of the venue's clock, between what is sent of the minute that goes on: its
        trades, and its bar where there were some; on the wall it is at most four times a
        second. Closed bars go out on the minute.
    now: up to when everything has been sent, in milliseconds since 1970-01-01 UTC.
    """

    def __init__(self, venue: Venue, update_seconds: float = 1.0) -> None:
        self._venue = venue
        self._update_seconds = update_seconds
        self._listeners: dict[str, set[Listener]] = defaultdict(set)
        self._symbols: dict[str, _Symbol] = {}
        self._by_name = {market.id.lower(): market for market in venue.truth.markets.values()}
        self._due: list[_Due] = []
        self._numbers = count()
        self.now = 0
        self._task: asyncio.Task[None] | None = None

    def join(self, listener: Listener, streams: Iterable[str]) -> None:
        """Have a listener take the events of streams from now on; unknown markets have none."""
        if self._task is None:
            self.now = self._venue.clock.milliseconds()
            self._task = asyncio.get_running_loop().create_task(self._run())
        for stream in streams:
            self._listeners[stream].add(listener)
            market = self._by_name.get(stream.partition("@")[0])
            if market is not None and market.symbol not in self._symbols:
                self._symbols[market.symbol] = self._enter(market)

    def leave(self, listener: Listener, streams: Iterable[str]) -> None:
        """Have a listener take no more events of streams."""
        for stream in streams:
            self._listeners[stream].discard(listener)

    async def _run(self) -> None:
        """Make events for ever: a market that was listened to once may be again."""
        clock = self._venue.clock
        try:
            while True:
                update = max(clock.wall_seconds(self._update_seconds), _SHORTEST_NAP)
                await asyncio.sleep(min(update, clock.wall_seconds_to_minute(), clock.longest_nap))
                self._advance(clock.milliseconds())
        except Exception:
            _log.exception("feed failed: nothing more is sent")  # nobody awaits this task
            raise

    def _advance(self, now: int) -> None:
        """Make the events of the time since the last call, in order."""
        if now - self.now > _LONGEST_SLEEP * MINUTE_MS:
            _log.warning("feed jumped minutes=%d", (now - self.now) // MINUTE_MS)
            self.now = now - _LONGEST_SLEEP * MINUTE_MS
        while self.now < now:
            end = min(now, (self.now // MINUTE_MS + 1) * MINUTE_MS)
            for at, fault in self._venue.faults.of_connections(self.now, end):
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
        """Make the events before a moment that is still of the minute, or the end of it."""
        self._happen(end - 1)
        for state in self._symbols.values():
            self._send_trades(state, end)

    def _enter(self, market: Market) -> _Symbol:
        """Begin with a market in the middle of a minute."""
        minute = self.now // MINUTE_MS
        state = _Symbol(
            market, self._venue.truth.minutes(market.symbol, minute, minute), block_end=0
        )
        # Bars of before that are still to come.
        for before in range(minute - self._venue.longest_delay(market.symbol), minute):
            self._open(state, before)
            self._close(state, after=self.now)
        self._open(state, minute)
        if state.trades is not None:
            state.sent = state.trades.until(self.now)
        return state

    def _open(self, state: _Symbol, minute: int) -> None:
        symbol = state.market.symbol
        if minute >= state.block_end:
            state.block = self._venue.truth.minutes(symbol, minute, minute + _BLOCK)
            state.block_end = minute + _BLOCK
        at = int(np.searchsorted(state.block.minute, minute))
        found = at < len(state.block) and int(state.block.minute[at]) == minute
        state.minute, state.sent, state.generation = minute, 0, -1
        state.bar = state.trades = None
        if found and not self._venue.is_out(symbol, minute):
            state.bar = state.block.take(slice(at, at + 1))
            state.trades = trades_of(state.market, state.bar)
            state.shown = self._venue.is_open_shown(symbol, state.bar)

    def _faults_of(self, state: _Symbol) -> list[StreamFault]:
        faults = self._venue.faults
        if state.generation != faults.generation:
            state.faults = faults.of_stream(state.market.symbol, state.minute)
            state.generation = faults.generation
        return state.faults

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
                for at in _in_order(self._faults_of(state), range(state.sent, until)):
                    self._send(stream, event(state.market, trades, at, end))
        state.sent = until
        if end % MINUTE_MS != 0 and state.shown:
            stream = _stream(state.market, "kline_1m")
            if self._listeners.get(stream):
                so_far = bar_so_far(bar, trades, until)
                self._send(stream, kline_event(state.market, so_far, end, closed=False))

    def _close(self, state: _Symbol, after: int = 0) -> None:
        """Have the bar of a minute sent as it is published; what was up to `after` is left."""
        if state.bar is None:
            return
        market, stream = state.market, _stream(state.market, "kline_1m")
        faults = self._faults_of(state)
        if any(isinstance(fault, Lost) for fault in faults):
            return
        stale = bar_so_far(state.bar, state.trades, len(state.trades) - 1) if state.trades else None
        for published in self._venue.publications(market.symbol, state.bar):
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
                        # After the bar of the next minute, which goes out in time.
                        at += (MINUTE_MS + 1) * (state.minute % 2 == 0)
                        if stale is not None:
                            events.append(kline_event(market, stale, at, closed=False))
                    case Undecodable():
                        events.append(b"\xff" * 1000 if fault.binary else fault.text)
            if at > after:
                self._plan(at, partial(self._send_all, stream, events[:1] * copies + events[1:]))

    def _hit(self, fault: ConnectionFault, at: int) -> None:
        """Do to connections what a fault does."""
        for listener in self._concerned(fault.symbol):
            match fault:
                case Dropped():
                    listener.drop(fault.code)
                case Stalled():
                    listener.stall(pongs=fault.pongs)
                    self._plan(at + int(fault.seconds * 1000), listener.resume)

    def _concerned(self, symbol: str | None) -> set[Listener]:
        return {
            listener
            for stream, listeners in self._listeners.items()
            for listener in listeners
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
        for listener in self._listeners.get(stream, ()):
            listener.take(stream, event)


def _stream(market: Market, kind: Kind) -> str:
    return f"{market.id.lower()}@{kind}"


def _in_order(faults: list[StreamFault], trades: range) -> list[int]:
    """Return the numbers of trades in the order, and as often, as they are to be sent."""
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
