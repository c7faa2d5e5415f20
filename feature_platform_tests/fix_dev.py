"""The whole platform as `make dev` runs it, in a home of its own, with all its processes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psutil
import psycopg
import pytest

from feature_platform.embedded.server import embedded_server
from feature_platform.settings import get_settings
from feature_platform_tests.fix_processes import COMMAND, value, wait_until

# Seconds: the promised time from the cause of a gap to its repair.
PROMISED = 120.0
_INTERVAL = 0.2


@dataclass(frozen=True)
class Dev:
    """A running `feature-platform dev`.

    url: of Dagster's UI.
    exchange_url: of the simulated exchange.
    """

    url: str
    exchange_url: str
    process: subprocess.Popen[str]
    log: Path

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(
        self,
        connection: psycopg.Connection[Any],
        condition: LiteralString,
        event: str,
        *parameters: object,
    ) -> None:
        """Wait until a query gives true, for at most the promised time."""

        def holds() -> object:
            self.check_running()
            return value(connection, condition, *parameters)

        wait_until(holds, event, PROMISED, _INTERVAL)

    def check_running(self) -> None:
        """Fail with the end of its log when the process has ended."""
        assert self.process.poll() is None, self.log_end()

    def wait_for_page(self, url: str) -> None:
        """Wait until a page is served."""

        def served() -> bool:
            self.check_running()
            return is_served(url)

        wait_until(served, f"{url} is served", PROMISED, _INTERVAL, self.log_end)

    def log_end(self) -> str:
        return self.log_text()[-5000:]

    def children(self) -> list[psutil.Process]:
        """Return all its child processes."""
        return list(psutil.Process(self.process.pid).children(recursive=True))


@contextmanager
def run_dev(folder: Path, *options: str, **environment: str) -> Iterator[Dev]:
    """Run the platform in a folder while the body runs, and use its settings in this process.

    options: further options of the command. environment: further settings; the home is by default
        in the folder.
    """
    port, exchange_port = free_port(), free_port()
    home = Path(environment.setdefault("FEATURE_PLATFORM_HOME", str(folder / "home")))
    others = {k: text for k, text in os.environ.items() if not k.startswith("FEATURE_PLATFORM_")}
    log = folder / "log"
    with pytest.MonkeyPatch.context() as patch, log.open("w") as out:
        process = subprocess.Popen(
            [
                *(COMMAND[0], *COMMAND[3:], "dev"),  # Dagster's own warnings are not errors
                *("--port", str(port), "--exchange-port", str(exchange_port), *options),
            ],
            env={**others, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for name, text in environment.items():
            patch.setenv(name, text)
        get_settings.cache_clear()
        dev = Dev(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{exchange_port}", process, log)
        try:
            dev.wait_for_page(f"{dev.exchange_url}/api/v3/ping")  # the database runs by now
            yield dev
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
            embedded_server(home).release()  # for the tests that connected to it
    get_settings.cache_clear()


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process has not ended; a zombie has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_served(url: str) -> bool:
    """Return whether a page is served."""
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def free_port() -> int:
    """Return a port that no process listens to.

    The system gives none of these ports to another process that requests any free port.
    """
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
