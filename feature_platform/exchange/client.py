"""Fetch one-minute bars over REST from any exchange of ccxt that has them."""

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

from feature_platform.bar_rules import END_SECOND, FIRST_SECOND, MINUTE_US, Ints
from feature_platform.bars import Bars, time_of, ts_of
from feature_platform.clock import Clock, SimulatedClock
from feature_platform.errors import UserError
from feature_platform.exchange.bounded_http import LISTS, BoundedSession, Interrupted
from feature_platform.exchange.response import Answer, Rejected, read_answer
from feature_platform.exchange.retry import Calls, ExchangeUnavailable, Patience, UnknownSymbol
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
    "UnknownSymbol",
]

_log = logging.getLogger(__name__)

TIMEFRAME = "1m"
_DEFAULT_PAGE_MINUTES = 500  # where ccxt knows no limit of bars in an answer

# How long a fetched time of the exchange is used; afterwards it is fetched again. Seconds.
_CLOCK_VALID = 60.0
_CLOCK_SKEW = 2.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """One answer of an exchange for the minutes from `start` to before `end`.

    bars: of closed minutes only.
    rejected: rows of the answer that cannot be stored.
    quiet: the minutes for which the exchange has no bar, because it had no trades or because it
        publishes late; in microseconds since 1970-01-01 UTC. Minutes with a rejected row are not
        included; it is empty if a rejected row has no valid time.
    """

    symbol: str
    start: datetime
    end: datetime
    bars: Bars
    rejected: tuple[Rejected, ...]
    quiet: Ints


