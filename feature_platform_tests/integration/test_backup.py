"""Guards against backups that cannot be restored on an empty server and then updated."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from feature_platform.embedded.server import EmbeddedServer, bin_dir
from feature_platform.roles import role_name, set_logins
from feature_platform.settings import Settings
from feature_platform.verify import verify
from feature_platform.views import catalog
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_engine import (
    assert_same_bits,
    read_features,
    stored_bars,
)
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import insert_bars, run_on, value
from feature_platform_tests.fix_views import (
    CANDLES,
    SHORT,
    check_views,
    refresh_all,
    rows_of,
    state_of,
)

Conn = psycopg.Connection[Any]


def program_of_server(connection: Conn, name: str) -> Path:
    """Return the server's own program if it is on this machine, otherwise the embedded one.

    PostgreSQL 15.20 has an option of columns that only its own pg_dump can omit.
    """
    own = Path(value(connection, "SELECT setting FROM pg_config WHERE name = 'BINDIR'"), name)
    return own if own.is_file() else bin_dir() / name


def tool(program: str | Path, *arguments: str | Path) -> None:
    done = subprocess.run(
        [bin_dir() / program, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.fixture(scope="module")
def another_server() -> Iterator[str]:
    """Yield a superuser's URL of a server without the platform's roles."""
    with passable_directory() as home, EmbeddedServer(home, conf={"fsync": "off"}) as server:
        yield server.url("postgres")


@pytest.fixture
def empty_server(another_server: str) -> Iterator[str]:
    """Yield the URL of an empty database on that server."""
    maker = Databases("postgres", another_server)
    url = maker.create_empty()
    yield url
    maker.drop(url)


def fill(connection: Conn) -> None:
    """Write two days of two symbols and two views, with gaps, and with pending marks."""
    first = value(connection, "SELECT feature_platform.due_until()") - timedelta(days=2)
    insert_bars(connection, "A", first, 2000)
    insert_bars(connection, "B", first, 200, step=7)
    catalog.apply(connection, [SHORT, CANDLES])
    refresh_all(connection)
    # A second version, which is not built, beside the served one.
    catalog.apply(connection, [replace(SHORT, columns={"mean_5m": SHORT.columns["mean_5m"]})])
    connection.execute("SELECT feature_platform.find_gaps()")
    insert_bars(connection, "A", first + timedelta(minutes=2000), 50)
    connection.execute("DELETE FROM ohlcv_1m WHERE symbol = 'B' AND ts = %s", [first])


def check_restored(connection: Conn, dumped: Conn) -> None:
    """Fail unless a database equals the dumped one, and stays exact after further writes."""
    assert sorted(stored_bars(connection)) == sorted(stored_bars(dumped))
    assert_same_bits(read_features(connection), read_features(dumped))
    gaps = "SELECT * FROM ohlcv_1m_gaps ORDER BY id"
    assert connection.execute(gaps).fetchall() == dumped.execute(gaps).fetchall()
    marks = "SELECT symbol, id, buckets, removed FROM feature_platform.dirty_log ORDER BY 1, 2"
    assert connection.execute(marks).fetchall() == dumped.execute(marks).fetchall()
    views = "SELECT (v).* FROM feature_platform.feature_view v ORDER BY id"
    assert connection.execute(views).fetchall() == dumped.execute(views).fetchall()
    states = """SELECT view, symbol, processed, dirty, removed, building
                FROM feature_platform.view_symbol ORDER BY 1, 2"""
    assert connection.execute(states).fetchall() == dumped.execute(states).fetchall()
    assert state_of(connection, "short_1m") == [(1, "live", True), (2, "building", False)]
    for columns, name in (", ".join(SHORT.columns), "short_1m"), ("close, n", "candles_1h"):
        assert rows_of(connection, columns, name) == rows_of(dumped, columns, name)
    report = verify(connection)
    assert (report.mismatches, report.pending > 0, report.views) == (0, True, 2)
    refresh_all(connection)
    assert state_of(connection, "short_1m") == [(2, "live", True)]
    assert value(connection, "SELECT count(*) FROM short_1m") == len(stored_bars(connection))
    first = value(connection, "SELECT min(ts) FROM ohlcv_1m WHERE symbol = 'A'")
    insert_bars(connection, "A", first - timedelta(minutes=100), 100)
    insert_bars(connection, "C", first, 10)
    connection.execute("SELECT feature_platform.find_gaps()")
    refresh_all(connection)
    report = verify(connection)
    assert (report.mismatches, report.pending, report.views) == (0, 0, 2)
    of_views = check_views(connection)
    assert report.rows == len(stored_bars(connection)) + of_views
    assert of_views > len(stored_bars(connection))
    catalog.apply(connection, [SHORT])  # the third version
    refresh_all(connection)
    assert check_views(connection) == of_views
    assert value(connection, "SELECT feature_platform.policy_begin('worker')") > 0


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("roles_first", [True, False])
def test_a_dump_is_restored_on_an_empty_server(
    database: str, conn: Conn, empty_server: str, tmp_path: Path, roles_first: bool
) -> None:
    fill(conn)
    file = tmp_path / "backup.dump"
    pg_dump = program_of_server(conn, "pg_dump")
    tool(pg_dump, "--format=custom", f"--file={file}", f"--dbname={database}")
    with psycopg.connect(empty_server, autocommit=True) as connection:
        if roles_first:
            set_logins(connection, Settings(reader_password=SecretStr("secret")))
            options = []
        else:
            options = ["--no-owner", "--no-privileges"]
        tool("pg_restore", "--exit-on-error", *options, f"--dbname={empty_server}", file)
        done = run_on(empty_server, "db", "apply")
        assert (done.returncode, done.stderr) == (0, "")
        check_restored(connection, conn)
        owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'ohlcv_1m'::regclass"
        assert value(connection, owner) == (role_name("owner") if roles_first else "postgres")
        may_read = "SELECT has_table_privilege(%s, %s, 'SELECT')"
        for relation in ("features_1m", "short_1m", "candles_1h"):
            assert value(connection, may_read, role_name("reader"), relation), relation


@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
def test_a_dump_is_restored_with_timescaledb(
    database: str, conn: Conn, databases: Databases, tmp_path: Path
) -> None:
    fill(conn)
    file = tmp_path / "backup.dump"
    subprocess.run(  # pg_dump warns of circular foreign keys in TimescaleDB's own tables
        [bin_dir() / "pg_dump", "--format=custom", f"--file={file}", f"--dbname={database}"],
        stderr=subprocess.DEVNULL,
        check=True,
    )
    restored = databases.create_empty()
    try:
        with psycopg.connect(restored, autocommit=True) as connection:
            connection.execute("SELECT timescaledb_pre_restore()")
        tool("pg_restore", f"--dbname={restored}", file)
        with psycopg.connect(restored, autocommit=True) as connection:
            connection.execute("SELECT timescaledb_post_restore()")
            connection.execute("SELECT _timescaledb_functions.stop_background_workers()")
        assert run_on(restored, "db", "apply").returncode == 0
        with psycopg.connect(restored, autocommit=True) as connection:
            check_restored(connection, conn)
            jobs = (
                "SELECT count(*) FROM timescaledb_information.jobs WHERE proc_name = 'run_policy'"
            )
            assert value(connection, jobs) == 1
    finally:
        databases.drop(restored)
