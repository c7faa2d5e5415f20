"""Guards against a set-up that fails for an edition or a schema of TimescaleDB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from feature_platform import schema
from feature_platform.refresh import refresh
from feature_platform.status import policy_status
from feature_platform.verify import verify
from feature_platform_tests.fix_processes import insert_recent, value

pytestmark = pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)

Conn = psycopg.Connection[Any]

HYPERTABLES = """
    SELECT hypertable_name::text, compression_enabled FROM timescaledb_information.hypertables
    WHERE hypertable_schema = 'public' ORDER BY 1 DESC
"""
COLUMNSTORE = [("ohlcv_1m", True), ("features_1m", True)]
POLICIES = """
    SELECT hypertable_name::text FROM timescaledb_information.jobs
    WHERE proc_name = 'policy_compression' ORDER BY 1 DESC
"""
# The state of the Apache edition, made by statements because a server has only one edition.
AS_APACHE = """
    CALL remove_columnstore_policy('ohlcv_1m');
    CALL remove_columnstore_policy('features_1m');
    ALTER TABLE ohlcv_1m SET (timescaledb.enable_columnstore = false);
    ALTER TABLE features_1m SET (timescaledb.enable_columnstore = false);
    DROP TRIGGER ohlcv_1m_deleted ON ohlcv_1m;
    CREATE TRIGGER ohlcv_1m_deleted AFTER DELETE ON ohlcv_1m REFERENCING OLD TABLE AS old_rows
        FOR EACH STATEMENT EXECUTE FUNCTION feature_platform.mark_dirty();
    SELECT delete_job(job_id) FROM feature_platform.policy;
    UPDATE feature_platform.policy SET job_id = NULL;
"""


def assert_works(conn: Conn) -> None:
    insert_recent(conn, "A", 20)
    refresh(conn)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = (SELECT min(ts) FROM ohlcv_1m)")
    refresh(conn)
    report = verify(conn)
    assert (report.rows, report.mismatches, report.pending) == (19, 0, 0)
    assert conn.execute(HYPERTABLES).fetchall() == COLUMNSTORE
    assert conn.execute(POLICIES).fetchall() == [("ohlcv_1m",), ("features_1m",)]
    policy = policy_status(conn)
    assert policy is not None
    assert policy.runs_in.startswith("database job ")
    assert policy.problem is None


def test_a_set_up_upgrades_apache_to_community(conn: Conn) -> None:
    insert_recent(conn, "B")
    conn.execute(AS_APACHE)
    schema.apply(conn)
    conn.execute("DELETE FROM ohlcv_1m")
    refresh(conn)
    assert_works(conn)


def test_a_columnstore_policy_that_was_removed_stays_removed(conn: Conn) -> None:
    conn.execute("CALL remove_columnstore_policy('ohlcv_1m')")
    schema.apply(conn)
    assert conn.execute(POLICIES).fetchall() == [("features_1m",)]


@pytest.fixture
def elsewhere(empty_database: str) -> Iterator[Conn]:
    """Yield a connection to a database whose extension has its own schema."""
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute("DROP EXTENSION timescaledb")
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "The extensions"')
        conn.execute('CREATE EXTENSION timescaledb SCHEMA "The extensions"')
        conn.execute("SELECT _timescaledb_functions.stop_background_workers()")
        yield conn


def test_the_extension_may_have_its_own_schema(elsewhere: Conn) -> None:
    schema.apply(elsewhere)
    assert_works(elsewhere)
    elsewhere.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
    elsewhere.execute("CALL feature_platform.run_policy()")
    jobs = "SELECT count(*) FROM timescaledb_information.jobs WHERE proc_name = 'run_policy'"
    assert value(elsewhere, jobs) == 1
    elsewhere.execute("SELECT remove_features_1m_policy()")
    assert value(elsewhere, jobs) == 0
