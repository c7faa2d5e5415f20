"""The proof that stored rows equal recomputed rows.

It recomputes them by plain window functions over the bars and shares no code with the refresh.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

from feature_platform.errors import UserError
from feature_platform.near_names import near_names
from feature_platform.queries import queries
from feature_platform.views.verify import (
    View,
    compare,
    differences_of,
    served_views,
    slices_of,
)

SLICE = timedelta(days=30)
# Within this time the rolling verification has compared every row of all history.
PASS = timedelta(days=7)
EXAMPLES = 10

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Mismatch:
    """One stored value that differs from the recomputed one.

    bucket: in ISO-8601 and UTC.
    stored, expected: None means NULL or, in column "row", a missing row; the other value is then
        the last_close, or the first column of a view.
    """

    symbol: str
    bucket: str
    column: str
    stored: float | None
    expected: float | None
    view: str = "features_1m"


@dataclass
class VerifyReport:
    """The numbers of compared and of different rows.

    rows: stored rows that were recomputed and compared, bit for bit.
    pending: rows that differ and are marked dirty: the next refresh brings them up to date.
    mismatches: rows that differ and are not marked; `examples` holds values of the first ones.
    views: the number of feature views that were compared, beside features_1m.
    """

    symbols: int = 0
    rows: int = 0
    pending: int = 0
    mismatches: int = 0
    examples: list[Mismatch] = field(default_factory=list)
    views: int = 0


@dataclass
class RollingReport(VerifyReport):
    """The work of one call of the rolling verification, and the position of its pass.

    days: since the pass began; at most 7 while the platform runs.
    part: the verified part of all history, 0 to 1.
    """

    days: float = 0.0
    part: float = 0.0


@dataclass(frozen=True)
class _Slice:
    symbol: str
    start: datetime
    end: datetime


def verify(
    connection: psycopg.Connection[Any],
    *,
    symbol: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Recompute every row with start <= bucket < end from the bars and compare it with the stored:
    those of features_1m and of all feature views.

    symbol: only this symbol; None is all symbols.
    progress: called with the finished and the total number of slices; a slice is at most 30 days
        of one symbol, read by one snapshot.
    Raises UserError when the symbol has neither bars nor rows, or start is not before end.
    """
    if start is not None and end is not None and start >= end:
        raise UserError(f"the window to verify is empty: start {start} is not before end {end}")
    slices = list(_slices(connection, symbol, start, end))
    report = VerifyReport(symbols=len({one.symbol for one in slices}))
    # The recomputation's double -> text -> numeric is exact from 1 on.
    connection.execute("SET extra_float_digits = 1")
    views = served_views(connection)
    report.views = len(views)
    of_views = [(view, name) for view in views for name in sorted({one.symbol for one in slices})]
    for number, one in enumerate(slices, 1):
        _verify_slice(connection, one, report)
        if progress is not None:
            progress(number, len(slices) + len(of_views))
    for number, (view, name) in enumerate(of_views, len(slices) + 1):
        for lo, hi in slices_of(connection, view, name, start, end):
            _verify_view(connection, view, name, lo, hi, report)
        if progress is not None:
            progress(number, len(slices) + len(of_views))
    return report


def _verify_view(
    connection: psycopg.Connection[Any],
    view: View,
    symbol: str,
    start: datetime,
    end: datetime,
    report: VerifyReport,
) -> None:
    found = compare(connection, view, symbol, start, end, EXAMPLES - len(report.examples))
    report.rows += found.rows
    report.pending += found.pending
    report.mismatches += found.mismatches
    for one in found.differences:
        report.examples.append(Mismatch(symbol, **vars(one), view=view.name))
    del report.examples[EXAMPLES:]


def verify_window(
    connection: psycopg.Connection[Any], symbol: str, start: datetime, end: datetime
) -> VerifyReport:
    """Verify one short window of one symbol, without reading other symbols.

    start, end: whole minutes, at most `SLICE` apart.
    """
    report = VerifyReport(symbols=1)
    connection.execute("SET extra_float_digits = 1")
    _verify_slice(connection, _Slice(symbol, start, end), report)
    return report


