"""Guards against roles with missing or additional rights, by the complete list of rights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from feature_platform import latest, read_bars, read_features, schema
from feature_platform.gaps import note_answer, note_failure
from feature_platform.queries import sql_dir
from feature_platform.roles import ROLES, role_name
from feature_platform.settings import get_settings
from feature_platform_tests.fix_dagster import Platform
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_processes import (
    WorkerProcess,
    insert_recent,
    only_line,
    run_on,
    value,
    wait_until,
)

Conn = psycopg.Connection[Any]

SERVICES = ROLES[1:]
READ = "S"
WRITE = "SIU"

# All tables and views, and the rights of each role: S select, I insert, U update, D delete. A role
# that is not listed has no right; the owner has all.
READERS = {"refresher": READ, "orchestrator": READ, "reader": READ}
RELATIONS: dict[str, dict[str, str]] = {
    "ohlcv_1m": {"recorder": WRITE, "refresher": READ, "orchestrator": WRITE, "reader": READ},
    "features_1m": READERS,
    "ohlcv_1m_gaps": {"recorder": READ, **READERS},
    "feature_platform.answered_gap": READERS,
    "feature_platform.bar_change": READERS,
    "feature_platform.bar_history": READERS,
    "feature_platform.bar_known": READERS,
    "feature_platform.bar_refresh": READERS,
    "feature_platform.bar_symbol": {"recorder": READ, **READERS},
    "feature_platform.database_origin": {"recorder": READ, **READERS},
    "feature_platform.changed_minutes": READERS,
    "feature_platform.dirty": READERS,
    "feature_platform.dirty_log": READERS,
    "feature_platform.feature_symbol": READERS,
    "feature_platform.feature_view": READERS,
    "feature_platform.feed_outage": {"recorder": "SIUD", **READERS},
    "feature_platform.gap_accounting": {},
    "feature_platform.gap_beginning": READERS,
    "feature_platform.gap_watermark": READERS,
    "feature_platform.heartbeat": {"recorder": "SIUD", **READERS},
    "feature_platform.known_at_close": {"recorder": READ, **READERS},
    "feature_platform.knowledge_floor": READERS,
    "feature_platform.known_symbol": READERS,
    "feature_platform.lake_change": {**READERS, "orchestrator": "SD"},
    "feature_platform.lake_waiting": READERS,
    "feature_platform.lake_table": {**READERS, "orchestrator": "SIUD"},
    "feature_platform.mutex": {},
    "feature_platform.policy": READERS,
    "feature_platform.policy_run": READERS,
    "feature_platform.policy_status": READERS,
    "feature_platform.refresh": READERS,
    "feature_platform.refresh_lock": {},
    "feature_platform.refresh_no_seq": {},
    "feature_platform.symbol_number": READERS,
    "feature_platform.features_1m_history": READERS,
    "feature_platform.features_1m_versions": READERS,
    "feature_platform.retention": READERS,
    "feature_platform.runner": READERS,
    "feature_platform.schema_version": {"recorder": READ, **READERS},
    "feature_platform.served": {**READERS, "reader": "SI"},
    "feature_platform.skew_check": READERS,
    "feature_platform.stored_symbol": READERS,
    "feature_platform.symbol_state": READERS,
    "feature_platform.features_1m_state": READERS,
    "feature_platform.verification": READERS,
    "feature_platform.readable_view": READERS,
    "feature_platform.view_change": READERS,
    "feature_platform.view_lock": {},
    "feature_platform.view_symbol": READERS,
}
EVERY_ROLE = {*SERVICES, "stranger"}
ALL = set(SERVICES)
RECORDERS = {"recorder", "orchestrator"}
REFRESHERS = {"refresher", "orchestrator"}
ORCHESTRATOR = {"orchestrator"}
NO_ROLE: set[str] = set()
ROUTINES: dict[str, set[str]] = {
    "add_features_1m_policy": ORCHESTRATOR,
    "alter_features_1m_policy": ORCHESTRATOR,
    "refresh_feature_view": REFRESHERS,
    "refresh_features_1m": REFRESHERS,
    "remove_features_1m_policy": ORCHESTRATOR,
    "set_features_1m_retention": ORCHESTRATOR,
    "feature_platform.account_minutes": NO_ROLE,
    "feature_platform.apply_retention": ORCHESTRATOR,
    "feature_platform.begin_accounting": NO_ROLE,
    "feature_platform.bucket_ends": NO_ROLE,
    "feature_platform.bucket_from": EVERY_ROLE,
    "feature_platform.bucket_of": EVERY_ROLE,
    "feature_platform.can_step": NO_ROLE,
    "feature_platform.check_policy": NO_ROLE,
    "feature_platform.claim_exchange": RECORDERS,
    "feature_platform.claim_runner": REFRESHERS,
    "feature_platform.clock": EVERY_ROLE,
    "feature_platform.clock_at": EVERY_ROLE,
    "feature_platform.delete_old_versions": NO_ROLE,
    "feature_platform.delete_rows_without_bars": NO_ROLE,
    "feature_platform.divide_buckets": NO_ROLE,
    "feature_platform.dirty_horizon": {"refresher", "orchestrator", "reader"},
    "feature_platform.due_until": ALL,
    "feature_platform.features_1m_range": NO_ROLE,
    "feature_platform.features_1m_reach": NO_ROLE,
    "feature_platform.features_1m_start": {"refresher", "orchestrator", "reader"},
    "feature_platform.features_1m_step": NO_ROLE,
    "feature_platform.features_from": {"refresher", "orchestrator", "reader"},
    "feature_platform.feed_in": NO_ROLE,
    "feature_platform.find_gaps": RECORDERS,
    "feature_platform.find_symbols": NO_ROLE,
    "feature_platform.forget_minutes": NO_ROLE,
    "feature_platform.forget_symbol": NO_ROLE,
    "feature_platform.grant_view_rights": NO_ROLE,
    "feature_platform.due_gaps": RECORDERS,
    "feature_platform.gap_answered": RECORDERS,
    "feature_platform.gap_failed": RECORDERS,
    "feature_platform.gaps_in": NO_ROLE,
    "feature_platform.gaps_between": {"refresher", "orchestrator", "reader"},
    "feature_platform.has_new_marks": NO_ROLE,
    "feature_platform.newest_new_mark": NO_ROLE,
    "feature_platform.note_look_back": NO_ROLE,
    "feature_platform.page_knowledge": {"refresher", "orchestrator", "reader"},
    "feature_platform.began_with_row": NO_ROLE,
    "feature_platform.has_ticks": NO_ROLE,
    "feature_platform.hazards": {"refresher", "orchestrator", "reader"},
    "feature_platform.is_symbol": NO_ROLE,
    "feature_platform.bars_as_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.bucket_before_as_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.first_bar_as_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.history_from": {"refresher", "orchestrator", "reader"},
    "feature_platform.row_created": {"refresher", "orchestrator", "reader"},
    "feature_platform.features_1m_plain_as_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.features_1m_plain_from_as_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.note_bars": NO_ROLE,
    "feature_platform.has_put_back": NO_ROLE,
    "feature_platform.has_ended": NO_ROLE,
    "feature_platform.delete_history": NO_ROLE,
    "feature_platform.note_skew": ORCHESTRATOR,
    "feature_platform.keep_versions": NO_ROLE,
    "feature_platform.flag_known_at_close": RECORDERS,
    "feature_platform.known_at": {"refresher", "orchestrator", "reader"},
    "feature_platform.known_rows_after": {"refresher", "orchestrator", "reader"},
    "feature_platform.known_rows_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.known_rows_at": {"refresher", "orchestrator", "reader"},
    "feature_platform.is_refreshed": NO_ROLE,
    "feature_platform.late_changes": NO_ROLE,
    "feature_platform.rows_reached": NO_ROLE,
    "feature_platform.rows_of_moved_warm_up": NO_ROLE,
    "feature_platform.imported_buckets": NO_ROLE,
    "feature_platform.closed_at": NO_ROLE,
    "feature_platform.check_bars_known": NO_ROLE,
    "feature_platform.bars_needed_from": NO_ROLE,
    "feature_platform.bar_changes": NO_ROLE,
    "feature_platform.number_at": NO_ROLE,
    "feature_platform.plain_rows_as_of": NO_ROLE,
    "feature_platform.next_refresh": NO_ROLE,
    "feature_platform.number_known_at_close": NO_ROLE,
    "feature_platform.numbered_changes": NO_ROLE,
    "feature_platform.keep_imported_versions": NO_ROLE,
    "feature_platform.note_known": REFRESHERS,
    "feature_platform.number_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.keep_origin": NO_ROLE,
    "feature_platform.lock_symbols": NO_ROLE,
    "feature_platform.mark_dirty": NO_ROLE,
    "feature_platform.mark_dirty_row": NO_ROLE,
    "feature_platform.mark_dirty_truncate": NO_ROLE,
    "feature_platform.mark_minutes": NO_ROLE,
    "feature_platform.mark_window": REFRESHERS,
    "feature_platform.minutes_to_account": ALL,
    "feature_platform.job_problem": {"refresher", "orchestrator", "reader"},
    "feature_platform.moved_warm_up": NO_ROLE,
    "feature_platform.newest_minute_is_awaited": NO_ROLE,
    "feature_platform.newest_dirty": NO_ROLE,
    "feature_platform.newest_minutes": NO_ROLE,
    "feature_platform.newest_rows": NO_ROLE,
    "feature_platform.next_job_start": {"refresher", "orchestrator", "reader"},
    "feature_platform.pick_symbols": NO_ROLE,
    "feature_platform.policy_begin": REFRESHERS,
    "feature_platform.policy_end": REFRESHERS,
    "feature_platform.policy_step": REFRESHERS,
    "feature_platform.recheck_gaps": ORCHESTRATOR,
    "feature_platform.refresh_slice": REFRESHERS,
    "feature_platform.refresh_symbols": NO_ROLE,
    "feature_platform.retention_step": ORCHESTRATOR,
    "feature_platform.run_policy": NO_ROLE,
    "feature_platform.run_ranges": NO_ROLE,
    "feature_platform.run_steps": NO_ROLE,
    "feature_platform.schedule_job": NO_ROLE,
    "feature_platform.session_clock": EVERY_ROLE,
    "feature_platform.simulated_clock": EVERY_ROLE,
    "feature_platform.split_gap": NO_ROLE,
    "feature_platform.stripe_of": NO_ROLE,
    "feature_platform.symbol_span": {"refresher", "orchestrator", "reader"},
    "feature_platform.take_marks": NO_ROLE,
    "feature_platform.timescaledb": ALL,
    "feature_platform.timescaledb_schema": {"refresher", "orchestrator", "reader"},
    "feature_platform.unschedule_job": NO_ROLE,
    "feature_platform.verification_move": ORCHESTRATOR,
    "feature_platform.begin_view_build": NO_ROLE,
    "feature_platform.bucket_after": NO_ROLE,
    "feature_platform.bucket_before": {"refresher", "orchestrator", "reader"},
    "feature_platform.clear_view_changes": NO_ROLE,
    "feature_platform.delete_old_view_rows": NO_ROLE,
    "feature_platform.describe_view": NO_ROLE,
    "feature_platform.dirty_newest_bucket": NO_ROLE,
    "feature_platform.drop_view": NO_ROLE,
    "feature_platform.drop_view_version": NO_ROLE,
    "feature_platform.ema_next": NO_ROLE,
    "feature_platform.ema_run": NO_ROLE,
    "feature_platform.finish_view_tables": NO_ROLE,
    "feature_platform.forget_view_rows": NO_ROLE,
    "feature_platform.make_view_hypertables": NO_ROLE,
    "feature_platform.newest_part": NO_ROLE,
    "feature_platform.days_of": {"refresher", "orchestrator", "reader"},
    "feature_platform.record_lake_changes": ORCHESTRATOR,
    "feature_platform.record_lake_symbol": NO_ROLE,
    "feature_platform.record_lake_until": ORCHESTRATOR,
    "feature_platform.pick_view_symbols": NO_ROLE,
    "feature_platform.refresh_view_symbols": NO_ROLE,
    "feature_platform.grant_to_readers": NO_ROLE,
    "feature_platform.run_is_over": NO_ROLE,
    "feature_platform.serve_view": NO_ROLE,
    "feature_platform.view_columns": NO_ROLE,
    "feature_platform.views_need_from": NO_ROLE,
    "feature_platform.plain_before": {"refresher", "orchestrator", "reader"},
    "feature_platform.plain_ema": {"refresher", "orchestrator", "reader"},
    "feature_platform.plain_pair": {"refresher", "orchestrator", "reader"},
    "feature_platform.view_due": {"refresher", "orchestrator", "reader"},
    "feature_platform.view_from": {"refresher", "orchestrator", "reader"},
    "feature_platform.view_lag": {"refresher", "orchestrator", "reader"},
    "feature_platform.view_progress": {"refresher", "orchestrator", "reader"},
    "feature_platform.view_slice_rows": {"refresher", "orchestrator", "reader"},
    "feature_platform.view_span": {"refresher", "orchestrator", "reader"},
    "feature_platform.view_values": {"refresher", "orchestrator", "reader"},
    "feature_platform.serve_complete_views": REFRESHERS,
    "feature_platform.view_slice": REFRESHERS,
    "feature_platform.view_step": REFRESHERS,
}

_MADE = """
    WITH made AS (
        SELECT 'relation' AS what, 'pg_class'::regclass AS classid, oid, relnamespace AS namespace,
               relname AS name, relowner AS owner, relacl AS acl
          FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        UNION ALL
        SELECT 'routine', 'pg_proc'::regclass, oid, pronamespace, proname, proowner, proacl
          FROM pg_proc
        UNION ALL
        SELECT 'type', 'pg_type'::regclass, oid, typnamespace, typname, typowner, typacl
          FROM pg_type WHERE typtype = 'c' AND typname = 'refresh_work'
    )
    SELECT what, oid, CASE namespace::regnamespace::text WHEN 'public' THEN name
                      ELSE namespace::regnamespace || '.' || name END AS name, owner::regrole::text
      FROM made
     WHERE namespace IN ('public'::regnamespace, 'feature_platform'::regnamespace)
       AND NOT EXISTS (SELECT FROM pg_depend d
                        WHERE d.classid = made.classid AND d.objid = made.oid AND d.deptype = 'e')
     ORDER BY 1, 3
