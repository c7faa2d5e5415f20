"""Guards against a wrong hour anywhere in the history that is not found within seven days."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.validation import RECOMPUTED, CheckResult, evaluate
from feature_platform.verify import PASS, verify_rolling
from feature_platform_tests.fix_processes import account_for_all, insert_bars, value

Conn = psycopg.Connection[Any]
MINUTE = timedelta(minutes=1)
DAYS = 4
SYMBOLS = ("A", "B", "C")


@pytest.fixture
def stored(conn: Conn) -> Conn:
    """Return a database with four days of three symbols, refreshed and without gaps."""
    now: datetime = value(conn, "SELECT feature_platform.due_until()")
    for symbol in SYMBOLS:
        insert_bars(conn, symbol, now - DAYS * 1440 * MINUTE, DAYS * 1440)
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    account_for_all(conn)
    return conn


def days_pass(conn: Conn, days: float) -> None:
    conn.execute(
        "UPDATE feature_platform.verification SET started_at = started_at - %s",
        [timedelta(days=days)],
    )


def check(conn: Conn) -> CheckResult:
    (result,) = evaluate(conn, {RECOMPUTED})
    return result


def test_a_pass_verifies_every_row_within_seven_days_and_restarts(stored: Conn) -> None:
    rows = verify_rolling(stored, seconds=None).rows
    assert rows <= 1440  # at first at most one slice is due
    for day in range(PASS.days):
        days_pass(stored, 1)
        report = verify_rolling(stored, seconds=None)
        rows += report.rows
        assert report.mismatches == 0
        if value(stored, "SELECT finished_at FROM feature_platform.verification") is not None:
            break
        assert rows >= (day + 1) * len(SYMBOLS) * DAYS * 1440 / PASS.days
    else:
        pytest.fail("the pass did not end within seven days")
    assert rows >= value(stored, "SELECT count(*) FROM features_1m") - len(SYMBOLS)
    assert verify_rolling(stored, seconds=None).rows <= 1440


def test_a_pass_continues_after_another_process_stopped(stored: Conn, database: str) -> None:
    days_pass(stored, PASS.days - 0.5)
    rows, looks = 0, 0
    while value(stored, "SELECT finished_at IS NULL FROM feature_platform.verification"):
        with psycopg.connect(database, autocommit=True) as process:
            rows += verify_rolling(process, seconds=0.000001).rows  # a slice a call
        looks += 1
    assert looks >= len(SYMBOLS) * DAYS
    assert rows >= len(SYMBOLS) * DAYS * 1440


@pytest.mark.parametrize("change", ["a wrong value", "a row is missing", "the last day is missing"])
def test_a_wrong_hour_is_found_and_reported_until_its_repair(stored: Conn, change: str) -> None:
    match change:
        case "a wrong value":
            stored.execute(
                """UPDATE features_1m SET vwap_gap = vwap_gap + 1e-9 WHERE symbol = 'B'
                   AND bucket = feature_platform.due_until() - interval '2500 minutes'"""
            )
        case "a row is missing":
            stored.execute(
                """DELETE FROM features_1m WHERE symbol = 'B'
                   AND bucket = feature_platform.due_until() - interval '2500 minutes'"""
            )
        case _:
            stored.execute(
                """DELETE FROM features_1m WHERE symbol = 'B'
                   AND bucket >= feature_platform.due_until() - interval '1 day'"""
            )
    days_pass(stored, PASS.days - 0.5)
    found = verify_rolling(stored, seconds=None)
    assert found.mismatches > 0
    assert {example.symbol for example in found.examples} == {"B"}
    for _ in range(3):
        again = check(stored)
        assert not again.passed
        assert "B" in {row["symbol"] for row in again.rows}
    stored.execute("CALL refresh_features_1m(NULL, NULL, true)")
    verify_rolling(stored, seconds=None)
    assert value(stored, "SELECT finished_at IS NOT NULL FROM feature_platform.verification")
    assert check(stored).passed


def test_a_symbol_with_bars_but_no_rows_fails_the_check(stored: Conn) -> None:
    stored.execute("DELETE FROM features_1m")
    stored.execute("DELETE FROM features_1m; DELETE FROM feature_platform.dirty_log")
    result = check(stored)
    assert not result.passed
    assert result.wrong >= 3 * 60


def test_a_pass_of_more_than_seven_days_fails_the_check(stored: Conn) -> None:
    days_pass(stored, 1)
    verify_rolling(stored, seconds=None)
    stored.execute(
        "UPDATE feature_platform.verification SET symbol = 'C', next_ts = 'infinity',"
        " started_at = feature_platform.clock() - interval '9 days', minutes = 10000000"
    )
    result = check(stored)
    assert not result.passed
    assert "takes more than 7 days" in result.summary


def test_a_wrong_row_of_the_sample_and_of_the_pass_counts_once(stored: Conn) -> None:
    """The check always compares the newest hour; here the pass has come to the same hour."""
    stored.execute(
        "UPDATE features_1m SET volume_z = volume_z + 1e-9"
        " WHERE symbol = 'A' AND bucket = feature_platform.due_until() - interval '9 minutes'"
    )
    days_pass(stored, 6)
    stored.execute(
        "UPDATE feature_platform.verification SET symbol = 'A',"
        " next_ts = feature_platform.due_until() - interval '50 minutes'"
    )
    found = check(stored)
    assert found.summary.startswith("1 of ")
    assert found.wrong == 1
