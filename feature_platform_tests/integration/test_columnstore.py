"""Guards against corrections of old bars that a columnstore rejects, loses, or makes slow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform.refresh import refresh
from feature_platform.verify import verify
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_processes import insert_bars, value

pytestmark = pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)

Conn = psycopg.Connection[Any]

START = datetime(2026, 1, 5, tzinfo=UTC)
MINUTES = 4 * 1440
IN_COLUMNSTORE = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed"


@pytest.fixture(scope="module")
def converted(databases: Databases) -> Iterator[str]:
    """Yield a database with four refreshed days of two symbols, all in the columnstore."""
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        for symbol in "AB":
            insert_bars(conn, symbol, START, MINUTES)
        refresh(conn)
        chunks = conn.execute(
            """SELECT c::text FROM show_chunks('ohlcv_1m') AS c
               UNION ALL SELECT c::text FROM show_chunks('features_1m') AS c"""
        ).fetchall()
        for (chunk,) in chunks:
            conn.execute("CALL convert_to_columnstore(%s::text::regclass)", [chunk])
        assert value(conn, IN_COLUMNSTORE) == len(chunks)
        yield url


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ("UPDATE ohlcv_1m SET vol = vol + 5 WHERE symbol = 'A' AND ts = %s", 1440),
        ("DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts = %s", 1440),
        (
            """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
               VALUES ('A', %s, 100, 120, 90, 110, 7)
               ON CONFLICT (symbol, ts) DO UPDATE SET open = excluded.open, high = excluded.high,
                   low = excluded.low, close = excluded.close, vol = excluded.vol""",
            1440,
        ),
        (
            """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
               VALUES ('A', %s::timestamptz + interval '30 seconds', 100, 120, 90, 110, 7)""",
            1440,
        ),
        (
            """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
               VALUES ('NEW', %s, 100, 120, 90, 110, 7)""",
            1,
        ),
    ],
    ids=["update", "delete", "upsert", "a row inside a minute", "a new symbol"],
)
def test_a_late_correction_is_repaired_within_the_columnstore(
    converted: str, change: LiteralString, rows: int
) -> None:
    with (
        psycopg.connect(converted, autocommit=True) as conn,
        conn.transaction(force_rollback=True),
    ):
        before = value(conn, IN_COLUMNSTORE)
        assert conn.execute(change, [START + timedelta(hours=36)]).rowcount == 1
        assert verify(conn).pending == rows
        written = value(
            conn,
            """SELECT rows_written FROM feature_platform.refresh_slice(
                   '-infinity', feature_platform.due_until(), feature_platform.dirty_horizon())""",
        )
        assert rows - 3 <= written <= rows
        after = verify(conn)
        assert (after.mismatches, after.pending) == (0, 0)
        assert value(conn, IN_COLUMNSTORE) == before
