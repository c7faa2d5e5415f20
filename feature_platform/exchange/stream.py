"""The stream of an exchange's bars or trades over WebSocket connections, by ccxt's client."""

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

# "minutes": the exchange has no stream; its bars are fetched over REST each minute.
Kind = Literal["bars", "trades", "minutes"]

# Symbols in one subscription message.
_SYMBOLS_PER_MESSAGE = 100
# The size of ccxt's cache of a symbol. The cache is not used, so it is small.
_CACHE_SIZE = 4

# A stream has stalled after _STALL_FACTOR times its usual time between messages, and not before
# _SHORTEST_STALL seconds of the clock and _SHORTEST_STALL_WALL wall seconds, because this process
# may be slow, too.
_STALL_FACTOR = 20.0
_SHORTEST_STALL = 10.0
_SHORTEST_STALL_WALL = 2.0
# The limit of the time until the first message of a connection, in wall seconds.
_CONNECT_TIMEOUT = 20.0
# A connection that lasts this many wall seconds resets the back-off.
_STEADY = 20.0

# The longest wait for a connection to close, in seconds; afterwards it closes in the background.
_CLOSE_TIMEOUT = 0.5
_closing: set[asyncio.Task[None]] = set()

# Errors that ccxt raises for a message of an unexpected form.
_MISREAD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    ccxt.BaseError,
)
# The time between two warnings about messages that cannot be read, in wall seconds.
_WARN_EVERY = 30.0


class StreamHandler(Protocol):
    """The receiver of a stream's events; its methods run in the event loop and must not block."""

    def on_bar(self, symbol: str, row: Sequence[Any], *, final: bool | None) -> None:
        """Handle an update of a minute: its time in milliseconds, OHLC and volume.

        final: whether the message marks the bar as closed; None where it has no such mark.
        """
        ...

    def on_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        """Handle a trade in ccxt's form."""
        ...

    def on_connected(self) -> None:
        """Handle the first message of a connection, before its updates."""
        ...

    def on_unknown(self, unknown: Mapping[str, str]) -> None:
        """Handle the symbols that the exchange does not have, each with a reason; before each
        connection."""
        ...

    def on_disconnected(self, reason: str) -> None:
        """Handle the loss of a connection: no update was received after the last message."""
        ...


@dataclass(frozen=True, slots=True)
class BackOff:
    """The random wait between attempts to connect, in seconds: its limit doubles from `first` to
    `longest`."""

    first: float = 0.5
    longest: float = 30.0


class _Lost(Exception):
    """A connection was lost."""


