"""Backfill: ask the exchange for minutes over REST, store what it has, note what it has not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import psycopg

from feature_platform.bars import MINUTE_US, Stored, store_bars, time_of
from feature_platform.exchange.client import (
    Exchange,
    Exchanges,
    ExchangeUnavailable,
    Fetched,
    Rejected,
    UnknownMarket,
)
from feature_platform.gaps import due_gaps, note_answer, note_failure

DAY = timedelta(days=1)
_SHOWN_REJECTED = 20


@dataclass(frozen=True)
class BackfillReport:
    """Say what a backfill of one symbol's minutes brought.

    rejected: the first rows of the answers that are no bars and were left out;
        rejected_rows counts them all.
    quiet_minutes: minutes of the range in which the exchange had no trades.
    error: why the exchange did not answer for all of the range, None where it did.
    unknown: whether that is because the exchange does not have the symbol.
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
        """Return how many bars the exchange gave."""
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

    Each page is stored and accounted for by itself: what was fetched before an error stays.
    connection: in autocommit mode.
    progress: called with the moment up to which the exchange has answered.
    Raises UnknownMarket where the exchange does not have the symbol. That it does not answer is no
    exception: it is noted in the gaps, which are asked for again later, and in the report.
    """
    stored, rejected, rejected_rows, quiet = Stored(), list[Rejected](), 0, 0
    error = None
    try:
        for page in exchange.fetch_bars(symbol, start, end):
            stored += store_bars(connection, symbol, page.bars, "rest")
            quiet += _account(connection, page)
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
    """Ask for every open gap of the exchange's symbols whose time has come.

    day: the start of a UTC day, to ask for that day's only.
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
    """Ask for all of a UTC day, of the exchange's symbols or of some: gaps and corrections."""
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
    """Backfill one symbol of several: one that the exchange no longer has must not stop the others.

    It is reported as an error, as an exchange that does not answer is.
    """
    try:
        return backfill(connection, exchange, symbol, start, end)
    except UnknownMarket as unknown:
        note_failure(connection, symbol, start, end, str(unknown))
        return BackfillReport(symbol, start, end, Stored(), (), 0, 0, str(unknown), unknown=True)


def _account(connection: psycopg.Connection[Any], page: Fetched) -> int:
    """Note what a page says of the minutes that it has no bar for; return how many are quiet."""
    if not page.rejected:
        return note_answer(connection, page.symbol, page.start, page.end)
    # A minute whose row was no bar is not quiet: it stays open, with the reason.
    quiet = sum(
        note_answer(connection, page.symbol, start, end) for start, end in _runs(page.quiet)
    )
    reason = f"the answer has a row that is no bar: {page.rejected[0].reason}"
    note_failure(connection, page.symbol, page.start, page.end, reason)
    return quiet


def _runs(minutes: np.ndarray) -> Iterator[tuple[datetime, datetime]]:
    """Yield ranges [start, end) of consecutive minutes."""
    if not len(minutes):
        return
    for run in np.split(minutes, np.flatnonzero(np.diff(minutes) != MINUTE_US) + 1):
        yield time_of(int(run[0])), time_of(int(run[-1]) + MINUTE_US)
