"""The history of one row: its versions, and the bars behind it with theirs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from feature_platform.errors import UserError
from feature_platform.gaps import check_known
from feature_platform.near_names import near_names
from feature_platform.queries import queries

# The most bars whose versions are listed.
SHOWN = 30

_FIRST_BAR = datetime(1970, 1, 1, tzinfo=UTC)  # no bar may be older


@dataclass(frozen=True)
class RowVersion:
    """One version of the row.

    since, until: the refreshes that made and replaced it; until is None for the stored row, since 0
        for one from before refreshes had numbers.
    known_by, gone_by: since when these are known; None where that is not noted.
    """

    since: int
    known_by: datetime | None
    until: int | None
    gone_by: datetime | None
    values: list[float | None]


@dataclass(frozen=True)
class Source:
    """The bars behind the row that have one source."""

    source: str
    bars: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class BarVersion:
    """One version of a bar.

    no, known_by: the refresh since which it is known, None while it waits for one, and its time;
        no is 0 for one from before refreshes had numbers, or where that is not kept any more.
    until, until_known: the same of the refresh that ended it.
    gone: whether there was no bar from then on, rather than a changed one.
    is_stored: whether it is the bar that is stored now.
    """

    ts: datetime
    open: float
    high: float
    low: float
    close: float
    vol: float
    source: str
    inserted_at: datetime
    no: int | None
    known_by: datetime | None
    until: int | None
    gone: bool
    until_known: datetime | None
    is_stored: bool


@dataclass(frozen=True)
class Unchanged:
    """Bars of the bucket that did not change and are not listed."""

    bars: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Why:
    """The history of a row.

    rows: its versions, the newest first.
    bars: the versions of the bars that changed, came late or wait for a refresh, and of the other
        bars of its bucket where all fit; the newest bars first.
    more: the number of earlier bars that changed, came late or wait, too, and are not listed.
    unchanged: the other bars of its bucket, where they are not listed.
    """

    view: str
    symbol: str
    bucket: datetime
    columns: list[str]
    rows: list[RowVersion]
    sources: list[Source]
    bars: list[BarVersion]
    more: int
    unchanged: Unchanged | None


def why(
    connection: psycopg.Connection[Any], symbol: str, minute: datetime, view: str = "features_1m"
) -> Why:
    """Return the history of the row of the bucket that holds a minute.

    view: features_1m, or a feature view that is served.
    Raises UserError where there is no such view or no such row, with the reason.
    """
    if minute < _FIRST_BAR:
        raise UserError(f"{minute.isoformat()} is before 1970, and there are no bars so old")
    with connection.cursor(row_factory=dict_row) as cursor:
        of = cursor.execute(queries["skew_view"], {"view": view}).fetchone()
        if of is None:
            names = [name for (name,) in connection.execute(queries["why_views"])]
            raise UserError(f"there is no feature view {view!r}{near_names(view, names)}")
    every = timedelta(seconds=of["seconds"])
    origin = of["origin"].astimezone(UTC)  # arithmetic needs UTC
    bucket = origin + (minute - origin) // every * every
    schema, prefix = ("feature_platform", "features_1m")
    start = sql.Identifier(schema, "features_1m_start")
    if of["view_id"] is not None:
        schema, prefix = "feature_views", f"v{of['view_id']}"
        start = sql.Identifier(schema, f"{prefix}_plain_from")
    given = {"symbol": symbol, "bucket": bucket, "every": of["every"]}
    with connection.cursor(row_factory=class_row(RowVersion)) as cursor:
        statement = sql.SQL(queries["why_row"]).format(
            versions=sql.Identifier(schema, f"{prefix}_versions"),
            columns=sql.SQL(", ").join(sql.Identifier("v", name) for name in of["columns"]),
        )
        rows = cursor.execute(statement, given).fetchall()
    if not rows:
        _fail_without_row(connection, view, {**given, "view_id": of["view_id"]})
    with connection.cursor(row_factory=class_row(Source)) as cursor:
        statement = sql.SQL(queries["why_sources"]).format(start=start)
        sources = cursor.execute(statement, given).fetchall()
    with connection.cursor(row_factory=dict_row) as cursor:
        statement = sql.SQL(queries["why_bars"]).format(start=start)
        made = min(row.since for row in rows)
        lines = cursor.execute(statement, {**given, "made": made, "show": SHOWN}).fetchall()
    total = lines[0]
    names = [field.name for field in fields(BarVersion)]
    bars = [BarVersion(**{name: line[name] for name in names}) for line in lines if line["ts"]]
    unchanged = None
    if total["unchanged"] and total["changed"] + total["unchanged"] > SHOWN:
        unchanged = Unchanged(total["unchanged"], total["first"], total["last"])
    more = max(total["changed"] - SHOWN, 0)
    return Why(view, symbol, bucket, of["columns"], rows, sources, bars, more, unchanged)


def _fail_without_row(
    connection: psycopg.Connection[Any], view: str, given: dict[str, Any]
) -> NoReturn:
    """Raise UserError with the reason for which a bucket has no row, and the remedy.

    given: the parameters of the statement why_absent.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(queries["why_absent"], given).fetchone()
    assert found is not None, "the statement always gives one row"
    symbol = given["symbol"]
    if found["first_bar"] is None:
        check_known(connection, symbol)
    what = f"{view} has no row of {symbol!r} at {_utc(given['bucket'])}"
    if found["is_open"]:
        raise UserError(
            f"{what} yet: the bucket closes at {found['closes']} UTC,"
            f" and the time is {_utc(found['now'])}"
        )
    if found["kept_since"] is not None:
        raise UserError(f"{what}: the retention keeps rows from {_utc(found['kept_since'])} on")
    if found["has_bars"]:
        raise UserError(
            f"{what} yet: bars of this bucket wait for their first refresh;"
            " run `feature-platform refresh` or start `feature-platform worker`"
        )
    if found["first_bar"] is not None and given["bucket"] < found["first_bar"]:
        raise UserError(f"{what}: the first bar of this symbol is of {_utc(found['first_bar'])}")
    raise UserError(
        f"{what}: this bucket has no bars; `feature-platform gaps` lists missing minutes with"
        " their reasons"
    )


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
