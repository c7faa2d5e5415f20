"""Guards against rows that change after the lake has read them, without a record of it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from feature_platform.refresh import refresh
from feature_platform.views import catalog
from feature_platform.views.expressions import bar, mean
from feature_platform.views.view import FeatureView

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MEAN = FeatureView("mean_1m", "1 minute", {"mean_1h": mean(bar.close, "1 hour")})
TABLES = ("features_1m", "mean_1m", "ohlcv_1m")

Change = tuple[str, str, date, date]


@pytest.fixture
def filled(conn: psycopg.Connection) -> psycopg.Connection:
    """Give a database with four days of two symbols, whose changes are recorded for three days."""
    conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT symbol, %s + minute * interval '1 minute', 10, 12, 8, 9, 1 + minute %% 7
             FROM unnest('{A,B}'::text[]) AS symbol
            CROSS JOIN generate_series(0, 4 * 1440 - 1) AS minute""",
        [FIRST],
    )
    refresh(conn)
    catalog.apply(conn, [MEAN])
    catalog.refresh_views(conn)
    for name in TABLES:
        conn.execute(
            "INSERT INTO feature_platform.lake_table (name, location) VALUES (%s, 'x')", [name]
        )
        conn.execute("SELECT feature_platform.record_lake_until(%s, %s)", [name, FIRST + 3 * DAY])
    return conn


def changes(conn: psycopg.Connection) -> list[Change]:
    """Return the recorded changes and forget them."""
    rows = conn.execute(
        """WITH gone AS (DELETE FROM feature_platform.lake_change RETURNING *)
           SELECT DISTINCT name, symbol, lower(days), upper(days) FROM gone ORDER BY 1, 2"""
    )
    return rows.fetchall()


def work(conn: psycopg.Connection) -> None:
    """Process the changes of bars to the end."""
    refresh(conn)
    catalog.refresh_views(conn)


def test_a_correction_is_recorded_for_the_days_that_it_reaches(filled: psycopg.Connection) -> None:
    filled.execute(
        "UPDATE ohlcv_1m SET close = 9.5 WHERE symbol = 'A' AND ts = %s",
        [FIRST + timedelta(hours=12)],
    )
    work(filled)
    assert changes(filled) == [
        ("features_1m", "A", date(2026, 1, 1), date(2026, 1, 3)),
        ("mean_1m", "A", date(2026, 1, 1), date(2026, 1, 2)),
        ("ohlcv_1m", "A", date(2026, 1, 1), date(2026, 1, 2)),
    ]


def test_a_deleted_bar_is_recorded(filled: psycopg.Connection) -> None:
    filled.execute("DELETE FROM ohlcv_1m WHERE symbol = 'B' AND ts >= %s", [FIRST + 2.5 * DAY])
    work(filled)
    assert changes(filled) == [(name, "B", date(2026, 1, 3), date(2026, 1, 4)) for name in TABLES]


def test_newer_rows_are_not_recorded(filled: psycopg.Connection) -> None:
    filled.execute("UPDATE ohlcv_1m SET close = 9.5 WHERE ts >= %s", [FIRST + 3 * DAY])
    filled.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           VALUES ('A', %s, 10, 12, 8, 9, 1)""",
        [FIRST + 4 * DAY],
    )
    work(filled)
    assert changes(filled) == []


def test_late_minutes_that_a_cached_state_continues_are_recorded(
    filled: psycopg.Connection,
) -> None:
    for name in TABLES:
        filled.execute("SELECT feature_platform.record_lake_until(%s, %s)", [name, FIRST + 6 * DAY])
    filled.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           VALUES ('A', %s, 10, 12, 8, 9, 1)""",
        [FIRST + 4 * DAY],
    )
    work(filled)
    assert changes(filled) == [(name, "A", date(2026, 1, 5), date(2026, 1, 6)) for name in TABLES]


def test_truncate_and_forget_record_all_days(filled: psycopg.Connection) -> None:
    filled.execute("SELECT feature_platform.forget_symbol('B')")
    assert {change[:2] for change in changes(filled)} == {(name, "B") for name in TABLES}
    filled.execute("TRUNCATE ohlcv_1m")
    work(filled)
    truncated = [change for change in changes(filled) if change[1] == "A"]
    assert [change[0] for change in truncated] == list(TABLES)
    assert all(change[2] <= date(2026, 1, 1) for change in truncated)
    assert all(change[3] >= date(2026, 1, 4) for change in truncated)


def test_retention_records_the_days_of_deleted_rows(filled: psycopg.Connection) -> None:
    age = datetime.now(UTC) - (FIRST + 1.5 * DAY)
    filled.execute("SELECT set_features_1m_retention(NULL, %s)", [age])
    filled.execute("CALL feature_platform.apply_retention()")
    recorded = changes(filled)
    assert {change[:2] for change in recorded} == {
        (name, symbol) for name in ("features_1m", "mean_1m") for symbol in "AB"
    }
    assert max(change[3] for change in recorded) == date(2026, 1, 3)


def test_a_change_and_a_sync_wait_for_each_other(filled: psycopg.Connection, database: str) -> None:
    """A refresh that began before a sync's mark is over before the sync reads."""
    with psycopg.connect(database) as refresher:
        refresher.execute(
            "SELECT feature_platform.record_lake_changes('ohlcv_1m', '{A}', '{}'::tstzmultirange[])"
        )
        with pytest.raises(psycopg.errors.LockNotAvailable):
            filled.execute(
                "SELECT feature_platform.record_lake_until('ohlcv_1m', %s)", [FIRST + 4 * DAY]
            )
