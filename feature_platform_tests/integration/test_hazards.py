"""Guards against changes that disable the triggers without a failing check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform.validation import evaluate
from feature_platform_tests.fix_database import Engine
from feature_platform_tests.fix_processes import insert_recent, value

Conn = psycopg.Connection[Any]

BARS, FEATURES = "bars_table", "features_table"
WAYS: list[tuple[str, LiteralString, str]] = [
    (BARS, "ALTER TABLE ohlcv_1m ENABLE REPLICA TRIGGER ohlcv_1m_inserted", "ohlcv_1m_inserted"),
    (BARS, "ALTER TABLE ohlcv_1m DISABLE TRIGGER ohlcv_1m_updated", "ohlcv_1m_updated"),
    (BARS, "ALTER TABLE ohlcv_1m DISABLE TRIGGER USER", "ohlcv_1m_deleted"),
    (
        BARS,
        """DROP TRIGGER ohlcv_1m_inserted ON ohlcv_1m;
           CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql
               AS 'BEGIN RETURN NULL; END';
           CREATE TRIGGER ohlcv_1m_inserted AFTER INSERT ON ohlcv_1m
               FOR EACH STATEMENT EXECUTE FUNCTION public.nothing()""",
        "ohlcv_1m_inserted",
    ),
    (
        BARS,
        """DO $$ BEGIN EXECUTE format(
               'ALTER DATABASE %I SET session_replication_role = replica', current_database());
           END $$""",
        "RESET session_replication_role",
    ),
]
PLAIN_WAYS: list[tuple[str, LiteralString, str]] = [
    (BARS, "CREATE RULE r AS ON UPDATE TO ohlcv_1m DO INSTEAD NOTHING", "DROP RULE r"),
    (BARS, "CREATE TABLE kid () INHERITS (ohlcv_1m)", "ALTER TABLE public.kid NO INHERIT"),
    (FEATURES, "ALTER TABLE features_1m ENABLE ROW LEVEL SECURITY", "DISABLE ROW LEVEL SECURITY"),
]


@pytest.mark.parametrize(("check", "change", "named"), WAYS)
def test_a_change_that_disables_a_trigger_fails_a_check(
    conn: Conn, check: str, change: LiteralString, named: str
) -> None:
    assert passes(conn, check)
    conn.execute(change)
    assert named in problems(conn, check)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize(("check", "change", "named"), PLAIN_WAYS)
def test_a_change_that_bypasses_a_plain_table_fails_a_check(
    conn: Conn, check: str, change: LiteralString, named: str
) -> None:
    conn.execute(change)
    assert named in problems(conn, check)


@pytest.fixture
def role(conn: Conn) -> Iterator[str]:
    """Yield a role of the server, and drop it."""
    conn.execute("CREATE ROLE feature_platform_test_hazard")
    yield "feature_platform_test_hazard"
    conn.execute("DROP ROLE feature_platform_test_hazard")


def test_a_role_whose_writes_fire_no_trigger_fails_a_check(conn: Conn, role: str) -> None:
    conn.execute(f"ALTER ROLE {role} SET session_replication_role = replica")
    assert f"ALTER ROLE {role} RESET session_replication_role" in problems(conn, BARS)
    conn.execute(f"ALTER ROLE {role} RESET session_replication_role")
    assert passes(conn, BARS)


@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
@pytest.mark.parametrize(
    ("check", "table"), [(BARS, "public.ohlcv_1m"), (FEATURES, "public.features_1m")]
)
def test_a_policy_that_drops_chunks_fails_a_check(
    conn: Conn, engine: Engine, check: str, table: str
) -> None:
    assert engine == "timescaledb"
    insert_recent(conn, "BTC/USDT", 5)
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute("SELECT add_retention_policy(%s::text::regclass, interval '1 year')", [table])
    found = problems(conn, check)
    assert "remove_retention_policy" in found
    assert "set_features_1m_retention" in found
    conn.execute("SELECT remove_retention_policy(%s::text::regclass)", [table])
    assert passes(conn, check)
    if value(conn, "SELECT to_regproc('detach_chunk')") is None:
        return  # before TimescaleDB 2.21
    chunk = value(conn, "SELECT show_chunks(%s::text::regclass)::text LIMIT 1", table)
    conn.execute("CALL detach_chunk(%s::text::regclass)", [chunk])
    assert "is detached" in problems(conn, check)


def passes(conn: Conn, check: str) -> bool:
    (result,) = evaluate(conn, {check})
    return result.passed


def problems(conn: Conn, check: str) -> str:
    """Return the problems that a failing check names."""
    (result,) = evaluate(conn, {check})
    assert not result.passed
    return "; ".join(f"{row['what']}: {row['problem']}" for row in result.rows)
