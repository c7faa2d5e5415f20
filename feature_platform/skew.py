"""The proof that what the model service has served is what it should have read.

Each logged row is computed again from the bars as of its refresh, by plain window functions. No
stored row is read for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from feature_platform.queries import queries

EXAMPLES = 10


@dataclass(frozen=True)
class Wrong:
    """A served row that differs from the recomputation.

    problem: "mismatch" of values, "missing" for a newer row that was not served, "extra" for a row
        that should not have existed.
    """

    view: str
    symbol: str
    bucket: datetime
    refresh_no: int
    symbol_no: int
    problem: str

    def as_json(self) -> dict[str, str | int]:
        """Return the fields with the bucket in ISO-8601."""
        return {**vars(self), "bucket": self.bucket.astimezone(UTC).isoformat()}


@dataclass
class SkewReport:
    """The numbers of logged rows.

    rows: all that were compared; mismatch, missing, extra: those of them that were wrong.
    not_kept: of versions of views, or from times, whose history is not kept; these are not in rows.
    """

    rows: int = 0
    mismatch: int = 0
    missing: int = 0
    extra: int = 0
    not_kept: int = 0
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
    """
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
            "until": served["served_at"],
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
            names = ("view", "symbol", "bucket", "refresh_no", "symbol_no")
            report.examples.append(Wrong(**{name: served[name] for name in names}, problem=problem))
    del report.examples[EXAMPLES:]
