"""Serves of rows, and the bars and rows as of the number of a refresh."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg

from feature_platform.skew import row_as_of
from feature_platform_tests.fix_processes import value
from feature_platform_tests.fix_views import CANDLES, SHORT
from feature_platform_tests.histories import DAY_0, EPOCH

Conn = psycopg.Connection[Any]

# As the model service reads its newest rows, and logs them: in one statement.
_SERVE = """
    INSERT INTO feature_platform.served
        (view, symbol, bucket, refresh_no, symbol_no, waiting, waiting_no, values)
    SELECT 'features_1m', f.symbol, f.bucket, f.refresh_no, greatest(f.refresh_no, n.no), w.waiting,
           w.waiting_no, ARRAY[last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z,
                               vwap_gap, parkinson_vol]::double precision[]
    FROM unnest(%(symbols)s::text[]) AS r (symbol)
    CROSS JOIN LATERAL (SELECT * FROM features_1m f WHERE f.symbol = r.symbol COLLATE "C"
                        ORDER BY f.bucket DESC LIMIT 1) AS f
    LEFT JOIN feature_platform.symbol_number n ON n.symbol = f.symbol
    CROSS JOIN LATERAL feature_platform.waiting_from(f.symbol, f.bucket) AS w
"""
_SERVE_VIEW = """
    INSERT INTO feature_platform.served
        (view, version, symbol, bucket, refresh_no, symbol_no, waiting, waiting_no, values)
    SELECT v.name, v.version, f.symbol, f.bucket, f.refresh_no, s.no,
           s.dirty * tstzmultirange(tstzrange(f.bucket, NULL)), coalesce(s.before_no, 0),
           ARRAY[{columns}]::double precision[]
    FROM unnest(%(symbols)s::text[]) AS r (symbol)
    CROSS JOIN LATERAL (SELECT * FROM public.{name} f WHERE f.symbol = r.symbol COLLATE "C"
                        ORDER BY f.bucket DESC LIMIT 1) AS f
    JOIN feature_platform.feature_view v ON v.name = '{name}' AND v.served
    JOIN feature_platform.view_symbol s ON s.view = v.id AND s.symbol = f.symbol
"""
_ROWS = """
    SELECT '{name}', symbol, bucket, refresh_no, array_send(ARRAY[{columns}]::double precision[])
    FROM public.{name}
"""
FEATURES = (
    "last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol"
)
VIEWS = (SHORT, CANDLES)

# A row as a reader saw it: view, symbol, bucket, number, the bits of its values.
Row = tuple[str, str, datetime, int, bytes]


def serve(conn: Conn, *symbols: str) -> None:
    """Log the newest row of each symbol, in features_1m and the views that exist."""
    conn.execute(_SERVE, {"symbols": list(symbols)})
    for view in VIEWS:
        if value(conn, "SELECT to_regclass(%s) IS NOT NULL", f"public.{view.name}"):
            statement = _SERVE_VIEW.format(name=view.name, columns=", ".join(view.columns))
            conn.execute(statement.encode(), {"symbols": list(symbols)})


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