class Exchange:
    """Fetch bars from an exchange.

    One object is for one thread, except `interrupt`. Reuse it: it fetches the list of symbols
    once, which takes seconds for some exchanges. The platform sends no credentials to any exchange.

    name: ccxt's id.
    symbols: the symbols of `check`, with or without the exchange's id as a prefix.
    url: replaces scheme and host of the exchange's URLs.
    patience: the retries of a failed request.
    clock: decides which minutes are closed. By default this is the exchange's own time where it
        publishes it, and this machine's clock if that is earlier.
    rate_limit: whether to respect the rate limit that ccxt knows of the exchange.
    Raises UserError where ccxt knows no such exchange, or it has no bars of one minute.
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
        """Return an exchange with its symbols and URL from the settings.

        A simulated clock of the platform also decides which minutes are closed: the exchange's own
        clock may have another speed.
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
        """End the current request and all later ones with Interrupted; from any thread."""
        self._session.interrupt()

    def check(self) -> None:
        """Check that the exchange answers and has all `symbols`.

        Raises UserError that names the wrong setting, ExchangeUnavailable.
        """
        self.markets()
        for symbol in self.symbols:
            self._check_symbol(symbol, f"{PREFIX}SYMBOLS: ")

    def now(self) -> datetime:
        """Return the time of the exchange, or a little earlier. Raises ExchangeUnavailable."""
        return time_of(int(self._now() * 1_000_000))

    def fetch_bars(self, symbol: str, start: datetime, end: datetime) -> Iterator[Fetched]:
        """Fetch the closed bars of [start, end), page by page in ascending order.

        The yielded pages account for every closed minute of the range, or for those before an
        error.

        Raises UnknownSymbol where the exchange does not have the symbol, UserError where it rejects
        the request permanently; ExchangeUnavailable where it does not answer in time, and at the
        end where it answered for other minutes than the requested ones: its `unanswered` lists the
        minutes.
        """
        try:
            self._check_symbol(symbol)
        except ExchangeUnavailable as error:
            error.unanswered = ((start, end),)
            raise
        cursor, stop = (-(-ts_of(one) // MINUTE_US) * MINUTE_US for one in (start, end))
        page = self._page_minutes(symbol) * MINUTE_US
        unanswered: list[tuple[int, int]] = []
        other_minutes = ""
        while True:
            try:
                # Before the bars: a minute that is open now is not stored, even if it closes soon.
                closed = int(self._now()) // 60 * MINUTE_US
                limit = min(stop, closed)
                if cursor >= limit:
                    break
                page_end = min(cursor + page, limit)
                answer = self._fetch_page(symbol, cursor, page_end, limit, closed)
            except ExchangeUnavailable as error:
                error.unanswered = _time_ranges([*unanswered, (cursor, stop)])
                raise
            begin, after = _answered_range(answer, cursor, page_end)
            if begin > cursor:
                unanswered.append((cursor, begin))
                other_minutes = other_minutes or _other_minutes(answer, cursor, page_end)
            if begin < after:
                yield _fetched(symbol, begin, after, answer)
            cursor = after
        if unanswered:
            wrong_minutes = ExchangeUnavailable(f"{self.name} answers for {symbol} {other_minutes}")
            wrong_minutes.unanswered = _time_ranges(unanswered)
            raise wrong_minutes

    def _fetch_page(self, symbol: str, start: int, end: int, limit: int, closed: int) -> Answer:
        def call() -> Answer:
            rows = self._request(
                self._client.fetch_ohlcv,
                name_at(self.name, symbol),
                TIMEFRAME,
                start // 1000,
                (end - start) // MINUTE_US,
                # The last millisecond: some exchanges include `until`, some do not.
                {"until": end // 1000 - 1},
            )
            answer = read_answer(rows, start, limit, closed)
            if answer.without_time == len(rows) > 0:
                raise ccxt.BadResponse(f"an answer without a bar in it: {rows[0][-1]!r:.100}")
            return answer

        return self._calls(call)

    def _request(self, call: Any, *arguments: Any) -> Any:
        """Call a method of ccxt's client.

        Raises ccxt.BadResponse for an answer that is not JSON, which ccxt treats as an empty one.
        """
        self._misread = None
        result = call(*arguments)
        if self._misread is not None:
            raise ccxt.BadResponse(f"an answer that is not JSON: {self._misread!r}")
        return result

    def _watch_json(self, text: str) -> Any:
        value = self._parse_json(text)
        # Some of ccxt's clients read an empty object as an empty list of bars.
        if value is None or value == {}:
            self._misread = text[:100]
        return value

    def _keep_rows(self, ohlcvs: Any, market: Any = None, *_which: Any, **_more: Any) -> Any:
        """Return all rows; ccxt's own method drops, sorts and cuts them."""
        if not isinstance(ohlcvs, list):
            raise ccxt.BadResponse(f"an answer that is not a list of bars: {ohlcvs!r:.100}")
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

        It is at most this machine's: by a clock that is ahead, open minutes would count as closed.
        """
        if self._clock is not None:
            return self._clock.milliseconds() / 1000
        if not self._client.has.get("fetchTime"):
            return time.time()
        if self._time is None or time.monotonic() - self._time[1] > _CLOCK_VALID:
            fetched = self._calls(self._fetch_time)
            # The time of the arrival of the answer, so that the result is late rather than early.
            self._time = fetched, time.monotonic()
            skew = fetched - time.time()
            if abs(skew) > _CLOCK_SKEW:
                _log.warning(
                    "the clocks of %s and of this machine differ by %.1f s; a minute is closed"
                    " when it has ended by both",
                    self.name,
                    skew,
                )
        fetched, when = self._time
        return min(fetched + time.monotonic() - when, time.time())

    def _fetch_time(self) -> float:
        seconds = float(self._request(self._client.fetch_time)) / 1000
        if not FIRST_SECOND <= seconds < END_SECOND:  # nor is NaN
            raise ccxt.BadResponse(f"an answer that is not a time: {seconds * 1000!r} ms")
        return seconds

    def _check_symbol(self, symbol: str, where: str = "") -> None:
        markets = self.markets()
        name = name_at(self.name, symbol)
        if name in markets:
            return
        by_id = (self._client.markets_by_id or {}).get(name.upper())
        near = by_id[0]["symbol"] if by_id else None
        hint = f" (did you mean {near!r}?)" if near else near_names(name, list(markets))
        raise UnknownSymbol(f"{where}{self.name} has no symbol {name!r}{hint}")

    def markets(self) -> dict[str, Any]:
        """Return ccxt's data of each of the exchange's symbols, fetched once.

        Raises ExchangeUnavailable, UserError.
        """
        if self._markets is None:
            reload = True  # an answer that could not be read may have left an incomplete list
            with self._session.limited(LISTS):
                self._markets = self._calls(
                    lambda: self._request(self._client.load_markets, reload)
                )
        return self._markets

    def _page_minutes(self, symbol: str) -> int:
        name = name_at(self.name, symbol)
        limit = self._client.feature_value(name, "fetchOHLCV", "limit")
        return int(limit) if limit else _DEFAULT_PAGE_MINUTES


class Exchanges:
    """Fetch bars of symbols of several exchanges.

    Each exchange has a client, a rate limit and retries of its own, made at its first use.
    settings: the exchanges and symbols; by default the platform's.
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
    """Return whether an exchange has bars of one minute over REST."""
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

    name, symbols, url, rate_limit: as for `Exchange`.
    library: `ccxt` for REST, `ccxt.pro` for streams.
    Raises UserError where ccxt knows no such exchange.
    """
    if name not in library.exchanges:
        hint = near_names(name, library.exchanges)
        raise UserError(f"{PREFIX}EXCHANGE: ccxt knows no exchange {name!r}{hint}")
    client = getattr(library, name)({"enableRateLimit": rate_limit})
    if client.session is not None:  # ccxt's client of streams opens its session in its event loop
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
    """Replace scheme and host of all URLs of a tree."""
    if isinstance(urls, dict):
        return {key: _redirected(value, base) for key, value in urls.items()}
    if not isinstance(urls, str) or not urls.startswith(("http", "ws")):
        return urls
    here = urlsplit(base)
    there = urlsplit(urls)
    scheme = _SCHEMES[here.scheme].get(there.scheme, here.scheme)
    path = here.path.rstrip("/") + there.path
    return there._replace(scheme=scheme, netloc=here.netloc, path=path).geturl()


def _answered_range(answer: Answer, start: int, end: int) -> tuple[int, int]:
    """Return the range of minutes that an answer to a request for [start, end) accounts for.

    Its end is the start of the next request: after the last row, because an answer may be cut
    short there, or `end` for an answer without rows.
    """
    after = end if not len(answer.known) else int(answer.known[-1]) + MINUTE_US
    if answer.first is None or answer.last is None:
        return start, after
    if start - MINUTE_US <= answer.first and answer.last <= end:
        return start, after
    # An answer with other minutes may have skipped some before its first row.
    return (int(answer.known[0]) if len(answer.known) else after), after


def _other_minutes(answer: Answer, start: int, end: int) -> str:
    assert answer.first is not None
    assert answer.last is not None
    requested, answered = (
        f"{time_of(lo):%Y-%m-%d %H:%M} to {time_of(hi):%Y-%m-%d %H:%M}"
        for lo, hi in ((start, end - MINUTE_US), (answer.first, answer.last))
    )
    return f"with bars of {answered} to a request for {requested}"


def _time_ranges(ranges: list[tuple[int, int]]) -> tuple[tuple[datetime, datetime], ...]:
    return tuple((time_of(lo), time_of(hi)) for lo, hi in ranges)


def _fetched(symbol: str, start: int, end: int, answer: Answer) -> Fetched:
    if answer.without_time:
        quiet = np.empty(0, np.int64)
    else:
        quiet = np.setdiff1d(np.arange(start, end, MINUTE_US), answer.known, assume_unique=True)
    return Fetched(symbol, time_of(start), time_of(end), answer.bars, answer.rejected, quiet)
