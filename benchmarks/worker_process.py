"""The worker as users run it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from benchmarks.harness import Connection, Workbench, WrongResultError, value

PATIENCE = 120.0  # seconds until the worker's first run has ended


@contextmanager
def running_worker(bench: Workbench, connection: Connection) -> Iterator[psutil.Popen]:
    """Run a worker on a database while the body runs."""
    environment = {**os.environ, "FEATURE_PLATFORM_DATABASE_URL": bench.url_of(connection)}
    command = (sys.executable, "-m", "feature_platform.cli.app", "worker")
    before = value(connection, "ended_runs")
    with psutil.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while value(connection, "ended_runs") <= before:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise WrongResultError("the worker does not run")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
