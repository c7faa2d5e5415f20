"""Guards against an upgrade of an older database that fails, loses rows or stores wrong ones."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform import read_features, schema
from feature_platform.errors import UserError
from feature_platform.heartbeat import list_heartbeats
from feature_platform.settings import get_settings
from feature_platform.skew import skew
from feature_platform.verify import verify
from feature_platform.views import catalog
from feature_platform.why import why
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_old_versions import load_dump
from feature_platform_tests.fix_processes import insert_recent, run_on, value
from feature_platform_tests.fix_service import ServedDatabase
from feature_platform_tests.fix_skew import check_row, rows_with_numbers, serve
from feature_platform_tests.fix_views import (
    SHORT,
    add_bars,
    ago,
    check_views,
    refresh_all,
    rows_of,
    state_of,
)
from feature_platform_tests.integration.test_schema_apply import dump
from feature_platform_tests.served_day import DAY_VIEWS, START, refresh_once

Conn = psycopg.Connection[Any]

OLD_VERSIONS = (1, 2, 3)

KEPT = """
    SELECT symbol, ts, open, high, low, close, vol, source, inserted_at
      FROM ohlcv_1m ORDER BY symbol, ts;
    SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z,
           vwap_gap, parkinson_vol
      FROM features_1m ORDER BY symbol, bucket;
    SELECT id, symbol, start_ts, end_ts, state, found_at, changed_at, attempts, next_attempt_at,
           last_error
      FROM ohlcv_1m_gaps ORDER BY id;
    SELECT start_offset, end_offset, schedule_interval FROM feature_platform.policy;
    SELECT id, runner, started_at, finished_at, slices, rows_written
      FROM feature_platform.policy_run ORDER BY id;
    SELECT symbol, id, buckets, reach_known, removed, marked_at
      FROM feature_platform.dirty_log ORDER BY symbol, id;
    SELECT * FROM feature_platform.gap_watermark ORDER BY symbol
