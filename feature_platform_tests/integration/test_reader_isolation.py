"""Guards against a reader that blocks other sessions by locks, notifications or transactions.

A reader has the role feature_platform_reader, as notebooks and Grafana do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from feature_platform import schema
from feature_platform.errors import UserError
from feature_platform.queries import sql_dir
from feature_platform_tests.fix_processes import (
    StartWorker,
    insert_recent,
    only_line,
    run_on,
    value,
    wait_until,
)
from feature_platform_tests.integration.test_schema_apply import psql

Conn = psycopg.Connection[Any]

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

# The longest time that a set-up may block a writer.
STALL_SECONDS = 2.0
SLACK_SECONDS = 3.0  # for a busy machine

UPDATE = "UPDATE ohlcv_1m SET vol = vol + 1 WHERE symbol = %s"
LOCKS = ("worker", "job", "gaps", "schema")


@pytest.fixture
def reader(database: str) -> Iterator[Conn]:
    """Yield a session of a reader."""
    with as_reader(database) as session:
        yield session


@contextmanager
def as_reader(url: str) -> Iterator[Conn]:
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("SET SESSION AUTHORIZATION feature_platform_reader")
        yield session


def take_advisory_locks(reader: Conn) -> None:
    """Take all advisory locks of this and earlier versions of the platform."""
    for name in LOCKS:
        reader.execute(
            "SELECT pg_advisory_lock(hashtextextended('feature_platform.' || %s::text, 0))", [name]
        )


def take_refresh_locks(reader: Conn) -> None:
    reader.execute("SELECT count(pg_advisory_lock(7521, n)) FROM generate_series(0, 4095) AS n")


def read_and_idle(reader: Conn) -> None:
    """Read every table in a transaction, and leave it open."""
    reader.execute("BEGIN")
    tables = reader.execute(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'v')"
        " AND c.relnamespace IN ('public'::regnamespace, 'feature_platform'::regnamespace)"
        " AND has_table_privilege(c.oid, 'SELECT')"
    ).fetchall()
    assert len(tables) > 10
    for (table,) in tables:
        reader.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.SQL(table)))


def listen_and_notify(reader: Conn) -> None:
    reader.execute("LISTEN feature_platform_dirty")
    reader.execute("BEGIN")
    reader.execute(
        "SELECT count(pg_notify('feature_platform_dirty', repeat('x', 7900) || n))"
        " FROM generate_series(1, 100) AS n"
    )


ATTACKS = [take_advisory_locks, take_refresh_locks, read_and_idle, listen_and_notify]


@pytest.mark.parametrize("attack", ATTACKS)
def test_all_processes_work_despite_a_hostile_reader(
    database: str, conn: Conn, reader: Conn, start_worker: StartWorker, attack: Any
) -> None:
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
    insert_recent(conn, "A", 3)
    attack(reader)
    worker = start_worker(database)
    worker.wait_for("active")
    insert_recent(conn, "B", 3)
    counted = "SELECT count(*) FROM features_1m"
    wait_until(lambda: value(conn, counted) == 6, "the rows of both")
    assert run_on(database, "refresh").returncode == 0
    assert run_on(database, "gaps").returncode == 0
    assert run_on(database, "health", "worker").returncode == 0
    conn.execute("CALL feature_platform.apply_retention()")
    running = "SELECT last_runner = 'worker' FROM feature_platform.policy_status"
    assert value(conn, running)
    worker.stop()


def test_a_reader_cannot_pose_as_the_worker(conn: Conn, reader: Conn) -> None:
    take_advisory_locks(reader)
    conn.execute("INSERT INTO feature_platform.policy_run (runner) VALUES ('worker')")
    running = "SELECT running FROM feature_platform.policy_status"
    assert value(conn, running) is False
    assert value(conn, "SELECT feature_platform.claim_runner('worker')") is True
    assert value(conn, running) is True


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM feature_platform.mutex FOR UPDATE",
        "SELECT FROM feature_platform.runner FOR UPDATE",
        "SELECT FROM feature_platform.policy FOR SHARE",
        "SELECT FROM feature_platform.retention FOR KEY SHARE",
        "SELECT FROM feature_platform.dirty_log FOR UPDATE",
        "SELECT FROM ohlcv_1m FOR UPDATE",
        "SELECT FROM features_1m FOR SHARE",
        "SELECT FROM ohlcv_1m_gaps FOR UPDATE",
        "BEGIN; LOCK TABLE ohlcv_1m IN ROW EXCLUSIVE MODE",
        "BEGIN; LOCK TABLE feature_platform.dirty_log IN SHARE MODE",
        "BEGIN; LOCK TABLE features_1m IN ACCESS EXCLUSIVE MODE",
        "SELECT feature_platform.claim_runner('worker')",
        "SELECT feature_platform.policy_begin('worker')",
        "SELECT nextval('feature_platform.dirty_log_id_seq')",
        "SELECT setval('feature_platform.dirty_log_id_seq', 1)",
        "UPDATE feature_platform.database_origin SET simulated = true",
    ],
)
def test_a_reader_cannot_lock_or_write_the_tables_of_the_engine(
    reader: Conn, statement: LiteralString
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute(statement)


@pytest.mark.parametrize("given", [-1, 39], ids=["a role of an older version", "a chosen limit"])
def test_the_connections_of_readers_are_limited(conn: Conn, given: int) -> None:
    limit = "SELECT rolconnlimit FROM pg_roles WHERE rolname = 'feature_platform_reader'"
    allowed = value(conn, "SELECT current_setting('max_connections')::integer")
    conn.execute(f"ALTER ROLE feature_platform_reader CONNECTION LIMIT {given}".encode())
    schema.apply(conn)
    assert 0 < value(conn, limit) < allowed
    assert given in (-1, value(conn, limit))
    conn.execute("ALTER ROLE feature_platform_reader CONNECTION LIMIT 40")


def test_a_reader_that_idles_in_a_transaction_is_disconnected(conn: Conn) -> None:
    """A transaction keeps dead rows, which the refresh reads past."""
    settings = value(
        conn, "SELECT rolconfig FROM pg_roles WHERE rolname = 'feature_platform_reader'"
    )
    assert "idle_in_transaction_session_timeout=10min" in settings
    is_new = value(conn, "SELECT current_setting('server_version_num')::integer >= 170000")
    assert ("transaction_timeout=1h" in settings) is is_new


# ---- the set-up beside sessions that use its tables


def test_a_set_up_ends_while_a_reader_uses_bars_and_features(database: str, reader: Conn) -> None:
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM ohlcv_1m, features_1m")
    assert run_on(database, "db", "apply").returncode == 0


@pytest.mark.timing
def test_a_set_up_that_waits_for_a_reader_does_not_block_writers(
    database: str, conn: Conn, reader: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM ohlcv_1m_gaps, feature_platform.policy_run")
    insert_recent(conn, "A", 1)
    failed: list[Exception] = []

    def apply() -> None:
        try:
            with psycopg.connect(database, autocommit=True) as connection:
                schema.apply(connection)
        except (psycopg.Error, UserError) as error:
            failed.append(error)

    thread = threading.Thread(target=apply)
    thread.start()
    longest = 0.0
    until = time.monotonic() + 10
    while time.monotonic() < until:
        began = time.monotonic()
        conn.execute("UPDATE ohlcv_1m SET vol = vol + 1")
        conn.execute("CALL refresh_features_1m(NULL, NULL)")
        longest = max(longest, time.monotonic() - began)
    assert thread.is_alive()
    assert longest < STALL_SECONDS + SLACK_SECONDS
    waits = [record.getMessage() for record in caplog.records]
    assert any("is in use by session " in line and "Retrying in" in line for line in waits)
    reader.execute("ROLLBACK")
    thread.join(60)
    assert failed == []


def test_a_set_up_that_gives_up_names_the_session(
    database: str, reader: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_GIVE_UP_SECONDS", 1.0)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM ohlcv_1m_gaps")
    with (
        psycopg.connect(database, autocommit=True) as connection,
        pytest.raises(UserError, match=r"ohlcv_1m_gaps is in use by session \d+"),
    ):
        schema.apply(connection)


def test_psql_gives_up_within_two_seconds(database: str, reader: Conn) -> None:
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM feature_platform.policy_run")
    done = psql(database, "-f", sql_dir() / "feature_ca.sql")
    assert done.returncode == 3
    assert "feature_platform.policy_run is in use by session " in done.stderr


def test_a_set_up_beside_writers_and_refreshers_ends_without_a_deadlock(database: str) -> None:
    stopped = threading.Event()
    failed: list[str] = []

    def work(number: int) -> None:
        with psycopg.connect(database, autocommit=True) as session:
            insert_recent(session, f"S{number}", 5)
            while not stopped.is_set():
                try:
                    if number % 2:
                        session.execute(UPDATE, [f"S{number}"])
                    else:
                        session.execute("CALL refresh_features_1m(NULL, NULL)")
                        session.execute("SELECT feature_platform.find_gaps()")
                except psycopg.Error as error:
                    failed.append(str(error))

    with ExitStack() as stack:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(stopped.set)
        for _ in range(3):
            done = run_on(database, "db", "apply")
            assert done.returncode == 0, done.stderr
            assert "deadlock" not in done.stderr
    assert failed == []


def test_a_set_up_by_another_role_gets_one_line(database: str, conn: Conn) -> None:
    conn.execute("ALTER ROLE feature_platform_reader LOGIN")
    try:
        url = make_conninfo(database, user="feature_platform_reader")
        done = run_on(url, "db", "apply")
        assert done.returncode == 2
        assert "the database's set-up needs its owner" in only_line(done.stderr)
    finally:
        conn.execute("ALTER ROLE feature_platform_reader NOLOGIN")
