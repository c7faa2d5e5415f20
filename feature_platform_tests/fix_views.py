"""Feature views for tests: small ones, and the proof that all stored rows are right."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg

from feature_platform import views as v
from feature_platform.views import FeatureView, bar, catalog, corr, ema, lag, ln, mean, std
from feature_platform.views.verify import compare, served_views, slices_of

Conn = psycopg.Connection[Any]

RETURN = ln(bar.close / lag(bar.close))

SHORT = FeatureView(
    "short_1m",
    "1 minute",
    {
        "mean_5m": mean(bar.vol, "5 minutes"),
        "std_10m": std(RETURN, "10 minutes"),
        "corr_7m": corr(RETURN, bar.vol, "7 minutes"),
        "high_6m": v.max(bar.high, "6 minutes"),
        "ema_3m": ema(bar.close, "3 minutes"),
    },
)
CANDLES = FeatureView(
    "candles_1h", "1 hour", {"open": bar.open, "high": bar.high, "close": bar.close, "n": bar.n}
)

_BARS = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT s, %(start)s::timestamptz + m * interval '1 minute', 10, 12 + (m %% 3), 9,
           10 + (m * 7 %% 11) / 10.0, 1 + m * 13 %% 7
    FROM unnest(%(symbols)s::text[]) AS s, generate_series(0, %(minutes)s - 1) AS m
"""


def add_bars(conn: Conn, start: datetime, minutes: int, symbols: tuple[str, ...] = ("A",)) -> None:
    """Store a gapless run of bars."""
    given = {"start": start, "minutes": minutes, "symbols": list(symbols)}
    conn.execute(_BARS, given)


def refresh_all(conn: Conn) -> None:
    """Bring features_1m and all views up to date."""
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    catalog.refresh_views(conn)


def retry_soon(conn: Conn) -> None:
    """Let complete versions that wait for their name try again at once."""
    # The rows are locked in the order in which the platform locks them: no deadlock with it.
    conn.execute(
        """UPDATE feature_platform.feature_view SET tried_at = NULL WHERE id IN (
               SELECT id FROM feature_platform.feature_view ORDER BY id FOR UPDATE)"""
    )


def check_views(conn: Conn) -> int:
    """Fail unless every row of every view is right and nothing is dirty; return the rows."""
    rows = 0
    symbols = [
        symbol for (symbol,) in conn.execute("SELECT symbol FROM feature_platform.bar_symbol")
    ]
    for view in served_views(conn):
        for symbol in symbols:
            for lo, hi in slices_of(conn, view, symbol, None, None):
                found = compare(conn, view, symbol, lo, hi, 3)
                assert (found.mismatches, found.pending) == (0, 0), f"{view.name}: {found}"
                rows += found.rows
    errors = "SELECT name, error FROM feature_platform.feature_view WHERE error IS NOT NULL"
    assert conn.execute(errors).fetchall() == []
    return rows


def state_of(conn: Conn, name: str) -> list[tuple[int, str, bool]]:
    """Return version, state and whether it is served, of the versions of a view."""
    query = """SELECT version, state, served FROM feature_platform.feature_view WHERE name = %s
               ORDER BY version"""
    return conn.execute(query, [name]).fetchall()


def rows_of(conn: Conn, columns: str, name: str) -> list[tuple[Any, ...]]:
    """Return some columns of a view, with the bits of each value."""
    query = f"SELECT symbol, bucket, {columns} FROM public.{name} ORDER BY 1, 2"  # noqa: S608
    return [(one[0], one[1], *map(repr, one[2:])) for one in conn.execute(query.encode())]


def ago(minutes: int) -> datetime:
    """Return the start of a minute before the present one."""
    now = datetime.now().astimezone().replace(second=0, microsecond=0)
    return now - timedelta(minutes=minutes)