class Stream:
    """The stream of an exchange, which reconnects until it is cancelled.

    name, symbols, url: as for `Exchange`.
    handler: receives the events.
    clock: measures the time without messages.
    stall: how long a connection may be without messages before it is replaced, in seconds of the
        clock; the limit is shorter for a stream with frequent messages.
    kind: bars or trades; by default bars, trades where the exchange streams no bars, and "minutes"
        where ccxt knows no stream of the exchange: then `run` must not be called.
    Raises UserError where ccxt knows no such exchange.
    """

    def __init__(
        self,
        name: str,
        symbols: tuple[str, ...],
        url: str | None,
        handler: StreamHandler,
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
        self._handler = handler
        self._clock = clock
        self._stall = stall
        self._back_off = back_off or BackOff()
        self._markets: dict[str, Any] | None = None
        self._warned_at = 0.0
        self._unread = 0

    async def run(self) -> None:
        """Connect, pass updates to the handler, and reconnect when the connection is lost.

        Symbols that the exchange does not have are skipped, and looked up again at each connection.
        Raises UserError where it has none of them.
        """
        while True:
            await AsyncRetrying(
                retry=retry_if_exception_type(_Lost),
                wait=wait_random_exponential(
                    multiplier=self._back_off.first, max=self._back_off.longest
                ),
                before_sleep=_warn,
                reraise=True,
            )(self._connect)
            await asyncio.sleep(random.uniform(0, self._back_off.first))

    async def _connect(self) -> None:
        """Use one connection until it is lost. Raises _Lost where it did not last long."""
        began = time.monotonic()
        connection = _Connection(self)
        try:
            reason = await connection.run()
        finally:
            await connection.close()
        if connection.up:
            _log.warning("%s: the stream is lost: %s", self.name, reason)
            self._handler.on_disconnected(reason)
        if not connection.up or time.monotonic() - began < _STEADY:
            raise _Lost(f"{self.name}: {reason}")

    async def markets(self) -> dict[str, Any]:
        """Return the exchange's symbols; fetch them again while a configured one is missing.

        Raises ExchangeUnavailable, TimeoutError, UserError.
        """
        if self._markets is None or self.unknown(self._markets):
            # ccxt's client of streams would load them without a limit of size.
            patience = Patience(attempts=1)
            with Exchange(self.name, self.symbols, url=self._url, patience=patience) as exchange:
                try:
                    async with asyncio.timeout(_CONNECT_TIMEOUT):
                        self._markets = await asyncio.to_thread(exchange.markets)
                finally:
                    exchange.interrupt()
        return self._markets

    def unknown(self, markets: Mapping[str, Any]) -> dict[str, str]:
        """Return the symbols that the exchange does not have, each with a reason."""
        names = {symbol: name_at(self.name, symbol) for symbol in self.symbols}
        return {
            symbol: f"{self.name} has no symbol {name!r}"
            for symbol, name in names.items()
            if name not in markets
        }

    def warn_unread(self, error: Exception, message: Any) -> None:
        """Log a message that cannot be read; at most one in 30 seconds."""
        self._unread += 1
        now = time.monotonic()
        if self._warned_at and now - self._warned_at < _WARN_EVERY:
            return
        self._warned_at = now
        _log.warning(
            "%s: a message that cannot be read (%d so far), %.200r: %.200r",
            *(self.name, self._unread, error, message),
        )


class _Connection:
    """One WebSocket connection."""

    def __init__(self, stream: Stream) -> None:
        self.up = False
        self._stream = stream
        self._client = make_client(stream.name, stream.symbols, stream._url, library=ccxt.pro)
        self._client.timeout_on_exit = 0
        self._handle = self._client.handle_message
        self._make_socket = self._client.client
        # The configured symbols that the exchange has, by its names of them.
        self._symbols: dict[str, str] = {}
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[Any]] = []
        self._began = self._last_message_at = self._now()
        self._messages = 0
        self._final: bool | None = None

    async def run(self) -> str:
        """Pass updates to the handler until the connection is lost; return the reason."""
        stream = self._stream
        try:
            markets = await stream.markets()
        except (TimeoutError, ExchangeUnavailable, Interrupted, UserError) as error:
            return f"no list of symbols: {describe(error)}"
        self._client.set_markets(markets)
        unknown = stream.unknown(markets)
        stream._handler.on_unknown(unknown)
        self._symbols = {
            name_at(stream.name, one): one for one in stream.symbols if one not in unknown
        }
        if not self._symbols:
            raise UserError(f"{PREFIX}SYMBOLS: {next(iter(unknown.values()))}")
        self._install()
        self._tasks = [asyncio.ensure_future(call) for call in self._subscriptions()]
        for task in self._tasks:
            task.add_done_callback(self._subscribed)
        self._tasks.append(asyncio.ensure_future(self._watch_silence()))
        return await self._lost

    async def close(self) -> None:
        """Cancel the tasks and close the WebSocket."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = asyncio.ensure_future(self._close_client())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        # The exchange may answer late, or never.
        await asyncio.wait([closing], timeout=_CLOSE_TIMEOUT)

    async def _close_client(self) -> None:
        with suppress(*_MISREAD, OSError):
            # First: aiohttp's close of a WebSocket reads all messages until the exchange's CLOSE,
            # which may take minutes while an exchange sends without a pause.
            if self._client.session is not None:
                await self._client.session.close()
            await self._client.close()

    def _install(self) -> None:
        """Replace the caches and callbacks of ccxt's client by ones that pass every message on.

        ccxt's own methods return only the newest state of one symbol, and drop the updates in
        between.
        """
        client, stream = self._client, self._stream
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
        client.handle_message = self._receive
        client.on_error, client.on_close = lost, closed
        for name, symbol in self._symbols.items():
            if stream.kind == "trades":
                client.trades[name] = _TradeCache(symbol, self)
            else:
                cache = _BarCache(symbol, self)
                # The messages of some exchanges do not name their timeframe.
                client.ohlcvs[name] = {TIMEFRAME: cache, "unknown": cache}

    def _socket(self, url: str) -> Any:
        """Return ccxt's client of one WebSocket, with a handler of errors in its frames.

        ccxt decodes a frame in a callback: an error there ends its reading without a sign.
        """
        known = url in (self._client.clients or {})
        made = self._make_socket(url)
        if not known:
            decode = made.handle_message

            def guarded(frame: Any) -> None:
                try:
                    decode(frame)
                except Exception as error:  # noqa: BLE001  # any error would end the reading
                    # The frame may have been the last update of a minute: after a new connection
                    # all minutes since the last message are fetched.
                    self._stream.warn_unread(error, frame.data)
                    self._lose(f"a frame that cannot be decoded: {describe(error)}")

            made.handle_message = guarded
        return made

    def _subscriptions(self) -> list[Awaitable[Any]]:
        client, symbols = self._client, tuple(self._symbols)
        if self._stream.kind == "trades":
            if client.has.get("watchTradesForSymbols"):
                return [client.watch_trades_for_symbols(some) for some in _chunks(symbols)]
            return [client.watch_trades(symbol) for symbol in symbols]
        if client.has.get("watchOHLCVForSymbols"):
            return [
                client.watch_ohlcv_for_symbols([[symbol, TIMEFRAME] for symbol in some])
                for some in _chunks(symbols)
            ]
        return [client.watch_ohlcv(symbol, TIMEFRAME) for symbol in symbols]

    def _subscribed(self, task: asyncio.Task[Any]) -> None:
        """End the connection where a subscription failed; updates arrive by the caches."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._lose(describe(error))

    def _receive(self, socket: Any, message: Any) -> None:
        if not self.up:
            self.up = True
            self._began = self._last_message_at = self._now()
            self._stream._handler.on_connected()
        self._final = _is_final(message)
        try:
            self._handle(socket, message)
        except _MISREAD as error:
            # Without this, ccxt would stop reading without an error.
            self._stream.warn_unread(error, message)

    def _count_update(self) -> None:
        self._messages += 1
        self._last_message_at = self._now()

    def pass_bar(self, symbol: str, row: Sequence[Any]) -> None:
        self._count_update()
        self._stream._handler.on_bar(symbol, row, final=self._final)

    def pass_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        self._count_update()
        self._stream._handler.on_trade(symbol, trade)

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    async def _watch_silence(self) -> None:
        clock = self._stream._clock
        began = time.monotonic()
        while True:
            limit = self._longest_silence()
            await asyncio.sleep(clock.wall_seconds(limit) / 8)
            silent = self._now() - self._last_message_at
            if self.up and silent > limit:
                self._lose(f"no message for {silent:.0f} s: it has stalled")
            elif not self.up and time.monotonic() - began > _CONNECT_TIMEOUT:
                self._lose(f"no answer for {_CONNECT_TIMEOUT:.0f} s")

    def _longest_silence(self) -> float:
        """Return the limit of the time without a message, in seconds of the clock."""
        stream = self._stream
        usual = (self._now() - self._began) / max(self._messages, 1)
        shortest = max(_SHORTEST_STALL, _SHORTEST_STALL_WALL * stream._clock.speed)
        return max(min(stream._stall, _STALL_FACTOR * usual), min(stream._stall, shortest))

    def _now(self) -> float:
        return self._stream._clock.milliseconds() / 1000


