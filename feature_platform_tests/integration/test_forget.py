"""Guards against a `forget` that deletes too little, too much, or for a user who may not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from feature_platform.gaps import find_gaps
from feature_platform.heartbeat import Heartbeat, begin_heartbeats, write_heartbeats
from feature_platform.verify import verify
from feature_platform_tests.fix_processes import insert_bars, run_on, value

Conn = psycopg.Connection[Any]

START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=3)
TABLES = (
    ("public", "ohlcv_1m"),
    ("public", "features_1m"),
    ("public", "ohlcv_1m_gaps"),
    ("feature_platform", "gap_watermark"),
    ("feature_platform", "dirty_log"),
    ("feature_platform", "symbol_state"),
    ("feature_platform", "features_1m_state"),
    ("feature_platform", "heartbeat"),
    ("feature_platform", "known_symbol"),
)


@pytest.fixture
def two(conn: Conn) -> Conn:
    """Return a database with two symbols, each of which has rows in every table."""
    begin_heartbeats(conn, {"A": "binance", "B": "binance"})
    for symbol in ("A", "B"):
        insert_bars(conn, symbol, START, 100, step=2)
    find_gaps(conn)
    for symbol in ("A", "B"):
        insert_bars(conn, symbol, START - timedelta(days=1), 5)
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    find_gaps(conn)
    begin_heartbeats(conn, {})
    return conn


def counts(connection: Conn, symbol: str) -> dict[str, int]:
    return {
        table: value(
            connection,
            sql.SQL("SELECT count(*) FROM {} WHERE symbol = %s").format(  # type: ignore[arg-type]
                sql.Identifier(schema, table)
            ),
            symbol,
        )
        for schema, table in TABLES
    }


def test_all_of_a_symbol_is_deleted_and_nothing_of_another(database: str, two: Conn) -> None:
    before = counts(two, "B")
    of_it = counts(two, "A")
    assert of_it["ohlcv_1m"] == of_it["features_1m"] == 105
    assert of_it["ohlcv_1m_gaps"] > 0
    done = run_on(database, "forget", "A", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "forgotten: A, 105 bars and 105 feature rows\n"
    assert {**counts(two, "A"), "dirty_log": 0} == dict.fromkeys(before, 0)
    two.execute("CALL refresh_features_1m(NULL, NULL)")
    find_gaps(two)
    assert counts(two, "A") == dict.fromkeys(before, 0)
    assert counts(two, "B") == before
    assert verify(two).mismatches == 0
    # The symbol can be stored again, as a new one.
    insert_bars(two, "A", START, 10)
    two.execute("CALL refresh_features_1m(NULL, NULL)")
    assert counts(two, "A")["features_1m"] == 10


def test_without_a_confirmation_no_row_is_deleted(database: str, two: Conn) -> None:
    done = run_on(database, "forget", "A")  # its standard input is empty
    assert done.returncode == 130
    assert counts(two, "A")["features_1m"] == 105


def test_a_symbol_that_is_recorded_is_not_forgotten(database: str, two: Conn) -> None:
    begin_heartbeats(two, {"A": "binance"})
    write_heartbeats(two, [Heartbeat("A", "live", datetime.now(UTC))], [])
    done = run_on(database, "forget", "A", "--yes")
    assert done.returncode == 2
    assert "'A' is being recorded: remove it from FEATURE_PLATFORM_SYMBOLS" in done.stderr
    assert counts(two, "A")["ohlcv_1m"] == 105


@pytest.mark.parametrize("role", ["recorder", "refresher", "orchestrator", "reader"])
def test_only_the_owner_may_forget_a_symbol(two: Conn, role: str) -> None:
    two.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(f"feature_platform_{role}")))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        two.execute("SELECT feature_platform.forget_symbol('A')")
