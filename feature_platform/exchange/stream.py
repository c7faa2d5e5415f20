"""The stream of bars or trades of an exchange, over ccxt's WebSocket client."""

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

# `minutes`: no stream; bars are requested over REST.
Kind = Literal["bars", "trades", "minutes"]

# Symbols of one subscription message.
_AT_ONCE = 100
# ccxt's cache size for each symbol; unused, so as small as possible.
_KEPT = 4

# A stream has stalled when no message arrives for this many times its usual interval, but at least
# these seconds: of the platform's clock, and of the wall clock, because this process may be slow.
_USUAL_TIMES = 20.0
_SHORTEST_STALL = 10.0
_SHORTEST_WALL = 2.0
# The longest time from a connection to its first message, in seconds of the wall clock.
_DIAL = 20.0
# A connection that lasted longer does not count as a failed attempt.
_STEADY = 20.0

# The longest wait for the close of a connection, in seconds; the close continues afterwards.
_GOOD_BYE = 0.5
_closing: set[asyncio.Task[None]] = set()

# Errors of ccxt's own code for a message of an unexpected form.
_MISREAD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    ccxt.BaseError,
)
# Seconds of the wall clock between two warnings about messages that cannot be read.
_WARN_EVERY = 30.0


class Listener(Protocol):
    """Callbacks of a feed; its event loop calls them, so they must not block."""

    def on_row(self, symbol: str, row: Sequence[Any], *, final: bool | None) -> None:
        """Handle an update of a minute: its time in milliseconds, OHLC and volume.

        final: the exchange's flag that the minute is over; None if its messages have no flag.
        """
        ...

    def on_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        """Handle a trade in ccxt's form."""
        ...

    def on_up(self) -> None:
        """Handle the first message of a connection: from now on all updates arrive."""
        ...

    def on_unknown(self, unknown: Mapping[str, str]) -> None:
        """Handle the symbols that the exchange does not have, with the reasons."""
        ...

    def on_down(self, reason: str) -> None:
        """Handle the loss of a connection: no updates have arrived since the last message."""
        ...


@dataclass(frozen=True, slots=True)
class BackOff:
    """Random waits between attempts to connect, in seconds.

    The upper bound doubles with each attempt, from `first` to `longest`.
    """

    first: float = 0.5
    longest: float = 30.0


class _Lost(Exception):
    """A connection is over."""


