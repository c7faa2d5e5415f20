"""The service as a process: it lives through its database's deaths, and leaves in order."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import psutil
import psycopg

from feature_platform_tests.fix_processes import value, wait_until
from feature_platform_tests.fix_service import ServiceProcess

LATEST = "/v1/features/latest?symbol=X"
ROWS = """
    INSERT INTO features_1m (symbol, bucket, last_close, vol)
    SELECT 'X', '2026-01-01Z'::timestamptz + i * interval '1 minute', i, i / 3.0
    FROM generate_series(0, 99999) AS i
"""
WINDOW: dict[str, str | int] = {
    "symbol": "X",
    "start": "2026-01-01",
    "end": "2026-06-01",
    "limit": 100_000,
}
MEGABYTES = 1 << 20


def answers(http: httpx.Client) -> bool:
    return http.get(LATEST).status_code == 200


def test_it_lives_through_its_databases_deaths(home: Path) -> None:
    """Its own embedded server: stopped dead, killed, and started again by the service itself."""
    with ServiceProcess(FEATURE_PLATFORM_HOME=str(home)) as service, service.client() as http:
        assert http.get(LATEST).status_code == 404
        pid = int((home / "postgres" / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        sessions = postmaster.children()
        for session in sessions:
            session.suspend()
        # Answered while the sessions are suspended: it does not wait for them.
        assert http.get(LATEST).status_code == 503
        assert all(session.status() == psutil.STATUS_STOPPED for session in sessions)
        for session in sessions:
            session.resume()
        wait_until(lambda: http.get("/readyz").status_code == 200, "it goes on")
        postmaster.kill()
        wait_until(lambda: not postmaster.is_running(), "the server is dead")
        wait_until(lambda: http.get("/readyz").status_code == 200, "it has a server again")
        service.stop()
    assert service.log.splitlines()[-2:] == [
        "feature-platform: stopping signal=SIGTERM",
        "feature-platform: stopped",
    ]


def test_a_long_answer_takes_little_memory_and_no_connection(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as conn,
        ServiceProcess(FEATURE_PLATFORM_DATABASE_URL=database) as service,
        service.client() as http,
    ):
        conn.execute(ROWS)
        assert answers(http)
        memory = psutil.Process(service.process.pid).memory_info
        before = memory().rss
        with http.stream("GET", "/v1/features", params=WINDOW) as answer:
            parts = answer.iter_raw()
            size = len(next(parts))  # and then this reader is slow
            wait_until(
                lambda: value(
                    conn,
                    "SELECT count(*) = 0 FROM pg_stat_activity WHERE state <> 'idle'"
                    " AND datname = current_database() AND pid <> pg_backend_pid()",
                ),
                "nothing is asked of the database for him",
            )
            assert answers(http)
            most = before
            for part in parts:
                size += len(part)
                most = max(most, memory().rss)
        assert size > 15 * MEGABYTES
        assert most - before < 12 * MEGABYTES


def test_an_answer_in_hand_is_finished_when_it_is_told_to_stop(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as conn,
        ServiceProcess(FEATURE_PLATFORM_DATABASE_URL=database) as service,
        service.client() as http,
    ):
        conn.execute(ROWS)
        with http.stream("GET", "/v1/features", params=WINDOW) as answer:
            service.process.send_signal(signal.SIGTERM)
            service.wait_for("stopping signal=SIGTERM")
            assert answer.read().endswith(b'"next":null}')
        assert service.wait() == 0
        assert service.log.endswith("feature-platform: stopped\n")


def test_a_database_that_is_not_there_yet_is_waited_for() -> None:
    url = "postgresql://me:s3cr3t@127.0.0.1:9/x"  # the port of nobody
    with ServiceProcess(FEATURE_PLATFORM_DATABASE_URL=url) as service, service.client() as http:
        assert http.get(LATEST).status_code == 503
        assert http.get("/healthz").status_code == 200
        told = service.stop()
    assert "cannot connect to postgresql://me:***@127.0.0.1:9/x" in told
    assert "s3cr3t" not in told
