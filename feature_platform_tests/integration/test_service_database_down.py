"""Guards against a service that hangs without its database, or does not recover with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import httpx
import psycopg
import pytest
from psycopg import sql

from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_processes import value, wait_until
from feature_platform_tests.fix_service import ServedDatabase

PATHS = (
    "/v1/features/latest?symbol=X",
    "/v1/features?symbol=X&start=2026-02-01&end=2026-02-02",
    "/v1/symbols",
    "/readyz",
)
# The documented time is a second; a busy machine needs more.
SOON = 2.5


@pytest.fixture(autouse=True)
def warm(served: ServedDatabase) -> None:
    """Connect the service, and store the symbol of the requests."""
    if served.http.get(PATHS[0]).status_code == 404:
        served.add("X", 3)
    wait_until(lambda: served.http.get(PATHS[0]).status_code == 200, "the service answers")


def rejected(served: ServedDatabase, path: str) -> float:
    """Check that a request is answered with 503; return the seconds that it took."""
    began = time.monotonic()
    answer = served.http.get(path)
    seconds = time.monotonic() - began
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json() == {"detail": "the database does not answer"}
    return seconds


@pytest.fixture
def gone(served: ServedDatabase, databases: Databases) -> Iterator[psycopg.Connection]:
    """End all sessions of the database, and reject new ones."""
    name = served.conn.info.dbname
    alter = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(databases.url, autocommit=True) as server:
        server.execute(alter.format(sql.Identifier(name), sql.Literal(False)))
        server.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name = 'feature_platform serve'",
            [name],
        )
        yield server
        server.execute(alter.format(sql.Identifier(name), sql.Literal(True)))


@pytest.mark.timing
def test_requests_are_rejected_soon_without_the_database(
    served: ServedDatabase, gone: psycopg.Connection
) -> None:
    assert all(rejected(served, path) < SOON for path in PATHS)
    allow_connections(served, gone)
    began = time.monotonic()
    wait_until(lambda: served.http.get("/readyz").status_code == 200, "it has recovered")
    assert time.monotonic() - began < 2 * SOON


@pytest.mark.timing
def test_requests_for_a_locked_table_are_rejected_soon(served: ServedDatabase) -> None:
    with served.conn.transaction():
        served.conn.execute("LOCK TABLE features_1m IN ACCESS EXCLUSIVE MODE")
        assert all(rejected(served, path) < SOON for path in PATHS[:3])


def allow_connections(served: ServedDatabase, server: psycopg.Connection) -> None:
    alter = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true")
    server.execute(alter.format(sql.Identifier(served.conn.info.dbname)))


def test_the_service_rejects_requests_until_the_database_is_back(
    served: ServedDatabase, gone: psycopg.Connection
) -> None:
    for path in PATHS:
        rejected(served, path)
    assert served.http.get("/healthz").status_code == 200
    metrics = served.http.get("/metrics").text
    assert "feature_platform_database_up 0.0" in metrics
    assert "feature_platform_lag_seconds" not in metrics
    allow_connections(served, gone)
    wait_until(lambda: served.http.get("/readyz").status_code == 200, "it has recovered")
    assert all(served.http.get(path).status_code == 200 for path in PATHS)


def test_requests_succeed_after_the_server_has_ended_the_sessions(served: ServedDatabase) -> None:
    """After a restart of the server, the old connections are closed while the server runs."""
    for _ in range(3):
        served.conn.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'feature_platform serve'"
        )
        assert served.http.get(PATHS[0]).status_code == 200


def test_a_rejected_request_also_cancels_its_statement(
    served: ServedDatabase,
) -> None:
    with served.conn.transaction():
        served.conn.execute("LOCK TABLE features_1m IN ACCESS EXCLUSIVE MODE")
        seconds = [rejected(served, path) for path in PATHS[:3]]
        # The service has also cancelled the statements.
        wait_until(
            lambda: value(
                served.conn,
                "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'feature_platform serve' AND wait_event_type = 'Lock'",
            ),
            "no session waits for the table",
        )
    assert min(seconds) > 0.5
    assert served.http.get(PATHS[0]).status_code == 200


def test_requests_are_rejected_until_the_database_is_set_up(databases: Databases) -> None:
    url = databases.create_empty()
    try:
        with ExitStack() as stack:
            bare = ServedDatabase(url, stack)
            answer = bare.http.get(PATHS[0])
            assert answer.status_code == 503
            assert answer.json() == {"detail": "the database is not set up"}
            bare.conn.execute("CREATE SCHEMA feature_platform")
            bare.conn.execute("CREATE TABLE feature_platform.schema_version AS SELECT 1 AS version")
            answer = bare.http.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["detail"].startswith("the database has schema version 1, ")
            bare.conn.execute("UPDATE feature_platform.schema_version SET version = 1000")
            answer = bare.http.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["detail"].endswith(": install a newer feature_platform")
    finally:
        databases.drop(url)


def test_an_answer_that_cannot_be_finished_is_cut_off(served: ServedDatabase) -> None:
    """A client must notice that the answer is incomplete."""
    first = served.add("LONG", 30_000)
    window: dict[str, str | int] = {
        "symbol": "LONG",
        "start": first.isoformat(),
        "end": (first + timedelta(minutes=30_000)).isoformat(),
        "limit": 30_000,
    }
    with served.http.stream("GET", "/v1/features", params=window) as answer:
        parts = answer.iter_raw()
        next(parts)
        with served.conn.transaction():
            served.conn.execute("LOCK TABLE features_1m IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(httpx.RemoteProtocolError):
                list(parts)
