"""Guards against a database job that does not run, or that does not follow its policy."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform import schema
from feature_platform.cli import console
from feature_platform.queries import queries
from feature_platform.refresh import refresh
from feature_platform.status import policy_status
from feature_platform.verify import verify
from feature_platform_tests.fix_processes import (
    PATIENCE,
    insert_bars,
    insert_recent,
    value,
    wait_until,
)

pytestmark = pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)

Conn = psycopg.Connection[Any]

JOBS = """
    SELECT schedule_interval FROM timescaledb_information.jobs WHERE proc_name = 'run_policy'
"""


def test_the_job_follows_the_policy(conn: Conn) -> None:
    assert conn.execute(JOBS).fetchall() == [(timedelta(minutes=1),)]
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
    assert conn.execute(JOBS).fetchall() == [(timedelta(seconds=1),)]
    conn.execute("SELECT remove_features_1m_policy()")
    assert conn.execute(JOBS).fetchall() == []
    conn.execute("SELECT add_features_1m_policy(schedule_interval => '5 minutes')")
    assert conn.execute(JOBS).fetchall() == [(timedelta(minutes=5),)]


def wait_for_rows(
    conn: Conn, count: int, since: datetime | None = None, patience: float = PATIENCE
) -> None:
    """Wait until there are `count` feature rows, in all or from a minute on."""
    counted = (
        "SELECT count(*) FROM features_1m WHERE bucket >= coalesce(%s::timestamptz, '-infinity')"
    )
    wait_until(lambda: value(conn, counted, since) == count, f"{count} feature rows", patience)


def test_the_job_refreshes_without_any_other_process(conn: Conn) -> None:
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
    conn.execute("SELECT alter_job(job_id, next_start => now()) FROM feature_platform.policy")
    conn.execute("SELECT _timescaledb_functions.start_background_workers()")
    for symbol, rows in (("A", 10), ("B", 20)):
        insert_recent(conn, symbol)
        wait_for_rows(conn, rows)
    report = verify(conn)
    assert (report.mismatches, report.pending) == (0, 0)
    runs = conn.execute("SELECT DISTINCT runner, error FROM feature_platform.policy_run").fetchall()
    assert runs == [("job", None)]
    conn.execute("SELECT remove_features_1m_policy()")
    assert conn.execute(JOBS).fetchall() == []


SECOND = "SELECT extract(second FROM clock_timestamp())"
JOB = "SELECT job_id FROM feature_platform.policy"
JOB_NAMES = """
    SELECT job_id, application_name, scheduled,
           initial_start - feature_platform.bucket_of(initial_start)
    FROM timescaledb_information.jobs WHERE proc_name = 'run_policy'
"""


def test_the_job_starts_with_the_minute_and_has_a_name(conn: Conn) -> None:
    ((job, name, scheduled, second),) = conn.execute(JOB_NAMES).fetchall()
    assert name == f"feature_platform: refresh policy of features_1m [{job}]"
    assert scheduled
    assert timedelta() < second < timedelta(seconds=1)


def test_an_upgrade_changes_the_schedule_of_an_older_job(conn: Conn) -> None:
    conn.execute(
        "SELECT alter_job(job_id, fixed_schedule => true, initial_start =>"
        " feature_platform.bucket_of(now()) + interval '5 seconds') FROM feature_platform.policy"
    )
    job = value(conn, JOB)
    schema.apply(conn)
    ((same, _, _, second),) = conn.execute(JOB_NAMES).fetchall()
    assert same == job
    assert second < timedelta(seconds=1)


@pytest.mark.parametrize(
    "remedy",
    ["alter", "add if not exists", "remove and add", "apply"],
)
def test_a_deleted_job_is_shown_and_can_be_restored(conn: Conn, remedy: str) -> None:
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '2 minutes')")
    job = value(conn, JOB)
    conn.execute("SELECT delete_job(%s)", [job])
    policy = policy_status(conn)
    assert policy is not None
    assert policy.next_run is None
    shown = (
        f"problem: database job {job} does not exist any more:"
        " SELECT alter_features_1m_policy() adds it again"
    )
    assert shown in console.policy_lines(policy)
    check = conn.execute(queries["check_policy_healthy"], {"show": 5}).fetchone()
    assert check is not None
    assert check[:2] == (1, 1)
    assert [row["problem"] for row in check[2]] == [policy.problem]

    if remedy == "alter":
        conn.execute("SELECT alter_features_1m_policy()")
    elif remedy == "add if not exists":
        conn.execute("SELECT add_features_1m_policy(if_not_exists => true)")
    elif remedy == "remove and add":
        conn.execute("SELECT remove_features_1m_policy()")
        conn.execute("SELECT add_features_1m_policy(schedule_interval => '2 minutes')")
    else:
        schema.apply(conn)
    policy = policy_status(conn)
    assert policy is not None
    assert policy.problem is None
    assert conn.execute(JOBS).fetchall() == [(timedelta(minutes=2),)]
    assert value(conn, JOB) != job


def test_a_paused_job_is_shown(conn: Conn) -> None:
    job = value(conn, JOB)
    conn.execute("SELECT alter_job(%s, scheduled => false)", [job])
    policy = policy_status(conn)
    assert policy is not None
    assert policy.problem == (
        f"database job {job} is paused:"
        f" SELECT public.alter_job({job}, scheduled => true) resumes it"
    )
    conn.execute("SELECT alter_job(%s, scheduled => true)", [job])
    assert getattr(policy_status(conn), "problem", "") is None


def test_all_jobs_of_a_policy_are_removed_with_it(conn: Conn) -> None:
    """A job that a user or a restored dump added must be removed with the policy."""
    owner = value(
        conn, "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'feature_platform'"
    )
    conn.execute(f"SET ROLE {owner}")
    conn.execute("SELECT add_job('feature_platform.run_policy', '1 minute')")
    conn.execute("SELECT remove_features_1m_policy()")
    assert conn.execute(JOBS).fetchall() == []


@pytest.mark.timing
def test_a_run_waits_for_the_bars_of_the_newest_minute(database: str, conn: Conn) -> None:
    """The job begins at the end of a minute, before the bar of the minute is committed."""
    wait_until(lambda: value(conn, SECOND) < 40, "a minute with enough seconds left")
    due = value(conn, "SELECT feature_platform.due_until()")
    minute = timedelta(minutes=1)
    for symbol in "AB":
        insert_bars(conn, symbol, due - 5 * minute, 4)  # all but the newest
    refresh(conn)

    def run() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CALL feature_platform.run_policy()")

    job = threading.Thread(target=run)
    job.start()
    wait_until(lambda: value(conn, "SELECT running FROM feature_platform.policy_status"), "it runs")
    for written, symbol in enumerate("AB", start=1):
        assert job.is_alive()
        insert_bars(conn, symbol, due - minute, 1)
        wait_for_rows(conn, written, since=due - minute, patience=15)
    job.join(15)
    assert not job.is_alive()
    finished = "SELECT finished_at - started_at FROM feature_platform.policy_run"
    assert value(conn, finished) < timedelta(seconds=20)


@pytest.mark.timing
def test_a_run_does_not_wait_if_no_bars_are_written(conn: Conn) -> None:
    insert_recent(conn, "A")
    conn.execute("UPDATE ohlcv_1m SET ts = ts - interval '2 minutes'")
    conn.execute("CALL feature_platform.run_policy()")
    finished = "SELECT finished_at - started_at FROM feature_platform.policy_run"
    assert value(conn, finished) < timedelta(seconds=10)
