"""Guards against checks that pass with wrong data, or fail with right data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform.gaps import find_gaps
from feature_platform.heartbeat import Heartbeat, begin_heartbeats, write_heartbeats
from feature_platform.settings import get_settings
from feature_platform.validation import CHECKS, SHOWN, CheckResult, evaluate
from feature_platform_tests.fix_processes import account_for_all, value
from feature_platform_tests.fix_skew import serve

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

MINUTES = 1600

_BARS = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT %(symbol)s, feature_platform.due_until() - (%(count)s - i) * interval '1 minute',
           p, p + 0.75, p - 0.5, p + sin(i) / 4, 1 + i * 7919 %% 997 / 10.0
      FROM generate_series(0, %(count)s - 1) AS i,
           LATERAL (SELECT 100 + 10 * sin(i / 97.0)) AS price (p)
"""


@pytest.fixture
def live(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Return a database with correct live data up to the last closed minute."""
    for symbol in ("ADA/USDT", "BTC/USDT", "ETH/USDT"):
        conn.execute(_BARS, {"symbol": symbol, "count": MINUTES})
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute("SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'))")
    account_for_all(conn)
    symbols = [row[0] for row in conn.execute("SELECT symbol FROM feature_platform.bar_symbol")]
    begin_heartbeats(conn, dict.fromkeys(symbols, "binance"))
    write_heartbeats(conn, [Heartbeat(name, "live", datetime.now(UTC)) for name in symbols], [])
    serve(conn, *symbols)
    return conn


def result(connection: psycopg.Connection[Any], name: str) -> CheckResult:
    (found,) = evaluate(connection, {name})
    return found


def test_without_data_the_checks_pass_and_give_the_reason(conn: psycopg.Connection[Any]) -> None:
    # The policy is as new as after a set-up; the template of the tests' databases is older.
    conn.execute("UPDATE feature_platform.policy SET changed_at = clock_timestamp()")
    for one in evaluate(conn):
        assert one.passed, one
        if not one.check.no_data or one.check.name == "policy_healthy":
            assert one.checked, one
        else:
            assert (one.checked, one.wrong) == (0, 0), one
            assert one.summary == f"{one.check.no_data}: nothing to check"


def test_checks_pass_with_live_data(live: psycopg.Connection[Any]) -> None:
    for one in evaluate(live):
        assert one.passed, one
        assert one.checked, one
        assert not one.rows


# By check: a statement that breaks the data, and a text that the findings must have.
_FAULTS: dict[str, tuple[LiteralString, str]] = {
    "served_equals_recomputed": (
        """UPDATE feature_platform.served SET values[1] = 0.1;
           DELETE FROM feature_platform.skew_check""",
        "'problem': 'mismatch', 'column': 'last_close', 'served': '0.1', 'computed': '",
    ),
    "bars_table": ("ALTER TABLE ohlcv_1m DISABLE TRIGGER ohlcv_1m_updated", "ohlcv_1m_updated"),
    "features_table": ("DROP INDEX features_1m_bucket_idx", "features_1m_bucket_idx"),
    "recorder_alive": (
        """UPDATE feature_platform.heartbeat SET state = 'down',
                  state_at = now() - interval '3 minutes' WHERE symbol = 'BTC/USDT'""",
        "BTC/USDT",
    ),
    "bars_fresh": (
        """DELETE FROM ohlcv_1m
            WHERE symbol = 'BTC/USDT' AND ts > now() - interval '10 minutes'""",
        "BTC/USDT",
    ),
    "no_future_bars": (
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'BTC/USDT', feature_platform.due_until() + interval '2 minutes', 1, 1, 1, 1, 1""",
        "BTC/USDT",
    ),
    "minute_gaps": (
        """DELETE FROM ohlcv_1m WHERE symbol = 'BTC/USDT'
              AND ts BETWEEN now() - interval '90 minutes' AND now() - interval '80 minutes'""",
        "BTC/USDT",
    ),
    "minutes_accounted_for": (
        """SET session_replication_role = replica;
           DELETE FROM ohlcv_1m WHERE symbol = 'BTC/USDT'
              AND ts BETWEEN now() - interval '20 minutes' AND now() - interval '19 minutes';
           RESET session_replication_role""",
        "29 of 30 minutes have a bar, 0 are listed",
    ),
    "features_rows": (
        """DELETE FROM features_1m WHERE symbol = 'ETH/USDT'
              AND bucket = feature_platform.due_until() - interval '6 minutes'""",
        "ETH/USDT",
    ),
    "features_not_null": (
        "UPDATE features_1m SET volume_z = NULL WHERE symbol = 'ETH/USDT'",
        "ETH/USDT",
    ),
    "features_fresh": (
        """DELETE FROM features_1m
            WHERE symbol = 'ETH/USDT' AND bucket > now() - interval '5 minutes'""",
        "ETH/USDT",
    ),
    "volume_z_shape": (
        """UPDATE features_1m SET volume_z = 1.5
            WHERE symbol = 'ETH/USDT' AND bucket > now() - interval '20 minutes'""",
        "the same value in",
    ),
    "refresh_backlog": (
        """INSERT INTO feature_platform.dirty_log (symbol, buckets, marked_at)
           VALUES ('BTC/USDT', '{[2020-01-01, 2100-01-01)}', now() - interval '1 hour')""",
        "BTC/USDT",
    ),
    "stored_equals_recomputed": ("UPDATE features_1m SET volume_z = volume_z + 1e-9", "volume_z"),
    "policy_present": ("SELECT remove_features_1m_policy()", "add_features_1m_policy"),
    "policy_healthy": (
        "UPDATE feature_platform.policy_run SET started_at = started_at - interval '10 minutes'",
        "no run has begun for",
    ),
    "database_ready": (
        "INSERT INTO feature_platform.schema_version (version) VALUES (999)",
        "the schema has version 999",
    ),
}


