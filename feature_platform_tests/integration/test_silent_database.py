"""Guards against `status` and `health` that hang while the database does not answer."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import psycopg
import pytest

from feature_platform_tests.fix_embedded import postmaster_pid, suspended
from feature_platform_tests.fix_processes import COMMAND, only_line, run, wait_until
from feature_platform_tests.fix_service import ServiceProcess

# The documented time is three seconds, without Python's start.
PROMISED = 3.0
COMMANDS = (("status",), ("health", "recorder"), ("health", "worker"))

Commands = Sequence[tuple[str, ...]]
Statuses = tuple[int, ...]

pytestmark = pytest.mark.timing


@dataclass(frozen=True)
class Ended:
    """A command that has ended, and the seconds that it took."""

    words: str
    seconds: float
    done: subprocess.CompletedProcess[str]


def run_all(commands: Commands, **environment: str) -> list[Ended]:
    """Run commands at once, because each waits most of its time."""

    def ended(words: tuple[str, ...]) -> Ended:
        began = time.monotonic()
        done = run(*words, **environment)
        return Ended(" ".join(words), time.monotonic() - began, done)

    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(ended, commands))


@cache
def start_seconds(count: int) -> float:
    """Return the seconds of so many commands at once that do not connect to a database."""
    ends = run_all([("health", "daemon")] * count, DAGSTER_POSTGRES_URL="")
    return max(end.seconds for end in ends)


def answers(
    commands: Commands = COMMANDS, statuses: Statuses = (1, 2), **where: str
) -> dict[str, str]:
    """Run commands at once, and return the one line of each; fail if one takes too long."""
    ends = run_all(commands, **where)
    for end in ends:
        assert end.seconds < PROMISED + 2 * start_seconds(len(commands)), end
        assert end.done.returncode in statuses, end
    return {end.words: only_line(end.done.stderr) for end in ends}


def test_a_server_without_an_answer_is_reported_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db"
        lines = answers(FEATURE_PLATFORM_DATABASE_URL=url)
    for words, line in lines.items():
        assert "cannot connect to" in line, words
        assert "timeout" in line, words


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_locked_table_is_reported_in_time(database: str) -> None:
    with psycopg.connect(database) as other:
        other.execute(
            "LOCK TABLE feature_platform.policy, feature_platform.heartbeat"
            " IN ACCESS EXCLUSIVE MODE"
        )
        lines = answers(statuses=(1,), FEATURE_PLATFORM_DATABASE_URL=database)
    for words, line in lines.items():
        assert "the database does not answer within 2.5 s" in line, words


@pytest.fixture
def stopped(home: Path) -> Iterator[Path]:
    """Yield the home of an embedded server in use, all of whose processes are suspended."""
    with ServiceProcess(FEATURE_PLATFORM_HOME=str(home)) as service:
        service.client().close()
        postmaster = psutil.Process(postmaster_pid(home))
        with suspended([postmaster, *postmaster.children()]):
            yield home
        service.stop()


@pytest.mark.usefixtures("existing_data")
def test_a_suspended_embedded_server_is_reported_in_time(stopped: Path) -> None:
    home = str(stopped)
    held = "another process is starting or stopping the database in"
    for command in COMMANDS:  # one by one: each holds the start lock while it waits
        line = held
        while held in line:  # by the service, which connects again, too
            (line,) = answers((command,), FEATURE_PLATFORM_HOME=home).values()
        assert f"the database in {stopped} runs, but does not answer" in line, command
    # The same holds while another process holds the start lock and waits longer.
    with subprocess.Popen(
        [*COMMAND, "refresh"],
        env={**os.environ, "FEATURE_PLATFORM_HOME": home},
        stderr=subprocess.DEVNULL,
    ) as waiting:
        lock = str(stopped / "postgres.start.lock")
        files = psutil.Process(waiting.pid).open_files
        wait_until(lambda: any(file.path == lock for file in files()), "it waits for the server")
        for words, line in answers(FEATURE_PLATFORM_HOME=home).items():
            assert held in line, words
        waiting.kill()
