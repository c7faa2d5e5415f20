"""Guards against incomplete lists of symbols, and against writers that wait for each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform_tests.fix_processes import insert_bars

Conn = psycopg.Connection[Any]

START = datetime(2026, 1, 1, tzinfo=UTC)
IN_TABLES = """
    SELECT ARRAY(SELECT DISTINCT symbol FROM ohlcv_1m ORDER BY symbol),
           ARRAY(SELECT DISTINCT symbol FROM features_1m ORDER BY symbol)
"""
IN_VIEWS = """
    SELECT ARRAY(SELECT symbol FROM feature_platform.bar_symbol),
           ARRAY(SELECT symbol FROM feature_platform.feature_symbol)
"""


def symbols(conn: Conn) -> tuple[list[str], list[str]]:
    """Return the symbols of bars and of features from the views."""
    row = conn.execute(IN_VIEWS).fetchone()
    assert row is not None
    bars, features = row
    return bars, features


def write(conn: Conn, *names: str) -> None:
    """Store two bars of each symbol, two months apart, in two chunks of a hypertable."""
    for name in names:
        insert_bars(conn, name, START, 2, step=60 * 1440)


CHANGES: list[LiteralString] = [
    "SELECT",
    "UPDATE ohlcv_1m SET symbol = 'NEW' WHERE symbol = 'A'",
    "DELETE FROM ohlcv_1m WHERE symbol = 'A'",
    "DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts > '2026-02-01'",
    "DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts < '2026-02-01'",
    "DELETE FROM ohlcv_1m",
    "TRUNCATE ohlcv_1m",
    "INSERT INTO ohlcv_1m SELECT symbol || '2', ts, open, high, low, close, vol FROM ohlcv_1m",
    "DELETE FROM ohlcv_1m; INSERT INTO ohlcv_1m VALUES ('A', '2026-05-05', 1, 1, 1, 1, 1)",
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_views_list_the_symbols_of_the_tables(conn: Conn, change: LiteralString) -> None:
    write(conn, "A", "B")
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    write(conn, "C")
    with conn.transaction():
        with conn.transaction(force_rollback=True):
            write(conn, "NEVER")
        conn.execute(change)
        assert symbols(conn) == conn.execute(IN_TABLES).fetchone()
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    assert symbols(conn) == conn.execute(IN_TABLES).fetchone()


def test_two_writers_of_the_same_new_symbols_do_not_wait(conn: Conn, database: str) -> None:
    write(conn, "Z")  # creates the chunk; writers wait while TimescaleDB creates one
    with psycopg.connect(database) as one, psycopg.connect(database) as other:
        for writer, names, ts in ((one, "AB", START), (other, "BA", START + timedelta(hours=1))):
            writer.execute("SET lock_timeout = '1s'")
            for name in names:
                insert_bars(writer, name, ts, 1)
        assert symbols(conn) == (["Z"], [])
        one.commit()
        assert symbols(conn) == (["A", "B", "Z"], [])
        other.commit()
    assert symbols(conn) == (["A", "B", "Z"], [])


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_symbol_of_a_writer_with_a_snapshot_older_than_a_truncate_is_listed(
    conn: Conn, database: str, isolation: LiteralString
) -> None:
    write(conn, "A")
    with psycopg.connect(database) as writer:
        writer.execute(b"SET TRANSACTION ISOLATION LEVEL " + isolation.encode())
        writer.execute("SELECT FROM feature_platform.known_symbol")
        conn.execute("TRUNCATE ohlcv_1m")
        write(writer, "A")
    assert symbols(conn) == (["A"], [])


@pytest.mark.parametrize(
    "proof",
    [
        "SELECT feature_platform.recheck_gaps()",
        "SELECT feature_platform.mark_window('-infinity', 'infinity')",
    ],
)
def test_a_symbol_written_past_the_triggers_is_found_by_the_audit(
    conn: Conn, proof: LiteralString
) -> None:
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        write(conn, "A")
    assert symbols(conn) == ([], [])
    conn.execute(proof)
    conn.execute(proof)
    assert symbols(conn) == (["A"], [])
    assert conn.execute("SELECT count(*) FROM feature_platform.known_symbol").fetchone() == (1,)
