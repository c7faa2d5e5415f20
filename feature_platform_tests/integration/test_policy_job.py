"""Guards against a policy whose database job does not run, does not follow it, or outlives it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.verify import verify
from feature_platform_tests.fix_processes import insert_recent, value, wait_until

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


def test_the_job_refreshes_with_no_process_beside_the_database(conn: Conn) -> None:
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
    conn.execute("SELECT alter_job(job_id, next_start => now()) FROM feature_platform.policy")
    conn.execute("SELECT _timescaledb_functions.start_background_workers()")
    for symbol, rows in (("A", 10), ("B", 20)):
        insert_recent(conn, symbol)
        wait_until(
            lambda rows=rows: value(conn, "SELECT count(*) FROM features_1m") == rows,
            "the job refreshes",
        )
    report = verify(conn)
    assert (report.mismatches, report.pending) == (0, 0)
    runs = conn.execute("SELECT DISTINCT runner, error FROM feature_platform.policy_run").fetchall()
    assert runs == [("job", None)]
    conn.execute("SELECT remove_features_1m_policy()")
    assert conn.execute(JOBS).fetchall() == []
