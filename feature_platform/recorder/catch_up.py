"""What a stream did not say, or may have said wrong, asked of the exchange over REST."""

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
from feature_platform.errors import UserError
from feature_platform.exchange.client import Exchange, ExchangeUnavailable, Interrupted
from feature_platform.gaps import due_gaps, find_gaps
from feature_platform.queries import queries
from feature_platform.settings import redact
from feature_platform.trouble_log import TroubleLog

_log = logging.getLogger(__name__)

# Asked for once more, for bars that are corrected soon after they are published.
_OVERLAP = timedelta(minutes=3)
# Older gaps are for whoever repairs history.
_GAPS_OF = timedelta(hours=1)
# How often each market is asked again for what it said since, and from how long before that: for
# what a stream has not said, or said wrong, and nobody could tell.
_SWEEP = timedelta(minutes=15)
_SWEPT_AGAIN = timedelta(minutes=10)
# When in the minute to look for gaps, in its seconds: when those who record are at rest.
_LOOK_SECOND = 25.0
_LONGEST_WAIT = 30.0
_MINUTE = timedelta(minutes=1)

Answered = Callable[[str, str | None], None]


class _Unanswered(Exception):
    """The exchange or the database is away."""


class CatchUp:
    """Ask an exchange for minutes, one market after the other, from a thread of its own.

    exchange: used by that thread only; its patience should end when `stop` is set.
    history: how far back a market without bars is asked for.
    answered: told, on that thread, of each market whether all that was wanted of it is stored by
        now, or why not.
    stop: set, and followed by a `nudge`, it ends `run` after the page in hand.
    """

    def __init__(
        self,
        exchange: Exchange,
        history: timedelta,
        clock: Clock,
        answered: Answered,
        stop: threading.Event,
    ) -> None:
        self._exchange = exchange
        self._history = history
        self._clock = clock
        self._answered = answered
        self._stop = stop
        self._nudged = threading.Event()
        self._lock = threading.Lock()
        self._trouble = TroubleLog(_log)
        self._starts: dict[str, datetime] = {}
        self._newest_before: dict[str, datetime] = {}
        count, now = len(exchange.symbols), clock.now()
        # In turn, not all at once.
        self._swept = {name: now - _SWEEP * at / count for at, name in enumerate(exchange.symbols)}

    def since(self, symbols: Iterable[str], start: datetime) -> None:
        """Ask for all minutes from a moment on, and a few before; from any thread."""
        for symbol in symbols:
            self._want(symbol, start - _OVERLAP)
        self.nudge()

    def since_newest(self, symbols: Iterable[str], before: datetime) -> None:
        """Ask for all minutes from the newest that is stored and began before a moment."""
        with self._lock:
            for symbol in symbols:
                self._newest_before.setdefault(symbol, before)
        self.nudge()

    def again(self, minutes: Iterable[tuple[str, int]]) -> None:
        """Ask again for minutes, each a symbol and a `ts`; from any thread."""
        for symbol, ts in minutes:
            self._want(symbol, time_of(ts))
        self.nudge()

    def nudge(self) -> None:
        """Have `run` look at once what there is to do; from any thread."""
        self._nudged.set()

    def run(self) -> None:
        """Ask until told to stop."""
        look = self._next_look()
        while not self._stop.is_set():
            self._nudged.wait(self._clock.wall_seconds(look - self._clock.milliseconds() / 1000))
            self._nudged.clear()
            looking = self._clock.milliseconds() / 1000 >= look
            if looking:
                self._sweep()
            self._ask_patiently(looking=looking)
            if looking:
                look = self._next_look()

    def _next_look(self) -> float:
        now = self._clock.milliseconds() / 1000
        return (now - _LOOK_SECOND) // 60 * 60 + 60 + _LOOK_SECOND

    def _ask_patiently(self, *, looking: bool) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(_Unanswered),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
            stop=lambda _state: self._stop.is_set(),
            sleep=self._sleep,
            before_sleep=self._warn,
            retry_error_callback=lambda _state: None,
        )
        retrying(self._ask, looking=looking)

    def _ask(self, *, looking: bool) -> None:
        """Ask for all that is wanted. Raises _Unanswered where something stays wanted."""
        try:
            with connect() as connection:
                while (wanted := self._next(connection)) is not None:
                    self._ask_for(connection, *wanted)
                if looking:
                    self._ask_for_gaps(connection)
        except Interrupted:
            return  # `stop` is set
        except (psycopg.Error, UserError) as error:
            raise _Unanswered(" ".join(redact(str(error)).split())) from error

    def _ask_for(self, connection: psycopg.Connection[Any], symbol: str, start: datetime) -> None:
        error: str | None
        try:
            error = backfill(connection, self._exchange, symbol, start, self._exchange.now()).error
        except ExchangeUnavailable as unavailable:
            error = str(unavailable)
        except UserError as refusal:
            _log.error("%s: %s", symbol, refusal)
            self._answered(symbol, str(refusal))
            return
        except psycopg.Error:
            self._want(symbol, start)
            raise
        if error is not None:
            self._want(symbol, start)
            self._answered(symbol, error)
            raise _Unanswered(f"{symbol}: {error}")
        with self._lock:
            more = symbol in self._starts or symbol in self._newest_before
        if not more:
            self._answered(symbol, None)

    def _sweep(self) -> None:
        """Want what markets said since they were last asked, of those whose turn it is."""
        now = self._clock.now()
        for symbol, swept in self._swept.items():
            if now - swept >= _SWEEP:
                self._want(symbol, swept - _SWEPT_AGAIN)
                self._swept[symbol] = now

    def _ask_for_gaps(self, connection: psycopg.Connection[Any]) -> None:
        """Ask for what nobody has brought, of the last hour; a gap says itself when."""
        find_gaps(connection)
        oldest = self._clock.now() - _GAPS_OF
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
        """Take the next market of which something is wanted, and from when on."""
        with self._lock:
            symbol = next(iter({**self._newest_before, **self._starts}), None)
            before = self._newest_before.get(symbol or "")
        if symbol is None or self._stop.is_set():
            return None
        if before is not None:
            row = connection.execute(
                queries["recorder_newest"], {"symbol": symbol, "before": before}
            ).fetchone()
            # Back to what a recorder that was killed had still to ask again.
            self._want(
                symbol, before - self._history if row is None else row[0] - _SWEEP - _SWEPT_AGAIN
            )
        with self._lock:
            self._newest_before.pop(symbol, None)
            return symbol, self._starts.pop(symbol)

    def _warn(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        self._trouble.warn(error.__cause__ or error, "missing minutes are fetched again later")

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _want(self, symbol: str, start: datetime) -> None:
        with self._lock:
            self._starts[symbol] = min(start, self._starts.get(symbol, start))
