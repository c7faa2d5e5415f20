"""Guards against `status` and `health` that hang while the database does not answer."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from feature_platform_tests.fix_embedded import postmaster_pid, suspended
from feature_platform_tests.fix_processes import COMMAND, only_line, run, run_on, wait_until
from feature_platform_tests.fix_service import ServiceProcess

# The documented time is three seconds, without Python's start.
PROMISED = 3.0
COMMANDS = (("status",), ("health", "recorder"), ("health", "worker"))

pytestmark = pytest.mark.timing
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@pytest.fixture(scope="module")
def start_seconds(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Return the seconds of a command that does not connect to a database."""
    home = str(tmp_path_factory.mktemp("home"))
    began = time.monotonic()
    run("health", "daemon", DAGSTER_POSTGRES_URL="", FEATURE_PLATFORM_HOME=home)
    return time.monotonic() - began


def answer(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a command that failed."""
    assert done.returncode in (1, 2)
    return only_line(done.stderr)


def within(began: float, start_seconds: float) -> bool:
    return time.monotonic() - began < PROMISED + 2 * start_seconds


@each_command
def test_a_server_without_an_answer_is_reported_in_time(
    words: tuple[str, ...], start_seconds: float
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db"
        began = time.monotonic()
        line = answer(run_on(url, *words))
        assert within(began, start_seconds)
    assert "cannot connect to" in line
    assert "timeout" in line


@each_command
@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_locked_table_is_reported_in_time(
    words: tuple[str, ...], database: str, start_seconds: float
) -> None:
    with psycopg.connect(database) as other:
        other.execute(
            "LOCK TABLE feature_platform.policy, feature_platform.heartbeat"
            " IN ACCESS EXCLUSIVE MODE"
        )
        began = time.monotonic()
        done = run_on(database, *words)
        assert within(began, start_seconds)
    assert done.returncode == 1
    assert "the database does not answer within 2.5 s" in answer(done)


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
def test_a_suspended_embedded_server_is_reported_in_time(
    stopped: Path, start_seconds: float
) -> None:
    for words in COMMANDS:
        began = time.monotonic()
        done = run(*words, FEATURE_PLATFORM_HOME=str(stopped))
        assert within(began, start_seconds)
        assert f"the database in {stopped} runs, but does not answer" in answer(done)
    # The same holds while another process holds the start lock and waits longer.
    with subprocess.Popen(
        [*COMMAND, "refresh"],
        env={**os.environ, "FEATURE_PLATFORM_HOME": str(stopped)},
        stderr=subprocess.DEVNULL,
    ) as waiting:
        lock = str(stopped / "postgres.start.lock")
        files = psutil.Process(waiting.pid).open_files
        wait_until(lambda: any(file.path == lock for file in files()), "it waits for the server")
        for words in COMMANDS:
            began = time.monotonic()
            done = run(*words, FEATURE_PLATFORM_HOME=str(stopped))
            assert within(began, start_seconds)
            assert "another process is starting or stopping the database in" in answer(done)
        waiting.kill()
