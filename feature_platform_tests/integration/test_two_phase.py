"""Guards against writers that cannot take part in two-phase commit."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from feature_platform import schema
from feature_platform.embedded.server import EmbeddedServer
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import StartWorker, insert_recent
from feature_platform_tests.integration.test_worker_wakes import (
    MINUTE_BAR,
    wait_for_features,
    wait_for_runs,
)


@pytest.fixture
def two_phase() -> Iterator[str]:
    """Yield a database of a server with prepared transactions."""
    conf = {"fsync": "off", "max_prepared_transactions": "2"}
    with passable_directory() as home, EmbeddedServer(home, conf=conf) as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE two_phase")
        with psycopg.connect(server.url("two_phase"), autocommit=True) as connection:
            schema.apply(connection)
        yield server.url("two_phase")


def test_the_worker_refreshes_the_rows_of_a_prepared_transaction(
    two_phase: str, start_worker: StartWorker
) -> None:
    with psycopg.connect(two_phase, autocommit=True) as conn:
        conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 year')")
        worker = start_worker(two_phase)
        wait_for_runs(conn, 1)
        conn.execute("BEGIN")
        conn.execute(MINUTE_BAR, ("A", -1))  # a trigger with NOTIFY would fail here
        conn.execute("PREPARE TRANSACTION 'bar'")
        insert_recent(conn, "B", 3)
        wait_for_features(conn, 3)
        conn.execute("COMMIT PREPARED 'bar'")
        wait_for_features(conn, 4)
        worker.stop()
