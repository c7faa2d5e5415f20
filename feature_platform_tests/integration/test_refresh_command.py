"""Guards against a refresh command that reports wrong counts, or loses work when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from feature_platform.errors import UserError
from feature_platform.refresh import RefreshReport, refresh
from feature_platform.verify import verify
from feature_platform_tests.fix_processes import (
    COMMAND,
    insert_bars,
    only_line,
    rejection,
    run_on,
    value,
    wait_until,
)

Conn = psycopg.Connection[Any]

A, B = "AAA/USDT", "BBB/USDT"
START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def stored(connection: Conn) -> list[tuple[str, datetime]]:
    rows = connection.execute("SELECT symbol, bucket FROM features_1m ORDER BY symbol, bucket")
    return [(symbol, bucket.astimezone(UTC)) for symbol, bucket in rows]


def with_option(url: str, option: str) -> str:
    """Return `url`, with a setting of the server for all sessions that it begins."""
    return f"{url}{'&' if '?' in url else '?'}options={quote(f'-c {option}')}"


def test_a_refresh_reports_its_rows_and_slices(conn: Conn) -> None:
    insert_bars(conn, A, START, 300)
    insert_bars(conn, B, START, 200)
    calls: list[tuple[int, int]] = []
    report = refresh(conn, progress=lambda done, total: calls.append((done, total)))
    assert (report.slices, report.rows_written) == (1, 500)
    assert report.rows_per_second == pytest.approx(500 / report.seconds)
    assert calls == [(500, 500)]
    report = refresh(conn)
    assert (report.slices, report.rows_written) == (0, 0)
    conn.execute("UPDATE ohlcv_1m SET close = close + 0.01 WHERE ts = %s", [START])
    assert refresh(conn).rows_written == 4  # each symbol's row, and the log return of the next one
    conn.execute("DELETE FROM ohlcv_1m WHERE symbol = %s", [B])
    assert refresh(conn).rows_written == 200


def test_a_refresh_of_an_empty_database_writes_no_row(conn: Conn) -> None:
    calls: list[tuple[int, int]] = []
    report = refresh(conn, force=True, progress=lambda done, total: calls.append((done, total)))
    assert (report.slices, report.rows_written) == (0, 0)
    assert RefreshReport(0, 0, 0.0).rows_per_second == 0
    assert all(done <= total for done, total in calls)


@pytest.mark.parametrize(
    ("start", "end", "first", "count"),
    [
        (2, 5, 2, 3),
        (None, 5, 0, 5),
        (7, None, 7, 3),
        (1.5, 4.5, 2, 3),  # both ends are rounded up to whole minutes
        (-9, 99, 0, 10),
        (10, 99, 0, 0),
    ],
)
def test_the_refreshed_window_excludes_its_end(
    conn: Conn, start: float | None, end: float | None, first: int, count: int
) -> None:
    insert_bars(conn, A, START, 10)
    lo, hi = (None if minutes is None else START + minutes * MINUTE for minutes in (start, end))
    assert refresh(conn, lo, hi).rows_written == count
    assert stored(conn) == [(A, START + minute * MINUTE) for minute in range(first, first + count)]
    refresh(conn)
    assert len(stored(conn)) == 10


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
        (START.astimezone(), None),
    ],
)
def test_a_window_may_end_at_any_time(conn: Conn, start: datetime, end: datetime | None) -> None:
    insert_bars(conn, A, START, 3)
    assert refresh(conn, start, end).rows_written == 3


@on_postgres
@pytest.mark.parametrize("end", [START, START - MINUTE])
def test_an_empty_window_is_an_error_of_the_user(conn: Conn, end: datetime) -> None:
    with pytest.raises(UserError, match=r"the refresh window is empty: start .* is not before end"):
        refresh(conn, START, end)


def test_force_repairs_rows_that_another_writer_changed(conn: Conn) -> None:
    insert_bars(conn, A, START, 10)
    refresh(conn)
    conn.execute("UPDATE features_1m SET vol = -1")
    assert refresh(conn).rows_written == 0
    assert refresh(conn, START, START + 4 * MINUTE, force=True).rows_written == 4
    assert verify(conn).mismatches == 6
    assert refresh(conn, force=True).rows_written == 6
    assert verify(conn).mismatches == 0


@on_postgres
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_refresh_sets_the_isolation_that_it_needs(database: str, level: str) -> None:
    url = with_option(
        database, f"default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        assert value(connection, "SHOW transaction_isolation") == level
        insert_bars(connection, A, START, 3)
        assert refresh(connection).rows_written == 3
        assert value(connection, "SHOW transaction_isolation") == "read committed"


def test_the_command_prints_its_counts(database: str, conn: Conn) -> None:
    done = run_on(database, "refresh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("refreshed: 0 rows written in 0 slices, ")
    insert_bars(conn, A, START, 1500)
    done = run_on(
        database, "refresh", "--start", "2026-01-01T01:00", "--end", "2026-01-01T04:00+02"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("refreshed: 60 rows written in 1 slice, ")
    assert stored(conn)[0] == (A, START + timedelta(hours=1))
    assert stored(conn)[-1] == (A, START + timedelta(hours=2) - MINUTE)
    assert run_on(database, "refresh").stdout.startswith("refreshed: 1,440 rows written ")
    done = run_on(database, "refresh", "--force")
    assert done.stdout.startswith("refreshed: 0 rows written in 1 slice, ")
    assert verify(conn).rows == 1500


@on_postgres
def test_wrong_options_get_one_line(database: str) -> None:
    line = rejection(run_on(database, "refresh", "--start", "2026-01-02", "--end", "2026-01-01"))
    assert line.startswith("the refresh window is empty: ")
    line = rejection(run_on(database, "refresh", "--start", "foo"))
    assert line == (
        "Invalid value for '--start': 'foo' is not an ISO-8601 time such as 2026-02-01T12:00Z"
        " (see feature-platform refresh --help)"
    )


@on_postgres
def test_a_database_without_the_schema_gets_one_line(empty_database: str) -> None:
    for command in ("refresh", "verify", "status"):
        line = rejection(run_on(empty_database, command))
        assert line.endswith(" is not set up: run `feature-platform db apply`")


@pytest.mark.parametrize("command", ["refresh", "verify", "status"])
def test_an_unreachable_database_gets_one_line(command: str) -> None:
    line = rejection(run_on("postgresql://me:s3cr3t@localhost:1/db", command))
    assert line.startswith("cannot connect to postgresql://me:***@localhost:1/db: ")


@on_postgres
def test_an_error_of_the_database_gets_one_line(database: str, conn: Conn) -> None:
    insert_bars(conn, A, START, 3)
    done = run_on(with_option(database, "default_transaction_read_only=on"), "refresh")
    assert (done.returncode, done.stdout) == (1, "")
    assert only_line(done.stderr).startswith("feature-platform: cannot execute ")
    conn.execute("""
        CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'no room' USING HINT = 'Make some.'; END $$;
        CREATE TRIGGER reject BEFORE INSERT ON features_1m EXECUTE FUNCTION reject();
    """)
    done = run_on(database, "refresh")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "feature-platform: no room. Make some\n"
    done = run_on(database, "--verbose", "refresh")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("feature-platform: no room. Make some\n")


@contextmanager
def held_at_start(database: str, conn: Conn) -> Iterator[None]:
    """Block each slice that stores the row of START while the body runs."""
    conn.execute("""
        CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.bucket = '2026-01-01 00:00Z' THEN
                PERFORM pg_advisory_xact_lock_shared(42);
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER hold BEFORE INSERT ON features_1m FOR EACH ROW EXECUTE FUNCTION hold();
    """)
    with psycopg.connect(database) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(42)")
        yield


def a_slice_is_held(connection: Conn) -> bool:
    row = connection.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'advisory' AND query LIKE '%refresh_slice%' AND pid <> pg_backend_pid()"
    )
    return row.fetchone() is not None


@on_postgres
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_refresh_keeps_its_slices_and_the_rest_stays_dirty(
    database: str, conn: Conn, number: signal.Signals, status: int
) -> None:
    """The first slice has the newest 50,000 rows; the second has the older ones, with START."""
    rows = 50_100
    insert_bars(conn, A, START, rows)
    with (
        subprocess.Popen(
            [*COMMAND, "refresh"],
            env={**os.environ, "FEATURE_PLATFORM_DATABASE_URL": database},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        held_at_start(database, conn),
    ):
        wait_until(lambda: a_slice_is_held(conn), "the second slice is blocked")
        kept = stored(conn)
        assert 0 < len(kept) < rows
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (status, "", "")
        assert stored(conn) == kept
        report = verify(conn)
        assert (report.mismatches, report.pending) == (0, rows - len(kept))
    # The server may finish the slice of a client that was killed.
    wait_until(lambda: not a_slice_is_held(conn), "the slice has ended")
    assert verify(conn).mismatches == 0
    refresh(conn)
    report = verify(conn)
    assert (report.rows, report.mismatches, report.pending) == (rows, 0, 0)
