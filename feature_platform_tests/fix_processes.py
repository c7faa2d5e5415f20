"""The platform's commands and workers as users run them, and waits for events."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString, Self

import psycopg
import pytest

COMMAND = (sys.executable, "-W", "error", "-m", "feature_platform.cli.app")

# Seconds, enough for a busy machine. Only a test that fails waits so long.
PATIENCE = 60.0
_POLL = 0.01
_LONGEST_POLL = 1.0


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def run_on(database: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, on a database that is configured."""
    return run(*arguments, FEATURE_PLATFORM_DATABASE_URL=database)


def only_line(text: str) -> str:
    """Return the only line of a text; fail if there are more."""
    (line,) = text.splitlines()
    return line


def rejection(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line of a command that rejects its input; check its form and the exit status 2."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    line = only_line(done.stderr)
    assert line.startswith("feature-platform: ")
    return line.removeprefix("feature-platform: ")


def wait_until(
    condition: Callable[[], object],
    event: str,
    patience: float = PATIENCE,
    interval: float = _POLL,
    details: Callable[[], str] = str,
) -> None:
    """Wait until `condition` holds, which is tried every `interval` seconds, or less if it is slow.

    Slow tries take a fifth of the time, so that the awaited processes have the processor.
    Fails after `patience` seconds with the name of the event and `details`, the log of a process.
    """
    deadline = time.monotonic() + patience
    began = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < deadline, f"timeout: {event} {details()}"
        time.sleep(max(interval, min(4 * (now - began), _LONGEST_POLL)))
        began = time.monotonic()


def value(connection: psycopg.Connection[Any], query: LiteralString, *parameters: object) -> Any:
    """Return the single value that a query gives."""
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return row[0]


_INSERT_BARS = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT %(symbol)s, %(first)s::timestamptz + i * %(step)s * interval '1 minute',
           p, p + 0.75, p - 0.5, p + sin(i) / 4, i * 7919 %% 997 / 10.0
      FROM generate_series(0, %(count)s - 1) AS i,
           LATERAL (SELECT 100 + 10 * sin(i / 97.0)) AS price (p)
"""


def insert_bars(
    connection: psycopg.Connection[Any], symbol: str, first: datetime, count: int, step: int = 1
) -> None:
    """Write a bar every `step` minutes; no two of their features are equal."""
    connection.execute(
        _INSERT_BARS, {"symbol": symbol, "first": first, "count": count, "step": step}
    )


def insert_recent(connection: psycopg.Connection[Any], symbol: str, count: int = 10) -> None:
    """Write bars of the last closed minutes."""
    first = value(
        connection, "SELECT feature_platform.due_until() - %s * interval '1 minute'", count
    )
    insert_bars(connection, symbol, first, count)


def a_worker_waits(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a slice of a worker waits for a lock."""
    row = connection.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND query LIKE '%policy_step%' AND pid <> pg_backend_pid()"
    )
    return row.fetchone() is not None


def account_for_all(connection: psycopg.Connection[Any]) -> None:
    """Run the accounting until no transaction from before its first tick may be open.

    Those of other databases on the server count, too, so the number of ticks has no bound.
    """

    def accounted() -> bool:
        connection.execute("SELECT feature_platform.find_gaps()")
        return not value(connection, "SELECT EXISTS (SELECT FROM feature_platform.gap_beginning)")

    wait_until(accounted, "the transactions from before the first tick have ended")


class WorkerProcess:
    """A process of `feature-platform worker`, and its log.

    environment: variables in addition to those of the test.
    """

    arguments: tuple[str, ...] = ("worker",)

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *self.arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._new_line = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """Its log until now."""
        with self._new_line:
            return "".join(self._lines)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until its log contains a text `times` times."""
        with self._new_line:
            found = self._new_line.wait_for(
                lambda: "".join(self._lines).count(text) >= times or not self._reader.is_alive(),
                PATIENCE,
            )
        assert found, f"timeout: {text!r} in the log:\n{self.log}"
        assert self.log.count(text) >= times, f"it ended without {text!r}:\n{self.log}"

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it has ended; return its exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def stop(self) -> str:
        """Stop it in order, and return its log."""
        self.terminate()
        status = self.wait()
        assert status == 0, self.log
        return self.log

    def kill(self) -> None:
        """Kill it as kill -9 does."""
        self.process.kill()
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._new_line:
                self._lines.append(line)
                self._new_line.notify_all()
        with self._new_line:
            self._new_line.notify_all()


StartWorker = Callable[[str], WorkerProcess]


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    """Yield a function that starts workers on databases; those that still run are killed later."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(WorkerProcess(FEATURE_PLATFORM_DATABASE_URL=url))
