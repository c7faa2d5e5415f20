"""Guards against a worker that misses its schedule, loses a slice, or ends after an error."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from feature_platform.queries import queries
from feature_platform.status import policy_status
from feature_platform.verify import verify
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_processes import (
    StartWorker,
    a_worker_waits,
    insert_bars,
    insert_recent,
    only_line,
    value,
    wait_until,
)

Conn = psycopg.Connection[Any]

A = "AAA/USDT"
MINUTE = timedelta(minutes=1)

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)
on_timescaledb = pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)


def every_second(connection: Conn) -> None:
    connection.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")


def features(connection: Conn, symbol: str = A) -> int:
    return int(value(connection, "SELECT count(*) FROM features_1m WHERE symbol = %s", symbol))


def wait_for_features(connection: Conn, count: int, symbol: str = A) -> None:
    wait_until(lambda: features(connection, symbol) == count, f"{count} feature rows of {symbol}")


def assert_right(connection: Conn) -> None:
    report = verify(connection)
    assert (report.examples, report.pending) == ([], 0)


def run_column(connection: Conn, column: str) -> list[Any]:
    rows = connection.execute("SELECT to_jsonb(r) FROM feature_platform.policy_run r ORDER BY id")
    return [row[0][column] for row in rows]


@contextmanager
def slices_held(url: str, connection: Conn) -> Iterator[None]:
    """Block each slice that stores rows while the body runs, once a worker waits."""
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE features_1m IN SHARE MODE")
        insert_recent(connection, A)
        wait_until(lambda: a_worker_waits(connection), "a slice is blocked")
        yield


def test_the_worker_refreshes_on_its_schedule(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    every_second(conn)
    insert_recent(conn, A)
    worker = start_worker(database)
    wait_for_features(conn, 10)  # at once
    for symbol in ("B", "C"):
        insert_recent(conn, symbol)
        wait_for_features(conn, 10, symbol)
    assert_right(conn)
    log = worker.stop()
    assert log.startswith("feature-platform: active: refreshes features")
    assert re.search(r"refreshed 10 rows in a slice, [\d,]+ ms\n", log)
    assert log.endswith("feature-platform: stopped\n")
    assert set(run_column(conn, "runner")) == {"worker"}
    assert set(run_column(conn, "error")) == {None}
    assert None not in run_column(conn, "finished_at")
    assert sum(run_column(conn, "rows_written")) == 30
    starts = [datetime.fromisoformat(text) for text in run_column(conn, "started_at")]
    assert len({start.replace(microsecond=0) for start in starts}) == len(starts)


def a_worker_is_busy(connection: Conn) -> bool:
    """Return whether a worker stores rows, delayed by a trigger."""
    sought = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    return bool(value(connection, sought))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_worker_after_its_current_slice(
    database: str, conn: Conn, start_worker: StartWorker, number: signal.Signals
) -> None:
    every_second(conn)
    insert_bars(conn, A, datetime(2026, 1, 1, tzinfo=UTC), 5)  # for the slice after the live one
    conn.execute("DELETE FROM feature_platform.policy_run")
    conn.execute("""
        CREATE FUNCTION be_busy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            WHILE EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 42) LOOP
                PERFORM pg_sleep(0.01);
            END LOOP;
            RETURN NULL;
        END $$;
        CREATE TRIGGER be_busy BEFORE INSERT ON features_1m EXECUTE FUNCTION be_busy();
    """)
    with psycopg.connect(database) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(42)")
        insert_recent(conn, A)
        worker = start_worker(database)
        wait_until(lambda: a_worker_is_busy(conn), "a slice is in progress")
        worker.process.send_signal(number)
        worker.wait_for("stopping after the current slice")
        assert worker.process.poll() is None
        assert value(conn, "SELECT count(*) FROM features_1m") == 0
    assert worker.wait() == 0
    assert worker.log.endswith("feature-platform: stopped\n")
    assert features(conn) == 10
    (run,) = conn.execute(
        "SELECT slices, rows_written, error, finished_at IS NOT NULL"
        " FROM feature_platform.policy_run"
    ).fetchall()
    assert run == (1, 10, None, True)
    report = verify(conn)
    assert (report.rows, report.examples, report.pending) == (10, [], 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_worker_that_waits_for_a_lock(
    database: str, conn: Conn, start_worker: StartWorker, number: signal.Signals
) -> None:
    every_second(conn)
    worker = start_worker(database)
    worker.wait_for("active")
    with slices_held(database, conn):
        worker.wait_for("waiting for a lock: ")
        worker.process.send_signal(number)
        assert worker.wait() == 0
    assert worker.log.endswith("feature-platform: stopped\n")
    assert worker.log.count("waiting for a lock") == 1
    assert features(conn) == 0
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    assert_right(conn)


def test_a_lock_delays_the_worker_and_fails_no_run(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    every_second(conn)
    worker = start_worker(database)
    worker.wait_for("active")
    with slices_held(database, conn):
        worker.wait_for("waiting for a lock: ")
    wait_for_features(conn, 10)
    worker.stop()
    assert set(run_column(conn, "error")) == {None}


@on_postgres
def test_a_second_worker_stands_by_and_takes_over(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    every_second(conn)
    first = start_worker(database)
    first.wait_for("active")
    second = start_worker(database)
    second.wait_for("another worker is active: waiting until it ends")
    third = start_worker(database)
    third.wait_for("waiting until it ends")
    assert third.stop().endswith("stopped\n")
    with slices_held(database, conn):
        first.kill()
    second.wait_for("feature-platform: active: ")
    insert_recent(conn, "B")
    wait_for_features(conn, 10, "B")
    assert_right(conn)
    assert second.stop().count("waiting until it ends") == 1
    assert None not in run_column(conn, "finished_at")


@on_postgres
def test_the_worker_waits_for_a_policy(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    conn.execute("SELECT remove_features_1m_policy()")
    insert_recent(conn, A)
    worker = start_worker(database)
    worker.wait_for("there is no refresh policy: waiting for add_features_1m_policy()")
    assert features(conn) == 0
    conn.execute("SELECT add_features_1m_policy(schedule_interval => '1 second')")
    wait_for_features(conn, 10)
    conn.execute("SELECT remove_features_1m_policy()")
    worker.wait_for("there is no refresh policy", times=2)
    worker.stop()
    assert run_column(conn, "slices")[0] == 1  # none without a policy


@on_postgres
@pytest.mark.parametrize("schedule", ["1 month", "30 days", "7 hours"])
def test_a_changed_schedule_is_followed_at_once(
    database: str, conn: Conn, start_worker: StartWorker, schedule: str
) -> None:
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => %s::interval)", [schedule])
    insert_recent(conn, A)
    worker = start_worker(database)
    wait_for_features(conn, 10)
    every_second(conn)
    insert_recent(conn, "B")
    wait_for_features(conn, 10, "B")
    worker.stop()


@on_postgres
def test_a_run_is_due_at_each_interval_and_a_late_run_at_once(conn: Conn) -> None:
    def seconds(began: str) -> float:
        moment = value(conn, "SELECT feature_platform.clock() - %s::interval", began)
        return float(value(conn, queries["worker_next_run"].replace("%(began)s", "%s"), moment))

    assert 0 < seconds("0 s") <= 60
    # After a run longer than the interval: the next start is in the minute from 61 s ago on.
    assert -61 <= seconds("61 s") <= -1
    assert -3600 <= seconds("1 h") < -3500
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 hour')")
    due = value(conn, "SELECT feature_platform.clock()") + timedelta(seconds=seconds("0 s"))
    late = (due + timedelta(seconds=0.5)).replace(microsecond=0)
    assert (late.minute, late.second) == (0, 5)  # after the last bars of the hour are stored


@on_postgres
def test_the_worker_records_an_error_and_continues(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    every_second(conn)
    conn.execute("""
        CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION E'no room\\nfor this'; END $$;
        CREATE TRIGGER reject BEFORE INSERT ON features_1m EXECUTE FUNCTION reject();
    """)
    insert_recent(conn, A)
    worker = start_worker(database)
    worker.wait_for(
        "the refresh failed; its rows wait for the next refresh: no room for this", times=2
    )
    status = policy_status(conn)
    assert status is not None
    assert status.last_error is not None
    assert status.last_error.startswith("no room for this")
    assert status.rows_dirty == 10
    assert features(conn) == 0
    conn.execute("DROP TRIGGER reject ON features_1m")
    wait_for_features(conn, 10)
    assert_right(conn)
    log = worker.stop()
    assert all(line.startswith("feature-platform: ") for line in log.splitlines())
    status = policy_status(conn)
    assert status is not None
    assert status.last_error is not None  # the last error stays visible
    assert status.rows_dirty == 0


@on_postgres
def test_the_worker_survives_errors_of_its_own_statements(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    every_second(conn)
    worker = start_worker(database)
    worker.wait_for("active")
    conn.execute("ALTER TABLE feature_platform.policy_run RENAME TO mislaid")
    worker.wait_for("the database failed: ", times=2)
    conn.execute("ALTER TABLE feature_platform.mislaid RENAME TO policy_run")
    insert_recent(conn, A)
    wait_for_features(conn, 10)
    log = worker.stop()
    assert 'relation "feature_platform.policy_run" does not exist' in log
    assert "Traceback" not in log


@on_postgres
def test_the_worker_survives_a_lost_connection(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    every_second(conn)
    worker = start_worker(database)
    worker.wait_for("active")
    for times in (1, 2):
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM feature_platform.runner WHERE runner = 'worker'"
        )
        worker.wait_for("the connection was lost: ", times)
        worker.wait_for("connected again", times)
        worker.wait_for("active", times + 1)
    insert_recent(conn, A)
    wait_for_features(conn, 10)
    assert_right(conn)
    worker.stop()


@on_postgres
@pytest.mark.parametrize("reconnects", [False, True])
def test_the_worker_ends_when_the_database_is_newer(
    database: str, conn: Conn, start_worker: StartWorker, reconnects: bool
) -> None:
    every_second(conn)
    worker = start_worker(database)
    worker.wait_for("active")
    conn.execute("INSERT INTO feature_platform.schema_version VALUES (999)")
    if reconnects:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert worker.wait() == 2
    last = worker.log.splitlines()[-1]
    assert "has schema version 999, this code knows only up to" in last
    assert "Traceback" not in worker.log


@on_postgres
def test_a_worker_without_the_schema_ends_with_one_line(
    empty_database: str, start_worker: StartWorker
) -> None:
    worker = start_worker(empty_database)
    assert worker.wait() == 2
    assert "is not set up: run `feature-platform db apply`" in only_line(worker.log)


def test_a_worker_without_a_database_ends_with_one_line(start_worker: StartWorker) -> None:
    worker = start_worker("postgresql://me:s3cr3t@localhost:1/db")
    assert worker.wait() == 2
    assert only_line(worker.log).startswith("feature-platform: cannot connect to ")
    assert "s3cr3t" not in worker.log


@on_postgres
def test_a_user_without_rights_gets_one_line(
    databases: Databases, start_worker: StartWorker
) -> None:
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE fp_stranger LOGIN")
        try:
            parts = urlsplit(url)
            host = parts.netloc.rpartition("@")[2]
            worker = start_worker(parts._replace(netloc=f"fp_stranger@{host}").geturl())
            assert worker.wait() == 2
            assert "the user fp_stranger may not use feature_platform" in only_line(worker.log)
        finally:
            connection.execute("DROP ROLE fp_stranger")


@on_timescaledb
def test_the_worker_and_the_job_block_each_other_at_most_for_a_slice(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    """A slice of the job is blocked; the worker refreshes other symbols."""
    insert_recent(conn, "creates the chunks", 20)  # a writer that creates one blocks others
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute("""
        CREATE FUNCTION wait_with_a() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.symbol = 'A' THEN PERFORM pg_advisory_xact_lock_shared(42); END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER wait_with_a BEFORE INSERT ON features_1m
            FOR EACH ROW EXECUTE FUNCTION wait_with_a();
    """)
    every_second(conn)

    def run_job() -> None:
        with psycopg.connect(database, autocommit=True) as session:
            job = value(session, "SELECT job_id FROM feature_platform.policy")
            session.execute("CALL run_job(%s)", [job])

    with ThreadPoolExecutor() as pool, psycopg.connect(database) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(42)")
        insert_recent(conn, "A")
        job = pool.submit(run_job)
        stuck = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            " AND objid = 42 AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        wait_until(lambda: value(conn, stuck) == 1, "the slice of the job is blocked")
        insert_recent(conn, "B")
        worker = start_worker(database)
        wait_for_features(conn, 10, "B")
        # Only the slice of the job is left, and the worker waits for it.
        wait_until(lambda: a_worker_waits(conn), "the worker waits for the job")
        insert_recent(conn, "C")
        assert features(conn, "A") == 0
        holder.commit()
        wait_for_features(conn, 10, "A")
        wait_for_features(conn, 10, "C")
        job.result()
    run_job()
    worker.stop()
    assert_right(conn)
    assert set(run_column(conn, "error")) == {None}
    assert run_column(conn, "runner").count("job") == 2


@on_timescaledb
def test_two_workers_and_the_job_can_run_at_once(
    database: str, conn: Conn, start_worker: StartWorker
) -> None:
    every_second(conn)
    conn.execute("SELECT alter_job(job_id, next_start => now()) FROM feature_platform.policy")
    conn.execute("SELECT _timescaledb_functions.start_background_workers()")
    workers = [start_worker(database), start_worker(database)]
    wait_until(
        lambda: {"job", "worker"} <= set(run_column(conn, "runner")), "runs of job and worker"
    )
    for number in range(20):
        insert_recent(conn, f"S{number}")
    wait_until(
        lambda: value(conn, "SELECT count(*) FROM features_1m") == 200, "all symbols' features"
    )
    assert_right(conn)
    assert sum(worker.stop().count("waiting until it ends") for worker in workers) == 1
    assert set(run_column(conn, "error")) == {None}
