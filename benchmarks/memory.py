"""The memory of recorder and worker over a simulated day, with a fast clock.

Both are the processes that users run; this process simulates the exchange. The measure is their
own resident memory, sampled repeatedly. The first hour is a warm-up.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psutil

from benchmarks.bars import refresh
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    WrongResultError,
    require_exact,
    value,
)
from feature_platform.clock import SimulatedClock
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import GeneratedTruth

SYMBOLS = 20
HOURS = 24
SPEED = 360.0  # an hour in ten seconds
LOOKS_AN_HOUR = 12
FLAT = 1.1
PATIENCE = 120.0
START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class Process:
    """A process of the platform, and its memory in MB at each look."""

    name: str
    process: psutil.Popen
    megabytes: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Store its current memory."""
        if self.process.poll() is not None:
            raise WrongResultError(f"the {self.name} has ended")
        self.megabytes.append(self.process.memory_info().rss / 1e6)

    def growth(self) -> float:
        """Return its growth in MB an hour after the first hour, by a line through all looks."""
        looks = self.megabytes[LOOKS_AN_HOUR:] or self.megabytes
        hours = [number / LOOKS_AN_HOUR for number in range(len(looks))]
        return statistics.linear_regression(hours, looks).slope


def run(bench: Workbench) -> Result:
    """Run both for the hours, and measure their memory."""
    symbols = [f"SYM{number:04d}/USDT" for number in range(bench.scaled(SYMBOLS, 2))]
    looks = bench.scaled(HOURS * LOOKS_AN_HOUR, 4)
    bench.show(f"{len(symbols)} symbols, {looks / LOOKS_AN_HOUR:.1f} hours at {SPEED:g} times")
    with bench.database("memory", simulated=True) as connection:
        with _running(bench, connection, symbols) as processes:
            began = time.monotonic()
            pause = 3600 / LOOKS_AN_HOUR / SPEED
            for number in range(1, looks + 1):
                time.sleep(max(0.0, began + number * pause - time.monotonic()))
                for process in processes:
                    process.look()
        refresh(connection)
        rows = require_exact(connection)
    expected = len(symbols) * looks * 60 // LOOKS_AN_HOUR
    if bench.scale >= 1 and rows < 0.99 * expected:
        raise WrongResultError(f"{rows} bars were recorded, of {expected} that were traded")
    return Result(ratios=_ratios(processes), figures=_figures(processes, rows), seconds={})


@contextmanager
def _running(
    bench: Workbench, connection: Connection, symbols: list[str]
) -> Iterator[list[Process]]:
    """Run a recorder and a worker while the body runs; yield once there are features."""
    clock = SimulatedClock(START, datetime.now(UTC), SPEED)
    with (
        SimulatedExchange(GeneratedTruth(symbols), clock=clock) as exchange,
        tempfile.TemporaryDirectory(prefix="feature_platform-") as home,
    ):
        environment = {
            **os.environ,
            "FEATURE_PLATFORM_DATABASE_URL": bench.url_of(connection),
            "FEATURE_PLATFORM_HOME": home,
            "FEATURE_PLATFORM_CLOCK": str(clock),
            "FEATURE_PLATFORM_EXCHANGE_URL": exchange.url,
            "FEATURE_PLATFORM_SYMBOLS": ",".join(symbols),
        }
        processes = [
            Process(name, _start(environment, *command))
            for name, *command in (("recorder", "record", "--days", "0"), ("worker", "worker"))
        ]
        try:
            deadline = time.monotonic() + PATIENCE
            while not value(connection, "some_features"):
                if time.monotonic() > deadline:
                    raise WrongResultError("there are no features")
                time.sleep(0.05)
            yield processes
        finally:
            for process in processes:
                process.process.terminate()
            for process in processes:
                process.process.wait(PATIENCE)


def _start(environment: dict[str, str], *command: str) -> psutil.Popen:
    return psutil.Popen(
        [sys.executable, "-m", "feature_platform.cli.app", *command],
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def _ratios(processes: list[Process]) -> list[Ratio]:
    return [
        Ratio(
            f"memory of the {process.name}: of the last hour, to the second",
            _of_hour(process, -1) / _of_hour(process, 1),
            at_most=FLAT,
        )
        for process in processes
    ]


def _of_hour(process: Process, number: int) -> float:
    """Return the median memory of a process in an hour; -1 is the last hour."""
    hours = [
        process.megabytes[at : at + LOOKS_AN_HOUR]
        for at in range(0, len(process.megabytes), LOOKS_AN_HOUR)
    ]
    return statistics.median(hours[min(number, len(hours) - 1)])


def _figures(processes: list[Process], rows: int) -> dict[str, float]:
    figures: dict[str, float] = {"bars recorded and verified": rows}
    for process in processes:
        hours = -(-len(process.megabytes) // LOOKS_AN_HOUR)
        for hour in sorted({1, max(1, hours // 2), hours}):
            figures[f"{process.name} in hour {hour} (MB)"] = _of_hour(process, hour - 1)
        figures[f"{process.name}, growth an hour (MB)"] = process.growth()
    return figures
