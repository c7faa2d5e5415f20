"""The whole platform on one machine, for trying and developing: `make dev`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from feature_platform._supervisor import Supervisor
from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.orchestration.instance import instance_file, prepare_instance
from feature_platform.schema import prepare
from feature_platform.settings import PREFIX, get_settings

_HOST = "127.0.0.1"


def run_dev(port: int, exchange_port: int, days: int) -> int:
    """Run everything under one supervisor until Ctrl-C; return its exit status.

    That is the database, unless one is configured; a simulated exchange, unless one is named;
    the recorder, the worker, and Dagster with its UI on `port`. A process that ends is started
    again.
    days: of history of a market that has no bars.
    Raises UserError where a port is taken or the database cannot be used.
    """
    settings = get_settings()
    simulated = not settings.model_fields_set & {"exchange", "exchange_url"}
    _require_free(port, "--port")
    if simulated:
        _require_free(exchange_port, "--exchange-port")
    # Held to the end: a process that starts later finds the embedded server running.
    with connect() as connection:
        prepare(connection, simulated=simulated)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **prepare_instance(settings)}
        environment.setdefault(f"{PREFIX}HOME", str(settings.home))
        # Dagster's advice to use `dg dev`, at each start, is nothing for its user to do.
        environment.setdefault("PYTHONWARNINGS", "ignore:Function `dev_command` is superseded")
        start = (settings.clock.now() - timedelta(days=days)).date().isoformat()
        environment.setdefault(f"{PREFIX}START_DATE", start)
        if simulated:
            environment[f"{PREFIX}EXCHANGE_URL"] = f"http://{_HOST}:{exchange_port}"
        _migrate(environment)
        return _supervise(port, exchange_port if simulated else None, days, environment)


def _supervise(port: int, exchange_port: int | None, days: int, environment: dict[str, str]) -> int:
    supervisor = Supervisor()

    def add(name: str, *command: str) -> None:
        supervisor.add(name, command, environment)

    platform = _script("feature-platform")
    if exchange_port is not None:
        add("exchange", platform, "simulate", "--host", _HOST, "--port", str(exchange_port))
    add("recorder", platform, "record", "--days", str(days))
    add("worker", platform, "worker")
    workspace = instance_file().with_name("workspace.yaml")
    add("dagster", _script("dagster"), "dev", "-w", str(workspace), "-h", _HOST, "-p", str(port))
    return supervisor.run()


def _migrate(environment: dict[str, str]) -> None:
    """Bring Dagster's own database up to date; say what it says only where it fails."""
    done = subprocess.run(
        [_script("dagster"), "instance", "migrate"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise UserError("Dagster could not set up its database: what it said stands above")


def _script(name: str) -> str:
    """Return the path of a command that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {_HOST} cannot be used, {error.strerror}: take another with"
                f" {option}"
            ) from None