class _BoundedResponse(aiohttp.ClientResponse):
    """An answer of bounded size to a REST request of ccxt's client of streams.

    ccxt itself sets a total deadline.
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


class _BarCache(ArrayCacheByTimestamp):  # type: ignore[misc]  # ccxt has no types
    """A cache of ccxt's that passes each row to the connection."""

    def __init__(self, symbol: str, connection: _Connection) -> None:
        super().__init__(_CACHE_SIZE)
        self._symbol, self._connection = symbol, connection

    def append(self, item: list[Any]) -> None:
        self._connection.pass_bar(self._symbol, list(item))
        super().append(item)


class _TradeCache(ArrayCache):  # type: ignore[misc]  # ccxt has no types
    """A cache of ccxt's that passes each trade to the connection."""

    def __init__(self, symbol: str, connection: _Connection) -> None:
        super().__init__(_CACHE_SIZE)
        self._symbol, self._connection = symbol, connection

    def append(self, item: dict[str, Any]) -> None:
        self._connection.pass_trade(self._symbol, item)
        super().append(item)


def _best_kind(name: str) -> Kind:
    """Return the default kind of an exchange."""
    kind = getattr(ccxt.pro, name, None)
    has = kind().has if kind is not None else {}
    if has.get("watchOHLCV") is True:
        return "bars"
    return "trades" if has.get("watchTrades") is True else "minutes"


def _is_final(message: Any) -> bool | None:
    """Return whether a message marks its bar as closed; None where it has no such mark.

    ccxt's rows do not have the mark. Only the form of Binance's messages is known.
    """
    match message:
        case {"k": {"x": bool(final)}} | {"data": {"k": {"x": bool(final)}}}:
            return final
    return None


def _chunks(symbols: tuple[str, ...]) -> list[list[str]]:
    return [
        list(symbols[at : at + _SYMBOLS_PER_MESSAGE])
        for at in range(0, len(symbols), _SYMBOLS_PER_MESSAGE)
    ]


def _warn(state: RetryCallState) -> None:
    assert state.outcome is not None
    assert state.next_action is not None
    _log.warning("%s; reconnecting in %.1f s", state.outcome.exception(), state.next_action.sleep)
