"""The poller: the process that keeps the newest minutes coming over REST."""

from __future__ import annotations

import logging
import signal
import threading
from datetime import datetime, timedelta
from types import FrameType
from typing import Any

import psycopg

from feature_platform.backfill import backfill
from feature_platform.clock import Clock
from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.exchange import Exchange, ExchangeUnavailable
from feature_platform.queries import queries
from feature_platform.schema import prepare
from feature_platform.settings import get_settings, redact

_log = logging.getLogger(__name__)

# Into the minute, so that the venue has published the one before.
_SECOND = 1.0
# Fetched once more each time, for bars that were corrected soon after they were published.
_OVERLAP = timedelta(minutes=3)


class Poller:
    """Fetch what is new of the configured symbols, every minute, until asked to stop.

    history: how far back a symbol without bars is fetched at first.
    clock: whose minutes these are.
    What a minute's attempt does not get, because the venue or the database is away, the next
    one gets: it begins at the newest bar that is stored.
    """

    def __init__(self, exchange: Exchange, history: timedelta, clock: Clock) -> None:
        self._exchange = exchange
        self._clock = clock
        self._history = history
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask the poller to end after the page in hand."""
        self._stop.set()

    def run(self) -> None:
        """Poll until `stop`. Raises UserError when a setting or the database is wrong at first."""
        with connect() as connection:
            prepare(connection)
        while not self._stop.is_set():
            try:
                with connect() as connection:
                    self.poll(connection)
            except (ExchangeUnavailable, psycopg.Error, UserError) as error:
                _log.warning("%s; trying again", " ".join(redact(str(error)).split()))
            self._stop.wait(self._clock.wall_seconds_to_minute(_SECOND))

    def poll(self, connection: psycopg.Connection[Any]) -> int:
        """Fetch what is new of every symbol, once; return how many bars were new."""
        new = 0
        now = self._exchange.now()
        for symbol in self._exchange.symbols:
            if self._stop.is_set():
                break
            report = backfill(
                connection, self._exchange, symbol, self._start(connection, symbol, now), now
            )
            new += report.stored.inserted
            if report.error is not None:
                _log.warning("%s: %s", symbol, report.error)
        _log.info("%d new bars of %d symbols", new, len(self._exchange.symbols))
        return new

    def _start(self, connection: psycopg.Connection[Any], symbol: str, now: datetime) -> datetime:
        row = connection.execute(queries["poll_newest"], {"symbol": symbol}).fetchone()
        return now - self._history if row is None else row[0] - _OVERLAP


def run_poller(history: timedelta) -> None:
    """Run a poller in this process until SIGTERM or SIGINT."""
    with Exchange.configured() as exchange:
        poller = Poller(exchange, history, get_settings().clock)

        def stop(_number: int, _frame: FrameType | None) -> None:
            _log.info("stopping")
            poller.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        poller.run()
    _log.info("stopped")
