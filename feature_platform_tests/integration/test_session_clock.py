"""Guards against a session's clock that changes a database of real bars."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform import schema
from feature_platform.clock import SimulatedClock
from feature_platform.errors import UserError
from feature_platform.queries import sql_dir
from feature_platform.settings import get_settings
from feature_platform_tests.fix_database import make_simulated
from feature_platform_tests.fix_processes import insert_recent, only_line, run, run_on, value

Conn = psycopg.Connection[Any]

FUTURE = "2099-01-01T00:00Z@2026-11-25T13:30Zx1"
NOT_SIMULATED = "was not set up as a simulated one"
IS_SIMULATED = "SELECT simulated FROM feature_platform.database_origin"


@pytest.fixture
def future(monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    """Set the platform's clock to one that is years ahead."""
    clock = SimulatedClock(datetime(2099, 1, 1, tzinfo=UTC), datetime.now(UTC))
    monkeypatch.setenv("FEATURE_PLATFORM_CLOCK", str(clock))
    get_settings.cache_clear()
    return clock


def set_clock(connection: Conn) -> None:
    connection.execute("SELECT set_config('feature_platform.clock', %s, false)", [FUTURE])


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT feature_platform.find_gaps()",
        "SELECT feature_platform.gap_answered('A', now() - interval '1 hour', now())",
        "CALL refresh_features_1m(NULL, NULL)",
        "CALL feature_platform.apply_retention()",
        "SELECT feature_platform.policy_step(1, 1)",
        "INSERT INTO ohlcv_1m VALUES ('A', now(), 1, 1, 1, 1, 1)",
    ],
)
def test_functions_reject_the_clock_of_a_session(conn: Conn, statement: LiteralString) -> None:
    insert_recent(conn, "A", 200)
    conn.execute("SELECT set_features_1m_retention(bars => '3 days', features => '1 day')")
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute("SELECT feature_platform.find_gaps()")
    kept = contents(conn)
    set_clock(conn)
    with pytest.raises(psycopg.errors.RaiseException, match=NOT_SIMULATED):
        conn.execute(statement)
    conn.execute("RESET feature_platform.clock")
    assert contents(conn) == kept


def contents(connection: Conn) -> list[Any]:
    """Return the counts of bars and rows, and the newest watermark of gaps."""
    return [
        value(connection, "SELECT count(*) FROM ohlcv_1m"),
        value(connection, "SELECT count(*) FROM features_1m"),
        value(connection, "SELECT max(until_ts) FROM feature_platform.gap_watermark"),
    ]


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("gaps",),
        ("refresh",),
        ("worker",),
        ("record",),
        ("health", "worker"),
        ("top", "--once"),
        ("serve", "--port", "0"),
        ("db", "apply"),
    ],
)
@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_process_with_a_clock_rejects_a_real_database(
    database: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(
        *command,
        FEATURE_PLATFORM_CLOCK=FUTURE,
        FEATURE_PLATFORM_DATABASE_URL=database,
        FEATURE_PLATFORM_HOME=str(tmp_path),
    )
    assert done.returncode == 2, done.stderr
    line = only_line(done.stderr)
    assert NOT_SIMULATED in line
    assert "FEATURE_PLATFORM_CLOCK" in line


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
class TestOrigin:
    """The choice between a real and a simulated database, and its end."""

    @pytest.fixture
    def empty(self, empty_database: str) -> Any:
        with psycopg.connect(empty_database, autocommit=True) as connection:
            yield connection

    def test_a_new_database_is_real(self, conn: Conn) -> None:
        assert value(conn, IS_SIMULATED) is False

    @pytest.mark.usefixtures("future")
    def test_a_process_with_a_clock_sets_up_a_simulated_database(self, empty: Conn) -> None:
        schema.apply(empty)
        assert value(empty, IS_SIMULATED) is True
        schema.prepare(empty)

    @pytest.mark.usefixtures("future")
    def test_a_process_with_a_clock_does_not_change_a_real_database(self, conn: Conn) -> None:
        with pytest.raises(UserError, match=NOT_SIMULATED):
            schema.apply(conn)
        assert value(conn, IS_SIMULATED) is False

    def test_the_origin_can_be_changed_while_there_are_no_bars(self, database: str) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for option, simulated in (("--simulated", True), ("--real", False)):
                assert run_on(database, "db", "apply", option).returncode == 0
                assert run_on(database, "db", "apply").returncode == 0
                assert value(connection, IS_SIMULATED) is simulated
            insert_recent(connection, "A", 1)
            done = run_on(database, "db", "apply", "--simulated")
            assert (done.returncode, done.stdout) == (2, "")
            assert "simulated and real bars are never mixed" in only_line(done.stderr)
            assert run_on(database, "db", "apply", "--real").returncode == 0

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE feature_platform.database_origin SET simulated = NOT simulated",
            "DELETE FROM feature_platform.database_origin",
        ],
    )
    def test_the_origin_is_final_once_there_are_bars(
        self, conn: Conn, statement: LiteralString
    ) -> None:
        insert_recent(conn, "A", 1)
        with pytest.raises(psycopg.errors.RaiseException, match="and it has bars"):
            conn.execute(statement)

    def test_simulated_bars_need_a_simulated_database(
        self, database: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
        get_settings.cache_clear()
        with pytest.raises(UserError, match=NOT_SIMULATED):
            schema.prepare(conn, simulated=True)
        make_simulated(database)
        schema.prepare(conn, simulated=True)

    def test_an_empty_embedded_database_becomes_simulated(self, conn: Conn) -> None:
        schema.prepare(conn, simulated=True)
        assert value(conn, IS_SIMULATED) is True

    def test_an_embedded_database_with_bars_stays_real(self, conn: Conn) -> None:
        insert_recent(conn, "A", 1)
        with pytest.raises(UserError, match="simulated and real bars are never mixed"):
            schema.prepare(conn, simulated=True)

    def test_psql_can_set_up_a_simulated_database(self, empty_database: str, empty: Conn) -> None:
        file = str(sql_dir() / "feature_ca.sql")
        there = {
            "FEATURE_PLATFORM_DATABASE_URL": empty_database,
            "PGOPTIONS": "-c feature_platform.set_up_as=simulated",
        }
        assert run("db", "psql", "--", "-Xqf", file, **there).returncode == 0
        assert value(empty, IS_SIMULATED) is True

    def test_an_unknown_origin_is_rejected(self, empty: Conn) -> None:
        empty.execute("SET feature_platform.set_up_as = 'simulate'")
        files = "".join(file.read_text(encoding="utf-8") for file in schema.schema_files())
        with pytest.raises(psycopg.errors.RaiseException, match="neither simulated nor real"):
            empty.execute(files.encode())


def test_the_clock_reads_no_table_without_a_setting(conn: Conn) -> None:
    plan = value(conn, "EXPLAIN (VERBOSE, FORMAT json) SELECT feature_platform.clock()")
    (shown,) = plan[0]["Plan"]["Output"]
    assert shown.startswith("CASE WHEN (current_setting(")  # inlined
    conn.execute("ALTER TABLE feature_platform.database_origin RENAME TO origin_away")
    assert value(conn, "SELECT feature_platform.clock() - clock_timestamp() < '1 s'")
