"""Generated bars, equal in every run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from benchmarks.harness import Connection, queries

DAY = 1440  # minutes
FIRST = datetime(2024, 1, 1, tzinfo=UTC)  # long ago, so that every bar is closed

_STATEMENT = 500_000  # bars, about; the trigger of a statement has its rows in memory


def moment(minute: int) -> datetime:
    """Return the time of a minute by its number."""
    return FIRST + timedelta(minutes=minute)


def create_generator(connection: Connection) -> None:
    """Create the functions that generate bars."""
    connection.execute(queries["create_generator"])


def insert_bars(connection: Connection, symbols: range, minutes: range) -> None:
    """Store the bars of symbols and minutes, by their numbers, in one statement."""
    connection.execute(
        queries["insert_bars"],
        {
            "first_symbol": symbols[0],
            "last_symbol": symbols[-1],
            "first_minute": minutes[0],
            "last_minute": minutes[-1],
        },
    )


def load_bars(connection: Connection, symbols: range, minutes: range) -> None:
    """Store many bars, symbol by symbol."""
    at_once = max(1, _STATEMENT // len(minutes))
    for first in range(0, len(symbols), at_once):
        insert_bars(connection, symbols[first : first + at_once], minutes)


def refresh(connection: Connection) -> None:
    """Refresh all features; most benchmarks measure this."""
    connection.execute(queries["refresh"])


def settle(connection: Connection) -> None:
    """Finish the server's pending work, so that no later measurement includes it."""
    connection.execute(queries["settle"])
    connection.execute(queries["checkpoint"])
