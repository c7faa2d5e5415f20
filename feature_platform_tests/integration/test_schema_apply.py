"""Guards against a set-up that depends on its program or repetition, or damages a database."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest

from feature_platform import schema
from feature_platform.embedded.server import bin_dir
from feature_platform.errors import UserError
from feature_platform.queries import sql_dir
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_engine import check, in_threads
from feature_platform_tests.histories import bar, write

POLICY = "SELECT * FROM feature_platform.policy"


def apply(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        schema.apply(conn)


def psql(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [bin_dir() / "psql", "-X", "-d", url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def dump(url: str, *options: str) -> str:
    """Return the whole schema as text, without lines that differ between dumps."""
    done = subprocess.run(
        [bin_dir() / "pg_dump", "--schema-only", *options, "-d", url],
        capture_output=True,
        text=True,
        check=True,
    )
    # `pg_attver` is an internal number of each column of servers newer than pg_dump.
    others = re.compile(r"\\(un)?restrict|ALTER TABLE .* SET \(pg_attver=")
    return "\n".join(line for line in done.stdout.splitlines() if not others.match(line))


def test_a_second_set_up_changes_nothing(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        rows = [
            "SELECT * FROM feature_platform.schema_version",
            POLICY,
            "SELECT * FROM ohlcv_1m",
            "SELECT * FROM features_1m ORDER BY symbol, bucket",
        ]
        write(conn, [bar("A", 0), bar("A", 1)])
        conn.execute("CALL refresh_features_1m(NULL, NULL)")
        before = dump(database)
        kept = [conn.execute(select.encode()).fetchall() for select in rows]
        schema.apply(conn)
        assert [conn.execute(select.encode()).fetchall() for select in rows] == kept
        assert not conn.execute("SELECT FROM feature_platform.dirty_log").fetchall()
    assert dump(database) == before


def test_psql_sets_up_the_same_schema(databases: Databases) -> None:
    by_hand, by_code = databases.create_empty(), databases.create_empty()
    try:
        apply(by_code)
        done = psql(by_hand, "-f", sql_dir() / "feature_ca.sql")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert dump(by_hand) == dump(by_code)
        for url in (by_hand, by_code):
            with psycopg.connect(url) as conn:
                (offset,) = conn.execute(
                    "SELECT start_offset::text FROM feature_platform.policy"
                ).fetchone() or (None,)
                assert offset == "01:00:00"
        apply(by_hand)
        done = psql(by_code, "-f", sql_dir() / "feature_ca.sql")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert dump(by_hand) == dump(by_code)
    finally:
        databases.drop(by_hand)
        databases.drop(by_code)


def test_set_ups_at_once_all_succeed(empty_database: str) -> None:
    barrier = threading.Barrier(3)

    def run(conn: psycopg.Connection) -> None:
        barrier.wait()
        schema.apply(conn)

    in_threads(empty_database, run, run, run)
    with psycopg.connect(empty_database) as conn:
        assert len(conn.execute(POLICY).fetchall()) == 1
        version = conn.execute("SELECT count(*) FROM feature_platform.schema_version")
        assert version.fetchone() == (1,)


def test_a_newer_database_is_rejected_and_not_changed(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("INSERT INTO feature_platform.schema_version (version) VALUES (999)")
        conn.execute("DROP FUNCTION feature_platform.policy_end")
    before = dump(database)
    with pytest.raises(UserError, match=r"schema version 999.* Install a newer feature_platform"):
        apply(database)
    assert dump(database) == before
    done = psql(database, "-f", sql_dir() / "feature_ca.sql")
    assert done.returncode == 3
    assert "schema version 999" in done.stderr
    assert dump(database) == before


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE TABLE ohlcv_1m (x integer)",
        "CREATE TABLE features_1m (x integer)",
        "CREATE VIEW features_1m AS SELECT 1 AS x",
        "CREATE TABLE ohlcv_1m (x integer); CREATE SCHEMA feature_platform",
    ],
)
def test_a_foreign_table_is_rejected_and_not_changed(empty_database: str, foreign: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(foreign.encode())
    before = dump(empty_database)
    with pytest.raises(UserError, match=r"public\.\w+_1m exists here and was not made by"):
        apply(empty_database)
    assert dump(empty_database) == before
    done = psql(empty_database, "-f", sql_dir() / "feature_ca.sql")
    assert done.returncode == 3
    assert "was not made by feature_platform" in done.stderr
    assert dump(empty_database) == before


def test_a_removed_policy_stays_removed(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("SELECT remove_features_1m_policy()")
        schema.apply(conn)
        assert not conn.execute(POLICY).fetchall()


def test_an_altered_policy_stays_altered(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("SELECT alter_features_1m_policy('2 hours', '3 minutes', '4 minutes')")
        before = conn.execute(POLICY).fetchall()
        schema.apply(conn)
        assert conn.execute(POLICY).fetchall() == before


def test_a_set_up_restores_lost_objects(database: str) -> None:
    before = dump(database)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP TRIGGER ohlcv_1m_inserted ON ohlcv_1m")
        conn.execute("DROP TRIGGER ohlcv_1m_deleted ON ohlcv_1m")
        conn.execute("DROP VIEW feature_platform.policy_status")
        conn.execute("DROP INDEX features_1m_bucket_idx")
        schema.apply(conn)
        assert dump(database) == before
        write(conn, [bar("A", 0)])
        conn.execute("CALL refresh_features_1m(NULL, NULL)")
        check(conn)


def test_a_failed_set_up_changes_no_object(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        # The view has a name that one of the later files needs.
        conn.execute("CREATE SCHEMA feature_platform")
        conn.execute("CREATE VIEW feature_platform.policy AS SELECT 1 AS x")
        before = dump(empty_database)
        with pytest.raises(psycopg.Error):
            schema.apply(conn)
    assert dump(empty_database) == before


def test_every_object_has_a_comment(database: str) -> None:
    with psycopg.connect(database) as conn:
        silent = conn.execute(
            """SELECT c.oid::regclass::text FROM pg_class c
               WHERE c.relnamespace = 'feature_platform'::regnamespace AND c.relkind IN ('r', 'v')
                 AND obj_description(c.oid, 'pg_class') IS NULL
               UNION ALL
               SELECT p.oid::regprocedure::text FROM pg_proc p
               WHERE (p.pronamespace = 'feature_platform'::regnamespace
                      OR p.proname LIKE '%features\\_1m%')
                 AND obj_description(p.oid, 'pg_proc') IS NULL
               UNION ALL
               SELECT attrelid::regclass || '.' || attname FROM pg_attribute
               WHERE attrelid IN ('ohlcv_1m'::regclass, 'features_1m'::regclass) AND attnum > 0
                 AND col_description(attrelid, attnum) IS NULL"""
        ).fetchall()
    assert not silent
