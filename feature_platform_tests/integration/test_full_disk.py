"""Guards against lost rows and a flooded log while the disk of the embedded server is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from feature_platform.clock import SimulatedClock
from feature_platform.database import connect
from feature_platform.embedded.server import embedded_server
from feature_platform.errors import UserError
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import Truth
from feature_platform.verify import verify
from feature_platform_tests.fix_embedded import fill, small_file_system
from feature_platform_tests.fix_processes import (
    WorkerProcess,
    insert_recent,
    run,
    value,
    wait_until,
)
from feature_platform_tests.fix_recorder import GoingDatabase, Live, RecorderProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a small file system that holds the platform's home, with a server and a schema.

    The database is a simulated one where the test has a simulated clock.
    """
    with small_file_system(200) as mounted:
        monkeypatch.delenv("FEATURE_PLATFORM_DATABASE_URL", raising=False)
        monkeypatch.setenv("FEATURE_PLATFORM_HOME", str(mounted / "home"))
        get_settings.cache_clear()
        server = embedded_server(mounted / "home")  # as the test's own connections use it
        server.start()
        done = run("db", "apply")
        assert done.returncode == 0, done.stderr
        yield mounted
        assert server.stop()


def write_wal_until_the_server_ends() -> None:
    """Write WAL until the server cannot create another file for it."""

    def write() -> None:
        with connect() as connection:
            while True:
                connection.execute(
                    "SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000))"
                )

    with pytest.raises((psycopg.OperationalError, UserError)):
        write()


def test_the_disk_is_named_once_and_no_row_is_lost(disk: Path) -> None:
    with connect() as connection:
        insert_recent(connection, "A", 100)
    with WorkerProcess() as worker:
        worker.wait_for("refreshed")
        fill(disk, 0)
        write_wal_until_the_server_ends()
        worker.wait_for("the disk is full")
        log = worker.log
        fill(disk, 0)  # the space that the server freed when it ended
        worker.wait_for("times in")  # after 30 s
        lines = worker.log.removeprefix(log).splitlines()
        assert all("the disk is full" in line for line in lines), lines
        assert worker.log.count("feature-platform: active: ") == 1
        (disk / "filling").unlink()
        worker.wait_for("active again")
        with connect() as connection:
            insert_recent(connection, "B", 100)
            bars = "SELECT count(*) FROM ohlcv_1m"
            rows = "SELECT count(*) FROM features_1m"
            wait_until(lambda: value(connection, bars) == value(connection, rows), "all rows")
            report = verify(connection)
            assert (report.pending, report.mismatches) == (0, 0)
            assert report.rows >= 200
        worker.stop()


def test_the_recorder_names_the_disk_once_and_loses_no_bar(
    fast_clock: SimulatedClock,
    disk: Path,
    exchange_truth: Truth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with SimulatedExchange(exchange_truth, seed=7, clock=fast_clock) as venue:
        monkeypatch.setenv("FEATURE_PLATFORM_EXCHANGE_URL", venue.url)
        monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", ",".join(venue.truth.markets))
        get_settings.cache_clear()
        live = Live(venue, GoingDatabase(embedded_server(disk / "home").url()))
        with RecorderProcess() as recorder:
            recorder.wait_for("no minute is missing")
            fill(disk, 0)
            write_wal_until_the_server_ends()
            recorder.wait_for("the disk is full")
            log = recorder.log
            full_since = live.clock.now()
            fill(disk, 0)  # the space that the server freed when it ended
            recorder.wait_for("times in")  # after 30 s
            lines = recorder.log.removeprefix(log).splitlines()
            assert all("the disk is full" in line for line in lines), lines
            assert len(lines) <= 3, lines  # the writer and the fetches of missing minutes
            (disk / "filling").unlink()
            end = live.clock.now()
            assert end - full_since > timedelta(minutes=20)
            with connect():  # waits for the server
                live.wait_for_truth(end)
                live.wait_for_states("live")
            recorder.stop()