"""


@pytest.fixture(params=OLD_VERSIONS)
def old_version(request: pytest.FixtureRequest) -> int:
    """Return an old version of the schema."""
    version: int = request.param
    return version


@pytest.fixture
def old(old_version: int, empty_database: str) -> str:
    """Return the URL of a database of the old version."""
    load_dump(f"schema_{old_version}", empty_database)
    return empty_database


def kept(connection: Conn) -> list[list[tuple[Any, ...]]]:
    return [connection.execute(select.encode()).fetchall() for select in KEPT.split(";")]


def test_an_upgraded_database_keeps_its_rows_and_stays_exact(old: str, old_version: int) -> None:
    with psycopg.connect(old, autocommit=True) as connection:
        before = kept(connection)
        assert [len(rows) for rows in before] == [1803, 1803, 8, 1, 1, 2, 3]
        done = run_on(old, "status")
        assert (done.returncode, done.stdout) == (2, "")
        assert "run `feature-platform db apply`" in done.stderr

        assert run_on(old, "db", "apply").returncode == 0
        assert kept(connection) == before
        assert value(connection, "SELECT count(*) FROM feature_platform.bar_symbol") == 3
        versions = connection.execute(
            "SELECT version FROM feature_platform.schema_version ORDER BY version"
        ).fetchall()
        assert versions == [(number,) for number in sorted({old_version, schema.SCHEMA_VERSION})]

        pending = verify(connection)
        assert (pending.mismatches, pending.pending > 0) == (0, True)
        insert_recent(connection, "BTC/USDT", 5)
        done = run_on(old, "refresh")
        assert (done.returncode, done.stderr) == (0, "")
        after = verify(connection)
        assert (after.mismatches, after.pending) == (0, 0)
        assert after.rows == value(
            connection, "SELECT count(*) FROM ohlcv_1m WHERE ts = date_trunc('minute', ts)"
        )
        while value(connection, "SELECT feature_platform.minutes_to_account()"):
            connection.execute("SELECT feature_platform.find_gaps()")
        assert value(connection, "SELECT to_regclass('feature_platform.late_change')") is None


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_rows_of_before_an_upgrade_are_computed_again_where_they_can_be(old: str) -> None:
    with psycopg.connect(old, autocommit=True) as connection:
        schema.apply(connection)
        symbols = connection.execute("SELECT symbol FROM feature_platform.bar_symbol").fetchall()
        names = [name for (name,) in symbols]
        add_bars(connection, ago(300), 250, ("NEW",))
        refresh_all(connection)
        for change in (
            "UPDATE ohlcv_1m SET vol = vol + 1 WHERE extract(minute FROM ts) = 7",
            "DELETE FROM ohlcv_1m WHERE extract(minute FROM ts) = 9",
        ):
            serve(connection, *names, "NEW")
            connection.execute(change)
            refresh_all(connection)
        report = skew(connection, since=datetime(2000, 1, 1, tzinfo=UTC))
        assert (report.rows + report.not_kept, report.is_right) == (8, True), report
        assert report.rows > report.not_kept > 0
        for row in rows_with_numbers(connection)[::40]:
            if row[3] > 0:
                check_row(connection, row)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_an_upgrade_renames_columns_and_keeps_their_values(old: str) -> None:
    with psycopg.connect(old, autocommit=True) as connection:
        if value(connection, "SELECT to_regclass('feature_platform.heartbeat')") is None:
            pytest.skip("the first version had no heartbeats")
        connection.execute(
            """INSERT INTO feature_platform.heartbeat
                   (symbol, state, state_at, first_at, heard_at, beat_at, refused)
               VALUES ('A', 'live', now(), now(), '2026-02-01 00:00Z', now(), 7)"""
        )
        for _ in range(2):
            schema.apply(connection)
        (beat,) = list_heartbeats(connection)
        assert (beat.update_at, beat.rejected) == (datetime(2026, 2, 1, tzinfo=UTC), 7)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_views_of_an_earlier_compiler_fail_until_they_are_applied_again(conn: Conn) -> None:
    add_bars(conn, datetime(2026, 2, 1, tzinfo=UTC), 30, ("A",))
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    conn.execute(
        """UPDATE feature_platform.feature_view
           SET compiled = replace(compiled, 'of_refresh', 'earlier');
           ALTER TYPE feature_platform.view_item DROP ATTRIBUTE whole;
           ALTER TABLE feature_platform.view_symbol DROP COLUMN long_only CASCADE"""
    )
    schema.apply(conn)
    add_bars(conn, datetime(2026, 2, 2, tzinfo=UTC), 30, ("A",))
    refresh_all(conn)
    assert verify(conn).mismatches == 0
    assert state_of(conn, "short_1m") == [(1, "failed", True)]
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    assert state_of(conn, "short_1m") == [(2, "live", True)]
    assert value(conn, "SELECT count(*) FROM short_1m") == 60


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_rows_of_views_without_versions_stay_readable(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", empty_database)
    get_settings.cache_clear()
    load_dump("served_day", empty_database)
    end = START + timedelta(minutes=90)
    with psycopg.connect(empty_database, autocommit=True) as connection, ExitStack() as stack:
        add_bars(connection, START, 90)
        refresh_once(connection)
        stored = rows_of(connection, "mean_5m, std_10m", "short_1m")
        assert len(stored) == 90
        schema.apply(connection)
        served = ServedDatabase(empty_database, stack)

        assert rows_of(connection, "mean_5m, std_10m", "short_1m") == stored
        assert len(read_features("A", START, end, view="short_1m")) == 90
        for as_of in (datetime.now(UTC), "1 second after close"):
            with pytest.raises(UserError, match="the history of short_1m is not complete"):
                read_features("A", START, end, view="short_1m", as_of=as_of)
        answer = served.http.get("/v1/views/short_1m/latest", params={"symbol": "A"})
        assert answer.json()["rows"][0]["refresh_no"] == 0
        assert [one.since for one in why(connection, "A", START, "short_1m").rows] == [0]
        query = "SELECT feature_platform.delete_old_versions(now(), 10)"
        assert value(connection, query) == 0

        catalog.apply(connection, DAY_VIEWS)
        refresh_all(connection)
        assert state_of(connection, "short_1m") == [(2, "live", True)]
        assert check_views(connection) == 90 + 2 + 90
        answer = served.http.get("/v1/views/short_1m/latest", params={"symbol": "A"})
        assert answer.json()["rows"][0]["refresh_no"] > 0


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_an_upgrade_creates_the_same_schema_as_a_new_set_up(old: str, databases: Databases) -> None:
    with psycopg.connect(old, autocommit=True) as connection:
        owner = value(
            connection,
            "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'feature_platform'",
        )
        schema.apply(connection)
        schema.apply(connection)
    with databases.fresh() as new:
        of_new = statements(new)
    of_upgraded = statements(old)
    assert of_upgraded == of_new
    with psycopg.connect(old, autocommit=True) as connection:
        assert owner == value(
            connection,
            "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'feature_platform'",
        )


def statements(url: str) -> list[str]:
    """Return the lines of a database's schema without owners, sorted."""
    text = dump(url, "--no-owner", "--no-privileges")
    return sorted(line.strip().rstrip(",") for line in text.splitlines())
