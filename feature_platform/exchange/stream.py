"""An exchange's stream of bars or trades: one connection after the other, by ccxt's client."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import aiohttp
import ccxt
import ccxt.pro
from ccxt.async_support.base.ws.cache import ArrayCache, ArrayCacheByTimestamp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from feature_platform.clock import Clock
from feature_platform.errors import UserError
from feature_platform.exchange.bounded_http import BARS, MIB
from feature_platform.exchange.client import (
    TIMEFRAME,
    Exchange,
    ExchangeUnavailable,
    Interrupted,
    Patience,
    make_client,
)
from feature_platform.exchange.retry import describe
from feature_platform.settings import PREFIX
from feature_platform.symbols import name_at

_log = logging.getLogger(__name__)

# Minutes: what is no stream, but asked for over REST.
Kind = Literal["bars", "trades", "minutes"]

# Markets that are subscribed to by one message.
_AT_ONCE = 100
# What ccxt keeps of each market, which is nothing to anybody: all is passed on at once.
_KEPT = 4

# A stream that has been silent for so many times its usual silence has stalled, but not before
# these seconds: of the platform's clock, and of the wall's, as this process itself may be slow.
_USUAL_TIMES = 20.0
_SHORTEST_STALL = 10.0
_SHORTEST_WALL = 2.0
# Seconds of the wall clock that a connection may take until its first message.
_DIAL = 20.0
# One that lived as long was no failed attempt to connect.
_STEADY = 20.0

# How long to wait for an orderly end; it goes on behind our back.
_GOOD_BYE = 0.5
_closing: set[asyncio.Task[None]] = set()

# Errors of ccxt's own code for a message of another form than it expects.
_MISREAD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    ccxt.BaseError,
)
# Seconds of the wall clock between two warnings of messages that cannot be read.
_WARN_EVERY = 30.0


class Listener(Protocol):
    """Be told what a feed hears; called by the loop that runs it, and must not wait."""

    def on_row(self, symbol: str, row: Sequence[Any], *, final: bool | None) -> None:
        """Take what was said of a minute: its time in milliseconds, OHLC and volume.

        final: whether the exchange said that the minute is over; None where it says no such thing.
        """
        ...

    def on_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        """Take a trade, as ccxt gives it."""
        ...

    def on_up(self) -> None:
        """Take note that from now on everything is heard."""
        ...

    def on_unknown(self, unknown: Mapping[str, str]) -> None:
        """Take note of the symbols that the exchange does not have, and why not, at each dial."""
        ...

    def on_down(self, reason: str) -> None:
        """Take note that nothing is heard any more, and has not been since the last message."""
        ...


@dataclass(frozen=True, slots=True)
class BackOff:
    """Say how long to wait between attempts to connect, in seconds: at random, up to twice as
    long each time, from `first` to `longest`."""

    first: float = 0.5
    longest: float = 30.0


class _Lost(Exception):
    """A connection is over."""


class Feed:
    """Listen to an exchange until cancelled.

    name, symbols, url: as `Exchange` takes them.
    listener: what is told.
    clock: by which silence is measured.
    stall: how long a connection may be silent before it is taken for dead, in seconds of the
        clock; less where it usually says something much more often.
    kind: bars or trades; by default what the exchange has, bars rather than trades, and
        "minutes" where ccxt knows no stream of it: then there is nothing to `run`.
    Raises UserError where there is no such exchange.
    """

    def __init__(
        self,
        name: str,
        symbols: tuple[str, ...],
        url: str | None,
        listener: Listener,
        *,
        clock: Clock,
        stall: float,
        kind: Kind | None = None,
        back_off: BackOff | None = None,
    ) -> None:
        self.name = name
        self.symbols = symbols
        self.kind: Kind = kind or _best_kind(name)
        self._url = url
        self._listener = listener
        self._clock = clock
        self._stall = stall
        self._back_off = back_off or BackOff()
        self._markets: dict[str, Any] | None = None
        self._warned_at = 0.0
        self._unread = 0

    async def run(self) -> None:
        """Connect, listen, and connect again when the connection is lost.

        Symbols that the exchange does not have are left out, and looked for at each connection.
        Raises UserError where it has none of them, or rejects what will not pass later.
        """
        while True:
            await AsyncRetrying(
                retry=retry_if_exception_type(_Lost),
                wait=wait_random_exponential(
                    multiplier=self._back_off.first, max=self._back_off.longest
                ),
                before_sleep=_tell,
                reraise=True,
            )(self._listen)
            await asyncio.sleep(random.uniform(0, self._back_off.first))

    async def _listen(self) -> None:
        """Listen to one connection until it is lost; raises _Lost where that was soon."""
        began = time.monotonic()
        session = _Session(self)
        try:
            reason = await session.run()
        finally:
            await session.close()
        if session.up:
            _log.warning("%s: the stream is lost: %s", self.name, reason)
            self._listener.on_down(reason)
        if not session.up or time.monotonic() - began < _STEADY:
            raise _Lost(f"{self.name}: {reason}")

    async def markets(self) -> dict[str, Any]:
        """Return the exchange's symbols, asked for again while one of ours is missing.

        Raises ExchangeUnavailable, TimeoutError, UserError.
        """
        if self._markets is None or self.unknown(self._markets):
            # ccxt's client of streams would load them without a limit.
            patience = Patience(attempts=1)
            with Exchange(self.name, self.symbols, url=self._url, patience=patience) as exchange:
                try:
                    async with asyncio.timeout(_DIAL):
                        self._markets = await asyncio.to_thread(exchange.markets)
                finally:
                    exchange.interrupt()
        return self._markets

    def unknown(self, markets: Mapping[str, Any]) -> dict[str, str]:
        """Return why each of the symbols that the exchange does not have is not recorded."""
        names = {symbol: name_at(self.name, symbol) for symbol in self.symbols}
        return {
            symbol: f"{self.name} has no symbol {name!r}"
            for symbol, name in names.items()
            if name not in markets
        }

    def warn_unread(self, error: Exception, message: Any) -> None:
        """Log a message that cannot be read; of many, one in a while."""
        self._unread += 1
        now = time.monotonic()
        if self._warned_at and now - self._warned_at < _WARN_EVERY:
            return
        self._warned_at = now
        _log.warning(
            "%s: a message that cannot be read (%d so far), %.200r: %.200r",
            *(self.name, self._unread, error, message),
        )


class _Session:
    """One connection."""

    def __init__(self, feed: Feed) -> None:
        self.up = False
        self._feed = feed
        self._client = make_client(feed.name, feed.symbols, feed._url, library=ccxt.pro)
        self._client.timeout_on_exit = 0
        self._handle = self._client.handle_message
        self._make_socket = self._client.client
        # The symbols that the exchange has, by its own names for them.
        self._symbols: dict[str, str] = {}
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[Any]] = []
        self._began = self._heard = self._now()
        self._messages = 0
        self._final: bool | None = None

    async def run(self) -> str:
        """Listen until the connection is lost; return why."""
        feed = self._feed
        try:
            markets = await feed.markets()
        except (TimeoutError, ExchangeUnavailable, Interrupted, UserError) as error:
            return f"no list of symbols: {describe(error)}"
        self._client.set_markets(markets)
        unknown = feed.unknown(markets)
        feed._listener.on_unknown(unknown)
        self._symbols = {name_at(feed.name, one): one for one in feed.symbols if one not in unknown}
        if not self._symbols:
            raise UserError(f"{PREFIX}SYMBOLS: {next(iter(unknown.values()))}")
        self._install()
        self._tasks = [asyncio.ensure_future(call) for call in self._subscriptions()]
        for task in self._tasks:
            task.add_done_callback(self._subscribed)
        self._tasks.append(asyncio.ensure_future(self._watch_silence()))
        return await self._lost

    async def close(self) -> None:
        """Leave in order."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = asyncio.ensure_future(self._close_client())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        # The other end may take long to say good-bye, if it ever does.
        await asyncio.wait([closing], timeout=_GOOD_BYE)

    async def _close_client(self) -> None:
        with suppress(*_MISREAD, OSError):
            await self._client.close()

    def _install(self) -> None:
        """Have ccxt's client tell us of each message, also of several between two looks at it.

        What ccxt returns of a stream is the newest state of one market; what came before it, or
        of another market, in the meantime is not said. So its caches are ones that pass it on.
        """
        client, feed = self._client, self._feed
        client.open()
        opened = client.session
        client.session = aiohttp.ClientSession(
            connector=client.tcp_connector,
            response_class=_BoundedResponse,
            trust_env=client.aiohttp_trust_env,
        )
        opened.detach()
        on_error, on_close = client.on_error, client.on_close

        def lost(socket: Any, error: Any) -> None:
            on_error(socket, error)
            self._lose(describe(error))

        def closed(socket: Any, code: Any) -> None:
            on_close(socket, code)
            self._lose(f"the exchange closed it, {code}")

        client.client = self._socket
        client.handle_message = self._take
        client.on_error, client.on_close = lost, closed
        for name, symbol in self._symbols.items():
            if feed.kind == "trades":
                client.trades[name] = _TradesTap(symbol, self)
            else:
                tap = _RowsTap(symbol, self)
                # Some clients do not know by the message which timeframe it is of.
                client.ohlcvs[name] = {TIMEFRAME: tap, "unknown": tap}

    def _socket(self, url: str) -> Any:
        """Return ccxt's client of one WebSocket, with its frames guarded.

        ccxt decodes a frame in a callback: an error there ends its reading, and nothing else.
        """
        known = url in (self._client.clients or {})
        made = self._make_socket(url)
        if not known:
            decode = made.handle_message

            def guarded(frame: Any) -> None:
                try:
                    decode(frame)
                except Exception as error:  # noqa: BLE001  # any would end the reading
                    # A frame that is skipped may have been the last update of a minute: a new
                    # connection asks for all since the last message.
                    self._feed.warn_unread(error, frame.data)
                    self._lose(f"a frame that cannot be decoded: {describe(error)}")

            made.handle_message = guarded
        return made

    def _subscriptions(self) -> list[Awaitable[Any]]:
        client, symbols = self._client, tuple(self._symbols)
        if self._feed.kind == "trades":
            if client.has.get("watchTradesForSymbols"):
                return [client.watch_trades_for_symbols(some) for some in _parts(symbols)]
            return [client.watch_trades(symbol) for symbol in symbols]
        if client.has.get("watchOHLCVForSymbols"):
            return [
                client.watch_ohlcv_for_symbols([[symbol, TIMEFRAME] for symbol in some])
                for some in _parts(symbols)
            ]
        return [client.watch_ohlcv(symbol, TIMEFRAME) for symbol in symbols]

    def _subscribed(self, task: asyncio.Task[Any]) -> None:
        """Take the first answer to a subscription; what follows comes by itself."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._lose(describe(error))

    def _take(self, socket: Any, message: Any) -> None:
        if not self.up:
            self.up = True
            self._began = self._heard = self._now()
            self._feed._listener.on_up()
        self._final = _is_final(message)
        try:
            self._handle(socket, message)
        except _MISREAD as error:
            # ccxt would stop reading without an error.
            self._feed.warn_unread(error, message)

    def hear(self) -> None:
        """Take note that something was said of a market."""
        self._messages += 1
        self._heard = self._now()

    def tell_row(self, symbol: str, row: Sequence[Any]) -> None:
        self.hear()
        self._feed._listener.on_row(symbol, row, final=self._final)

    def tell_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        self.hear()
        self._feed._listener.on_trade(symbol, trade)

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    async def _watch_silence(self) -> None:
        clock = self._feed._clock
        dialled = time.monotonic()
        while True:
            limit = self._longest_silence()
            await asyncio.sleep(clock.wall_seconds(limit) / 8)
            silent = self._now() - self._heard
            if self.up and silent > limit:
                self._lose(f"nothing was heard for {silent:.0f} s: it has stalled")
            elif not self.up and time.monotonic() - dialled > _DIAL:
                self._lose(f"no answer for {_DIAL:.0f} s")

    def _longest_silence(self) -> float:
        """Return how long the stream may say nothing, in seconds of the clock."""
        feed = self._feed
        usual = (self._now() - self._began) / max(self._messages, 1)
        shortest = max(_SHORTEST_STALL, _SHORTEST_WALL * feed._clock.speed)
        return max(min(feed._stall, _USUAL_TIMES * usual), min(feed._stall, shortest))

    def _now(self) -> float:
        return self._feed._clock.milliseconds() / 1000


class _BoundedResponse(aiohttp.ClientResponse):
    """An answer of bounded size to what ccxt's client of streams asks over REST.

    ccxt gives each of them a total deadline.
    """

    async def read(self) -> bytes:
        content = bytearray()
        async for chunk in self.content.iter_any():
            content += chunk
            if len(content) > BARS.size:
                self.close()
                raise ccxt.BadResponse(f"an answer of more than {BARS.size // MIB} MiB")
        self._body = bytes(content)
        return self._body


class _RowsTap(ArrayCacheByTimestamp):  # type: ignore[misc]  # ccxt has no types
    """Pass each row on."""

    def __init__(self, symbol: str, session: _Session) -> None:
        super().__init__(_KEPT)
        self._symbol, self._session = symbol, session

    def append(self, item: list[Any]) -> None:
        self._session.tell_row(self._symbol, list(item))
        super().append(item)


class _TradesTap(ArrayCache):  # type: ignore[misc]  # ccxt has no types
    """Pass each trade on."""

    def __init__(self, symbol: str, session: _Session) -> None:
        super().__init__(_KEPT)
        self._symbol, self._session = symbol, session

    def append(self, item: dict[str, Any]) -> None:
        self._session.tell_trade(self._symbol, item)
        super().append(item)


def _best_kind(name: str) -> Kind:
    """Return what an exchange streams."""
    kind = getattr(ccxt.pro, name, None)
    has = kind().has if kind is not None else {}
    if has.get("watchOHLCV") is True:
        return "bars"
    return "trades" if has.get("watchTrades") is True else "minutes"


def _is_final(message: Any) -> bool | None:
    """Return what a message says of its bar: that no more will come of it, or that more may.

    ccxt's rows do not tell. None where the message does not, either: of Binance's form is known.
    """
    match message:
        case {"k": {"x": bool(final)}} | {"data": {"k": {"x": bool(final)}}}:
            return final
    return None


def _parts(symbols: tuple[str, ...]) -> list[list[str]]:
    return [list(symbols[at : at + _AT_ONCE]) for at in range(0, len(symbols), _AT_ONCE)]


def _tell(state: RetryCallState) -> None:
    assert state.outcome is not None
    assert state.next_action is not None
    _log.warning(
        "%s; connecting again in %.1f s", state.outcome.exception(), state.next_action.sleep
    )
