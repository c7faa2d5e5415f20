"""The proof that the stored rows of a feature view equal recomputed rows, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from feature_platform.queries import queries

# The rows of a slice: 30 days of minutes.
_SLICE_ROWS = 30 * 1440


@dataclass(frozen=True)
class View:
    """A view that is served."""

    id: int
    name: str
    every: timedelta
    columns: list[str]


@dataclass(frozen=True)
class Difference:
    """A value that differs; column "row" where one of the rows is missing."""

    bucket: str
    column: str
    stored: float | None
    expected: float | None


@dataclass(frozen=True)
class Comparison:
    """The result of a slice, as in VerifyReport."""

    rows: int
    pending: int
    mismatches: int
    differences: list[Difference]


def served_views(connection: psycopg.Connection[Any]) -> list[View]:
    """Return the views to verify: all that are served and have not failed."""
    with connection.cursor(row_factory=class_row(View)) as cursor:
        return cursor.execute(queries["views_to_verify"]).fetchall()


def slices_of(
    connection: psycopg.Connection[Any],
    view: View,
    symbol: str,
    start: datetime | None,
    end: datetime | None,
) -> Iterator[tuple[datetime, datetime]]:
    """Return the slices of start <= bucket < end in which a symbol has or should have rows."""
    at = {"id": view.id, "symbol": symbol}
    row = connection.execute(queries["views_verify_span"], at).fetchone()
    if row is None or row[0] is None or row[2] is None:
        return
    first, closed, last = row
    lo, hi = max(first, start or first), min(last, end or last)
    while lo < hi:
        # From `closed` on there must be no row; one slice covers all of that time.
        until = min(lo + _SLICE_ROWS * view.every, hi) if lo < closed else hi
        yield lo, until
        lo = until


def compare(
    connection: psycopg.Connection[Any],
    view: View,
    symbol: str,
    start: datetime,
    end: datetime,
    show: int,
) -> Comparison:
    """Compare the stored rows of a symbol with start <= bucket < end with recomputed ones.

    show: the most rows that differ to describe.
    """
    columns = [sql.Identifier(name) for name in view.columns]

    def bits(relation: str) -> sql.Composed:
        bit = sql.SQL("float8send({}.{}::double precision)")
        return sql.SQL(", ").join(bit.format(sql.Identifier(relation), one) for one in columns)

    statement = sql.SQL(queries["views_compare"]).format(
        plain=sql.Identifier("feature_views", f"v{view.id}_plain"),
        plain_from=sql.Identifier("feature_views", f"v{view.id}_plain_from"),
        columns=sql.SQL(", ").join(columns),
        view=sql.Identifier("public", view.name),
        stored_bits=bits("_s"),
        expected_bits=bits("_e"),
    )
    parameters = {"id": view.id, "symbol": symbol, "start": start, "end": end, "show": show}
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statement, parameters).fetchone()
    assert row is not None, "the statement always gives one row"
    differences = [
        found
        for one in row["examples"]
        for found in differences_of(one, view.columns[0], view.columns)
    ]
    return Comparison(row["rows_checked"], row["pending"], row["mismatches"], differences[:show])


def differences_of(
    example: dict[str, Any], shown: str, columns: Iterable[str] | None = None
) -> Iterator[Difference]:
    """Yield the values that differ between the stored and the expected row of a bucket.

    shown: the column whose value stands for a row where the other row is missing.
    columns: in this order; by default all of the expected row.
    """
    bucket, stored, expected = example["bucket"], example["stored"], example["expected"]
    # A missing row of an outer join is NULL, or has only NULLs.
    if not stored or stored["bucket"] is None:
        yield Difference(bucket, "row", None, _number(expected[shown]))
    elif not expected or expected["bucket"] is None:
        yield Difference(bucket, "row", _number(stored[shown]), None)
    else:
        for column in columns or expected:
            if stored[column] != expected[column]:
                value = _number(stored[column]), _number(expected[column])
                yield Difference(bucket, column, *value)


def _number(value: Any) -> float | None:
    """Return a number of JSON, in which NaN is a text and a whole double an integer."""
    return None if value is None else float(value)
