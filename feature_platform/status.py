"""The state of the platform: its symbols and its refresh policy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row

from feature_platform.queries import queries


@dataclass(frozen=True)
class SymbolStatus:
    """The bars and features of one symbol.

    rows_dirty: closed minutes whose row waits for a refresh, since dirty_since.
    lag: the age of the newest feature row, from the end of its minute; None without a row.
    """

    symbol: str
    first_bar: datetime | None
    last_bar: datetime | None
    last_feature: datetime | None
    rows_dirty: int
    dirty_since: datetime | None
    lag: timedelta | None


@dataclass(frozen=True)
class Counts:
    """The number of rows of a symbol in each table."""

    bars: int
    features: int


@dataclass(frozen=True)
class PolicyStatus:
    """The refresh policy, its last run and its last error; see the view `policy_status`.

    runs_in: "worker", or the database job that runs it.
    last_wakes: number of refreshes after a commit since that run, the last one at last_wake;
        last_rows_written and last_slices include them.
    problem: why the database job cannot run, and the remedy; None if it can.
    """

    start_offset: timedelta
    end_offset: timedelta
    schedule_interval: timedelta
    runs_in: str
    last_runner: str | None
    last_start: datetime | None
    last_duration: timedelta | None
    running: bool
    last_rows_written: int | None
    last_slices: int | None
    rows_dirty: int
    oldest_dirty_age: timedelta | None
    last_error: str | None
    last_error_at: datetime | None
    next_run: datetime | None
    last_wakes: int | None = None
    last_wake: datetime | None = None
    problem: str | None = None


@dataclass(frozen=True)
class ViewState:
    """The state of a version of a feature view; `feature-platform views list` shows more.

    symbols_dirty: symbols with closed buckets that wait for a refresh, for `dirty_age`.
    """

    name: str
    version: int
    served: bool
    state: str
    error: str | None
    symbols_dirty: int
    dirty_age: timedelta | None


def symbol_status(connection: psycopg.Connection[Any]) -> list[SymbolStatus]:
    """Return the status of each symbol, in their order, by a few index look-ups each."""
    with connection.cursor(row_factory=class_row(SymbolStatus)) as cursor:
        return cursor.execute(queries["status_symbols"]).fetchall()


def row_counts(connection: psycopg.Connection[Any]) -> dict[str, Counts]:
    """Count the rows of each symbol; this reads every key of both tables."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(queries["status_counts"]).fetchall()
    return {row["symbol"]: Counts(row["bars"], row["features"]) for row in rows}


def view_states(connection: psycopg.Connection[Any]) -> list[ViewState]:
    """Return the state of each version of each feature view, in the order of their names."""
    with connection.cursor(row_factory=class_row(ViewState)) as cursor:
        return cursor.execute(queries["status_views"]).fetchall()


def policy_runners(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the kinds of processes that run the policy now: "worker" and "job"."""
    return [row[0] for row in connection.execute(queries["status_runners"])]


def policy_status(connection: psycopg.Connection[Any]) -> PolicyStatus | None:
    """Return the state of the refresh policy, None if there is none."""
    with connection.cursor(row_factory=class_row(PolicyStatus)) as cursor:
        return cursor.execute(queries["status_policy"]).fetchone()
