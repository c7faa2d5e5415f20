"""Guards against a service process that ends with its database, or cuts answers when it stops."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from feature_platform_tests.fix_embedded import postmaster_pid, suspended
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
# Seconds. The documented time is a second; a busy machine needs more.
SOON = 2.5


def answers(http: httpx.Client) -> bool:
    return http.get(LATEST).status_code == 200


@pytest.mark.timing
@pytest.mark.usefixtures("existing_data")
def test_a_request_is_rejected_soon_while_all_sessions_are_suspended(home: Path) -> None:
    with ServiceProcess(FEATURE_PLATFORM_HOME=str(home)) as service, service.client() as http:
        assert http.get(LATEST).status_code == 404
        with suspended(psutil.Process(postmaster_pid(home)).children()):
            began = time.monotonic()
            assert http.get(LATEST).status_code == 503
            assert time.monotonic() - began < SOON
        wait_until(lambda: http.get("/readyz").status_code == 200, "the service is ready")


@pytest.mark.usefixtures("existing_data")
def test_the_service_survives_and_restarts_its_embedded_server(home: Path) -> None:
    """The sessions of its embedded server are suspended, then the server is killed."""
    with ServiceProcess(FEATURE_PLATFORM_HOME=str(home)) as service, service.client() as http:
        assert http.get(LATEST).status_code == 404
        postmaster = psutil.Process(postmaster_pid(home))
        with suspended(postmaster.children()) as sessions:
            # The service answers while the sessions are suspended.
            assert http.get(LATEST).status_code == 503
            assert sessions
            assert all(session.status() == psutil.STATUS_STOPPED for session in sessions)
        wait_until(lambda: http.get("/readyz").status_code == 200, "the service is ready")
        postmaster.kill()
        wait_until(lambda: not postmaster.is_running(), "the server has ended")
        wait_until(lambda: http.get("/readyz").status_code == 200, "it has a server again")
        service.stop()
    assert service.log.splitlines()[-2:] == [
        "feature-platform: stopping signal=SIGTERM",
        "feature-platform: stopped",
    ]


def test_a_slow_reader_of_a_long_answer_uses_little_memory_and_no_session(database: str) -> None:
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
            size = len(next(parts))  # then this reader waits
            wait_until(
                lambda: value(
                    conn,
                    "SELECT count(*) = 0 FROM pg_stat_activity WHERE state <> 'idle'"
                    " AND datname = current_database() AND pid <> pg_backend_pid()",
                ),
                "no statement runs for the slow reader",
            )
            assert answers(http)
            most = before
            for part in parts:
                size += len(part)
                most = max(most, memory().rss)
        assert size > 15 * MEGABYTES
        assert most - before < 12 * MEGABYTES


def test_a_stop_waits_for_the_current_answer(database: str) -> None:
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


def test_the_service_starts_without_a_database() -> None:
    url = "postgresql://me:s3cr3t@127.0.0.1:9/x"  # a port without a listener
    with ServiceProcess(FEATURE_PLATFORM_DATABASE_URL=url) as service, service.client() as http:
        assert http.get(LATEST).status_code == 503
        assert http.get("/healthz").status_code == 200
        log = service.stop()
    assert "cannot connect to postgresql://me:***@127.0.0.1:9/x" in log
    assert "s3cr3t" not in log
