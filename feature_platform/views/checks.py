"""The checks of a feature view: fresh, not dirty for long, equal to a recomputation, not NULL.

This module does not import Dagster: a click in the UI and the tests call the same function.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from feature_platform.counted import counted
from feature_platform.queries import queries
from feature_platform.views import catalog
from feature_platform.views.verify import compare, served_views, slices_of

# The longest time for a row to wait: a policy that runs once a minute, and a slow exchange.
_SETTLE = timedelta(minutes=5)
# The symbols whose newest day is recomputed.
_SAMPLE = 3
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class ViewCheck:
    """A check of every feature view."""

    name: str
    description: str
    severity: Literal["ERROR", "WARN"] = "ERROR"


CHECKS = (
    ViewCheck("newest_bucket_is_stored", "Each symbol's newest closed bucket with bars has a row."),
    ViewCheck("nothing_waits_long", "No closed bucket waits for a refresh for over 5 minutes."),
    ViewCheck("stored_equals_recomputed", "The newest day of some symbols is equal, bit for bit."),
    ViewCheck(
        "no_nulls_after_warm_up",
        "No column is NULL in all of the newest rows of a symbol whose warm-up is over.",
        "WARN",
    ),
)


@dataclass(frozen=True)
class ViewCheckResult:
    """The result of a check; findings: the first rows that are wrong."""

    check: ViewCheck
    passed: bool
    summary: str
    findings: list[Mapping[str, Any]] = field(default_factory=list)


def evaluate(
    connection: psycopg.Connection[Any], name: str, checks: Collection[str] | None = None
) -> Iterator[ViewCheckResult]:
    """Yield the results of the checks of a view, by default of all.

    Raises UserError where there is no such view.
    """
    status = next(one for one in catalog.versions_of(connection, name) if one.served)
    functions = {
        "newest_bucket_is_stored": _newest,
        "nothing_waits_long": _waits,
        "stored_equals_recomputed": _recomputed,
        "no_nulls_after_warm_up": _nulls,
    }
    for check in CHECKS:
        if checks is None or check.name in checks:
            passed, summary, findings = functions[check.name](connection, status)
            yield ViewCheckResult(check, passed, summary, findings)


_Found = tuple[bool, str, list[Mapping[str, Any]]]


def _newest(connection: psycopg.Connection[Any], status: catalog.ViewStatus) -> _Found:
    statement = sql.SQL(queries["views_check_newest"]).format(
        view=sql.Identifier("public", status.name)
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        late: list[Mapping[str, Any]] = list(
            cursor.execute(statement, {"name": status.name, "settle": _SETTLE}).fetchall()
        )
    if late:
        return (
            False,
            f"no row of the newest closed bucket: {counted(len(late), 'symbol')}",
            late[:10],
        )
    return True, "every symbol has the row of its newest closed bucket", []


def _waits(_connection: psycopg.Connection[Any], status: catalog.ViewStatus) -> _Found:
    if status.state == "failed":
        return False, f"the view has failed: {status.error}", []
    if status.state == "building":
        return True, f"history is being built, {status.built:.0%}", []
    waits = status.dirty_age is not None and status.dirty and status.dirty_age > _SETTLE
    text = f"waiting for a refresh: {counted(status.dirty, 'bucket')}"
    return not waits, text if status.dirty else "nothing waits for a refresh", []


def _recomputed(connection: psycopg.Connection[Any], status: catalog.ViewStatus) -> _Found:
    if status.state == "failed":
        return False, "not compared: the view has failed, so its rows are no longer refreshed", []
    view = next(one for one in served_views(connection) if one.name == status.name)
    row = connection.execute(queries["views_bar_symbols"], {"most": 1_000_000}).fetchone()
    symbols = row[1] if row is not None else []
    rows = 0
    findings: list[Mapping[str, Any]] = []
    for symbol in random.sample(symbols, min(_SAMPLE, len(symbols))):
        slices = list(slices_of(connection, view, symbol, None, None))
        if not slices:
            continue
        end = slices[-1][1]
        for lo, hi in slices_of(connection, view, symbol, end - max(_DAY, view.every), end):
            found = compare(connection, view, symbol, lo, hi, 10)
            rows += found.rows
            findings += [{"symbol": symbol, **vars(one)} for one in found.differences]
    if findings:
        return False, f"rows of {status.name} differ from a recomputation", findings[:10]
    return True, f"{counted(rows, 'row')} recomputed, all equal", []


def _nulls(connection: psycopg.Connection[Any], status: catalog.ViewStatus) -> _Found:
    counts = sql.SQL(", ").join(
        sql.SQL("count({0}) AS {0}").format(sql.Identifier(name)) for name in status.columns
    )
    statement = sql.SQL(queries["views_check_nulls"]).format(
        counts=counts, view=sql.Identifier("public", status.name)
    )
    findings: list[Mapping[str, Any]] = []
    with connection.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(statement, {"name": status.name}).fetchall():
            empty = [name for name in status.columns if not row[name]]
            findings += [{"symbol": row["_symbol"], "column": name} for name in empty]
    if findings:
        return (
            False,
            f"NULL in all newest rows: {counted(len(findings), 'column')} of symbols",
            findings[:10],
        )
    return True, "no column is NULL in all newest rows", []
