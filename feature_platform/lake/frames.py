"""Rows from the lake where it is complete, and from the database where not, as one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from datetime import time as time_of_day

import pyarrow as pa
import pyarrow.compute as pc

from feature_platform._adbc import TEXTS, Reader, one
from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.read import read

# With more days than these that wait for a sync, all rows come from the database.
_MOST_WAITING = 100

FromDatabase = Callable[[Sequence[str], datetime, datetime], pa.Table]


def read_both(
    source: Reader,
    name: str,
    time: str,
    symbols: Sequence[str],
    window: tuple[datetime, datetime],
    columns: Sequence[str],
    from_database: FromDatabase,
) -> pa.Table:
    """Return the rows of a table, sorted by symbol and time.

    columns: with the time, and with the symbol where several are read.
    The newest part and the days that wait for a sync come from the database, by `from_database`.
    The caller has frozen the database's snapshot, so that both parts fit each other.
    """
    start, end = window
    place = one(delta.uri_of(name), pa.string())
    state = source.fetch("frames_lake_until", one(name, pa.string()), place)
    until = state["mirrored_until"].to_pylist()[0] if state.num_rows else None
    waiting = source.fetch("frames_lake_waiting", one(name, pa.string()), one(symbols, TEXTS))
    if until is None or until <= start or waiting.num_rows > _MOST_WAITING:
        return from_database(symbols, start, end)
    until = min(until, end)
    rows = read_lake(name, time, symbols, (start, until), columns)
    parts = [from_database(symbols, until, end)] if until < end else []
    for symbol, first, after in zip(*waiting.to_pydict().values(), strict=True):
        lo, hi = max(_start(first), start), min(_start(after), until)
        if lo < hi:
            rows = rows.filter(_outside(rows, symbol, time, lo, hi))
            parts.append(from_database([symbol], lo, hi))
    if not parts:
        return rows
    keys = [name for name in ("symbol", time) if name in columns]
    rows = pa.concat_tables([rows, *(part.cast(rows.schema) for part in parts)])
    return rows.sort_by([(key, "ascending") for key in keys])


def _outside(
    rows: pa.Table, symbol: str, time: str, start: datetime, end: datetime
) -> pa.ChunkedArray:
    """Return which rows are not of a symbol's days; without the column, all are of the symbol."""
    kind = rows[time].type
    outside = pc.or_(
        pc.less(rows[time], pa.scalar(start, kind)),
        pc.greater_equal(rows[time], pa.scalar(end, kind)),
    )
    if "symbol" in rows.column_names:
        outside = pc.or_(outside, pc.not_equal(rows["symbol"], symbol))
    return outside


def read_lake(
    name: str,
    time: str,
    symbols: Sequence[str],
    window: tuple[datetime, datetime],
    columns: Sequence[str],
) -> pa.Table:
    """Return the rows that the lake has, sorted by symbol and time; raises UserError."""
    table = delta.open_table(name)
    if table is None:
        raise UserError(f"{delta.uri_of(name)} does not exist: run `feature-platform lake sync`")
    return read(table, name, time, symbols, *window, columns)


def _start(day: date) -> datetime:
    return datetime.combine(day, time_of_day(), UTC)
