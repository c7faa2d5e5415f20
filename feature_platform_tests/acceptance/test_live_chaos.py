"""Half an hour in which everything fails that can, of the whole platform; it ends as the truth.

There are fifty simulated symbols, a clock on which half an hour takes a minute, faults of the
exchange, a restart of the database, and a kill -9 of each process in turn.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from feature_platform.clock import SimulatedClock
from feature_platform.database import connect
from feature_platform.gaps import find_gaps, list_gaps
from feature_platform.heartbeat import list_heartbeats
from feature_platform.settings import get_settings
from feature_platform.simulator.truth import GeneratedTruth
from feature_platform.verify import verify
from feature_platform_tests.fix_dev import Dev, is_served, run_dev
from feature_platform_tests.fix_embedded import postmaster_pid
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import PATIENCE, run, wait_until
from feature_platform_tests.fix_recorder import (
    BarKey,
    BarValues,
    differences,
    stored_bars,
    true_bars,
)

SPEED = 30.0
# A request before the first bar may reach back some minutes.
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPAN = timedelta(minutes=30)
MINUTE = timedelta(minutes=1)
# Seconds between two tries of a wait. A look at all processes, or all bars, takes a processor.
INTERVAL = 0.5
# Three thin symbols, and others.
SYMBOLS = ("XRP/ETH", "ALGO/USDT", "LINK/USDT", *(f"S{number:02}/USDT" for number in range(47)))

ACCIDENTS: list[dict[str, Any]] = [
    # Faults of the streams:
    {"kind": "dropped", "probability": 0.06},
    {"kind": "dropped", "probability": 0.06, "code": 1001},
    {"kind": "stalled", "probability": 0.04, "seconds": 90, "pongs": True},
    {"kind": "stalled", "probability": 0.04, "seconds": 150},
    {"kind": "duplicated", "probability": 0.2, "times": 2},
    {"kind": "reordered", "probability": 0.2},
    {"kind": "lost", "probability": 0.08},
    {"kind": "impossible", "probability": 0.06},
    {"kind": "server_error", "endpoint": "stream", "probability": 0.2},
    # Faults of the published bars:
    {"kind": "quiet_left_out"},
    {"kind": "late", "probability": 0.05, "seconds": 150},
    {"kind": "corrected", "probability": 0.1, "seconds": 100},
    {"kind": "corrected", "probability": 0.05, "seconds": 420},
    # Faults of REST answers:
    {"kind": "latency", "probability": 0.05, "seconds": 0.2},
    {"kind": "server_error", "probability": 0.03},
    {"kind": "too_many_requests", "probability": 0.01},
    {"kind": "reset", "probability": 0.02},
    {"kind": "garbled", "probability": 0.02},
    {"kind": "malformed", "probability": 0.02},
    {"kind": "shuffled", "probability": 0.05},
    {"kind": "repeated", "probability": 0.05},
    {"kind": "short_page", "probability": 0.02, "rows": 1},
    {"kind": "open_candle", "probability": 0.05},
]

# The part of its command line that identifies each process.
PROCESSES = {
    "worker": ("feature-platform", "worker"),
    "exchange": ("feature-platform", "simulate"),
    "recorder": ("feature-platform", "record"),
    "code server": ("dagster", "code-server"),
    "daemon": ("dagster._daemon",),
    "webserver": ("dagster_webserver",),
}

WELL = """{
    instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
    workspaceOrError {
        ... on Workspace { locationEntries { locationOrLoadError { __typename } } }
    }
}"""

pytestmark = pytest.mark.slow


class Chaos:
    """The platform and its accidents."""

    def __init__(self, dev: Dev) -> None:
        self.dev = dev
        self.clock = get_settings().clock
        self.killed: set[int] = set()
        self._admin = f"{dev.exchange_url}/admin/faults"

    def begin_accidents(self) -> None:
        """Have accidents happen from now on."""
        httpx.post(self._admin, json=ACCIDENTS, timeout=60).raise_for_status()

    def end_accidents(self) -> None:
        """Have none happen any more."""
        httpx.delete(self._admin, timeout=60).raise_for_status()

    def never_happened(self) -> list[str]:
        """Return the kinds of accidents that count how often they happen, and have not."""
        faults = httpx.get(self._admin, timeout=60).json()["faults"]
        happened = {fault["kind"] for fault in faults if fault.get("fired", 1)}
        return sorted({fault["kind"] for fault in faults} - happened)

    def kill(self, name: str) -> None:
        """Kill a process as kill -9 does, and wait until there is another in its place."""
        self.wait_for(name)
        victim = self.find(name)
        assert victim is not None
        self.killed.add(victim.pid)
        victim.kill()
        self.wait_for(name)
        if name == "exchange":
            wait_until(lambda: is_served(self._admin), "the exchange answers", interval=INTERVAL)
            self.begin_accidents()

    def wait_for(self, name: str) -> None:
        """Wait until a process is at work; all of Dagster's start again if one has ended."""
        wait_until(lambda: self.find(name), f"the {name} is up", 2 * PATIENCE, INTERVAL)

    def restart_database(self) -> None:
        """Stop the database without a word; who needs it starts it again."""
        home = get_settings().home
        pid = postmaster_pid(home)
        self.killed.add(pid)
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: is_there_another(home, pid), "the database is back")

    def find(self, name: str) -> psutil.Process | None:
        """Return the process of a name, if it is at work."""
        for process in self.dev.children():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if process.pid not in self.killed and is_called(words, PROCESSES[name]):
                return process
        return None

    def is_dagster_well(self) -> bool:
        """Return whether Dagster's daemons run and its code is loaded."""
        answer = httpx.post(f"{self.dev.url}/graphql", json={"query": WELL}, timeout=60).json()
        daemons = answer["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
        locations = answer["data"]["workspaceOrError"]["locationEntries"]
        return all(daemon["healthy"] for daemon in daemons if daemon["required"]) and all(
            one["locationOrLoadError"]["__typename"] == "RepositoryLocation" for one in locations
        )

    def pass_until(self, moment: datetime) -> None:
        """Wait until it is so late."""
        time.sleep(self.clock.wall_seconds((moment - self.clock.now()).total_seconds()))


def is_called(words: list[str], known_by: tuple[str, ...]) -> bool:
    return all(
        any(word == part or word.endswith(f"/{part}") for word in words) for part in known_by
    )


def is_there_another(home: Path, pid: int) -> bool:
    try:
        return postmaster_pid(home) != pid
    except FileNotFoundError:
        return False


@pytest.fixture
def chaos() -> Iterator[Chaos]:
    """Yield the platform as `make dev` runs it, with a fast clock and fifty symbols."""
    clock = SimulatedClock(START + timedelta(hours=1), datetime.now(UTC), SPEED)
    settings = {
        "FEATURE_PLATFORM_CLOCK": str(clock),
        "FEATURE_PLATFORM_SYMBOLS": ",".join(SYMBOLS),
    }
    with passable_directory() as folder, run_dev(folder, "--days", "0", **settings) as dev:
        yield Chaos(dev)


def test_half_an_hour_of_accidents_ends_as_the_truth(chaos: Chaos) -> None:
    with connect() as connection:
        wait_until(
            lambda: len(list_heartbeats(connection)) == len(SYMBOLS),
            "the recorder is at work",
            interval=INTERVAL,
        )
    chaos.begin_accidents()
    began = chaos.clock.now()
    chaos.dev.wait_for_page(f"{chaos.dev.url}/server_info")
    for name in PROCESSES:
        chaos.kill(name)
        if name == "recorder":
            chaos.restart_database()
    chaos.pass_until(began + SPAN)
    wait_until(lambda: not chaos.never_happened(), "every accident has happened", interval=INTERVAL)
    chaos.end_accidents()
    end = chaos.clock.now().replace(second=0, microsecond=0)

    with connect() as connection:
        accounts = Accounts(connection, end)
        accounts.wait_for_truth()
        for condition, event in (
            (accounts.are_complete, "every minute is accounted for"),
            (lambda: verify(connection, end=end).pending == 0, "no row is pending"),
            (lambda: states(connection) == {"live"}, "all symbols are live"),
        ):
            wait_until(condition, event, interval=INTERVAL)
    done = run("verify", "--end", f"{end:%Y-%m-%dT%H:%MZ}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " checked, all equal\n" in done.stdout
    for name in PROCESSES:
        chaos.wait_for(name)
    chaos.dev.wait_for_page(f"{chaos.dev.url}/server_info")
    wait_until(chaos.is_dagster_well, "Dagster's daemons and its code are well", interval=INTERVAL)


class Accounts:
    """Compare the stored bars with the traded ones, from each first bar to a time."""

    def __init__(self, connection: psycopg.Connection[Any], end: datetime) -> None:
        self._connection = connection
        self._end = end
        self._true = true_bars(GeneratedTruth(SYMBOLS), START, end)

    def wait_for_truth(self) -> None:
        """Wait until the stored bars equal the traded ones; fail with the differences."""
        found: list[str] = []

        def is_true() -> bool:
            found[:] = differences(*self._stored_and_true())
            return not found

        try:
            wait_until(is_true, "the bars are the truth", 2 * PATIENCE, INTERVAL)
        except AssertionError:
            raise AssertionError("\n".join([f"{len(found)} bars", *found[:20]])) from None

    def are_complete(self) -> bool:
        """Return whether each minute has a bar or lies in a quiet gap."""
        find_gaps(self._connection)
        quiet = {
            (gap.symbol, gap.start + number * MINUTE)
            for gap in list_gaps(self._connection, states=["quiet"])
            for number in range((gap.end - gap.start) // MINUTE)
        }
        stored, _ = self._stored_and_true()
        first = first_of(stored)
        missing = {(symbol, ts) for symbol, ts in self._true if ts >= first[symbol]} - stored.keys()
        return missing <= quiet

    def _stored_and_true(self) -> tuple[dict[BarKey, BarValues], dict[BarKey, BarValues]]:
        """Return both in the same form; a minute without trades may have a bar, or none."""
        stored = stored_bars(self._connection, START, self._end)
        first = first_of(stored)
        true = {
            (symbol, ts): bar
            for (symbol, ts), bar in self._true.items()
            if ts >= first[symbol] and (bar[-1] or (symbol, ts) in stored)
        }
        return stored, true


def first_of(stored: dict[BarKey, BarValues]) -> dict[str, datetime]:
    """Return the first minute of each symbol."""
    first = dict(sorted(stored, reverse=True))
    assert first.keys() == set(SYMBOLS)
    return first


def states(connection: psycopg.Connection[Any]) -> set[str]:
    return {feed.state for feed in list_heartbeats(connection)}
