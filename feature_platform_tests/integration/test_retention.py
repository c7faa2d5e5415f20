"""Guards against a retention that changes kept rows, their look-back, or their gaps."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform.verify import verify
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_engine import (
    assert_same_bits,
    in_threads,
    read_features,
    refresh,
    waits_for_a_lock,
)
from feature_platform_tests.fix_processes import insert_bars, value, wait_until
from feature_platform_tests.oracle import Features, Key

Conn = psycopg.Connection[Any]

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

SET = "SELECT set_features_1m_retention(bars => '3 days', features => '2 days')"
APPLY = "CALL feature_platform.apply_retention()"
FEATURES_FROM = "SELECT features_from FROM feature_platform.retention"
BEFORE_FIRST = """
    SELECT count(*) FROM ohlcv_1m_gaps g
     WHERE state <> 'filled'
       AND start_ts < (SELECT min(ts) FROM ohlcv_1m b WHERE b.symbol = g.symbol)
"""
RUNS = "SELECT count(*) FROM feature_platform.policy_run"
OPEN = "SELECT count(*) FROM ohlcv_1m_gaps WHERE state = 'open'"


def now(connection: Conn) -> datetime:
    at = value(connection, "SELECT feature_platform.due_until()")
    assert isinstance(at, datetime)
    return at


def fill(connection: Conn) -> None:
    """Write five days of symbols that differ around the end of the kept time."""
    end = now(connection)
    kept = end - 2 * DAY
    insert_bars(connection, "gapless", end - 5 * DAY, 5 * 1440)
    insert_bars(connection, "sparse", end - 5 * DAY, 5 * 1440 // 7, step=7)
    insert_bars(connection, "late", end - 5 * DAY, 1440)
    insert_bars(connection, "late", kept + timedelta(hours=3), 2000)
    insert_bars(connection, "ended", end - 5 * DAY, 2000)
    insert_bars(connection, "young", kept - timedelta(hours=5), 2000)
    insert_bars(connection, "short", kept - timedelta(hours=30), 180)
    insert_bars(connection, "short", kept - timedelta(hours=2), 240)
    ticks = "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)"
    connection.execute(
        ticks.encode() + b" SELECT 'ticks', ts, 8, 9, 7, 8 + random() / 2, random() FROM"
        b" generate_series(%s::timestamptz, %s, '40 seconds') AS ts",
        [end - 4 * DAY, end - 30 * MINUTE],
    )
    refresh(connection)
    connection.execute("SELECT feature_platform.find_gaps('2 minutes', 10000000)")


def since(start: datetime, rows: dict[Key, Features]) -> dict[Key, Features]:
    micros = int(start.timestamp()) * 1_000_000
    return {key: row for key, row in rows.items() if key[1] >= micros}


def rows(connection: Conn) -> int:
    return count(
        connection, "SELECT (SELECT count(*) FROM ohlcv_1m) + (SELECT count(*) FROM features_1m)"
    )


def is_proven(connection: Conn) -> int:
    report = verify(connection)
    assert (report.mismatches, report.pending) == (0, 0)
    return report.rows


def count(connection: Conn, query: LiteralString) -> int:
    number = value(connection, query)
    assert isinstance(number, int)
    return number


def test_kept_rows_stay_equal_to_the_last_bit(conn: Conn) -> None:
    fill(conn)
    before = read_features(conn)
    gaps = count(conn, OPEN)
    conn.execute(APPLY)  # without a setting all rows stay
    assert_same_bits(before, read_features(conn))
    conn.execute(SET)
    conn.execute(APPLY)
    start = value(conn, FEATURES_FROM)
    kept = since(start, before)
    assert len(kept) > 8000
    assert {symbol for symbol, _ in before} - {symbol for symbol, _ in kept} == {"ended"}
    assert_same_bits(kept, read_features(conn))
    assert is_proven(conn) == len(kept)
    # Neither the marks of the deleted bars nor a forced refresh of all rows changes a row.
    for force in (False, True):
        refresh(conn, force=force)
        assert_same_bits(kept, read_features(conn))
    assert is_proven(conn) == len(kept)
    assert not value(conn, "SELECT count(*) FROM feature_platform.dirty_log")

    # The day before the first row of each symbol stays, and the bar at which its look-back ends.
    firsts = dict(conn.execute("SELECT symbol, min(ts) FROM ohlcv_1m GROUP BY symbol").fetchall())
    assert firsts["gapless"] == start - DAY
    assert start - DAY - 7 * MINUTE < firsts["sparse"] <= start - DAY
    for symbol in ("late", "ended"):
        old = "SELECT count(*) FROM ohlcv_1m WHERE symbol = %s AND ts < %s"
        assert value(conn, old, symbol, start) == 1

    # The minutes of deleted bars are no gaps, so that no backfill requests them.
    for recheck in (False, True):
        if recheck:
            conn.execute("SELECT feature_platform.recheck_gaps()")
        conn.execute("SELECT feature_platform.find_gaps('2 minutes', 10000000)")
        assert count(conn, OPEN) <= gaps
        assert not value(conn, BEFORE_FIRST)


def test_later_bars_have_exact_rows_after_a_retention(conn: Conn) -> None:
    fill(conn)
    conn.execute(SET)
    conn.execute(APPLY)
    start = value(conn, FEATURES_FROM)
    # Older history, a correction in the look-back, and new bars of a symbol that had ended.
    insert_bars(conn, "gapless", start - 30 * DAY, 100)
    conn.execute(
        "UPDATE ohlcv_1m SET vol = vol + 1 WHERE symbol = 'gapless' AND ts = %s",
        [start - timedelta(hours=1)],
    )
    insert_bars(conn, "ended", now(conn) - 10 * MINUTE, 10)
    assert verify(conn).mismatches == 0
    refresh(conn)
    rows = is_proven(conn)
    assert count(conn, "SELECT count(*) FROM features_1m WHERE symbol = 'ended'") == 10
    conn.execute(APPLY)
    refresh(conn)
    assert is_proven(conn) <= rows


def test_a_longer_retention_restores_rows(conn: Conn) -> None:
    fill(conn)
    before = read_features(conn)
    conn.execute("SELECT set_features_1m_retention(features => '1 day')")
    conn.execute(APPLY)
    assert len(read_features(conn)) < len(before)
    conn.execute("SELECT set_features_1m_retention(features => '3 days')")
    refresh(conn)
    assert_same_bits(since(value(conn, FEATURES_FROM), before), read_features(conn))
    assert is_proven(conn)
    conn.execute("SELECT set_features_1m_retention()")
    assert value(conn, FEATURES_FROM) is None
    refresh(conn)
    assert_same_bits(before, read_features(conn))


def test_a_retention_becomes_longer_during_a_refresh(conn: Conn, database: str) -> None:
    fill(conn)
    before = read_features(conn)
    conn.execute("SELECT set_features_1m_retention(features => '1 day')")
    conn.execute(APPLY)
    insert_bars(conn, "gapless", now(conn), 1)  # a minute that is not due
    insert_bars(conn, "gapless", now(conn) - 10 * DAY, 1)

    def longer(refresher: Conn) -> None:
        with psycopg.connect(database) as holder:
            # The refresh waits here, before it takes the marks.
            holder.execute("LOCK TABLE feature_platform.view_lock IN EXCLUSIVE MODE")
            thread = threading.Thread(target=refresh, args=[refresher])
            thread.start()
            wait_until(lambda: waits_for_a_lock(conn, refresher), "the refresh waits for a lock")
            conn.execute("SELECT set_features_1m_retention()")
            holder.rollback()
            thread.join()

    in_threads(database, longer)
    refresh(conn)
    restored = read_features(conn)
    assert before.keys() <= restored.keys()
    assert is_proven(conn) == len(restored)


def test_no_row_continues_a_state_of_before_the_retention(conn: Conn) -> None:
    first = now(conn) - 3 * DAY
    insert_bars(conn, "A", first, 2000)
    refresh(conn)
    newest = first + 1999 * MINUTE
    conn.execute("UPDATE feature_platform.retention SET features_from = %s", [newest + MINUTE])
    conn.execute("UPDATE ohlcv_1m SET vol = vol + 100 WHERE ts = %s", [newest])
    refresh(conn)
    insert_bars(conn, "A", newest + MINUTE, 1)
    refresh(conn)
    assert is_proven(conn) == 1


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_retention_deletes_in_bounded_batches(conn: Conn) -> None:
    fill(conn)
    conn.execute(SET)
    step = "SELECT feature_platform.retention_step(500)"
    sizes = [rows(conn)]
    while value(conn, step):
        sizes.append(rows(conn))
        if len(sizes) % 10 == 0:  # the rows are exact between any two steps
            refresh(conn)
            is_proven(conn)
    steps = [before - after for before, after in pairwise(sizes)]
    assert len(steps) > 10
    assert 0 < max(steps) <= 500 + 1440
    is_proven(conn)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_old_gaps_and_runs_are_deleted(conn: Conn) -> None:
    conn.execute(
        """INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts, state, changed_at)
           SELECT 'A', '2026-01-01Z', '2026-01-02Z', state, now() - age::interval
             FROM unnest('{filled,quiet,open}'::text[]) AS state,
                  unnest('{1 day,40 days}'::text[]) AS age"""
    )
    conn.execute(
        """INSERT INTO feature_platform.policy_run (runner, started_at, finished_at)
           SELECT 'worker', now() - age, now() FROM unnest('{1 day,40 days}'::interval[]) AS age"""
    )
    conn.execute("SELECT set_features_1m_retention(gaps => '30 days', runs => NULL)")
    conn.execute("SELECT feature_platform.policy_begin('worker')")
    assert count(conn, RUNS) == 3
    conn.execute(APPLY)
    assert (count(conn, "SELECT count(*) FROM ohlcv_1m_gaps"), count(conn, RUNS)) == (5, 3)
    conn.execute("SELECT set_features_1m_retention()")
    conn.execute(APPLY)
    assert (count(conn, "SELECT count(*) FROM ohlcv_1m_gaps"), count(conn, RUNS)) == (5, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "bars => '2 days'",
            "at least a day longer than features, got bars 2 days and .* for ever",
        ),
        ("bars => '2 days', features => '2 days'", "at least a day longer than features"),
        ("features => '23 hours'", "at least a day, got features 23:00:00"),
        ("runs => '1 minute'", "at least a day"),
    ],
)
@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_retention_shorter_than_the_look_back_is_rejected(
    databases: Databases, arguments: str, message: str
) -> None:
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.RaiseException, match=message):
            connection.execute(f"SELECT set_features_1m_retention({arguments})".encode())
        assert not value(connection, "SELECT count(features) FROM feature_platform.retention")
