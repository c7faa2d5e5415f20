"""The history of one row: its versions, and the bars behind it with theirs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from feature_platform.errors import UserError
from feature_platform.near_names import near_names
from feature_platform.queries import queries

# The most bars whose versions are listed.
SHOWN = 30


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
    Raises UserError where there is no such view, or there never was such a row.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        of = cursor.execute(queries["skew_view"], {"view": view}).fetchone()
        if of is None:
            names = [name for (name,) in connection.execute(queries["why_views"])]
            raise UserError(f"there is no feature view {view!r}{near_names(view, names)}")
    every = timedelta(seconds=of["seconds"])
    bucket = of["origin"] + (minute - of["origin"]) // every * every
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
        raise UserError(
            f"{view} never had a row of {symbol} at {bucket:%Y-%m-%d %H:%M} UTC:"
            " `feature-platform status` lists the symbols, `feature-platform gaps` missing minutes"
        )
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
