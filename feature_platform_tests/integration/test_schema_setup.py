"""Guards against a set-up that damages a foreign table, a newer version, or another set-up."""

from __future__ import annotations

import subprocess
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform import schema
from feature_platform.embedded.server import bin_dir
from feature_platform.errors import UserError
from feature_platform.queries import sql_dir
from feature_platform_tests.fix_engine import in_threads

_OBJECTS = """
    SELECT n.nspname, c.relname, c.relkind::text, pg_get_viewdef(c.oid) AS definition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('public', 'feature_platform') AND c.relkind IN ('r', 'v', 'i', 'S')
    UNION ALL
    SELECT n.nspname, p.proname, 'f', pg_get_functiondef(p.oid)
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE (n.nspname = 'feature_platform' OR p.proname LIKE '%features_1m%') AND p.prokind <> 'a'
    UNION ALL
    SELECT tgrelid::regclass::text, tgname, 't', pg_get_triggerdef(oid)
    FROM pg_trigger WHERE tgname LIKE 'ohlcv_1m%'
    UNION ALL
    SELECT conrelid::regclass::text, conname, 'c', pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace::regnamespace::text IN ('public', 'feature_platform')
    ORDER BY 1, 2, 3, 4
"""


def objects(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(_OBJECTS).fetchall()


def apply(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        schema.apply(connection)


def send(url: str, statement: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def test_a_second_set_up_changes_nothing(database: str) -> None:
    before = objects(database)
    assert before
    apply(database)
    assert objects(database) == before


def test_two_set_ups_at_once_wait_for_each_other(empty_database: str) -> None:
    in_threads(empty_database, schema.apply, schema.apply)


def test_psql_sets_up_the_same_schema(database: str, empty_database: str) -> None:
    file = sql_dir() / "feature_ca.sql"
    command = [str(bin_dir() / "psql"), "-X", "-d", empty_database, "-f", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert objects(empty_database) == objects(database)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM feature_platform.policy").fetchone() == (1,)


@pytest.mark.parametrize("table", ["ohlcv_1m", "features_1m", "ohlcv_1m_gaps"])
def test_a_foreign_table_is_rejected_and_not_changed(empty_database: str, table: str) -> None:
    create = psycopg.sql.SQL("CREATE TABLE {} (a integer)").format(psycopg.sql.Identifier(table))
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(create)
    before = objects(empty_database)
    with pytest.raises(UserError, match=rf"public\.{table} exists here and was not made by"):
        apply(empty_database)
    assert objects(empty_database) == before


def test_a_newer_database_is_rejected_and_not_changed(database: str) -> None:
    send(database, "INSERT INTO feature_platform.schema_version (version) VALUES (1000)")
    send(database, "DROP VIEW feature_platform.policy_status")
    before = objects(database)
    with pytest.raises(UserError, match=r"schema version 1000 .* knows only up to"):
        apply(database)
    assert objects(database) == before


def test_a_removed_or_altered_policy_is_not_changed(database: str) -> None:
    send(database, "SELECT alter_features_1m_policy(start_offset => '3 hours')")
    apply(database)
    with psycopg.connect(database, autocommit=True) as connection:
        row = connection.execute(
            "SELECT start_offset::text FROM feature_platform.policy"
        ).fetchone()
        assert row == ("03:00:00",)
        connection.execute("SELECT remove_features_1m_policy()")
    apply(database)
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM feature_platform.policy").fetchone() == (0,)


GOOD = {"symbol": "A", "ts": "2026-01-01Z", "o": 2, "h": 3, "l": 1, "c": 2, "v": 1, "s": "rest"}


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ({"symbol": ""}, "ohlcv_1m_symbol_check"),
        ({"ts": "infinity"}, "ohlcv_1m_ts_check"),
        ({"ts": "1969-12-31 23:59Z"}, "ohlcv_1m_ts_check"),
        ({"l": 0}, "ohlcv_1m_price_check"),
        ({"l": -1}, "ohlcv_1m_price_check"),
        ({"h": "nan"}, "ohlcv_1m_price_check"),
        ({"h": "inf"}, "ohlcv_1m_price_check"),
        ({"c": "nan"}, "ohlcv_1m_price_check"),
        ({"o": "-inf"}, "ohlcv_1m_price_check"),
        ({"h": 1.5}, "ohlcv_1m_price_check"),
        ({"l": 2.5}, "ohlcv_1m_price_check"),
        ({"v": -1}, "ohlcv_1m_vol_check"),
        ({"v": "nan"}, "ohlcv_1m_vol_check"),
        ({"v": "inf"}, "ohlcv_1m_vol_check"),
        ({"s": "rumour"}, "ohlcv_1m_source_check"),
    ],
)
def test_each_constraint_rejects_impossible_bars(
    conn: psycopg.Connection, change: dict[str, Any], constraint: str
) -> None:
    insert = (
        "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol, source)"
        " VALUES (%(symbol)s, %(ts)s, %(o)s, %(h)s, %(l)s, %(c)s, %(v)s, %(s)s)"
    )
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        conn.execute(insert, {**GOOD, **change})
    assert caught.value.diag.constraint_name is not None
    assert caught.value.diag.constraint_name.endswith(constraint)
    conn.execute(insert, GOOD)
