"""Guards against processes that the supervisor does not restart, or does not end."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

import psutil
import pytest

from feature_platform_tests.fix_processes import PATIENCE, rejection, run, wait_until

SUPERVISE = """
import os, sys
from feature_platform.dev.supervisor import Supervisor

if __name__ == "__main__":
    supervisor = Supervisor()
    for name, code in zip(sys.argv[1::2], sys.argv[2::2]):
        patience = 1 if name == "stays" else 20
        # The process with the name p8000 waits until port 8000 accepts connections.
        after = [("127.0.0.1", int(name[1:]))] if name[1:].isdecimal() else []
        supervisor.add(name, (sys.executable, "-uc", code), os.environ, patience, after)
    sys.exit(supervisor.run())
"""
WAITS = "import os, time; print('pid', os.getpid()); time.sleep(1000)"
# Like Dagster, it starts another process, and ends it after a SIGTERM. A handler of Python could
# miss a signal that arrives just before a blocking call.
HAS_A_CHILD = """
import os, signal, subprocess
child = subprocess.Popen(['sleep', '1000'])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print('pid', os.getpid(), child.pid)
signal.sigwait([signal.SIGTERM])
child.kill()
child.wait()
"""
NEEDS_HELP = "print('no such exchange'); raise SystemExit(2)"


class Supervised:
    """A supervisor, and its output. processes: name and code of each."""

    def __init__(self, **processes: str) -> None:
        arguments = [word for pair in processes.items() for word in pair]
        self.process = subprocess.Popen(
            [sys.executable, "-uc", SUPERVISE, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def pids(self, name: str, times: int = 1) -> list[int]:
        """Wait until a process has printed its ids `times` times; return the last ids."""

        def printed() -> list[str]:
            pattern = re.compile(rf"\d\d:\d\d:\d\d {name} *\| pid (.*)")
            return [found[1] for found in map(pattern.search, list(self.lines)) if found]

        wait_until(lambda: len(printed()) >= times, f"{name} has been started {times} times")
        return [int(word) for word in printed()[times - 1].split()]

    def wait(self) -> int:
        """Wait until it has ended; return its exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def close(self) -> None:
        """End the supervisor, and close its output."""
        with closing(self.process.stdout):  # type: ignore[type-var]
            if self.process.poll() is None:
                self.process.terminate()
                self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))


@pytest.fixture
def both() -> Iterator[Supervised]:
    """Yield a supervisor of two processes; `parent` has a child."""
    with ExitStack() as stack:
        yield stack.enter_context(Supervised(waits=WAITS, parent=HAS_A_CHILD))


def gone(*pids: int) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    )


def test_a_killed_process_is_restarted_and_others_run_on(both: Supervised) -> None:
    (waiting,), (parent, child) = both.pids("waits"), both.pids("parent")
    os.kill(parent, signal.SIGKILL)
    again = both.pids("parent", times=2)
    assert gone(parent, child)  # a child that is left would use the port
    assert not gone(waiting, *again)
    assert any("parent is started again in 1 s" in line for line in both.lines)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_stops_all_processes_in_order(
    both: Supervised, number: signal.Signals, status: int
) -> None:
    pids = (*both.pids("waits"), *both.pids("parent"))
    both.process.send_signal(number)
    assert both.wait() == status
    assert gone(*pids)
    assert not any("SIGKILL" in line or "again" in line for line in both.lines)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_kill_of_the_supervisor_ends_all_processes(both: Supervised) -> None:
    pids = (*both.pids("waits"), *both.pids("parent"))
    both.process.kill()
    wait_until(lambda: gone(*pids), "all processes are gone")


IGNORES_SIGTERM = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(['sleep', '1000'])
print('pid', os.getpid(), child.pid)
time.sleep(1000)
"""


@pytest.mark.timing
def test_a_process_that_does_not_stop_in_time_is_killed() -> None:
    with Supervised(waits=WAITS, stays=IGNORES_SIGTERM) as supervised:
        pids = (*supervised.pids("waits"), *supervised.pids("stays"))
        began = time.monotonic()
        supervised.process.send_signal(signal.SIGINT)
        assert supervised.wait() == 130
        assert time.monotonic() - began < 10
        assert gone(*pids)
    assert any("stays did not stop within 1 s: killed" in line for line in supervised.lines)
    assert not any("SIGKILL" in line for line in supervised.lines)


def test_a_second_dev_in_one_home_names_the_first(tmp_path: Path) -> None:
    with (tmp_path / "dev.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711 http://127.0.0.1:3000")
        lock.flush()
        line = rejection(run("dev", "--port", "1", FEATURE_PLATFORM_HOME=str(tmp_path)))
    assert line == (
        f"`make dev` runs here already: open http://127.0.0.1:3000 (process 4711, in {tmp_path});"
        " end it with Ctrl-C, or set FEATURE_PLATFORM_HOME and other ports for a second one"
    )


def test_a_process_starts_when_the_server_that_it_needs_has_started() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    serves = f"""
import socket, time
time.sleep(1.5)
server = socket.create_server(("127.0.0.1", {port}))
print("pid", 0)
time.sleep(1000)
"""
    connects = f"""
import socket, time
socket.create_connection(("127.0.0.1", {port})).close()
print("pid", 1)
time.sleep(1000)
"""
    with Supervised(**{f"p{port}": connects, "serves": serves}) as supervised:
        assert supervised.pids(f"p{port}") == [1]
    assert not any("Connection refused" in line for line in supervised.lines)


def test_a_process_that_cannot_start_ends_all() -> None:
    with Supervised(waits=WAITS, wrong=NEEDS_HELP) as supervised:
        assert supervised.wait() == 2
        output = "".join(supervised.lines)
    assert "wrong  | no such exchange" in output
    assert "wrong cannot start: stopping everything" in output


@pytest.mark.parametrize("option", ["--port", "--exchange-port"])
def test_dev_names_a_port_in_use_at_once(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = "--exchange-port" if option == "--port" else "--port"
        line = rejection(run("dev", option, str(port), other, "0"))
    assert line == (
        f"port {port} of 127.0.0.1 cannot be used, Address already in use: choose another"
        f" with {option}"
    )
