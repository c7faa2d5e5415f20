"""Guards against the use of a database whose schema is missing, older, newer or changed."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from feature_platform import schema
from feature_platform.errors import UserError
from feature_platform.settings import get_settings
from feature_platform_tests.fix_processes import rejection, run_on, value

Conn = psycopg.Connection[Any]

VERSION = "SELECT max(version) FROM feature_platform.schema_version"
HASH = "SELECT hash FROM feature_platform.schema_version ORDER BY version DESC LIMIT 1"
UNKNOWN = "f" * 64
IS_SET_UP = "SELECT to_regnamespace('feature_platform') IS NOT NULL"

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure a database, so that only its owner sets up databases."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", "postgresql://db.example/bars")
    get_settings.cache_clear()


@pytest.fixture
def empty(empty_database: str) -> Any:
    """Yield an autocommit connection to a database that is not set up."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        yield connection


def set_version(connection: Conn, version: int | None) -> None:
    connection.execute("DELETE FROM feature_platform.schema_version")
    if version is not None:
        connection.execute("INSERT INTO feature_platform.schema_version VALUES (%s)", [version])


def set_hash(connection: Conn, hash_: str | None) -> None:
    connection.execute("UPDATE feature_platform.schema_version SET hash = %s", [hash_])


def test_the_set_up_records_the_number_and_the_hash(conn: Conn) -> None:
    rows = conn.execute("SELECT version, hash FROM feature_platform.schema_version").fetchall()
    assert rows == [(schema.SCHEMA_VERSION, schema.SCHEMA_HASH)]


def test_the_embedded_database_is_set_up_automatically(empty: Conn) -> None:
    schema.prepare(empty)
    assert value(empty, VERSION) == schema.SCHEMA_VERSION


@pytest.mark.usefixtures("configured")
def test_another_database_is_not_set_up_automatically(empty: Conn) -> None:
    with pytest.raises(UserError, match=r"^database \w+ is not set up: run `.* db apply`$"):
        schema.prepare(empty)
    assert not value(empty, IS_SET_UP)


@pytest.mark.parametrize("url", [None, "postgresql://db.example/bars"])
def test_an_up_to_date_database_is_not_changed(
    conn: Conn, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url is not None:
        monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    conn.execute("SET default_transaction_read_only = on")
    schema.prepare(conn)


def test_an_older_embedded_database_is_upgraded(conn: Conn) -> None:
    set_version(conn, schema.SCHEMA_VERSION - 1)
    conn.execute("DROP VIEW feature_platform.policy_status")
    schema.prepare(conn)
    assert value(conn, VERSION) == schema.SCHEMA_VERSION
    conn.execute("TABLE feature_platform.policy_status")


@pytest.mark.usefixtures("configured")
def test_an_older_database_is_not_upgraded_automatically(conn: Conn) -> None:
    set_version(conn, schema.SCHEMA_VERSION - 1)
    with pytest.raises(UserError, match=r"version \d+, this code needs \d+: run `.* db apply`$"):
        schema.prepare(conn)
    assert value(conn, VERSION) == schema.SCHEMA_VERSION - 1


@pytest.mark.parametrize("url", [None, "postgresql://db.example/bars"])
def test_a_newer_database_is_rejected(
    conn: Conn, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url is not None:
        monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    set_version(conn, schema.SCHEMA_VERSION + 1)
    with pytest.raises(UserError, match=r"knows only up to \d+: install a newer feature_platform$"):
        schema.prepare(conn)
    assert value(conn, VERSION) == schema.SCHEMA_VERSION + 1


def test_an_embedded_database_of_older_files_is_upgraded(conn: Conn) -> None:
    """A database of an earlier commit has the same number, and another hash or none."""
    set_hash(conn, None)
    conn.execute("DROP VIEW feature_platform.policy_status")
    schema.prepare(conn)
    assert value(conn, HASH) == schema.SCHEMA_HASH
    conn.execute("TABLE feature_platform.policy_status")


@pytest.mark.usefixtures("configured")
def test_a_database_of_older_files_is_not_upgraded_automatically(conn: Conn) -> None:
    set_hash(conn, None)
    with pytest.raises(UserError, match=r"older files of schema version \d.*: run `.* db apply`$"):
        schema.prepare(conn)
    assert value(conn, HASH) is None


@pytest.mark.parametrize("url", [None, "postgresql://db.example/bars"])
def test_a_database_of_newer_files_of_the_version_is_rejected(
    conn: Conn, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url is not None:
        monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    set_hash(conn, UNKNOWN)
    with pytest.raises(UserError, match=r"does not know .*: install a newer feature_platform$"):
        schema.prepare(conn)
    with pytest.raises(UserError, match=r"does not know .*The database was not changed"):
        schema.apply(conn)
    assert value(conn, HASH) == UNKNOWN


COMMANDS = (
    ("status",),
    ("verify",),
    ("gaps",),
    ("top", "--once"),
    ("refresh",),
    ("worker",),
    ("record",),
    ("serve", "--port", "0"),
    ("backfill", "--symbol", "BTC/USDT", "--start", "2026-03-01"),
    ("forget", "--yes", "BTC/USDT"),
    ("import", "--symbol", "BTC/USDT", __file__),
    ("db", "apply"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_every_command_rejects_a_newer_database(
    database: str, conn: Conn, arguments: tuple[str, ...]
) -> None:
    set_hash(conn, UNKNOWN)
    line = rejection(run_on(database, *arguments))
    assert "schema version" in line
    assert "nstall a newer feature_platform" in line
    assert value(conn, HASH) == UNKNOWN


@pytest.mark.usefixtures("configured")
def test_a_database_without_a_version_counts_as_not_set_up(conn: Conn) -> None:
    set_version(conn, None)
    with pytest.raises(UserError, match=r"is not set up: run `feature-platform db apply`$"):
        schema.prepare(conn)


def test_an_embedded_database_with_a_foreign_table_is_rejected(empty: Conn) -> None:
    empty.execute("CREATE TABLE ohlcv_1m (x int)")
    with pytest.raises(UserError, match=r"public\.ohlcv_1m exists here and was not made by"):
        schema.prepare(empty)
    assert not value(empty, IS_SET_UP)


def test_db_apply_can_be_repeated(empty_database: str, empty: Conn) -> None:
    for _ in range(2):
        done = run_on(empty_database, "db", "apply")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("set up: PostgreSQL ")
    assert value(empty, VERSION) == schema.SCHEMA_VERSION


def test_db_apply_rejects_a_database_with_one_line(empty_database: str, empty: Conn) -> None:
    empty.execute("CREATE TABLE features_1m (x int)")
    line = rejection(run_on(empty_database, "db", "apply"))
    assert line.startswith("public.features_1m exists here and was not made by feature_platform")
    assert not value(empty, IS_SET_UP)
    empty.execute("DROP TABLE features_1m")
    schema.apply(empty)
    set_version(empty, schema.SCHEMA_VERSION + 1)
    line = rejection(run_on(empty_database, "db", "apply"))
    assert "has schema version" in line
    assert line.endswith("The database was not changed. Install a newer feature_platform")