class Feed:
    """The stream of an exchange, with a new connection after each loss.

    name, symbols, url: as for `Exchange`.
    listener: the callbacks.
    clock: the clock that measures the time without messages.
    stall: the longest time without a message before a connection counts as lost, in seconds of
        the clock; shorter if messages usually arrive much more often.
    kind: bars or trades; by default the stream that the exchange has, bars rather than trades, or
        "minutes" if ccxt has no stream of it: then `run` must not be called.
    Raises UserError if there is no such exchange.
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
        """Connect, receive updates, and reconnect when the connection is lost, until cancelled.

        Symbols that the exchange does not have are skipped, and looked for at each connection.
        Raises UserError if it has none of them, or rejects a request for good.
        """
        while True:
            await AsyncRetrying(
                retry=retry_if_exception_type(_Lost),
                wait=wait_random_exponential(
                    multiplier=self._back_off.first, max=self._back_off.longest
                ),
                before_sleep=_log_retry,
                reraise=True,
            )(self._listen)
            await asyncio.sleep(random.uniform(0, self._back_off.first))

    async def _listen(self) -> None:
        """Receive the updates of one connection; raise _Lost if it is lost soon."""
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
        """Return the exchange's symbols; request them again while one of ours is missing.

        Raises ExchangeUnavailable, TimeoutError, UserError.
        """
        if self._markets is None or self.unknown(self._markets):
            # ccxt's client of streams has no limits for this request.
            patience = Patience(attempts=1)
            with Exchange(self.name, self.symbols, url=self._url, patience=patience) as exchange:
                try:
                    async with asyncio.timeout(_DIAL):
                        self._markets = await asyncio.to_thread(exchange.markets)
                finally:
                    exchange.interrupt()
        return self._markets

    def unknown(self, markets: Mapping[str, Any]) -> dict[str, str]:
        """Return the symbols that the exchange does not have, each with an error text."""
        names = {symbol: name_at(self.name, symbol) for symbol in self.symbols}
        return {
            symbol: f"{self.name} has no symbol {name!r}"
            for symbol, name in names.items()
            if name not in markets
        }

    def warn_unread(self, error: Exception, message: Any) -> None:
        """Log a message that cannot be read, at most once in `_WARN_EVERY` seconds."""
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
        # The symbols that the exchange has, by its names of them.
        self._symbols: dict[str, str] = {}
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[Any]] = []
        self._began = self._heard = self._now()
        self._messages = 0
        self._final: bool | None = None

    async def run(self) -> str:
        """Receive updates until the connection is lost; return the reason."""
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
        """Close the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = asyncio.ensure_future(self._close_client())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        # The exchange may answer the close late or never.
        await asyncio.wait([closing], timeout=_GOOD_BYE)

    async def _close_client(self) -> None:
        with suppress(*_MISREAD, OSError):
            await self._client.close()

    def _install(self) -> None:
        """Replace the caches of ccxt's client by ones that pass on each update.

        ccxt's methods return only the newest state of one symbol; earlier updates, and those of
        other symbols, would be lost.
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
                # Messages of some exchanges do not contain the timeframe.
                client.ohlcvs[name] = {TIMEFRAME: tap, "unknown": tap}

    def _socket(self, url: str) -> Any:
        """Return ccxt's client of one WebSocket; a bad frame ends the connection.

        ccxt decodes a frame in a callback. An error there would end the reads, but not the
        connection.
        """
        known = url in (self._client.clients or {})
        made = self._make_socket(url)
        if not known:
            decode = made.handle_message

            def guarded(frame: Any) -> None:
                try:
                    decode(frame)
                except Exception as error:  # noqa: BLE001  # any error would end the reads
                    # The lost frame may have had the last update of a minute: after a reconnect
                    # all minutes since the last message are requested.
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
        """Check the first answer to a subscription; later updates arrive through the caches."""
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
            # Otherwise ccxt would stop reading without an error.
            self._feed.warn_unread(error, message)

    def count_update(self) -> None:
        """Count an update of a symbol, and note its time."""
        self._messages += 1
        self._heard = self._now()

    def pass_row(self, symbol: str, row: Sequence[Any]) -> None:
        self.count_update()
        self._feed._listener.on_row(symbol, row, final=self._final)

    def pass_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        self.count_update()
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
                self._lose(f"no message for {silent:.0f} s: it has stalled")
            elif not self.up and time.monotonic() - dialled > _DIAL:
                self._lose(f"no answer for {_DIAL:.0f} s")

    def _longest_silence(self) -> float:
        """Return the longest allowed time without a message, in seconds of the clock."""
        feed = self._feed
        usual = (self._now() - self._began) / max(self._messages, 1)
        shortest = max(_SHORTEST_STALL, _SHORTEST_WALL * feed._clock.speed)
        return max(min(feed._stall, _USUAL_TIMES * usual), min(feed._stall, shortest))

    def _now(self) -> float:
        return self._feed._clock.milliseconds() / 1000


class _BoundedResponse(aiohttp.ClientResponse):
    """An answer of bounded size to a REST request of ccxt's client of streams.

    ccxt itself sets a total deadline for each request.
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
        self._session.pass_row(self._symbol, list(item))
        super().append(item)


class _TradesTap(ArrayCache):  # type: ignore[misc]  # ccxt has no types
    """Pass each trade on."""

    def __init__(self, symbol: str, session: _Session) -> None:
        super().__init__(_KEPT)
        self._symbol, self._session = symbol, session

    def append(self, item: dict[str, Any]) -> None:
        self._session.pass_trade(self._symbol, item)
        super().append(item)


def _best_kind(name: str) -> Kind:
    """Return the kind of stream that an exchange has."""
    kind = getattr(ccxt.pro, name, None)
    has = kind().has if kind is not None else {}
    if has.get("watchOHLCV") is True:
        return "bars"
    return "trades" if has.get("watchTrades") is True else "minutes"


def _is_final(message: Any) -> bool | None:
    """Return the flag of a message that its bar is final; None if it has no such flag.

    ccxt's rows do not contain the flag. Only the form of Binance's messages is known.
    """
    match message:
        case {"k": {"x": bool(final)}} | {"data": {"k": {"x": bool(final)}}}:
            return final
    return None


def _parts(symbols: tuple[str, ...]) -> list[list[str]]:
    return [list(symbols[at : at + _AT_ONCE]) for at in range(0, len(symbols), _AT_ONCE)]


def _log_retry(state: RetryCallState) -> None:
    assert state.outcome is not None
    assert state.next_action is not None
    _log.warning(
        "%s; connecting again in %.1f s", state.outcome.exception(), state.next_action.sleep
    )
