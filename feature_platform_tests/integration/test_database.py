"""Guards against connections to a wrong database, and errors that show a password."""

from __future__ import annotations

import socket
from pathlib import Path

import psycopg
import pytest

from feature_platform.database import capabilities, connect, database_url, server_description
from feature_platform.errors import UserError
from feature_platform.settings import get_settings
from feature_platform_tests.fix_database import Engine

SECRET = "s3cr3t"


def test_the_configured_database_is_used(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    assert database_url() == database
    with connect() as connection:
        assert connection.autocommit
        assert connection.info.get_parameters()["application_name"] == "feature_platform"
    assert not get_settings().home.exists()


def test_connection_options_override_the_defaults(database: str) -> None:
    with connect(database, autocommit=False, application_name="mine") as connection:
        assert not connection.autocommit
        assert connection.info.get_parameters()["application_name"] == "mine"


def test_the_server_is_described_by_its_capabilities(
    conn: psycopg.Connection, engine: Engine
) -> None:
    able = capabilities(conn)
    description = server_description(conn)
    assert description.startswith("PostgreSQL ")
    assert conn.info.dbname in description
    assert (able.timescaledb == "none") is (engine == "postgres")
    assert ("TimescaleDB" in description) is (engine == "timescaledb")


def test_a_closed_port_gets_one_line_without_the_password() -> None:
    with socket.socket() as taken:  # bound without a listener, so that no server can answer
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"postgresql://me:{SECRET}@127.0.0.1:{port}/bars"
        with pytest.raises(UserError, match=f"cannot connect to .*127.0.0.1:{port}") as caught:
            connect(url)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_database_is_named(database: str) -> None:
    with pytest.raises(UserError, match='database "no_such" does not exist'):
        connect(database, dbname="no_such")


def test_the_error_of_an_invalid_url_hides_the_url() -> None:
    with pytest.raises(UserError) as caught:
        connect(f"password={SECRET} nonsense")
    assert SECRET not in str(caught.value)


def test_without_a_url_the_embedded_server_runs(own_home: Path) -> None:
    from feature_platform.embedded.server import embedded_server

    try:
        with connect() as connection:
            assert connection.info.dbname == "feature_platform"
            assert connection.info.user == "postgres"
        assert (own_home / "postgres" / "PG_VERSION").exists()
    finally:
        embedded_server(own_home).release()
