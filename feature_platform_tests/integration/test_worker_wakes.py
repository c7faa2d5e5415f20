"""Guards against commits of due rows that the worker does not find at once."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.sql import SQL

from feature_platform.verify import verify
from feature_platform_tests.fix_processes import (
    StartWorker,
    WorkerProcess,
    insert_recent,
    value,
    wait_until,
)

Conn = psycopg.Connection[Any]

pytestmark = pytest.mark.parametrize("engine", ["postgres", "timescaledb"], indirect=True)

MINUTE_BAR = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT %s, feature_platform.due_until() + %s * interval '1 minute', 10, 11, 9, 10, 5
"""


@pytest.fixture
def worker(database: str, conn: Conn, start_worker: StartWorker) -> WorkerProcess:
    """Return a worker without pending rows, whose schedule has no run in this test."""
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 year')")
    worker = start_worker(database)
    wait_for_runs(conn, 1)
    return worker


def wait_for_runs(conn: Conn, count: int) -> None:
    ended = "SELECT count(*) FROM feature_platform.policy_run WHERE finished_at IS NOT NULL"
    wait_until(lambda: value(conn, ended) == count, f"{count} runs of the policy")


def wait_for_features(conn: Conn, count: int) -> None:
    counted = "SELECT count(*) FROM features_1m"
    wait_until(lambda: value(conn, counted) == count, f"{count} feature rows")


def test_a_commit_wakes_the_worker_before_its_schedule(conn: Conn, worker: WorkerProcess) -> None:
    insert_recent(conn, "A")
    wait_for_features(conn, 10)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = (SELECT max(ts) FROM ohlcv_1m)")
    wait_for_features(conn, 9)
    conn.execute("TRUNCATE ohlcv_1m")
    wait_for_features(conn, 0)
    runs = conn.execute(
        "SELECT slices, rows_written, wakes, woken_at > finished_at"
        " FROM feature_platform.policy_run"
    )
    assert runs.fetchall() == [(3, 20, 3, True)]
    worker.stop()


def test_many_commits_are_refreshed_by_few_wakes(
    database: str, conn: Conn, worker: WorkerProcess
) -> None:
    with psycopg.connect(database, autocommit=True) as other:
        for symbol in range(200):
            for writer in (conn, other):
                writer.execute(MINUTE_BAR, (f"{writer.info.backend_pid}-{symbol}", -1))
    wait_for_features(conn, 400)
    assert verify(conn).mismatches == 0
    assert 1 <= value(conn, "SELECT sum(wakes) FROM feature_platform.policy_run") <= 100
    worker.stop()


def test_a_late_commit_of_an_older_transaction_is_found(
    database: str, conn: Conn, worker: WorkerProcess
) -> None:
    """The marks of a long transaction have lower ids than marks that are already refreshed."""
    # On TimescaleDB a transaction that creates a chunk blocks other writers of the chunk.
    insert_recent(conn, "makes the chunk", 1)
    wait_for_features(conn, 1)
    with psycopg.connect(database) as slow:
        slow.execute(MINUTE_BAR, ("slow", -1))
        for count in (1, 2, 3):
            insert_recent(conn, f"fast {count}", 1)
            wait_for_features(conn, 1 + count)
        slow.commit()
        wait_for_features(conn, 5)
    worker.stop()


def test_a_bar_of_the_open_minute_is_refreshed_when_it_comes_due(
    conn: Conn, worker: WorkerProcess
) -> None:
    second = value(conn, "SELECT extract(second FROM clock_timestamp())::float8")
    # The minute ends soon, without a commit.
    conn.execute(
        SQL(
            "CREATE OR REPLACE FUNCTION feature_platform.clock() RETURNS timestamptz"
            " LANGUAGE sql VOLATILE PARALLEL SAFE"
            " RETURN clock_timestamp() + make_interval(secs => {})"
        ).format(57 - second)
    )
    conn.execute(MINUTE_BAR, ("A", 0))
    wait_for_features(conn, 1)
    late = value(
        conn, "SELECT extract(second FROM feature_platform.clock())::float8 FROM features_1m"
    )
    assert late < 50  # not before the minute closed
    worker.stop()


def test_commits_are_found_after_a_lost_connection(conn: Conn, worker: WorkerProcess) -> None:
    conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    worker.wait_for("connected again")
    wait_for_runs(conn, 2)
    insert_recent(conn, "A")
    wait_for_features(conn, 10)
    assert value(conn, "SELECT max(wakes) FROM feature_platform.policy_run") == 1
    worker.stop()


def test_a_failed_wake_up_is_recorded_and_retried_on_schedule(
    conn: Conn, worker: WorkerProcess
) -> None:
    conn.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'no room for this'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON features_1m EXECUTE FUNCTION refuse();
    """)
    insert_recent(conn, "A")
    worker.wait_for("the refresh failed; its rows wait for the next refresh: no room for this")
    wait_for_runs(conn, 2)
    insert_recent(conn, "B")
    conn.execute("DROP TRIGGER refuse ON features_1m")
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
    wait_for_features(conn, 20)
    assert worker.stop().count("the refresh failed") <= 2  # not at each commit


@pytest.mark.parametrize(
    ("change", "wakes"),
    [
        ("INSERT INTO ohlcv_1m SELECT 'B', ts, 1, 1, 1, 1, 1 FROM ohlcv_1m", 1),
        ("UPDATE ohlcv_1m SET vol = vol + 1", 1),
        ("UPDATE ohlcv_1m SET vol = vol", 0),
        ("DELETE FROM ohlcv_1m WHERE symbol = 'A'", 1),
        ("INSERT INTO ohlcv_1m SELECT 'B', feature_platform.due_until(), 1, 1, 1, 1, 1", 0),
    ],
)
def test_only_commits_of_due_rows_wake_the_worker(
    conn: Conn, worker: WorkerProcess, change: LiteralString, wakes: int
) -> None:
    insert_recent(conn, "A", 3)
    wait_for_features(conn, 3)
    conn.execute(change)
    # The worker finds a later commit at a later look.
    insert_recent(conn, "last", 1)
    seen = "SELECT count(*) FROM features_1m WHERE symbol = 'last'"
    wait_until(lambda: value(conn, seen) == 1, "the last commit's row")
    counted = value(conn, "SELECT sum(wakes) FROM feature_platform.policy_run")
    assert 2 <= counted <= 2 + wakes  # one wake-up may find both commits
    worker.stop()


def test_triggers_send_no_notifications(conn: Conn) -> None:
    """A reader could fill the server's queue of notifications and so block all writers."""
    triggers = conn.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p"
        " WHERE p.pronamespace IN ('public'::regnamespace, 'feature_platform'::regnamespace)"
        "   AND p.prosrc || coalesce(pg_get_function_sqlbody(p.oid), '') ~* 'notify'"
    )
    assert triggers.fetchall() == []