"""
_TABLE_RIGHTS = """
    SELECT coalesce(string_agg(left(privilege, 1), '' ORDER BY place), '')
      FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[])
           WITH ORDINALITY AS p (privilege, place)
     WHERE has_table_privilege(%s, %s::oid, privilege)
"""
_MAY_EXECUTE = "SELECT has_function_privilege(%s, %s::oid, 'EXECUTE')"

# A predefined role of PostgreSQL without grants here: it has the rights of PUBLIC.
STRANGER = "pg_signal_backend"


def in_database(who: str) -> str:
    return STRANGER if who == "stranger" else role_name(who)


def as_role(url: str, role: str) -> str:
    """Return the connection string for a session with the rights of a role only."""
    return make_conninfo(url, options=f"-c role={role_name(role)}")


@pytest.fixture
def connections(database: str) -> Iterator[dict[str, Conn]]:
    """Yield a connection as each role."""
    opened = {role: psycopg.connect(as_role(database, role), autocommit=True) for role in SERVICES}
    yield opened
    for connection in opened.values():
        connection.close()


def made(connection: Conn, what: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for kind, oid, name, _owner in connection.execute(_MADE):
        if kind == what:
            found.setdefault(name, []).append(oid)
    return found


def test_every_table_and_view_has_the_listed_rights(conn: Conn) -> None:
    found = {
        name: {
            who: rights
            for who in sorted(EVERY_ROLE)
            for oid in oids
            if (rights := value(conn, _TABLE_RIGHTS, in_database(who), oid))
        }
        for name, oids in made(conn, "relation").items()
    }
    sequences = {name: rights for name, rights in found.items() if name.endswith("_id_seq")}
    assert not any(sequences.values())
    assert {name: rights for name, rights in found.items() if name not in sequences} == RELATIONS


def test_every_function_and_procedure_has_the_listed_rights(conn: Conn) -> None:
    found = {
        name: {
            who
            for who in EVERY_ROLE
            for oid in oids
            if value(conn, _MAY_EXECUTE, in_database(who), oid)
        }
        for name, oids in made(conn, "routine").items()
    }
    assert found == ROUTINES


def test_the_owner_role_owns_all_objects_and_is_no_superuser(conn: Conn) -> None:
    owners = {owner for *_, owner in conn.execute(_MADE)}
    assert owners == {role_name("owner")}
    attributes = conn.execute(
        "SELECT DISTINCT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication"
        " FROM pg_roles WHERE rolname = ANY (%s)",
        [[role_name(role) for role in ROLES]],
    ).fetchall()
    assert attributes == [(False, False, False, False, False)]


def test_only_the_owner_may_create_objects(conn: Conn) -> None:
    for who in EVERY_ROLE:
        for place in ("public", "feature_platform"):
            may = "SELECT has_schema_privilege(%s, %s, 'CREATE')"
            assert not value(conn, may, in_database(who), place)
        usage = "SELECT has_schema_privilege(%s, 'feature_platform', 'USAGE')"
        assert value(conn, usage, in_database(who)) == (who != "stranger")


def test_functions_of_the_owner_have_a_safe_search_path(conn: Conn) -> None:
    paths = conn.execute(
        """SELECT proname, proconfig FROM pg_proc
            WHERE prosecdef AND pronamespace IN ('public'::regnamespace,
                                                 'feature_platform'::regnamespace)"""
    ).fetchall()
    assert len(paths) > 10
    for name, settings in paths:
        assert "search_path=pg_catalog, pg_temp" in (settings or []), name


def check_rejected(connection: Conn, statement: str, *parameters: object) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode(), parameters or None)


REJECTED = {
    "recorder": (
        "DELETE FROM ohlcv_1m",
        "TRUNCATE ohlcv_1m",
        "TABLE features_1m",
        "TABLE feature_platform.dirty_log",
        "CALL refresh_features_1m(NULL, NULL)",
        "SELECT alter_features_1m_policy(start_offset => '2 hours')",
        "UPDATE ohlcv_1m_gaps SET state = 'quiet'",
        "CREATE TABLE mine (x integer)",
        "ALTER TABLE ohlcv_1m DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
    ),
    "refresher": (
        "INSERT INTO ohlcv_1m VALUES ('A', '2026-01-01Z', 1, 1, 1, 1, 1)",
        "UPDATE features_1m SET vol = 1",
        "DELETE FROM feature_platform.dirty_log",
        "DELETE FROM feature_platform.symbol_state",
        "SELECT feature_platform.find_gaps()",
        "SELECT remove_features_1m_policy()",
        "CREATE TABLE mine (x integer)",
    ),
    "orchestrator": (
        "DELETE FROM ohlcv_1m",
        "UPDATE features_1m SET vol = 1",
        "DELETE FROM feature_platform.dirty_log",
        "UPDATE feature_platform.policy SET start_offset = '1 day'",
        "DROP TABLE features_1m",
        "CREATE TABLE mine (x integer)",
    ),
    "reader": (
        "INSERT INTO ohlcv_1m VALUES ('A', '2026-01-01Z', 1, 1, 1, 1, 1)",
        "DELETE FROM features_1m",
        "SELECT FROM feature_platform.refresh_lock FOR KEY SHARE",
        "CALL refresh_features_1m(NULL, NULL)",
        "SELECT feature_platform.refresh_slice('-infinity', 'infinity', 1)",
        "SELECT feature_platform.gap_answered('A', '2026-01-01Z', '2026-01-02Z')",
        "SELECT feature_platform.policy_begin('worker')",
        "CREATE TABLE mine (x integer)",
    ),
}


def test_each_role_is_rejected_outside_of_its_rights(connections: dict[str, Conn]) -> None:
    for role, statements in REJECTED.items():
        for statement in statements:
            check_rejected(connections[role], statement)


def test_the_recorder_role_stores_bars_and_answers(
    database: str, conn: Conn, connections: dict[str, Conn], tmp_path: Path
) -> None:
    file = tmp_path / "bars.csv"
    rows = (f"{1_769_904_000_000 + i * 60_000},10,12,9,{10 + i},5" for i in range(3))
    file.write_text("open_time,open,high,low,close,volume\n" + "\n".join(rows))
    recorder = as_role(database, "recorder")
    done = run_on(recorder, "import", file, "--symbol", "A")
    assert (done.returncode, done.stderr) == (0, "")
    file.write_text(file.read_text().replace(",5\n", ",6\n"))
    assert run_on(recorder, "import", file, "--symbol", "A").returncode == 0
    assert value(conn, "SELECT sum(vol) FROM ohlcv_1m") == 6 + 6 + 5

    conn.execute("DELETE FROM ohlcv_1m WHERE ts = '2026-02-01 00:01Z'")
    connections["recorder"].execute("SELECT feature_platform.find_gaps()")
    gap = moment(conn, "2026-02-01 00:01Z"), moment(conn, "2026-02-01 00:02Z")
    note_failure(connections["recorder"], "A", *gap, "no answer")
    assert note_answer(connections["recorder"], "A", *gap) == 1
    done = run_on(recorder, "refresh")
    assert (done.returncode, done.stdout) == (1, "")
    assert only_line(done.stderr).startswith("feature-platform: permission denied for ")


def moment(connection: Conn, text: str) -> Any:
    return value(connection, "SELECT %s::timestamptz", text)


def test_the_refresher_role_refreshes_and_the_reader_role_verifies(
    database: str, conn: Conn
) -> None:
    insert_recent(conn, "A", 20)
    refresher, reader = (as_role(database, role) for role in ("refresher", "reader"))
    done = run_on(refresher, "refresh", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 rows written" in done.stdout
    done = run_on(reader, "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 rows of 1 symbol checked, all equal\n" in done.stdout
    done = run_on(reader, "status")
    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(refresher, autocommit=True) as connection:
        insert_recent(conn, "B", 5)
        refresh(connection)
    assert value(conn, "SELECT count(*) FROM features_1m") == 25


def test_the_reader_role_reads_frames(
    database: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_recent(conn, "A", 5)
    refresh(conn)
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", as_role(database, "reader"))
    get_settings.cache_clear()
    assert len(latest()) == 1
    window = value(conn, "SELECT min(ts) FROM ohlcv_1m"), value(conn, "SELECT now()")
    assert len(read_features("A", *window)) == len(read_bars("A", *window)) == 5


def test_the_worker_runs_as_refresher(database: str, conn: Conn) -> None:
    insert_recent(conn, "A", 5)
    with WorkerProcess(FEATURE_PLATFORM_DATABASE_URL=as_role(database, "refresher")) as worker:
        worker.wait_for("active")
        wait_until(lambda: value(conn, "SELECT count(*) FROM features_1m") == 5, "rows")
        insert_recent(conn, "B", 5)
        wait_until(lambda: value(conn, "SELECT count(*) FROM features_1m") == 10, "rows, woken")
        assert "failed" not in worker.stop()


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_dagster_runs_as_orchestrator(
    platform_with_exchange: Platform, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", as_role(database, "orchestrator"))
    get_settings.cache_clear()
    platform = platform_with_exchange
    day = value(platform.connection, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
    run_config = {"ops": {"ohlcv_1m": {"config": {"only_gaps": False, "symbols": ["BTC/USDT"]}}}}
    assert platform.run("rest_backfill", day, run_config=run_config).success
    for sensor in ("repair_missing_minutes", "run_checks", "watch_refresh"):
        platform.tick(sensor)
    assert platform.run("refresh_features", day).success
    assert platform.run("audit").success
    with psycopg.connect(as_role(database, "orchestrator"), autocommit=True) as connection:
        connection.execute("SELECT alter_features_1m_policy(start_offset => '2 hours')")
        connection.execute("SELECT remove_features_1m_policy()")
        connection.execute("SELECT add_features_1m_policy()")


@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
def test_the_jobs_of_the_database_run_as_the_owner(conn: Conn) -> None:
    owners = conn.execute(
        "SELECT DISTINCT owner::text FROM timescaledb_information.jobs"
        " WHERE hypertable_name LIKE '%_1m' OR proc_name = 'run_policy'"
    )
    assert owners.fetchall() == [(role_name("owner"),)]


def test_a_set_up_keeps_the_grants_of_other_roles(databases: Databases) -> None:
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"GRANT SELECT ON features_1m TO {STRANGER}")
        connection.execute(f"GRANT DELETE ON ohlcv_1m TO {role_name('recorder')}")
        schema.apply(connection)
        granted = "SELECT has_table_privilege(%s, %s, %s)"
        assert value(connection, granted, STRANGER, "features_1m", "SELECT")
        assert not value(connection, granted, role_name("recorder"), "ohlcv_1m", "DELETE")


USER = "fp_without_roles"


@pytest.fixture
def administered(empty_database: str) -> Iterator[str]:
    """Yield the connection string of a user who owns the database and may not create roles."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        user, database = sql.Identifier(USER), sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(user))
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, user))
        yield make_conninfo(empty_database, user=USER)
        connection.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(user))
        connection.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(user, user))


def test_without_the_right_to_create_roles_the_user_owns_all(administered: str) -> None:
    with psycopg.connect(administered, autocommit=True) as connection:
        for _ in range(2):
            schema.apply(connection)
        assert {owner for *_, owner in connection.execute(_MADE)} == {USER}
        insert_recent(connection, "A", 5)
        refresh(connection)
        assert value(connection, "SELECT count(*) FROM features_1m") == 5


def test_the_owner_role_can_set_up_its_own_database(empty_database: str) -> None:
    owner = role_name("owner")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute((sql_dir() / "005_roles.sql").read_text())
        database = sql.Identifier(connection.info.dbname)
        give = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        connection.execute(give.format(database, sql.Identifier(owner)))
    url = make_conninfo(empty_database, user=owner)
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(2):
            schema.apply(connection)
        assert {one for *_, one in connection.execute(_MADE)} == {owner}
        insert_recent(connection, "A", 5)
        refresh(connection)
        assert value(connection, "SELECT count(*) FROM features_1m") == 5
