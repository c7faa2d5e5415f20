"""Serves of rows, and the bars and rows as of the number of a refresh."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier
from psycopg.types.multirange import Multirange

from feature_platform.queries import queries
from feature_platform.service.serve_log import TYPES
from feature_platform.skew import row_as_of
from feature_platform.views.verify import served_views
from feature_platform_tests.fix_processes import value
from feature_platform_tests.fix_views import CANDLES, SHORT
from feature_platform_tests.histories import DAY_0, EPOCH

Conn = psycopg.Connection[Any]

_ROWS = """
    SELECT '{name}', symbol, bucket, refresh_no, array_send(ARRAY[{columns}]::double precision[])
    FROM public.{name}
"""
FEATURES = (
    "last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol"
)
VIEWS = (SHORT, CANDLES)
MINUTE = timedelta(minutes=1)

# A row as a reader saw it: view, symbol, bucket, number, the bits of its values.
Row = tuple[str, str, datetime, int, bytes]


def serve(conn: Conn, *symbols: str, times: int = 1) -> int:
    """Read and log the newest rows of each symbol as the model service does; return their number.

    They are of features_1m and of the views that exist. times: how often each row is logged.
    """
    logged: list[tuple[Any, ...]] = []
    rows = conn.execute(queries["service_latest"], {"symbols": list(symbols)}).fetchall()
    logged += [_entry("features_1m", 0, MINUTE, row) for row in rows]
    for view in served_views(conn):
        statement = SQL(queries["service_view_latest"]).format(
            view=Identifier("public", view.name),
            columns=SQL(", ").join(Identifier("f", name) for name in view.columns),
        )
        given = {"symbols": list(symbols), "width": view.every, "id": view.id}
        version = value(
            conn, "SELECT version FROM feature_platform.feature_view WHERE id = %s", view.id
        )
        rows = conn.execute(statement, given).fetchall()
        logged += [_entry(view.name, version, view.every, row) for row in rows]
    with conn.cursor().copy(queries["service_log"]) as copy:
        copy.set_types(TYPES)
        for row in logged * times:
            copy.write_row(row)
    return len(logged) * times


def _entry(view: str, version: int, width: timedelta, row: tuple[Any, ...]) -> tuple[Any, ...]:
    symbol, bucket, *values, refresh_no, symbol_no, waiting, waiting_no, age = row
    ended = bucket + width + timedelta(seconds=age)
    floats = [None if one is None else float(one) for one in values]
    waiting = Multirange() if waiting is None else waiting
    return view, version, symbol, bucket, refresh_no, symbol_no, waiting, waiting_no, floats, ended


def rows_with_numbers(conn: Conn) -> list[Row]:
    """Return all rows of features_1m and of the views that exist."""
    columns = {"features_1m": FEATURES}
    for view in VIEWS:
        if value(conn, "SELECT to_regclass(%s) IS NOT NULL", f"public.{view.name}"):
            columns[view.name] = ", ".join(view.columns)
    texts = (_ROWS.format(name=name, columns=of) for name, of in columns.items())
    return [row for text in texts for row in conn.execute(text.encode())]


def check_row(conn: Conn, row: Row) -> None:
    """Fail unless a row equals the recomputation from the bars as of its number."""
    view, symbol, bucket, number, bits = row
    found = row_as_of(conn, view, symbol, bucket, number)
    assert found == (True, bits), (view, symbol, bucket.isoformat(), number, found[0])


def number_of(conn: Conn, symbol: str = "A") -> int:
    """Return the number of a symbol's last refresh."""
    return int(value(conn, "SELECT feature_platform.number_of(%s)", symbol))


def bars_as_of(conn: Conn, number: int, symbol: str = "A") -> dict[float, float]:
    """Return the volume of each bar as of a number, by the minute after the start of day 0."""
    query = "SELECT ts, vol FROM feature_platform.bars_as_of(%s, '-infinity', 'infinity', %s)"
    return {
        (ts - EPOCH).total_seconds() / 60 - DAY_0: vol
        for ts, vol in conn.execute(query, (symbol, number))
    }
