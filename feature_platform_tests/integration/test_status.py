"""Guards against a wrong or incomplete status."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from feature_platform import schema
from feature_platform.cli import console
from feature_platform.queries import queries
from feature_platform.refresh import refresh
from feature_platform.status import Counts, policy_status, row_counts, symbol_status
from feature_platform_tests.fix_database import Engine
from feature_platform_tests.fix_processes import (
    COMMAND,
    StartWorker,
    insert_bars,
    insert_recent,
    run,
    run_on,
    value,
    wait_until,
)

Conn = psycopg.Connection[Any]

A, B = "AAA/USDT", "BBB/USDT"
START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def test_an_empty_database_has_no_symbols(conn: Conn) -> None:
    assert symbol_status(conn) == []
    assert row_counts(conn) == {}


def test_each_symbol_has_its_own_line(conn: Conn) -> None:
    insert_bars(conn, B, START, 5)
    insert_bars(conn, A, START + MINUTE, 3)
    refresh(conn)
    insert_bars(conn, A, START + 10 * MINUTE, 1)
    a, b = symbol_status(conn)
    assert (a.symbol, a.first_bar, a.last_bar) == (A, START + MINUTE, START + 10 * MINUTE)
    assert a.last_feature == START + 3 * MINUTE
    assert a.rows_dirty == 1
    assert a.dirty_since is not None
    assert abs(a.dirty_since - datetime.now(UTC)) < timedelta(hours=1)
    assert (b.symbol, b.first_bar, b.last_bar) == (B, START, START + 4 * MINUTE)
    assert b.last_feature == START + 4 * MINUTE
    assert (b.rows_dirty, b.dirty_since) == (0, None)
    assert row_counts(conn) == {A: Counts(4, 3), B: Counts(5, 5)}


def test_a_symbol_may_have_only_bars_or_only_rows(conn: Conn) -> None:
    insert_bars(conn, "only rows", START, 1)
    refresh(conn)
    conn.execute("DELETE FROM ohlcv_1m")
    insert_bars(conn, A, START, 5)
    insert_bars(conn, B, START, 5)
    a, b, rows = symbol_status(conn)
    assert [one.symbol for one in (a, b, rows)] == [A, B, "only rows"]
    assert (a.last_feature, a.lag, a.rows_dirty) == (None, None, 5)
    assert (rows.first_bar, rows.last_bar, rows.last_feature) == (None, None, START)
    assert row_counts(conn)["only rows"] == Counts(0, 1)
    assert row_counts(conn)[A] == Counts(5, 0)


def test_lag_is_the_age_of_the_newest_row(conn: Conn) -> None:
    insert_recent(conn, A)
    refresh(conn)
    (a,) = symbol_status(conn)
    assert a.lag is not None
    assert timedelta() <= a.lag < 2 * MINUTE
    assert a.last_bar == a.last_feature


def test_bars_of_open_minutes_are_not_dirty(conn: Conn) -> None:
    tomorrow = value(conn, "SELECT feature_platform.clock() + interval '1 day'")
    insert_bars(conn, A, tomorrow, 1)
    (a,) = symbol_status(conn)
    assert (a.last_bar, a.rows_dirty) == (tomorrow, 0)


def test_the_policy_is_shown_until_it_is_removed(conn: Conn, engine: Engine) -> None:
    policy = policy_status(conn)
    assert policy is not None
    assert (policy.start_offset, policy.end_offset) == (timedelta(hours=1), MINUTE)
    assert policy.schedule_interval == MINUTE
    assert policy.runs_in.startswith("database job " if engine == "timescaledb" else "worker")
    assert (policy.last_start, policy.last_error, policy.running) == (None, None, False)
    assert policy.rows_dirty == 0
    conn.execute("SELECT remove_features_1m_policy()")
    assert policy_status(conn) is None


def test_the_command_shows_policy_runs_and_symbols(
    database: str, conn: Conn, engine: Engine
) -> None:
    done = run_on(database, "status")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("database: PostgreSQL ")
    assert ("TimescaleDB" in lines[0]) == (engine == "timescaledb")
    where = "run by database job " if engine == "timescaledb" else "no worker is running"
    assert lines[1].startswith(
        "policy: runs every 1 min, refreshes rows older than 1 min, the last 1 h first; " + where
    )
    assert lines[2].startswith("last run: none yet")
    assert ("start `feature-platform worker`" in lines[1]) == (engine == "postgres")
    assert lines[3:] == ["no bars yet: `feature-platform import FILE --symbol SYMBOL`"]

    insert_bars(conn, A, START, 1234)
    refresh(conn, None, START + 1000 * MINUTE)
    lines = run_on(database, "status").stdout.splitlines()
    assert lines[3].startswith("waiting for refresh: 234 rows, the oldest for ")
    assert lines[4] == ""
    assert lines[5].split()[-4:] == ["bars", "features", "waiting", "lag"]
    assert lines[6].split()[:-2] == [
        *(A, "2026-01-01", "00:00", "2026-01-01", "20:33", "1,234", "1,000", "234")
    ]
    lines = run_on(database, "status", "--no-counts").stdout.splitlines()
    assert "features" not in lines[5]
    assert "1,234" not in lines[6]


@on_postgres
def test_the_command_shows_a_run_and_an_error(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    insert_bars(conn, A, START, 3)
    worker = start_worker(database)
    wait_until(lambda: row_counts(conn)[A].features == 3, "the first run")
    worker.stop()
    lines = run_on(database, "status").stdout.splitlines()
    assert lines[2].startswith("last run: ")
    assert lines[2].endswith(", 3 rows written")
    conn.execute(
        "INSERT INTO feature_platform.policy_run (runner, error) VALUES ('worker', E'a\nb')"
    )
    lines = run_on(database, "status").stdout.splitlines()
    assert " UTC, interrupted, " in lines[2]  # because no process holds the worker's lock
    conn.execute(queries["worker_claim"])
    lines = run_on(database, "status").stdout.splitlines()
    assert " UTC, running for " in lines[2]
    assert lines[3].startswith("last error: ")
    assert lines[3].endswith(" UTC, a b")
    conn.execute("SELECT remove_features_1m_policy()")
    lines = run_on(database, "status").stdout.splitlines()
    assert lines[1] == "policy: none, features change only by `feature-platform refresh`"


@on_postgres
def test_the_command_shows_no_password(database: str, conn: Conn) -> None:
    conn.execute("CREATE ROLE fp_reader SUPERUSER LOGIN PASSWORD 's3cr3t'")
    try:
        parts = urlsplit(database)
        host = parts.netloc.rpartition("@")[2]
        done = run_on(parts._replace(netloc=f"fp_reader:s3cr3t@{host}").geturl(), "status")
    finally:
        conn.execute("DROP ROLE fp_reader")
    assert done.returncode == 0
    assert "s3cr3t" not in done.stdout + done.stderr


def test_status_sets_up_the_embedded_database(home: Path) -> None:
    done = run("status", FEATURE_PLATFORM_HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert "database feature_platform at " in done.stdout
    assert "no bars yet" in done.stdout


@on_postgres
@pytest.mark.parametrize("command", [("status",), ("status", "--no-counts")])
def test_a_closed_pipe_is_no_error(database: str, conn: Conn, command: tuple[str, ...]) -> None:
    conn.execute("""
        INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
        SELECT 'S' || lpad(i::text, 60, '0'), '2026-01-01', 1, 1, 1, 1, 1
        FROM generate_series(1, 2000) AS i
    """)  # more output than fits into a pipe
    with subprocess.Popen(
        [*COMMAND, *command],
        env={**os.environ, "FEATURE_PLATFORM_DATABASE_URL": database},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("database: ")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_job_of_a_restored_dump_is_replaced_by_the_worker(conn: Conn) -> None:
    """A dump of TimescaleDB Community names a job, and plain PostgreSQL has none."""
    conn.execute("UPDATE feature_platform.policy SET job_id = 1000")
    policy = policy_status(conn)
    assert policy is not None
    assert policy.problem == (
        "database job 1000 cannot run without TimescaleDB Community:"
        " run `feature-platform db apply`, then the worker runs the policy"
    )
    assert f"problem: {policy.problem}" in console.policy_lines(policy)
    schema.apply(conn)
    policy = policy_status(conn)
    assert policy is not None
    assert (policy.runs_in, policy.problem) == ("worker", None)
