"""Refresh of features_1m on demand, slice by slice, so that an interrupt loses one slice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from feature_platform.errors import UserError
from feature_platform.queries import queries


@dataclass(frozen=True)
class RefreshReport:
    """The work of a refresh.

    rows_written: rows that were stored, changed or deleted; unchanged rows do not count.
    """

    slices: int
    rows_written: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Return rows_written / seconds."""
        return self.rows_written / self.seconds if self.seconds else 0.0


def refresh(
    connection: psycopg.Connection[Any],
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RefreshReport:
    """Bring the rows with start <= bucket < end up to date; None is unbounded.

    connection: in autocommit mode, because each slice is its own transaction; the session is set to
        READ COMMITTED. After an interrupt, finished slices are stored and the rest stays dirty.
    force: also recompute rows that are not dirty.
    progress: called after each slice with the finished and the total number of minutes.
    Raises UserError when start is not before end.
    """
    if start is not None and end is not None and start >= end:
        raise UserError(f"the refresh window is empty: start {start} is not before end {end}")
    began = time.perf_counter()
    slices = rows_written = done = 0
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(queries["refresh_read_committed"])
        window = _one(cursor.execute(queries["refresh_bounds"], {"start": start, "end": end}))
        if force:
            cursor.execute(queries["refresh_mark_window"], window)
        todo = _one(cursor.execute(queries["refresh_todo"], window))
        more = True
        while more:
            result = _one(cursor.execute(queries["refresh_slice"], {**window, **todo}))
            cursor.execute(queries["refresh_known"])
            more = result["more"]
            slices += result["symbols"] > 0
            rows_written += result["rows_written"]
            done += result["minutes"]
            if progress is not None:
                progress(done, max(done, todo["minutes"]))
    return RefreshReport(slices, rows_written, time.perf_counter() - began)


def _one(cursor: psycopg.Cursor[dict[str, Any]]) -> dict[str, Any]:
    row = cursor.fetchone()
    assert row is not None, "the statement always gives one row"
    return row
