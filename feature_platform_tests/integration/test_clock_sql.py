"""Guards against a database and processes that use different clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from feature_platform.clock import SimulatedClock
from feature_platform.database import connect, with_clock
from feature_platform.settings import get_settings
from feature_platform_tests.fix_processes import (
    WorkerProcess,
    insert_bars,
    insert_recent,
    run,
    run_on,
    value,
    wait_until,
)
from feature_platform_tests.unit.test_clock import CLOCK, SINCE, START

CLOCK_SQL = "SELECT feature_platform.clock()"


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    """Set the platform's clock to one that runs an hour a second; return it."""
    setting = SimulatedClock(START, datetime.now(UTC), 3600.0)
    monkeypatch.setenv("FEATURE_PLATFORM_CLOCK", str(setting))
    get_settings.cache_clear()
    clock = get_settings().clock
    assert isinstance(clock, SimulatedClock)
    return clock


def test_the_wall_clock_is_the_default_in_sql(conn: psycopg.Connection) -> None:
    for setting in (None, ""):
        if setting is not None:
            conn.execute("SELECT set_config('feature_platform.clock', %s, false)", [setting])
        row = conn.execute(
            "SELECT clock_timestamp(), feature_platform.clock(), clock_timestamp()"
        ).fetchone()
        assert row is not None
        before, now, after = row
        assert before <= now <= after


def test_python_and_sql_have_the_same_time(
    simulated_database: str, fast_clock: SimulatedClock
) -> None:
    with connect(simulated_database) as connection:
        before = fast_clock.now()
        found = value(connection, CLOCK_SQL)
        after = fast_clock.now()
    # A millisecond of the wall clock is 3.6 seconds here; both read the same wall clock.
    assert before - timedelta(milliseconds=1) <= found <= after + timedelta(milliseconds=1)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_the_formula_of_simulated_time_equals_that_of_python(
    conn: psycopg.Connection, zone: str
) -> None:
    conn.execute("SELECT set_config('TimeZone', %s, false)", [zone])  # 90 days later is summer
    found = value(
        conn,
        "SELECT feature_platform.simulated_clock(%s, %s)",
        CLOCK,
        SINCE + timedelta(hours=36, microseconds=500),
    )
    assert found == START + timedelta(days=90, microseconds=30_000)


@pytest.mark.parametrize(
    "setting",
    [
        "fast",
        "now@nowx60",
        "2026-03-01T00:00Z@2026-11-25T13:30Z",
        "2026-03-01T00:00@2026-11-25T13:30Zx60",
        "2026-03-01T00:00Z@2026-11-25T13:30Zx0",
        "2026-03-01T00:00Z@2026-11-25T13:30Zx99999",
    ],
)
@pytest.mark.usefixtures("simulated_database")
def test_an_invalid_clock_setting_is_rejected(conn: psycopg.Connection, setting: str) -> None:
    conn.execute("SELECT set_config('feature_platform.clock', %s, false)", [setting])
    with pytest.raises(psycopg.errors.RaiseException, match="is not a valid clock"):
        conn.execute(CLOCK_SQL)
    conn.execute("RESET feature_platform.clock")
    conn.execute(CLOCK_SQL)


@pytest.mark.usefixtures("fast_clock")
def test_the_clock_is_added_to_the_options_of_the_url() -> None:
    conninfo = with_clock("postgresql://me@host/db?options=-c%20work_mem%3D1MB")
    clock = get_settings().clock
    assert f"-c work_mem=1MB -c feature_platform.clock={clock}" in conninfo


def test_stored_times_are_those_of_the_platforms_clock(
    simulated_database: str, fast_clock: SimulatedClock
) -> None:
    with connect(simulated_database) as connection:
        before = fast_clock.now()
        insert_recent(connection, "BTC/USDT", 3)
        begun = value(connection, "SELECT feature_platform.policy_begin('worker')")
        connection.execute("SELECT feature_platform.policy_end(%s)", [begun])
        connection.execute("SELECT alter_features_1m_policy(schedule_interval => '2 minutes')")
        stored = connection.execute(
            """SELECT min(at), max(at) FROM (
               SELECT inserted_at FROM ohlcv_1m
               UNION ALL SELECT marked_at FROM feature_platform.dirty_log
               UNION ALL SELECT started_at FROM feature_platform.policy_run
               UNION ALL SELECT finished_at FROM feature_platform.policy_run
               UNION ALL SELECT changed_at FROM feature_platform.policy) AS moment (at)"""
        ).fetchone()
        after = fast_clock.now()
    tick = timedelta(milliseconds=1)
    assert stored is not None
    assert before - tick <= stored[0] <= stored[1] <= after + tick


def test_commands_use_the_platforms_clock(simulated_database: str, tmp_path: Path) -> None:
    clock = SimulatedClock(datetime(2031, 5, 1, tzinfo=UTC), datetime.now(UTC), 1.0)
    environment = {
        "FEATURE_PLATFORM_CLOCK": str(clock),
        "FEATURE_PLATFORM_DATABASE_URL": simulated_database,
        "FEATURE_PLATFORM_HOME": str(tmp_path),
    }
    done = run("db", "psql", "-XAtc", f"{CLOCK_SQL} AT TIME ZONE 'UTC'", **environment)
    assert done.stdout.startswith("2031-05-01 00:0"), done.stderr
    assert "clock: simulated, 2031-05-01 00:0" in run("status", **environment).stdout
    assert (
        run_on(simulated_database, "db", "psql", "-XAtc", "SHOW feature_platform.clock").returncode
        != 0
    )


def test_a_database_can_set_the_clock_of_all_its_sessions(simulated_database: str) -> None:
    with psycopg.connect(simulated_database, autocommit=True) as owner:
        setting = sql.SQL("ALTER DATABASE {} SET feature_platform.clock = {}")
        owner.execute(setting.format(sql.Identifier(owner.info.dbname), CLOCK))
    with psycopg.connect(simulated_database) as connection:
        found = value(connection, CLOCK_SQL)
        wall = value(connection, "SELECT clock_timestamp()")
    assert abs(found - (START + (wall - SINCE) * 60)) < timedelta(minutes=1)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_worker_follows_the_platforms_clock(
    simulated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimulatedClock(START, datetime.now(UTC), 60.0)
    monkeypatch.setenv("FEATURE_PLATFORM_CLOCK", str(clock))
    get_settings.cache_clear()
    with (
        connect(simulated_database) as connection,
        WorkerProcess(FEATURE_PLATFORM_DATABASE_URL=simulated_database) as worker,
    ):
        worker.wait_for("active")
        ahead = clock.now().replace(second=0) + timedelta(minutes=2)
        insert_bars(connection, "BTC/USDT", ahead, 1)
        wait_until(
            lambda: value(connection, "SELECT count(*) = 1 FROM features_1m"), "the row is stored"
        )
        assert ahead + timedelta(minutes=1) <= clock.now() < START + timedelta(hours=1)
        # The worker's schedule follows the clock, too: a run each minute.
        runs = "SELECT count(*) >= 3 FROM feature_platform.policy_run WHERE started_at > %s"
        began = clock.now()
        wait_until(lambda: value(connection, runs, began), "three runs in three minutes")
        assert clock.now() - began < timedelta(minutes=30)
        worker.stop()
