"""The database's record of the lake: until when each table has rows, and which rows changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.range import Range
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from feature_platform.errors import UserError
from feature_platform.queries import queries

# A sync tries for so long to get its moment between two refreshes, 0.2 s at a time.
_GIVE_UP_SECONDS = 60.0
# Changes that one transaction settles.
_CHANGES = 10_000


@dataclass(frozen=True)
class State:
    """The lake's copy of a table, as the database knows it; times are None before the first sync.

    table_id: distinguishes the copy from that of another database.
    table_version: the newest version of the Delta table that the platform wrote.
    recorded_until: changes of rows before it are recorded.
    mirrored_until: the copy has the rows before it, but for recorded changes.
    """

    location: str
    view: int | None
    table_id: str
    table_version: int | None
    recorded_until: datetime | None
    mirrored_until: datetime | None


@dataclass(frozen=True)
class Change:
    """Days of a symbol whose rows changed: start <= time < end."""

    id: int
    symbol: str
    start: datetime
    end: datetime


@contextmanager
def locked(connection: psycopg.Connection[Any], name: str) -> Iterator[State]:
    """Hold the lock of a table's writers for a transaction; give the table's state.

    Raises UserError where another writer holds it for too long.
    """
    with connection.transaction():
        try:
            with connection.cursor(row_factory=class_row(State)) as cursor:
                state = cursor.execute(queries["lake_lock"], {"name": name}).fetchone()
        except psycopg.errors.LockNotAvailable:
            raise UserError(
                f"another process is writing {name} into the lake: try again when it is done"
            ) from None
        if state is None:
            raise UserError(f"the lake does not have {name} yet: run `feature-platform lake sync`")
        yield state


def begin(connection: psycopg.Connection[Any], name: str, location: str, view: int | None) -> None:
    """Register a table that is mirrored for the first time."""
    row = {"name": name, "location": location, "view": view}
    connection.execute(queries["lake_add"], row)


def restart(
    connection: psycopg.Connection[Any], name: str, location: str, view: int | None, version: int
) -> None:
    """Have a table mirrored from its first row, into a Delta table that is empty."""
    row = {"name": name, "location": location, "view": view, "version": version}
    connection.execute(queries["lake_forget_all_changes"], {"name": name})
    connection.execute(queries["lake_restart"], row)


def written(
    connection: psycopg.Connection[Any], name: str, version: int, until: datetime | None = None
) -> None:
    """Note the version of the newest commit, and until when the table has all rows."""
    connection.execute(queries["lake_written"], {"name": name, "version": version, "until": until})


def record_until(connection: psycopg.Connection[Any], name: str, until: datetime) -> None:
    """Have the changes of all rows before a time recorded, from this moment on.

    Raises UserError where refreshes leave it no moment.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(psycopg.errors.LockNotAvailable),
        wait=wait_random(0.05, 0.3),
        stop=stop_after_delay(_GIVE_UP_SECONDS),
        reraise=True,
    )
    parameters = {"name": name, "until": until}
    try:
        retrying(connection.execute, queries["lake_record_until"], parameters)
    except psycopg.errors.LockNotAvailable:
        raise UserError(
            f"refreshes were at work for {_GIVE_UP_SECONDS:.0f} s without a pause: try again"
        ) from None


def changes(connection: psycopg.Connection[Any], name: str) -> list[Change]:
    """Return the oldest recorded changes of a table."""
    rows = connection.execute(queries["lake_changes"], {"name": name, "limit": _CHANGES})
    return [Change(no, symbol, _start(first), _start(after)) for no, symbol, first, after in rows]


def settle(connection: psycopg.Connection[Any], name: str, done: list[Change]) -> None:
    """Delete changes that the lake has."""
    ids = list({change.id for change in done})
    connection.execute(queries["lake_forget_changes"], {"name": name, "ids": ids})


def waiting(connection: psycopg.Connection[Any], name: str) -> list[Change]:
    """Return the days of a table whose rows in the lake may differ from the database."""
    rows = connection.execute(queries["lake_waiting"], {"name": name})
    return [Change(no, symbol, _start(first), _start(after)) for no, symbol, first, after in rows]


def record(
    connection: psycopg.Connection[Any], name: str, days: Sequence[tuple[str, datetime]]
) -> None:
    """Have the next sync write some days of symbols again."""
    ranges = [Range(day, day + timedelta(days=1)) for _, day in days]
    parameters = {"name": name, "symbols": [symbol for symbol, _ in days], "days": ranges}
    connection.execute(queries["lake_record"], parameters)


def _start(day: date) -> datetime:
    return datetime.combine(day, time_of_day(), UTC)
