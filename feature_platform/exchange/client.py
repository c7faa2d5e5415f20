"""Bars over REST, from any exchange that ccxt knows and that has them by the minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any, Self
from urllib.parse import urlsplit

import ccxt
import numpy as np

from feature_platform.bar_rules import END_SECOND, FIRST_SECOND, Ints
from feature_platform.bars import MINUTE_US, Bars, time_of, ts_of
from feature_platform.clock import Clock, SimulatedClock
from feature_platform.errors import UserError
from feature_platform.exchange.bounded_http import LISTS, BoundedSession, Interrupted
from feature_platform.exchange.response import Answer, Rejected, read_answer
from feature_platform.exchange.retry import Calls, ExchangeUnavailable, Patience, UnknownMarket
from feature_platform.near_names import near_names
from feature_platform.settings import PREFIX, Settings, get_settings
from feature_platform.symbols import exchange_of, name_at

__all__ = [
    "Exchange",
    "ExchangeUnavailable",
    "Fetched",
    "Interrupted",
    "Patience",
    "Rejected",
    "UnknownMarket",
]

_log = logging.getLogger(__name__)

TIMEFRAME = "1m"
_USUAL_LIMIT = 500  # of bars in an answer, where ccxt does not say

# How long the exchange's clock is followed by ours before it is asked again, in seconds.
_CLOCK_VALID = 60.0
_CLOCK_SKEW = 2.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """Hold what one answer of an exchange says of the minutes from `start` to before `end`.

    bars: of closed minutes only.
    rejected: rows of the answer that cannot be stored.
    quiet: the minutes for which the exchange has no bar, because nothing was traded or because
        it publishes late; in microseconds since 1970-01-01 UTC. Minutes whose row was rejected
        are not among them, and none is where a rejected row does not tell its minute.
    """

    symbol: str
    start: datetime
    end: datetime
    bars: Bars
    rejected: tuple[Rejected, ...]
    quiet: Ints


class Exchange:
    """Fetch bars from an exchange.

    One object is for one thread, but for `interrupt`. It asks for the list of symbols once, which
    with some exchanges takes seconds: keep it. The platform sends no credentials to any exchange.

    name: ccxt's id.
    symbols: those that `check` looks for, with or without the exchange's id as a prefix.
    url: stands for scheme and host of its URLs.
    patience: how long to go on when it does not answer.
    clock: which minutes are closed; by default the exchange's own time where it publishes it, but
        no minute that is open by this machine's clock is closed.
    rate_limit: whether to keep to the rate that ccxt knows the exchange to allow.
    Raises UserError where there is no such exchange, or it has no bars by the minute.
    """

    def __init__(
        self,
        name: str,
        symbols: tuple[str, ...] = (),
        *,
        url: str | None = None,
        patience: Patience | None = None,
        clock: Clock | None = None,
        rate_limit: bool = True,
    ) -> None:
        self.name = name
        self.symbols = symbols
        self._clock = clock
        self._calls = Calls(name, patience or Patience())
        self._client = make_client(name, symbols, url, rate_limit=rate_limit)
        if not has_minutes(self._client):
            self._client.close()
            raise UserError(f"{PREFIX}EXCHANGE: {name} has no bars of one minute over REST")
        self._client.parse_ohlcvs = self._keep_rows
        self._parse_json = self._client.parse_json
        self._client.parse_json = self._watch_json
        self._session: BoundedSession = self._client.session
        self._misread: str | None = None
        self._markets: dict[str, Any] | None = None
        self._time: tuple[float, float] | None = None

    @classmethod
    def configured(
        cls, settings: Settings | None = None, name: str | None = None, **options: Any
    ) -> Self:
        """Return an exchange with its symbols and URL as in the settings.

        Where the platform's clock is not the wall clock, it decides which minutes are closed here,
        too: the exchange's own may run at another speed.
        name: by default the exchange of symbols without a prefix.
        """
        chosen = settings or get_settings()
        if isinstance(chosen.clock, SimulatedClock):
            options.setdefault("clock", chosen.clock)
        wanted = name or chosen.exchange
        symbols = chosen.by_exchange().get(wanted, ())
        return cls(wanted, symbols, url=chosen.url_of(wanted), **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the exchange."""
        self._client.close()

    def interrupt(self) -> None:
        """End the request that runs, and all later ones, with Interrupted; from any thread."""
        self._session.interrupt()

    def check(self) -> None:
        """Make sure that the exchange answers and has all `symbols`.

        Raises UserError naming the setting that is wrong, ExchangeUnavailable.
        """
        self.markets()
        for symbol in self.symbols:
            self._check_symbol(symbol, f"{PREFIX}SYMBOLS: ")

    def now(self) -> datetime:
        """Return the time of the exchange, or a little earlier. Raises ExchangeUnavailable."""
        return time_of(int(self._now() * 1_000_000))

    def fetch_bars(self, symbol: str, start: datetime, end: datetime) -> Iterator[Fetched]:
        """Fetch the closed bars of [start, end), page by page in ascending order.

        What is yielded accounts for every closed minute of the range, unless an error ends it:
        what was yielded up to there stands.

        Raises UnknownMarket where the exchange does not have the symbol, UserError where it
        refuses for good; ExchangeUnavailable where it does not answer in time, or at the end where
        it answered for other minutes than it was asked for. Its `unanswered` says which minutes
        these are.
        """
        try:
            self._check_symbol(symbol)
        except ExchangeUnavailable as error:
            error.unanswered = ((start, end),)
            raise
        cursor, stop = (-(-ts_of(one) // MINUTE_US) * MINUTE_US for one in (start, end))
        page = self._page_minutes(symbol) * MINUTE_US
        unanswered: list[tuple[int, int]] = []
        astray = ""
        while True:
            try:
                # Asked before the bars are: what is open then is left, even if it closes soon.
                closed = int(self._now()) // 60 * MINUTE_US
                limit = min(stop, closed)
                if cursor >= limit:
                    break
                asked = min(cursor + page, limit)
                answer = self._ask(symbol, cursor, asked, limit, closed)
            except ExchangeUnavailable as error:
                error.unanswered = _moments([*unanswered, (cursor, stop)])
                raise
            begin, after = _accounted(answer, cursor, asked)
            if begin > cursor:
                unanswered.append((cursor, begin))
                astray = astray or _strayed(answer, cursor, asked)
            if begin < after:
                yield _fetched(symbol, begin, after, answer)
            cursor = after
        if unanswered:
            strayed = ExchangeUnavailable(f"{self.name} answers for {symbol} {astray}")
            strayed.unanswered = _moments(unanswered)
            raise strayed

    def _ask(self, symbol: str, start: int, end: int, limit: int, closed: int) -> Answer:
        def call() -> Answer:
            rows = self._request(
                self._client.fetch_ohlcv,
                name_at(self.name, symbol),
                TIMEFRAME,
                start // 1000,
                (end - start) // MINUTE_US,
                # The last millisecond, because some take `until` to be included, some do not.
                {"until": end // 1000 - 1},
            )
            answer = read_answer(rows, start, limit, closed)
            if answer.placeless == len(rows) > 0:
                raise ccxt.BadResponse(f"an answer without a bar in it: {rows[0][-1]!r:.100}")
            return answer

        return self._calls(call)

    def _request(self, call: Any, *arguments: Any) -> Any:
        """Call ccxt's client, which takes what is no JSON for an answer without content."""
        self._misread = None
        result = call(*arguments)
        if self._misread is not None:
            raise ccxt.BadResponse(f"an answer that is no JSON: {self._misread!r}")
        return result

    def _watch_json(self, text: str) -> Any:
        value = self._parse_json(text)
        # Some of ccxt's clients read an empty object as an empty list: as no bars.
        if value is None or value == {}:
            self._misread = text[:100]
        return value

    def _keep_rows(self, ohlcvs: Any, market: Any = None, *_which: Any, **_more: Any) -> Any:
        """Replace ccxt's method that drops, sorts and cuts rows before anybody can see them."""
        if not isinstance(ohlcvs, list):
            raise ccxt.BadResponse(f"an answer that is no list of bars: {ohlcvs!r:.100}")
        parse = self._client.parse_ohlcv
        rows = []
        for ohlcv in ohlcvs:
            try:
                row = [*parse(ohlcv, market)[:6], ohlcv]
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                row = [None] * 6 + [ohlcv]
            rows.append(row)
        return rows

    def _now(self) -> float:
        """Return the time in seconds since 1970-01-01 UTC.

        An exchange whose clock is ahead must not make bars of open or future minutes closed.
        """
        if self._clock is not None:
            return self._clock.milliseconds() / 1000
        if not self._client.has.get("fetchTime"):
            return time.time()
        if self._time is None or time.monotonic() - self._time[1] > _CLOCK_VALID:
            told = self._calls(self._ask_time)
            # Taken as the time when the answer came, so that it is rather slow than fast.
            self._time = told, time.monotonic()
            skew = told - time.time()
            if abs(skew) > _CLOCK_SKEW:
                _log.warning(
                    "the clocks of %s and of this machine differ by %.1f s; a minute is closed"
                    " when the exchange's says so",
                    self.name,
                    skew,
                )
        told, when = self._time
        return min(told + time.monotonic() - when, time.time())

    def _ask_time(self) -> float:
        seconds = float(self._request(self._client.fetch_time)) / 1000
        if not FIRST_SECOND <= seconds < END_SECOND:  # nor is NaN
            raise ccxt.BadResponse(f"an answer that is no time: {seconds * 1000!r} ms")
        return seconds

    def _check_symbol(self, symbol: str, where: str = "") -> None:
        markets = self.markets()
        name = name_at(self.name, symbol)
        if name in markets:
            return
        by_id = (self._client.markets_by_id or {}).get(name.upper())
        near = by_id[0]["symbol"] if by_id else None
        hint = f" (did you mean {near!r}?)" if near else near_names(name, list(markets))
        raise UnknownMarket(f"{where}{self.name} has no symbol {name!r}{hint}")

    def markets(self) -> dict[str, Any]:
        """Return what ccxt knows of each of the exchange's symbols, asked for once.

        Raises ExchangeUnavailable, UserError.
        """
        if self._markets is None:
            reload = True  # what an answer that could not be read has left behind is no list
            with self._session.limited(LISTS):
                self._markets = self._calls(
                    lambda: self._request(self._client.load_markets, reload)
                )
        return self._markets

    def _page_minutes(self, symbol: str) -> int:
        name = name_at(self.name, symbol)
        limit = self._client.feature_value(name, "fetchOHLCV", "limit")
        return int(limit) if limit else _USUAL_LIMIT


class Exchanges:
    """Fetch bars from the exchange that each symbol belongs to.

    Each exchange has a client, a rate limit and a patience of its own, made when it is first used.
    settings: which exchanges and symbols; by default the platform's.
    """

    def __init__(self, settings: Settings | None = None, **options: Any) -> None:
        self._settings = settings or get_settings()
        self._options = options
        self._made: dict[str, Exchange] = {}
        self.symbols = self._settings.symbols

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for exchange in self._made.values():
            exchange.close()

    def of(self, symbol: str) -> Exchange:
        """Return the exchange of a symbol. Raises UserError where there is none."""
        name = exchange_of(symbol, self._settings.exchange)
        if name not in self._made:
            self._made[name] = Exchange.configured(self._settings, name, **self._options)
        return self._made[name]

    def fetch_bars(self, symbol: str, start: datetime, end: datetime) -> Iterator[Fetched]:
        """Fetch bars as `Exchange.fetch_bars` does."""
        return self.of(symbol).fetch_bars(symbol, start, end)


def has_minutes(client: Any) -> bool:
    """Tell whether an exchange has bars of one minute over REST."""
    return client.has.get("fetchOHLCV") is True and TIMEFRAME in (client.timeframes or {})


def make_client(
    name: str,
    symbols: tuple[str, ...],
    url: str | None,
    *,
    rate_limit: bool = True,
    library: ModuleType = ccxt,
) -> Any:
    """Return ccxt's client of an exchange.

    name, symbols, url, rate_limit: as Exchange takes them.
    library: which of ccxt's clients: `ccxt` asks over REST, `ccxt.pro` listens to streams.
    Raises UserError where there is no such exchange.
    """
    if name not in library.exchanges:
        hint = near_names(name, library.exchanges)
        raise UserError(f"{PREFIX}EXCHANGE: ccxt knows no exchange {name!r}{hint}")
    client = getattr(library, name)({"enableRateLimit": rate_limit})
    if client.session is not None:  # ccxt's client of streams opens its own in its loop
        client.session.close()
        session = BoundedSession()
        session.trust_env = client.requests_trust_env
        client.session = session
    kinds = client.options.get("fetchMarkets")
    by_kind = isinstance(kinds, dict) and "spot" in kinds.get("types", ())
    # Lists of swaps, futures and options are long, and their symbols have a colon.
    if by_kind and not any(":" in name_at(name, symbol) for symbol in symbols):
        client.options["fetchMarkets"] = {**kinds, "types": ["spot"]}
    if url is not None:
        client.urls = {**client.urls, "api": _redirected(client.urls["api"], url)}
    return client


_SCHEMES = {"http": {"ws": "ws", "wss": "ws"}, "https": {"ws": "wss", "wss": "wss"}}


def _redirected(urls: Any, base: str) -> Any:
    """Replace scheme and host of all URLs in what may be a tree of them."""
    if isinstance(urls, dict):
        return {key: _redirected(value, base) for key, value in urls.items()}
    if not isinstance(urls, str) or not urls.startswith(("http", "ws")):
        return urls
    here = urlsplit(base)
    there = urlsplit(urls)
    scheme = _SCHEMES[here.scheme].get(there.scheme, here.scheme)
    path = here.path.rstrip("/") + there.path
    return there._replace(scheme=scheme, netloc=here.netloc, path=path).geturl()


def _accounted(answer: Answer, start: int, end: int) -> tuple[int, int]:
    """Return the range of minutes that an answer accounts for, when [start, end) was asked for.

    Its second end is where to go on: behind the last row, as the answer may have been cut short
    there, or behind all that was asked for where there is none.
    """
    after = end if not len(answer.known) else int(answer.known[-1]) + MINUTE_US
    if answer.first is None or answer.last is None:
        return start, after
    if start - MINUTE_US <= answer.first and answer.last <= end:
        return start, after
    # Whoever answers for other minutes than those may have skipped what comes before his first.
    return (int(answer.known[0]) if len(answer.known) else after), after


def _strayed(answer: Answer, start: int, end: int) -> str:
    assert answer.first is not None
    assert answer.last is not None
    asked, answered = (
        f"{time_of(lo):%Y-%m-%d %H:%M} to {time_of(hi):%Y-%m-%d %H:%M}"
        for lo, hi in ((start, end - MINUTE_US), (answer.first, answer.last))
    )
    return f"with bars of {answered} when asked for {asked}"


def _moments(ranges: list[tuple[int, int]]) -> tuple[tuple[datetime, datetime], ...]:
    return tuple((time_of(lo), time_of(hi)) for lo, hi in ranges)


def _fetched(symbol: str, start: int, end: int, answer: Answer) -> Fetched:
    if answer.placeless:
        quiet = np.empty(0, np.int64)
    else:
        quiet = np.setdiff1d(np.arange(start, end, MINUTE_US), answer.known, assume_unique=True)
    return Fetched(symbol, time_of(start), time_of(end), answer.bars, answer.rejected, quiet)
