"""Backfill: fetch minutes over REST, store their bars, and record the minutes without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import psycopg

from feature_platform.bar_rules import MINUTE_US
from feature_platform.bars import Stored, store_bars, time_of
from feature_platform.exchange.client import (
    Exchange,
    Exchanges,
    ExchangeUnavailable,
    Fetched,
    Rejected,
    UnknownSymbol,
)
from feature_platform.gaps import due_gaps, note_answer, note_failure

DAY = timedelta(days=1)
_SHOWN_REJECTED = 20


@dataclass(frozen=True)
class BackfillReport:
    """The result of a backfill of one symbol.

    rejected: the first rejected rows of the answers; rejected_rows counts all of them.
    quiet_minutes: minutes of the range in which the exchange had no trades.
    error: why the exchange did not answer for the whole range, None where it did.
    unknown: whether the reason is that the exchange does not have the symbol.
    """

    symbol: str
    start: datetime
    end: datetime
    stored: Stored
    rejected: tuple[Rejected, ...]
    rejected_rows: int
    quiet_minutes: int
    error: str | None
    unknown: bool = False

    @property
    def fetched(self) -> int:
        """Return the number of bars in the answers."""
        return self.stored.inserted + self.stored.updated + self.stored.unchanged


def backfill(
    connection: psycopg.Connection[Any],
    exchange: Exchange | Exchanges,
    symbol: str,
    start: datetime,
    end: datetime,
    *,
    progress: Callable[[datetime], None] | None = None,
) -> BackfillReport:
    """Fetch and store the closed bars of [start, end), and account for the minutes without one.

    Each page is stored by itself: pages before an error stay stored.
    connection: in autocommit mode.
    progress: called with the time up to which the exchange has answered.
    Raises UnknownSymbol where the exchange does not have the symbol. An exchange that does not
    answer raises no exception: the reason is in the report and in the gaps, which are fetched again
    later.
    """
    stored, rejected, rejected_rows, quiet = Stored(), list[Rejected](), 0, 0
    error = None
    try:
        for page in exchange.fetch_bars(symbol, start, end):
            stored += store_bars(connection, symbol, page.bars, "rest")
            quiet += _record_quiet(connection, page)
            rejected += page.rejected[: _SHOWN_REJECTED - len(rejected)]
            rejected_rows += len(page.rejected)
            if progress is not None:
                progress(page.end)
    except ExchangeUnavailable as unavailable:
        error = str(unavailable)
        for since, until in unavailable.unanswered:
            note_failure(
                connection, symbol, since, until, error, retry_after=unavailable.retry_after
            )
    return BackfillReport(symbol, start, end, stored, tuple(rejected), rejected_rows, quiet, error)


def backfill_gaps(
    connection: psycopg.Connection[Any],
    exchange: Exchange | Exchanges,
    *,
    day: datetime | None = None,
) -> list[BackfillReport]:
    """Fetch every gap that is due, as `due_gaps` of the exchange's symbols lists them.

    day: the start of a UTC day, to fetch only the gaps of that day.
    """
    return [
        backfill_known(connection, exchange, gap.symbol, gap.start, gap.end)
        for gap in due_gaps(connection, exchange.symbols, day=day)
    ]


def backfill_day(
    connection: psycopg.Connection[Any],
    exchange: Exchange | Exchanges,
    day: datetime,
    symbols: Iterable[str] | None = None,
) -> list[BackfillReport]:
    """Fetch a whole UTC day, to fill gaps and store corrections.

    symbols: by default all of the exchange.
    """
    return [
        backfill_known(connection, exchange, symbol, day, day + DAY)
        for symbol in (exchange.symbols if symbols is None else symbols)
    ]


def backfill_known(
    connection: psycopg.Connection[Any],
    exchange: Exchange | Exchanges,
    symbol: str,
    start: datetime,
    end: datetime,
) -> BackfillReport:
    """Backfill one symbol of several; a symbol that the exchange does not have is an error of the
    report, so that the other symbols are still fetched.
    """
    try:
        return backfill(connection, exchange, symbol, start, end)
    except UnknownSymbol as unknown:
        note_failure(connection, symbol, start, end, str(unknown))
        return BackfillReport(symbol, start, end, Stored(), (), 0, 0, str(unknown), unknown=True)


def _record_quiet(connection: psycopg.Connection[Any], page: Fetched) -> int:
    """Record the minutes of a page without a bar; return how many are quiet."""
    if not page.rejected:
        return note_answer(connection, page.symbol, page.start, page.end)
    # A minute with a rejected row is not quiet: it stays open, with the reason.
    quiet = sum(
        note_answer(connection, page.symbol, start, end) for start, end in _runs(page.quiet)
    )
    reason = f"the answer has a row that is not a valid bar: {page.rejected[0].reason}"
    note_failure(connection, page.symbol, page.start, page.end, reason)
    return quiet


def _runs(minutes: np.ndarray) -> Iterator[tuple[datetime, datetime]]:
    """Yield ranges [start, end) of consecutive minutes."""
    if not len(minutes):
        return
    for run in np.split(minutes, np.flatnonzero(np.diff(minutes) != MINUTE_US) + 1):
        yield time_of(int(run[0])), time_of(int(run[-1]) + MINUTE_US)
