"""The proof that what the model service has served is what it should have read.

Each logged row is computed again from the bars as of its refresh, by plain window functions. No
stored row is read for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.array import ArrayBinaryLoader

from feature_platform.errors import UserError
from feature_platform.queries import queries

EXAMPLES = 10
_FLOATS = psycopg.adapters.types["float8"].array_oid


@dataclass(frozen=True)
class Wrong:
    """A served row that differs from the recomputation.

    served_at: when it was served first with these values and numbers.
    problem: "mismatch" of values, "missing" for a newer row that was not served, "extra" for a row
        that should not have existed.
    column, served, computed: of a mismatch, the first column that differs and its two values.
    """

    view: str
    symbol: str
    bucket: datetime
    refresh_no: int
    symbol_no: int
    served_at: datetime
    problem: str
    column: str | None = None
    served: float | None = None
    computed: float | None = None

    def as_json(self) -> dict[str, str | int | None]:
        """Return the fields with times in ISO-8601, and values as texts of all digits."""
        times = {
            name: getattr(self, name).astimezone(UTC).isoformat()
            for name in ("bucket", "served_at")
        }
        values = {
            name: "NULL" if (value := getattr(self, name)) is None else repr(value)
            for name in ("served", "computed")
            if self.column is not None
        }
        return {**vars(self), **times, **values}


@dataclass
class SkewReport:
    """The numbers of logged rows.

    rows: all that were compared; mismatch, missing, extra: those of them that were wrong.
    not_kept: of versions of views, or from times, whose history is not kept; these are not in rows.
    replaced: those of not_kept whose version of the view was replaced or dropped.
    """

    rows: int = 0
    mismatch: int = 0
    missing: int = 0
    extra: int = 0
    not_kept: int = 0
    replaced: int = 0
    examples: list[Wrong] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Return whether no row was wrong."""
        return not (self.mismatch or self.missing or self.extra)


def skew(
    connection: psycopg.Connection[Any],
    *,
    since: datetime,
    sample: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SkewReport:
    """Compute the rows again that were served since a time, and compare them bit for bit.

    sample: a random part of so many serves; None is all.
    progress: called with the finished and the total number of different rows.
    Raises UserError for a time in the future.
    """
    (now,) = connection.execute(queries["clock_now"]).fetchall()[0]
    if since > now:
        shown, is_now = (time.astimezone(UTC).isoformat() for time in (since, now))
        raise UserError(f"since, {shown}, is in the future: it is {is_now} now")
    with connection.cursor(row_factory=dict_row) as cursor:
        serves = cursor.execute(
            queries["skew_serves"], {"since": since, "sample": sample}
        ).fetchall()
        report = SkewReport()
        bits: dict[tuple[Any, ...], tuple[bool, Any]] = {}
        for number, served in enumerate(serves, 1):
            _compare(cursor, served, bits, report)
            if progress is not None:
                progress(number, len(serves))
    return report


def row_as_of(
    connection: psycopg.Connection[Any], view: str, symbol: str, bucket: datetime, number: int
) -> tuple[bool, bytes | None]:
    """Return whether the history has a row as of the number of a refresh, and the row's bits.

    view: features_1m, or a feature view that is served. The bits are of an array of all columns.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(queries["skew_view"], {"view": view}).fetchone()
        assert found is not None, f"there is no view {view}"
        return _row_bits(cursor, {**found, "symbol": symbol, "bucket": bucket, "no": number})


def _row_bits(cursor: psycopg.Cursor[dict[str, Any]], of: dict[str, Any]) -> tuple[bool, Any]:
    schema, prefix = ("feature_platform", "features_1m")
    if of["view_id"] is not None:
        schema, prefix = "feature_views", f"v{of['view_id']}"
    statement = sql.SQL(queries["skew_row"]).format(
        plain=sql.Identifier(schema, f"{prefix}_plain_as_of"),
        plain_from=sql.Identifier(schema, f"{prefix}_plain_from_as_of"),
        columns=sql.SQL(", ").join(sql.Identifier("e", name) for name in of["columns"]),
    )
    names = ("symbol", "bucket", "every", "origin", "no")
    row = cursor.execute(statement, {name: of[name] for name in names}).fetchone()
    assert row is not None, "the statement always gives one row"
    return row["is_kept"], row["bits"]


def _compare(
    cursor: psycopg.Cursor[dict[str, Any]],
    served: dict[str, Any],
    bits: dict[tuple[Any, ...], tuple[bool, Any]],
    report: SkewReport,
) -> None:
    """Add the result for one row to the report; bits: of rows that were computed before."""
    if served["view_id"] is None and served["view"] != "features_1m":
        report.not_kept += served["serves"]
        report.replaced += served["serves"]
        return
    key = served["view_id"], served["symbol"], served["bucket"], served["refresh_no"]
    if key not in bits:
        bits[key] = _row_bits(cursor, {**served, "no": served["refresh_no"]})
    is_kept, expected = bits[key]
    if not is_kept:
        report.not_kept += served["serves"]
        return
    report.rows += served["serves"]
    given = ("symbol", "bucket", "every", "origin", "refresh_no", "waiting", "waiting_no")
    newest = cursor.execute(
        queries["skew_newest"],
        {
            **{name: served[name] for name in given},
            "until": served["last_served_at"],
            "no": served["symbol_no"],
        },
    ).fetchone()
    assert newest is not None, "the statement always gives one row"
    found = {
        "mismatch": expected is not None and expected != served["bits"],
        "missing": newest["is_missing"],
        "extra": expected is None or newest["is_extra"],
    }
    for problem, is_wrong in found.items():
        if is_wrong:
            setattr(report, problem, getattr(report, problem) + served["serves"])
            names = ("view", "symbol", "bucket", "refresh_no", "symbol_no", "served_at")
            of_row = {name: served[name] for name in names}
            differs = _difference(served, expected) if problem == "mismatch" else {}
            report.examples.append(Wrong(**of_row, problem=problem, **differs))
    del report.examples[EXAMPLES:]


def _difference(served: dict[str, Any], expected: bytes) -> dict[str, Any]:
    """Return the first column whose bits differ, and its two values."""
    load = ArrayBinaryLoader(_FLOATS).load
    pairs = zip(served["columns"], load(served["bits"]), load(expected), strict=True)
    for column, was, now in pairs:
        if _bits(was) != _bits(now):
            return {"column": column, "served": was, "computed": now}
    raise AssertionError("arrays of equal values have equal bits")


def _bits(value: float | None) -> bytes | None:
    return None if value is None else struct.pack("d", value)
