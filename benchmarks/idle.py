"""CPU and memory of all processes of `make dev`, with five simulated symbols and no request.

The processes are the supervisor, the exchange, the recorder, the worker, Dagster, and the embedded
PostgreSQL with its sessions. The use of a process that has ended counts for its parent.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil

from benchmarks.harness import Ratio, Result, Workbench, WrongResultError, free_port
from feature_platform.database import connect
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.gaps import list_gaps
from feature_platform.settings import PREFIX, Settings
from feature_platform.status import symbol_status

SECONDS = 120
SETTLING = 30  # seconds after all is fetched and refreshed
PATIENCE = 240.0

_RUNS = "Dagster's runs"
# The first pattern that is found in a command line names its process; the others name none.
_NAMES = {
    r"^\S*postgres[: ]": "PostgreSQL",
    r" simulate ": "simulated exchange",
    r" record ": "recorder",
    r" worker\b": "worker",
    r"execute_run": _RUNS,
    r"dagster[-_]webserver": "Dagster's web server",
    r"dagster[._-]+daemon": "Dagster's daemon",
    r"code-server|api grpc": "Dagster's code server",
    r"dagster dev": "dagster dev",
}
_OTHERS = "supervisor"

Key = tuple[int, float]  # of a process: its number, and when it began


@dataclass(frozen=True)
class Usage:
    """The CPU time and memory of a process.

    cpu: seconds since its start, with those of its children that have ended.
    memory: in bytes, with its part of shared memory if the system reports that.
    """

    name: str
    parent: int
    cpu: float
    memory: int


def run(bench: Workbench) -> Result:
    """Measure CPU and memory of all processes, once everything is fetched."""
    small = bench.scale < 0.05
    seconds = max(2.0, SECONDS * min(bench.scale, 1))
    with _dev() as (process, home, started):
        bench.show(f"{started:.0f} s until the first page")
        if not small:
            with EmbeddedServer(home) as server:
                _await(process, lambda: _settled(process, server.url()), "all is fetched")
            time.sleep(SETTLING)
        bench.show(f"idle for {seconds:.0f} s")
        before, began = _look(process, home), time.monotonic()
        time.sleep(seconds)
        after, took = _look(process, home), time.monotonic() - began
    cpu = {name: 60 * spent / took for name, spent in _spent(before, after).items()}
    memory: dict[str, float] = defaultdict(float)
    for usage in after.values():
        memory[usage.name] += usage.memory / 1e6
    figures = {f"CPU s a minute, {name}": spent for name, spent in cpu.items()}
    figures |= {f"MB, {name}": size for name, size in memory.items()}
    figures |= {"CPU s a minute, all": sum(cpu.values()), "MB, all": sum(memory.values())}
    return Result(
        ratios=[Ratio("make dev when idle: share of one core", sum(cpu.values()) / 60)],
        figures={what: figure for what, figure in figures.items() if round(figure, 3) > 0},
        seconds={"make dev, until its first page": [started]},
    )


@contextmanager
def _dev() -> Iterator[tuple[psutil.Popen, Path, float]]:
    """Run the platform as `make dev` does, in its own home; yield once its page is served."""
    port, exchange_port = free_port(), free_port()
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    with tempfile.TemporaryDirectory(prefix="feature_platform-") as folder:
        Path(folder).chmod(0o711)  # otherwise root's server does it, and logs it
        home = Path(folder, "home")
        command = (sys.executable, "-m", "feature_platform.cli.app", "dev")
        began = time.monotonic()
        process = psutil.Popen(
            [*command, "--port", str(port), "--exchange-port", str(exchange_port)],
            env={**environment, f"{PREFIX}HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            page = f"http://127.0.0.1:{port}/server_info"
            _await(process, lambda: _answers(page), "the page of make dev")
            yield process, home, time.monotonic() - began
        finally:
            _stop(process)


def _stop(process: psutil.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except psutil.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(process: psutil.Popen, condition: Callable[[], bool], event: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise WrongResultError(f"timeout: {event}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _settled(process: psutil.Popen, url: str) -> bool:
    """Return whether all bars are fetched and refreshed, and no run of Dagster is in progress."""
    with connect(url) as connection:
        statuses = symbol_status(connection)
        gaps = list_gaps(connection, states=["open"])
    done = [
        one.first_bar is not None
        and one.last_bar is not None
        and one.last_bar - one.first_bar > timedelta(days=1)
        and one.lag is not None
        and one.lag < timedelta(minutes=2)
        and not one.rows_dirty
        for one in statuses
    ]
    runs = any(_name(child) == _RUNS for child in process.children(recursive=True))
    long_gaps = any(gap.end - gap.start > timedelta(minutes=5) for gap in gaps)
    symbols = len(Settings.model_fields["symbols"].default)
    return len(done) == symbols and all(done) and not runs and not long_gaps


def _look(process: psutil.Popen, home: Path) -> dict[Key, Usage]:
    """Return the use of all processes of the platform, with those of the database."""
    postmaster = int((home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
    found: dict[Key, Usage] = {}
    for root in (psutil.Process(process.pid), psutil.Process(postmaster)):
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess), one.oneshot():
                cpu = sum(one.cpu_times()[:4])
                full = one.memory_full_info()
                memory = getattr(full, "pss", 0) or full.rss
                found[one.pid, one.create_time()] = Usage(_name(one), one.ppid(), cpu, memory)
    return found


def _name(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline()) + " "
    except psutil.Error:
        return _OTHERS
    return next((name for sought, name in _NAMES.items() if re.search(sought, words)), _OTHERS)


def _spent(before: dict[Key, Usage], after: dict[Key, Usage]) -> dict[str, float]:
    """Return the seconds of CPU between two looks, by the name of the process."""
    names = {pid: usage.name for (pid, _), usage in before.items()}
    spent: dict[str, float] = defaultdict(float)
    for key, usage in after.items():
        spent[usage.name] += usage.cpu - (before[key].cpu if key in before else 0.0)
    for key in before.keys() - after.keys():
        # The parent's time includes all time of a child that has ended.
        usage = before[key]
        spent[names.get(usage.parent, usage.name)] -= usage.cpu
    return spent