def verify_rolling(
    connection: psycopg.Connection[Any], *, seconds: float | None, slice_of: timedelta = _DAY
) -> RollingReport:
    """Verify the next slices of all history that a pass of seven days requires by now.

    A slice with mismatches is repeated until it has none, so that each call reports it.
    connection: in autocommit mode; its database stores the position of the pass.
    seconds: only the first slice may begin later than this; None verifies all due slices.
    slice_of: at most `SLICE`.
    """
    connection.execute("SET extra_float_digits = 1")
    report = RollingReport()
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        with connection.cursor(row_factory=dict_row) as cursor:
            state = cursor.execute(queries["verification_state"]).fetchone()
        assert state is not None, "the statement always gives one row"
        if not state["minutes"] and state["elapsed"] > PASS:
            # The time of the pass has ended without a verified minute: no history, or no process.
            connection.execute(queries["verification_move"], {**_position(state), **_BEGIN})
            continue
        # 20 % faster than needed, so that a pass ends in time while history grows.
        due = 1.2 * state["total"] * (state["elapsed"] / PASS)
        report.days = state["elapsed"] / _DAY
        report.part = min(state["minutes"] / state["total"], 1.0) if state["total"] else 1.0
        if not state["wrong"] and state["minutes"] >= due:
            return report
        goes_on = _verify_next(connection, state, slice_of, report)
        if not goes_on or report.mismatches or (until and time.monotonic() >= until):
            return report


def _verify_next(
    connection: psycopg.Connection[Any],
    state: dict[str, Any],
    slice_of: timedelta,
    report: RollingReport,
) -> bool:
    """Verify one slice and move on; return whether this session continues the pass."""
    at = _position(state)
    row = connection.execute(queries["verification_next"], at).fetchone()
    if row is None:
        to = _BEGIN
    else:
        symbol, start, last = row
        end = min(start + slice_of, last)
        _verify_slice(connection, _Slice(symbol, start, end), report)
        for view in served_views(connection):
            for lo, hi in slices_of(connection, view, symbol, start, end):
                _verify_view(connection, view, symbol, lo, hi, report)
        wrong = report.mismatches > 0
        if wrong:
            end = max(start, min(datetime.fromisoformat(e.bucket) for e in report.examples))
        # At the symbol's end, which grows all the time, the next symbol follows.
        next_ts = "infinity" if end == last else end.isoformat()
        verified = (end - start) // _MINUTE
        to = {"to_symbol": symbol, "to_ts": next_ts, "verified": verified, "wrong": wrong}
    moved = connection.execute(queries["verification_move"], {**at, **to}).fetchone()
    return row is not None and moved is not None and bool(moved[0])


# The position from which a pass begins.
_BEGIN: dict[str, Any] = {"to_symbol": "", "to_ts": "-infinity", "verified": 0, "wrong": False}


def _position(state: dict[str, Any]) -> dict[str, Any]:
    return {"symbol": state["symbol"], "next_ts": state["next_ts"]}


def _slices(
    connection: psycopg.Connection[Any],
    symbol: str | None,
    start: datetime | None,
    end: datetime | None,
) -> Iterator[_Slice]:
    spans = connection.execute(queries["verify_spans"]).fetchall()
    if symbol is not None:
        known = [span[0] for span in spans]
        spans = [span for span in spans if span[0] == symbol]
        if not spans:
            raise UserError(
                f"there are no bars and no features of {symbol!r}{near_names(symbol, known)}:"
                " `feature-platform status` lists the symbols"
            )
    for name, first, closed, last in spans:
        lo, hi = max(first, start or first), min(last, end or last)
        if lo >= hi:
            continue
        # Whole minutes are compared, with all bars inside the last of them.
        lo, hi = _minute_from(lo), _minute_from(hi)
        while lo < hi:
            # From `closed` on there must be no row; one slice covers all of that time.
            until = min(lo + SLICE, hi) if lo < closed else hi
            yield _Slice(name, lo, until)
            lo = until


def _minute_from(time: datetime) -> datetime:
    """Return the first minute at or after a time, in UTC, because arithmetic needs UTC."""
    utc = time.astimezone(UTC)
    minute = utc.replace(second=0, microsecond=0)
    return minute if minute == utc else minute + _MINUTE


def _verify_slice(connection: psycopg.Connection[Any], one: _Slice, report: VerifyReport) -> None:
    with connection.cursor(row_factory=dict_row) as cursor:
        parameters = {
            "symbol": one.symbol,
            "start": one.start,
            "end": one.end,
            "show": EXAMPLES - len(report.examples),
        }
        row = cursor.execute(queries["verify_slice"], parameters).fetchone()
    assert row is not None, "the statement always gives one row"
    report.rows += row["rows_checked"]
    report.pending += row["pending"]
    report.mismatches += row["mismatches"]
    for example in row["examples"]:
        report.examples += [
            Mismatch(one.symbol, **vars(found)) for found in differences_of(example, "last_close")
        ]
    del report.examples[EXAMPLES:]
