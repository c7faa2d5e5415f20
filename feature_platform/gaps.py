"""Missing minutes and their states. The accounting itself is SQL, in 035_gaps.sql."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg
from psycopg.rows import class_row

from feature_platform.errors import UserError
from feature_platform.near_names import near_names
from feature_platform.queries import queries
from feature_platform.settings import get_settings

State = Literal["open", "filled", "quiet", "unavailable", "not_recorded"]
STATES: tuple[State, ...] = ("open", "filled", "quiet", "unavailable", "not_recorded")


@dataclass(frozen=True)
class DueGap:
    """Missing minutes of one UTC day to request from the exchange: start <= minute < end."""

    symbol: str
    start: datetime
    end: datetime
    attempts: int


@dataclass(frozen=True)
class Gap:
    """One row of `ohlcv_1m_gaps`.

    feed: the state of the stream in these minutes: `alive`, `dead`, None without a recorder.
    """

    symbol: str
    start: datetime
    end: datetime
    state: State
    found_at: datetime
    changed_at: datetime
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    feed: Literal["alive", "dead"] | None


def parse_states(names: Sequence[str]) -> list[State]:
    """Return the states of these names. Raises UserError for another name."""
    found = [state for name in names for state in STATES if state == name]
    if len(found) < len(names):
        wrong = next(name for name in names if name not in STATES)
        raise UserError(f"{wrong!r} is not a state of a gap: use one of {', '.join(STATES)}")
    return found


def check_known(connection: psycopg.Connection[Any], symbol: str) -> None:
    """Raise UserError, with the nearest names, where a symbol has neither bars nor gaps."""
    known = [row[0] for row in connection.execute(queries["bar_symbols"])]
    if symbol not in known and not list_gaps(connection, symbol):
        raise UserError(
            f"there are no bars of {symbol!r}{near_names(symbol, known)}:"
            " `feature-platform status` lists the symbols"
        )


def find_gaps(connection: psycopg.Connection[Any]) -> int:
    """Account for new and changed minutes, at most 200,000 of each; count open gaps."""
    row = connection.execute(queries["gaps_find"]).fetchone()
    assert row is not None, "the statement always gives one row"
    return int(row[0])


def minutes_to_account(connection: psycopg.Connection[Any]) -> int:
    """Return the number of minutes not accounted for yet; 0 means that the list is complete."""
    row = connection.execute(queries["gaps_minutes_left"]).fetchone()
    assert row is not None, "the statement always gives one row"
    return int(row[0])


def find_all_gaps(
    connection: psycopg.Connection[Any], progress: Callable[[int, int], None] | None = None
) -> int:
    """Account for every minute up to now, in as many ticks as needed; count open gaps.

    connection: in autocommit mode, so that other sessions see each tick's gaps at once.
    progress: called with the number of minutes done and the number there are.
    """
    whole = minutes_to_account(connection)
    while True:
        open_gaps = find_gaps(connection)
        left = minutes_to_account(connection)
        if progress is not None:
            progress(max(whole - left, 0), whole)
        if not left:
            return open_gaps


def due_gaps(
    connection: psycopg.Connection[Any], symbols: Sequence[str], *, day: datetime | None = None
) -> list[DueGap]:
    """Return the missing minutes that may be requested now, oldest first.

    symbols: these symbols, and those of their exchanges that are no longer recorded: their minutes
        before the end of the recording still need an answer of the exchange.
    day: the start of a UTC day, for the minutes of that day only.
    """
    parameters = {"symbols": list(symbols), "day": day}
    with connection.cursor(row_factory=class_row(DueGap)) as cursor:
        return cursor.execute(queries["gaps_due"], parameters).fetchall()


def list_gaps(
    connection: psycopg.Connection[Any],
    symbol: str | None = None,
    states: Sequence[State] | None = None,
) -> list[Gap]:
    """Return gaps by symbol and time; None is any symbol, any state."""
    parameters = {"symbol": symbol, "states": list(states) if states else None}
    with connection.cursor(row_factory=class_row(Gap)) as cursor:
        return cursor.execute(queries["gaps_list"], parameters).fetchall()


def note_answer(
    connection: psycopg.Connection[Any], symbol: str, start: datetime, end: datetime
) -> int:
    """Record that the exchange answered for the minutes start <= minute < end.

    Returns the number of those without a trade.
    """
    minutes = {"symbol": symbol, "start": start, "end": end}
    connection.execute(queries["gaps_answered"], minutes)
    row = connection.execute(queries["gaps_quiet_minutes"], minutes).fetchone()
    assert row is not None, "the statement always gives one row"
    return int(row[0])


def note_failure(
    connection: psycopg.Connection[Any],
    symbol: str,
    start: datetime,
    end: datetime,
    error: str,
    *,
    retry_after: float | None = None,
) -> None:
    """Record that the exchange did not answer for the minutes start <= minute < end.

    After the settings' gap_attempts, they become `unavailable`.
    retry_after: seconds until the exchange accepts requests again.
    """
    failure = {"symbol": symbol, "start": start, "end": end, "error": error}
    patience = {"retry_after": retry_after or 0.0, "attempts": get_settings().gap_attempts}
    connection.execute(queries["gaps_failed"], {**failure, **patience})
