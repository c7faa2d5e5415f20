"""Guards against a `top` that shows wrong numbers, is slow, or ends with the database."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from typing import Any

import psycopg
import pytest

from feature_platform.queries import queries
from feature_platform_tests.fix_plans import about_as_many, explain, pages_of
from feature_platform_tests.fix_processes import (
    COMMAND,
    PATIENCE,
    insert_recent,
    run_on,
    wait_until,
)

Conn = psycopg.Connection[Any]

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def test_once_prints_one_frame_without_control_codes(database: str, conn: Conn) -> None:
    insert_recent(conn, "OLD")
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    insert_recent(conn, "NEW")
    conn.execute(
        "INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts)"
        " VALUES ('OLD', '2026-01-01 00:00Z', '2026-01-01 00:07Z')"
    )
    done = run_on(database, "top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert " UTC  2 symbols  10 rows waiting for refresh  7 minutes open" in lines[0]
    assert "no run yet" in lines[2]
    new, old = (line.split() for line in lines[-2:])
    assert (new[0], new[-3:]) == ("NEW", ["-", "10", "0"])
    assert (old[0], old[-2:]) == ("OLD", ["0", "7"])
    assert "\x1b" not in done.stdout


@on_postgres
def test_top_shows_new_data_after_a_lost_connection(database: str, conn: Conn) -> None:
    insert_recent(conn, "A")
    terminal, line = pty.openpty()
    output = bytearray()

    def read() -> None:
        try:
            while part := os.read(terminal, 65536):
                output.extend(part)
        except OSError:
            pass  # the process has ended

    with subprocess.Popen(
        [*COMMAND, "top", "--interval", "0.1"],
        env={**os.environ, "FEATURE_PLATFORM_DATABASE_URL": database, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=line,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        os.close(line)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            wait_until(lambda: b"1 symbol " in output, "the first frame")
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            wait_until(lambda: b"no connection, these are the last figures" in output, "the error")
            insert_recent(conn, "B")
            wait_until(lambda: b"2 symbols" in output, "a frame after the restart")
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            reader.join(PATIENCE)
    os.close(terminal)
    assert b"Traceback" not in output


@pytest.mark.parametrize("name", ["status_symbols", "top_open_minutes", "heartbeat_list"])
def test_the_statements_of_top_cost_the_same_at_ten_times_the_history(
    histories: tuple[Conn, ...], name: str
) -> None:
    pages = []
    for conn in histories:
        with conn.transaction(force_rollback=True):
            # Filled gaps of the past, which the query must not read.
            conn.execute(
                "INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts, state)"
                " SELECT symbol, ts - interval '5 minutes', ts, 'filled' FROM ohlcv_1m"
            )
            for _ in range(2):
                plan = explain(conn, queries[name])
        pages.append(pages_of(plan))
    assert about_as_many(pages)
