"""Fetch missing and unconfirmed minutes over REST while a stream is recorded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from feature_platform.backfill import backfill, backfill_known
from feature_platform.bars import time_of
from feature_platform.clock import Clock
from feature_platform.database import connect
from feature_platform.errors import UserError, one_line
from feature_platform.exchange.client import Exchange, ExchangeUnavailable, Interrupted
from feature_platform.gaps import due_gaps, find_gaps
from feature_platform.queries import queries
from feature_platform.trouble_log import TroubleLog

_log = logging.getLogger(__name__)

# Fetched once more, because exchanges correct some bars soon after they publish them.
_OVERLAP = timedelta(minutes=3)
# Dagster or `backfill` fetches older gaps.
_GAP_AGE = timedelta(hours=1)
# The time between two fetches of all recent minutes of a symbol, and the overlap of these fetches:
# a stream may lose or change an update without a sign of it.
_RECHECK_EVERY = timedelta(minutes=15)
_RECHECK_OVERLAP = timedelta(minutes=10)
# The second of the minute at which gaps are fetched: the recorders have little work then.
_GAPS_SECOND = 25.0
_LONGEST_WAIT = 30.0

OnFetched = Callable[[str, str | None], None]


class _Unavailable(Exception):
    """The exchange or the database is not available."""


class CatchUp:
    """Fetch minutes over REST, one symbol after the other, in a thread of its own.

    exchange: used by that thread only; its retries should end when `stop` is set.
    history: how far back a symbol without bars is fetched.
    on_fetched: called in that thread with a symbol, and None once all its pending minutes are
        stored, or the error.
    stop: ends `run` after the current page; call `wake` after setting it.
    """

    def __init__(
        self,
        exchange: Exchange,
        history: timedelta,
        clock: Clock,
        on_fetched: OnFetched,
        stop: threading.Event,
    ) -> None:
        self._exchange = exchange
        self._history = history
        self._clock = clock
        self._on_fetched = on_fetched
        self._stop = stop
        self._wake_up = threading.Event()
        self._lock = threading.Lock()
        self._trouble = TroubleLog(_log)
        self._pending: dict[str, datetime] = {}
        self._newest_before: dict[str, datetime] = {}
        count, now = len(exchange.symbols), clock.now()
        # Spread over the period, so that the symbols are not all fetched at once.
        self._rechecked_at = {
            symbol: now - _RECHECK_EVERY * at / count for at, symbol in enumerate(exchange.symbols)
        }

    def fetch_since(self, symbols: Iterable[str], start: datetime) -> None:
        """Fetch all minutes since a time, and a few before it; from any thread."""
        for symbol in symbols:
            self._add(symbol, start - _OVERLAP)
        self.wake()

    def fetch_since_newest(self, symbols: Iterable[str], before: datetime) -> None:
        """Fetch all minutes since the newest stored one that began before a time."""
        with self._lock:
            for symbol in symbols:
                self._newest_before.setdefault(symbol, before)
        self.wake()

    def fetch_again(self, minutes: Iterable[tuple[str, int]]) -> None:
        """Fetch all minutes since these again, each a symbol and a `ts`; from any thread."""
        for symbol, ts in minutes:
            self._add(symbol, time_of(ts))
        self.wake()

    def wake(self) -> None:
        """Wake `run` to look for pending work at once; from any thread."""
        self._wake_up.set()

    def run(self) -> None:
        """Fetch pending minutes until the stop event is set."""
        gaps_at = self._next_gaps_time()
        while not self._stop.is_set():
            self._wake_up.wait(
                self._clock.wall_seconds(gaps_at - self._clock.milliseconds() / 1000)
            )
            self._wake_up.clear()
            gaps_due = self._clock.milliseconds() / 1000 >= gaps_at
            if gaps_due:
                self._add_rechecks()
            self._fetch_with_retries(gaps_due=gaps_due)
            if gaps_due:
                gaps_at = self._next_gaps_time()

    def _next_gaps_time(self) -> float:
        now = self._clock.milliseconds() / 1000
        return (now - _GAPS_SECOND) // 60 * 60 + 60 + _GAPS_SECOND

    def _fetch_with_retries(self, *, gaps_due: bool) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(_Unavailable),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
            stop=lambda _state: self._stop.is_set(),
            sleep=self._sleep,
            before_sleep=self._warn,
            retry_error_callback=lambda _state: None,
        )
        retrying(self._fetch_all, gaps_due=gaps_due)

    def _fetch_all(self, *, gaps_due: bool) -> None:
        """Fetch all pending minutes. Raises _Unavailable where some stay pending."""
        try:
            with connect() as connection:
                while (pending := self._next(connection)) is not None:
                    self._fetch(connection, *pending)
                if gaps_due:
                    self._fetch_gaps(connection)
        except Interrupted:
            return  # `stop` is set
        except (psycopg.Error, UserError) as error:
            raise _Unavailable(one_line(error)) from error

    def _fetch(self, connection: psycopg.Connection[Any], symbol: str, start: datetime) -> None:
        error: str | None
        try:
            error = backfill(connection, self._exchange, symbol, start, self._exchange.now()).error
        except ExchangeUnavailable as unavailable:
            error = str(unavailable)
        except UserError as permanent:
            _log.error("%s: %s", symbol, permanent)
            self._on_fetched(symbol, str(permanent))
            return
        except psycopg.Error:
            self._add(symbol, start)
            raise
        if error is not None:
            self._add(symbol, start)
            self._on_fetched(symbol, error)
            raise _Unavailable(f"{symbol}: {error}")
        with self._lock:
            more = symbol in self._pending or symbol in self._newest_before
        if not more:
            self._on_fetched(symbol, None)

    def _add_rechecks(self) -> None:
        """Add the recent minutes of the symbols whose recheck is due."""
        now = self._clock.now()
        for symbol, rechecked_at in self._rechecked_at.items():
            if now - rechecked_at >= _RECHECK_EVERY:
                self._add(symbol, rechecked_at - _RECHECK_OVERLAP)
                self._rechecked_at[symbol] = now

    def _fetch_gaps(self, connection: psycopg.Connection[Any]) -> None:
        """Fetch the gaps of the last hour that are due."""
        find_gaps(connection)
        oldest = self._clock.now() - _GAP_AGE
        for gap in due_gaps(connection, self._exchange.symbols):
            if self._stop.is_set():
                return
            if gap.start >= oldest:
                report = backfill_known(connection, self._exchange, gap.symbol, gap.start, gap.end)
                if report.error is not None:
                    _log.warning("%s: %s", gap.symbol, report.error)
                    if not report.unknown:
                        return

    def _next(self, connection: psycopg.Connection[Any]) -> tuple[str, datetime] | None:
        """Remove and return the next pending symbol and the start of its range."""
        with self._lock:
            symbol = next(iter({**self._newest_before, **self._pending}), None)
            before = self._newest_before.get(symbol or "")
        if symbol is None or self._stop.is_set():
            return None
        if before is not None:
            row = connection.execute(
                queries["recorder_newest"], {"symbol": symbol, "before": before}
            ).fetchone()
            # Far enough back for the rechecks that a killed recorder had not made yet.
            self._add(
                symbol,
                before - self._history
                if row is None
                else row[0] - _RECHECK_EVERY - _RECHECK_OVERLAP,
            )
        with self._lock:
            self._newest_before.pop(symbol, None)
            return symbol, self._pending.pop(symbol)

    def _warn(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        self._trouble.warn(error.__cause__ or error, "missing minutes are fetched again later")

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _add(self, symbol: str, start: datetime) -> None:
        with self._lock:
            self._pending[symbol] = min(start, self._pending.get(symbol, start))
