"""The worker outlives its database, and the data outlive the worker, however either ends."""

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
            # The worker is to do the work; the job begins with the server's next start.
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
    """Wait until there are so many feature rows, and check them against the bars."""
    with psycopg.connect(url, autocommit=True) as connection:
        count = "SELECT count(*) FROM features_1m"
        wait_until(lambda: value(connection, count) == rows, f"{rows} feature rows")
        report = verify(connection)
    assert (report.rows, report.examples, report.pending) == (rows, [], 0)


@pytest.fixture
def running(home: Path, engine: Engine, binaries: Path | None) -> Iterator[EmbeddedServer]:
    """Yield a server of this process, with a database that is set up."""
    conf = {**FAST, "shared_preload_libraries": "timescaledb"} if engine == "timescaledb" else FAST
    server = EmbeddedServer(home, conf=conf, binaries=binaries)
    server.start()
    prepared(server.url(), engine)
    yield server
    server.release()


def stop_at_once(home: Path, number: signal.Signals = signal.SIGQUIT) -> None:
    """Stop a server as `pg_ctl stop -m immediate` does: without a word, to recover at its start."""
    os.kill(postmaster_pid(home), number)
    wait_until_dead(home)


def test_a_restart_of_the_database(running: EmbeddedServer, start_worker: StartWorker) -> None:
    worker = start_worker(with_password(running.url()))
    insert(running.url(), "A")
    wait_until_right(running.url(), BARS)
    for times in (1, 2):
        stop_at_once(running.home)
        worker.wait_for("the database went away: ", times)
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


def test_a_restart_in_the_middle_of_a_slice(
    running: EmbeddedServer, start_worker: StartWorker
) -> None:
    url = running.url()
    with ExitStack() as stack:
        holder = stack.enter_context(psycopg.connect(url))
        holder.execute("LOCK TABLE features_1m IN SHARE MODE")
        worker = start_worker(with_password(url))
        insert(url, "A")
        with psycopg.connect(url, autocommit=True) as connection:
            wait_until(lambda: a_worker_waits(connection), "a slice in hand")
        stop_at_once(running.home)
        with pytest.raises(psycopg.OperationalError):
            holder.execute("SELECT 1")
    running.start()
    wait_until_right(url, BARS)
    with psycopg.connect(url, autocommit=True) as connection:
        # By the worker's next run; on TimescaleDB the job may have stored the rows before it.
        interrupted = (
            "SELECT last_error = 'the run was interrupted' FROM feature_platform.policy_status"
        )
        wait_until(lambda: value(connection, interrupted), "the run is known as interrupted")
    worker.stop()


def test_a_stop_while_there_is_no_database(
    running: EmbeddedServer, start_worker: StartWorker
) -> None:
    worker = start_worker(running.url())
    worker.wait_for("at work")
    stop_at_once(running.home)
    worker.wait_for("; trying again", 2)
    worker.terminate()
    assert worker.wait() == 0
    assert worker.log.endswith("feature-platform: stopped\n")


def test_a_kill_in_the_middle_of_a_slice(
    running: EmbeddedServer, start_worker: StartWorker
) -> None:
    """What a killed worker had in hand is stored whole, or still dirty."""
    url = running.url()
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as connection:
        holder.execute("LOCK TABLE features_1m IN SHARE MODE")
        worker = start_worker(url)
        insert(url, "A")
        wait_until(lambda: a_worker_waits(connection), "a slice in hand")
        worker.kill()
        report = verify(connection)
        assert (report.rows, report.examples, report.pending) == (0, [], BARS)
    insert(url, "B")
    second = start_worker(url)
    wait_until_right(url, 2 * BARS)
    second.stop()


def test_on_the_embedded_server_nothing_else_need_run(home: Path) -> None:
    """A worker starts the server, starts it again when it has died, and stops it at the end."""
    with WorkerProcess(FEATURE_PLATFORM_HOME=str(home)) as worker:
        worker.wait_for("at work")
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
