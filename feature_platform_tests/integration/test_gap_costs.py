"""Guards against a search for gaps whose cost grows with the number of open gaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.clock import SimulatedClock
from feature_platform.database import connect
from feature_platform.gaps import find_all_gaps, find_gaps, minutes_to_account, note_answer
from feature_platform.settings import get_settings
from feature_platform_tests.fix_plans import explain, pages_of
from feature_platform_tests.fix_processes import insert_bars, run_on, value

Conn = psycopg.Connection[Any]
MINUTE = timedelta(minutes=1)
GAPS = 32_000
EVERY_OTHER_MINUTE = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT 'THIN', feature_platform.bucket_of(feature_platform.clock()) - m * interval '2 minutes',
           1, 1, 1, 1, 1
      FROM generate_series(1, %s + 1) AS m
"""


@pytest.mark.parametrize("statistics", [False, True], ids=["no statistics", "statistics"])
def test_unchanged_open_gaps_do_not_add_to_the_cost_of_a_tick(
    conn: Conn, *, statistics: bool
) -> None:
    conn.execute(EVERY_OTHER_MINUTE, [GAPS])
    assert find_all_gaps(conn) >= GAPS - 2
    if statistics:
        conn.execute("ANALYZE")
    old = value(conn, "SELECT min(start_ts) FROM ohlcv_1m_gaps")
    for tick in range(1, 8):  # from the sixth tick on, the session uses a stored plan
        insert_bars(conn, "THIN", old + 2 * tick * MINUTE, 1)
        insert_bars(conn, "THIN", old + 2 * (GAPS - 100 - tick) * MINUTE, 1)
        plan = explain(conn, "SELECT feature_platform.find_gaps()")
    # A count of the open gaps reads some hundred pages, a look at each gap 100,000.
    assert pages_of(plan) < 3000
    assert value(conn, "SELECT count(*) FROM ohlcv_1m_gaps WHERE state = 'filled'") == 14


def test_the_cost_of_an_answer_does_not_depend_on_the_open_gaps(conn: Conn) -> None:
    conn.execute(EVERY_OTHER_MINUTE, [GAPS])
    find_all_gaps(conn)
    newest = value(conn, "SELECT max(start_ts) - interval '1 hour' FROM ohlcv_1m_gaps")
    answer = "SELECT feature_platform.gap_answered('THIN', $1, $1 + interval '5 minutes')"
    for tick in range(7):
        plan = explain(conn, answer, newest - tick * 10 * MINUTE)
    assert pages_of(plan) < 500
    assert value(conn, "SELECT count(*) FROM ohlcv_1m_gaps WHERE state = 'quiet'") in (14, 21)


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a clock on which no minute ends during a test."""
    start = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
    monkeypatch.setenv(
        "FEATURE_PLATFORM_CLOCK", str(SimulatedClock(start, datetime.now(UTC), 0.001))
    )
    get_settings.cache_clear()


@pytest.mark.usefixtures("slow_clock")
def test_the_gaps_command_accounts_for_all_minutes(simulated_database: str) -> None:
    """One tick handles 200,000 minutes, symbols in the order of their names."""
    with connect(simulated_database) as conn:
        now: datetime = value(conn, "SELECT feature_platform.bucket_of(feature_platform.clock())")
        for symbol in ("AAA", "BBB", "ZZZ"):
            insert_bars(conn, symbol, now - 200 * 1440 * MINUTE, 1)
            insert_bars(conn, symbol, now - 10 * MINUTE, 10)
        assert minutes_to_account(conn) > 3 * 199 * 1440
        find_gaps(conn)
        assert minutes_to_account(conn) > 0
        done = run_on(simulated_database, "top", "--once")
        assert "to account for" in done.stdout
        done = run_on(simulated_database, "gaps", "--symbol", "ZZZ")
        assert (done.returncode, minutes_to_account(conn)) == (0, 0)
    assert "minutes open in 1 gap\n" in done.stdout
    assert "to account for" not in run_on(simulated_database, "top", "--once").stdout


def test_the_live_minute_does_not_wait_for_a_long_new_history(conn: Conn) -> None:
    now: datetime = value(conn, "SELECT feature_platform.bucket_of(feature_platform.clock())")
    insert_bars(conn, "LIVE", now - 60 * MINUTE, 50)
    find_all_gaps(conn)
    insert_bars(conn, "AAA", now - 400 * 1440 * MINUTE, 1)
    conn.execute("UPDATE feature_platform.gap_watermark SET until_ts = until_ts - interval '3 min'")
    find_gaps(conn)
    until = "SELECT until_ts FROM feature_platform.gap_watermark WHERE symbol = %s"
    assert value(conn, until, "LIVE") >= now - 2 * MINUTE
    assert value(conn, until, "AAA") < now - 200 * 1440 * MINUTE


def test_changes_are_accounted_for_in_parts_the_smallest_first(conn: Conn) -> None:
    now: datetime = value(conn, "SELECT feature_platform.bucket_of(feature_platform.clock())")
    insert_bars(conn, "AAA", now - 600 * MINUTE, 600)
    insert_bars(conn, "ZZZ", now - 600 * MINUTE, 600)
    find_all_gaps(conn)
    conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'AAA' AND ts < %s", [now - 300 * MINUTE])
    conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'ZZZ' AND ts = %s", [now - 300 * MINUTE])
    listed = "SELECT coalesce(sum(end_ts - start_ts), '0') FROM ohlcv_1m_gaps WHERE symbol = %s"
    conn.execute("SELECT feature_platform.find_gaps('2 minutes', 100)")
    assert value(conn, listed, "ZZZ") == MINUTE
    assert value(conn, listed, "AAA") == 99 * MINUTE
    assert minutes_to_account(conn) in (201, 202, 203)
    find_all_gaps(conn)
    assert value(conn, listed, "AAA") == 300 * MINUTE
    note_answer(conn, "AAA", now - 600 * MINUTE, now - 300 * MINUTE)
    assert value(conn, "SELECT count(*) FROM ohlcv_1m_gaps WHERE state = 'open'") == 1
