"""Guards against a worker that ends with its database, and rows that are lost with a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from feature_platform import schema
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.verify import verify
from feature_platform_tests.fix_database import Engine
from feature_platform_tests.fix_embedded import (
    FAST,
    is_running,
    postmaster_pid,
    wait_until_dead,
)
from feature_platform_tests.fix_processes import (
    StartWorker,
    WorkerProcess,
    a_worker_waits,
    insert_recent,
    value,
    wait_until,
)

SECRET = "s3cr3t"
BARS = 30


def prepared(url: str, engine: Engine) -> None:
    """Set up a database with a policy that runs every second, and a user with a password."""
    with psycopg.connect(url, autocommit=True) as connection:
        if engine == "timescaledb":
            connection.execute("CREATE EXTENSION timescaledb")
            # The worker refreshes here; the job begins with the server's next start.
            connection.execute("SELECT _timescaledb_functions.stop_background_workers()")
        schema.apply(connection)
        connection.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
        connection.execute("CREATE ROLE me SUPERUSER LOGIN PASSWORD 's3cr3t'")


def with_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"me:{SECRET}@").geturl()


def insert(url: str, symbol: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        insert_recent(connection, symbol, BARS)


def wait_until_right(url: str, rows: int) -> None:
    """Wait until there are `rows` feature rows, and verify them."""
    with psycopg.connect(url, autocommit=True) as connection:
        count = "SELECT count(*) FROM features_1m"
        wait_until(lambda: value(connection, count) == rows, f"{rows} feature rows")
        report = verify(connection)
    assert (report.rows, report.examples, report.pending) == (rows, [], 0)


@pytest.fixture
def running(home: Path, engine: Engine, binaries: Path | None) -> Iterator[EmbeddedServer]:
    """Yield a server of this process, with the schema in its database."""
    conf = {**FAST, "shared_preload_libraries": "timescaledb"} if engine == "timescaledb" else FAST
    server = EmbeddedServer(home, conf=conf, binaries=binaries)
    server.start()
    prepared(server.url(), engine)
    yield server
    server.release()


def stop_at_once(home: Path, number: signal.Signals = signal.SIGQUIT) -> None:
    """Stop a server as `pg_ctl stop -m immediate` does, so that its next start recovers."""
    os.kill(postmaster_pid(home), number)
    wait_until_dead(home)


def test_the_worker_survives_restarts_of_the_database(
    running: EmbeddedServer, start_worker: StartWorker
) -> None:
    worker = start_worker(with_password(running.url()))
    insert(running.url(), "A")
    wait_until_right(running.url(), BARS)
    for times in (1, 2):
        stop_at_once(running.home)
        worker.wait_for("the connection was lost: ", times)
        worker.wait_for("; trying again", times)
        running.start()
        insert(running.url(), f"after {times}")
        worker.wait_for("connected again", times)
        wait_until_right(running.url(), BARS * (times + 1))
    log = worker.stop()
    assert "cannot connect to postgresql://me:***@" in log
    assert SECRET not in log
    assert "Traceback" not in log
    assert all(line.startswith("feature-platform: ") for line in log.splitlines())


def test_a_slice_is_repeated_after_a_restart_of_the_database(
    running: EmbeddedServer, start_worker: StartWorker
) -> None:
    url = running.url()
    with ExitStack() as stack:
        holder = stack.enter_context(psycopg.connect(url))
        holder.execute("LOCK TABLE features_1m IN SHARE MODE")
        worker = start_worker(with_password(url))
        insert(url, "A")
        with psycopg.connect(url, autocommit=True) as connection:
            wait_until(lambda: a_worker_waits(connection), "a slice is blocked")
        stop_at_once(running.home)
        with pytest.raises(psycopg.OperationalError):
            holder.execute("SELECT 1")
    running.start()
    wait_until_right(url, BARS)
    with psycopg.connect(url, autocommit=True) as connection:
        # The worker's next run marks the run; on TimescaleDB the job may store the rows first.
        interrupted = (
            "SELECT last_error = 'the run was interrupted' FROM feature_platform.policy_status"
        )
        wait_until(lambda: value(connection, interrupted), "the run is known as interrupted")
    worker.stop()


def test_a_worker_without_a_database_can_be_stopped(
    running: EmbeddedServer, start_worker: StartWorker
) -> None:
    worker = start_worker(running.url())
    worker.wait_for("active")
    stop_at_once(running.home)
    worker.wait_for("; trying again", 2)
    worker.terminate()
    assert worker.wait() == 0
    assert worker.log.endswith("feature-platform: stopped\n")


def test_the_rows_of_a_killed_worker_are_refreshed_by_the_next(
    running: EmbeddedServer, start_worker: StartWorker
) -> None:
    """The slice of a killed worker is either stored completely or still dirty."""
    url = running.url()
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as connection:
        holder.execute("LOCK TABLE features_1m IN SHARE MODE")
        worker = start_worker(url)
        insert(url, "A")
        wait_until(lambda: a_worker_waits(connection), "a slice is blocked")
        worker.kill()
        report = verify(connection)
        assert (report.rows, report.examples, report.pending) == (0, [], BARS)
    insert(url, "B")
    second = start_worker(url)
    wait_until_right(url, 2 * BARS)
    second.stop()


def test_a_worker_runs_the_embedded_server_alone(home: Path) -> None:
    """A worker starts the server, restarts it after a kill, and stops it at the end."""
    with WorkerProcess(FEATURE_PLATFORM_HOME=str(home)) as worker:
        worker.wait_for("active")
        url = EmbeddedServer(home).url()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT alter_features_1m_policy(schedule_interval => '1 second')")
        insert(url, "A")
        wait_until_right(url, BARS)
        stop_at_once(home, signal.SIGKILL)
        worker.wait_for("connected again")
        insert(url, "B")
        wait_until_right(url, 2 * BARS)
        worker.stop()
        assert not is_running(home)
        assert "Traceback" not in worker.log
