"""One run of the refresh policy, slice by slice, by the worker or in its place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from feature_platform.errors import one_line
from feature_platform.queries import queries

_log = logging.getLogger(__name__)

# The pause between two attempts to get a lock, in seconds.
_LOCK_PAUSE = 0.1

# Waits for this many seconds at most; returns whether the caller has to end.
Until = Callable[[float], bool]


@dataclass(frozen=True)
class PolicyRun:
    """A run of the policy that has ended.

    began: by the database's clock.
    rows_written: rows that were stored, changed or deleted.
    error: the error that ended the run; its rows wait for the next one.
    """

    id: int
    began: datetime
    slices: int = 0
    rows_written: int = 0
    took: timedelta = timedelta()
    error: psycopg.Error | None = None


def run_policy(connection: psycopg.Connection[Any], runner: str, until: Until) -> PolicyRun:
    """Run the policy once, until all rows that are due are refreshed or `until` ends it.

    connection: in autocommit mode, because each slice is its own transaction.
    runner: the kind of runner that the run is recorded for, such as `worker`.
    Raises psycopg.Error when the connection is lost; another error ends only the run.
    """
    run_id, horizon, began = fetch_row(connection, "policy_begin", {"runner": runner}, until)
    problem: psycopg.Error | None = None
    step = {"run_id": run_id, "horizon": horizon}
    try:
        more = True
        while more and not until(0):
            (more,) = fetch_row(connection, "policy_step", step, until)
            # A transaction of its own, so that the rows of features_1m are readable before.
            fetch_row(connection, "refresh_known", {}, until)
            (more_views,) = fetch_row(connection, "policy_views", {"run_id": run_id}, until)
            fetch_row(connection, "refresh_known", {}, until)
            more |= more_views
    except psycopg.Error as error:
        if connection.broken:
            raise
        problem = error
    end = {"run_id": run_id, "error": None if problem is None else one_line(problem)}
    fetch_row(connection, "policy_end", end, until)
    slices, rows, took, _ = fetch_row(connection, "policy_run", {"run_id": run_id}, until)
    return PolicyRun(run_id, began, slices, rows, took, problem)


def fetch_row(
    connection: psycopg.Connection[Any], query: str, parameters: dict[str, object], until: Until
) -> TupleRow:
    """Return the one row of a query; all None if it has none.

    A query that cannot get a lock in time is sent again until it gets the lock.
    Raises psycopg.errors.LockNotAvailable if `until` ends that.
    """
    waited = False
    while True:
        try:
            cursor = connection.execute(queries[query], parameters)
        except psycopg.errors.LockNotAvailable as error:
            if not waited:
                _log.warning("waiting for a lock: %s", one_line(error))
            waited = True
            if until(_LOCK_PAUSE):
                raise
        else:
            return cursor.fetchone() or (None,) * len(cursor.description or ())