@pytest.mark.parametrize("name", list(_FAULTS))
def test_a_fault_is_found_and_named(live: psycopg.Connection[Any], name: str) -> None:
    statement, text = _FAULTS[name]
    live.execute(statement)
    find_gaps(live)
    found = result(live, name)
    assert not found.passed, found
    assert found.wrong > 0
    assert 0 < len(found.rows) <= SHOWN
    assert text in str(found.rows)
    bad = found.check.bad.removeprefix("is ").removeprefix("has ")
    assert f"of {found.checked:,} {found.check.noun[1]}" in found.summary
    assert bad in found.summary
    assert "symbol" not in found.rows[0] or str(found.rows[0]["symbol"]) in found.summary


def test_the_summary_names_the_wrong_row(
    live: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "ADA/USDT,BTC/USDT,ETH/USDT")
    get_settings.cache_clear()
    passed = result(live, "stored_equals_recomputed")
    assert passed.summary == f"{passed.checked:,} rows checked, all equal"
    assert result(live, "policy_present").summary == "1 policy checked, present"
    minute = value(
        live,
        "UPDATE features_1m SET vwap_gap = vwap_gap + 1 WHERE symbol = 'BTC/USDT'"
        " AND bucket = feature_platform.due_until() - interval '9 minutes' RETURNING bucket",
    ).astimezone(UTC)
    found = result(live, "stored_equals_recomputed")
    assert found.summary == (
        f"1 of {found.checked:,} rows is wrong: BTC/USDT {minute:%Y-%m-%d %H:%M} vwap_gap"
    )
    live.execute("DELETE FROM ohlcv_1m WHERE ts > now() - interval '10 minutes'")
    summary = result(live, "bars_fresh").summary
    assert summary.startswith("3 of 3 symbols are late, first ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("close = 100, open = 100, high = 100, low = 100, vol = 7", "bars at one price"),
        ("close = 200, high = 200", "a step from"),
        ("vol = 0", "no volume"),
    ],
)
def test_unusual_bars_are_found(
    live: psycopg.Connection[Any], change: LiteralString, text: str
) -> None:
    since = 40 if "at one" in text else 12
    live.execute(
        psycopg.sql.SQL(
            "UPDATE ohlcv_1m SET {} WHERE symbol = 'ADA/USDT'"
            " AND ts > now() - %s AND ts < now() - interval '2 minutes'"
        ).format(psycopg.sql.SQL(change)),
        (timedelta(minutes=since),),
    )
    found = result(live, "bars_sane")
    assert not found.passed
    assert text in str(found.rows)


def test_minutes_without_trades_are_not_missing(live: psycopg.Connection[Any]) -> None:
    live.execute(
        "DELETE FROM ohlcv_1m WHERE symbol = 'BTC/USDT' AND ts > now() - interval '9 minutes'"
    )
    live.execute("CALL refresh_features_1m(NULL, NULL)")
    find_gaps(live)
    assert not result(live, "bars_fresh").passed
    # The exchange answered that there were no trades.
    live.execute(
        """SELECT feature_platform.gap_answered(
               'BTC/USDT', now() - interval '20 minutes', now(), '0')"""
    )
    assert result(live, "bars_fresh").passed
    assert result(live, "minute_gaps").passed
    live.execute(
        "UPDATE ohlcv_1m_gaps SET end_ts = feature_platform.due_until() WHERE state = 'quiet'"
    )
    assert result(live, "features_fresh").passed
    assert result(live, "features_rows").passed


