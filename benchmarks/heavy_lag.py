"""The time from a live bar to its feature row while the refresh has a heavy backlog.

A writer commits one bar of another symbol every fifth of a second, and does not wait for the
earlier rows. Meanwhile one statement marks many rows of the same hour. The worker is the process
that users run.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.bars import DAY, FIRST, create_generator, moment, refresh, settle
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    WrongResultError,
    another_session,
    queries,
    require_exact,
    value,
)
from benchmarks.worker_process import running_worker

PROMISED = 1.0  # seconds, p99
LIVE = 1000  # symbols with a bar each; fewer have a history at a small scale
LIVE_SECONDS = 0.2  # between two live bars
LEAD_SECONDS = 1.0  # of live bars before the heavy statement
ROUNDS = 3
PATIENCE = 300.0


@dataclass(frozen=True)
class Case:
    """A heavy statement.

    query: the statement, which gets symbols and minute; its symbols sort after the live ones.
    symbols: how many it writes.
    history: whether these symbols have a day of bars before.
    """

    query: str
    symbols: int
    history: bool


CASES = {
    "the newest minute of 1,000 symbols is corrected": Case("heavy_correction", 1000, True),
    "minutes of 60 ticks of 1,000 symbols come": Case("heavy_ticks", 1000, True),
    "100,000 symbols of one bar come": Case("heavy_symbols", 100_000, False),
}


class Traffic:
    """Commit live bars at a steady pace and note when each row can be read.

    lags: seconds from a bar's commit to its row.
    """

    def __init__(self, connection: Connection, minute: int) -> None:
        self.connection = connection
        self.minute = minute
        self.lags: list[float] = []
        self._next = 1
        self._committed: dict[str, float] = {}
        self._stopped = threading.Event()
        self._written = threading.Event()

    def run(self, heavy: Case, symbols: int, round_: int) -> float:
        """Run the heavy statement beside live bars; return the seconds until it is refreshed."""
        seconds: list[float] = []

        def refreshed() -> None:
            span = {"symbols": symbols, "minute": self.minute - ROUNDS + round_}
            self.connection.execute(queries[heavy.query], span | {"round": round_})
            began = time.monotonic()
            while value(self.connection, "heavy_marks"):
                if time.monotonic() > began + PATIENCE:
                    raise WrongResultError(f"{heavy.query} is not refreshed")
                time.sleep(0.05)
            seconds.append(time.monotonic() - began)

        self.beside(refreshed)
        return seconds[0]

    def beside(self, work: Callable[[], None]) -> None:
        """Commit live bars while `work` runs, and wait for their rows."""
        self._stopped.clear()
        self._written.clear()
        with ThreadPoolExecutor(2) as pool:
            live = pool.submit(self._write)
            reader = pool.submit(self._read)
            try:
                time.sleep(LEAD_SECONDS)
                work()
            finally:
                self._stopped.set()
                try:
                    live.result()
                finally:
                    self._written.set()
            reader.result()

    def _write(self) -> None:
        began = time.monotonic()
        with another_session(self.connection) as session:
            for number in range(LIVE):
                if self._stopped.wait(max(0, began + number * LIVE_SECONDS - time.monotonic())):
                    return
                symbol = f"LIVE{self._next:05}"
                bar = {"symbol": symbol, "minute": self.minute}
                session.execute(queries["write_live_bar"], bar)
                self._committed[symbol] = time.monotonic()
                self._next += 1

    def _read(self) -> None:
        deadline = time.monotonic() + PATIENCE
        with another_session(self.connection) as session:
            while not self._written.is_set() or self._committed:
                if time.monotonic() > deadline:
                    raise WrongResultError(f"{len(self._committed)} live rows are missing")
                wanted: dict[str, Any] = {
                    "symbols": list(self._committed),
                    "bucket": moment(self.minute),
                }
                rows = session.execute(queries["live_rows"], wanted).fetchall()
                now = time.monotonic()
                self.lags += [max(now - self._committed.pop(symbol), 1e-4) for (symbol,) in rows]
                time.sleep(0.005)


def run(bench: Workbench) -> Result:
    """Measure the lag of live bars beside each heavy statement."""
    lags: dict[str, list[float]] = {}
    refreshed: dict[str, list[float]] = {}
    for name, case in CASES.items():
        symbols = bench.scaled(case.symbols)
        bench.show(f"{name}, at {symbols} symbols")
        with bench.database("heavy_lag") as connection:
            minute = int((datetime.now(UTC) - FIRST).total_seconds()) // 60 - 1
            live = bench.scaled(LIVE, at_least=100)
            _prepare(connection, case, symbols, minute, live)
            traffic = Traffic(connection, minute)
            with running_worker(bench, connection):
                refreshed[name] = [
                    traffic.run(case, symbols, number)
                    for number in range(1, bench.rounds(ROUNDS) + 1)
                ]
            require_exact(connection, start=moment(minute - ROUNDS))
        lags[name] = traffic.lags
    return Result(
        ratios=[
            Ratio(
                f"live bars while {name}: p99, of the promised {PROMISED:g} s",
                p99(taken) / PROMISED,
                at_most=1,
            )
            for name, taken in lags.items()
        ],
        figures={
            f"live bars while {name}: {what}, in ms": 1000 * figure
            for name, taken in lags.items()
            for what, figure in (
                ("p50", statistics.median(taken)),
                ("p99", p99(taken)),
                ("the longest", max(taken)),
            )
        },
        seconds={f"live bars while {name}": taken for name, taken in lags.items()}
        | {f"until all is refreshed: {name}": taken for name, taken in refreshed.items()},
    )


def p99(taken: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(taken, n=100, method="inclusive")[98]


def _prepare(connection: Connection, case: Case, symbols: int, minute: int, live: int) -> None:
    """Store the live symbols' last hour, and a day of those of the heavy statement."""
    create_generator(connection)
    connection.execute(queries["live_history"], {"symbols": live, "minute": minute})
    if case.history:
        days = {"symbols": symbols, "first": minute - DAY - ROUNDS, "last": minute - ROUNDS}
        connection.execute(queries["heavy_history"], days)
    refresh(connection)
    settle(connection)