def test_a_bar_of_the_open_minute_is_no_future_bar(live: psycopg.Connection[Any]) -> None:
    live.execute(
        "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)"
        " VALUES ('BTC/USDT', now(), 1, 1, 1, 1, 1)"
    )
    assert result(live, "no_future_bars").passed


@pytest.mark.parametrize("name", ["features_fresh", "features_rows"])
def test_a_recorded_symbol_without_any_row_is_an_error(
    live: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The bars of the symbol are 15 minutes old, and no refresh has stored a row for them."""
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT,ETH/USDT")
    get_settings.cache_clear()
    assert result(live, name).passed
    live.execute(
        "UPDATE ohlcv_1m SET inserted_at = now() - interval '15 minutes' WHERE symbol = 'ETH/USDT'"
    )
    live.execute("DELETE FROM features_1m WHERE symbol = 'ETH/USDT'")
    found = result(live, name)
    assert not found.passed
    assert found.check.severity == "ERROR"
    assert [row["symbol"] for row in found.rows] == ["ETH/USDT"]


@pytest.mark.parametrize("name", ["features_fresh", "features_rows"])
def test_a_symbol_that_was_just_stored_has_time_to_get_rows(
    live: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT,NEW/USDT")
    get_settings.cache_clear()
    live.execute(_BARS, {"symbol": "NEW/USDT", "count": MINUTES})
    assert result(live, name).passed


def test_findings_change_with_the_symbols_and_not_with_time(
    live: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "ADA/USDT,BTC/USDT,ETH/USDT")
    get_settings.cache_clear()
    assert result(live, "bars_fresh").findings is None

    def without(symbol: str, minutes: int) -> str | None:
        live.execute(
            "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts > now() - %s * interval '1 minute'",
            (symbol, minutes),
        )
        return result(live, "bars_fresh").findings

    one = without("BTC/USDT", 10)
    assert one is not None
    assert without("BTC/USDT", 20) == one  # older bars of the same symbol
    assert without("ETH/USDT", 10) not in (one, None)


def test_unavailable_minutes_are_findings(live: psycopg.Connection[Any]) -> None:
    live.execute(
        """DELETE FROM ohlcv_1m WHERE symbol = 'BTC/USDT'
              AND ts BETWEEN now() - interval '90 minutes' AND now() - interval '80 minutes'"""
    )
    find_gaps(live)
    live.execute(
        "SELECT feature_platform.gap_failed('BTC/USDT', now() - interval '1 day', now(), 'away', 1)"
    )
    found = result(live, "minute_gaps")
    assert not found.passed
    assert found.measures["unavailable_minutes"] in (10, 11)
    assert "away" in str(found.rows)


def test_a_failed_statement_fails_only_its_check(
    live: psycopg.Connection[Any],
) -> None:
    live.execute("DROP TABLE feature_platform.gap_watermark CASCADE")
    failed = {one.check.name for one in evaluate(live) if not one.passed}
    assert failed == {"minute_gaps", "minutes_accounted_for", "stored_equals_recomputed"}
    assert "gap_watermark" in result(live, "minute_gaps").summary


def test_the_cost_of_checks_does_not_grow_with_the_history(live: psycopg.Connection[Any]) -> None:
    """Each check reads as many rows with ten times the history."""
    with_little = {check.name: _rows_touched(live, check.name) for check in CHECKS}
    for symbol in ("ADA/USDT", "BTC/USDT", "ETH/USDT"):
        live.execute(
            "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)"
            " SELECT symbol, ts - k * %s * interval '1 minute', open, high, low, close, vol"
            "   FROM ohlcv_1m, generate_series(1, 9) AS k WHERE symbol = %s",
            (MINUTES, symbol),
        )
    live.execute("CALL refresh_features_1m(NULL, NULL)")
    find_gaps(live)
    live.execute("VACUUM ANALYZE")
    for name, few in with_little.items():
        assert _rows_touched(live, name) <= 1.5 * few + 200, name


def _rows_touched(connection: psycopg.Connection[Any], name: str) -> int:
    """Return the number of table rows that a check read, by the server's statistics."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    before = _read(connection)
    evaluate(connection, {name})
    connection.execute("SELECT pg_stat_force_next_flush()")
    return _read(connection) - before


def _read(connection: psycopg.Connection[Any]) -> int:
    return int(
        value(
            connection,
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))"
            "  FROM pg_stat_user_tables WHERE relname <> 'x'",
        )
    )
