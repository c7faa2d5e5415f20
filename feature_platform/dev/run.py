"""The whole platform on one machine, for trying and developing: `make dev`."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from honcho.printer import Message, Printer

from feature_platform.database import connect
from feature_platform.dev.dagster_log import DagsterLog
from feature_platform.dev.supervisor import Supervisor
from feature_platform.disk import is_full
from feature_platform.errors import UserError
from feature_platform.orchestration.instance import instance_file, prepare_instance
from feature_platform.origin import exchange_settings
from feature_platform.queries import queries
from feature_platform.schema import prepare
from feature_platform.settings import PREFIX, Settings, get_settings
from feature_platform.symbols import by_exchange, name_at

_HOST = "127.0.0.1"
_DAGSTER = "dagster"
_SERVES = "Serving dagster-webserver on "
# Seconds. Dagster's webserver waits without limit for each page that is open in a browser.
_DAGSTER_PATIENCE = 4.0
_CTRL_C = 130


# ccxt's exchanges with the simulated API.
_SIMULATED = ("binance", "binanceus")


def run_dev(
    port: int, exchange_port: int, days: int, *, two: bool = False, verbose: bool = False
) -> int:
    """Run everything under one supervisor until Ctrl-C; return its exit status, 0 after a Ctrl-C.

    That is the database, unless one is configured; a simulated exchange, unless one is named;
    the recorder, the worker, and Dagster with its UI on `port`. A process that ends is restarted.
    days: number of days of history for a symbol without bars.
    two: simulate a second exchange, too, with the same symbols.
    verbose: show Dagster's log unchanged, with its tracebacks.
    Raises UserError if one runs already, a port is in use or the database cannot be used.
    """
    settings = get_settings()
    simulated = not settings.model_fields_set & {"exchange", "exchange_url"}
    if two and not simulated:
        raise UserError(
            f"--two-exchanges simulates both: unset {PREFIX}EXCHANGE and {PREFIX}EXCHANGE_URL"
        )
    symbols = settings.symbols
    if two:
        symbols += tuple(f"{_SIMULATED[1]}:{one}" for one in symbols if ":" not in one)
    ports: dict[str, int] = {}
    url = f"http://{_HOST}:{port}"
    bars = "simulated exchange, no real prices" if simulated else f"bars of {settings.exchange}"
    invitation = f"open {url} : {bars}"
    with _locked(settings.home, url):
        _require_free(port, "--port")
        if simulated:
            ports = _exchange_ports(by_exchange(symbols, settings.exchange), exchange_port)
        if simulated:
            print(f"{invitation} (it takes some seconds to start)", flush=True)
        # Open to the end, so that the embedded server runs for processes that start later.
        with connect() as connection:
            prepare(connection, simulated=simulated)
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", **prepare_instance(settings)}
            environment.setdefault(f"{PREFIX}HOME", str(settings.home))
            # At each start Dagster advises `dg dev`, which the user of `make dev` cannot follow.
            environment.setdefault("PYTHONWARNINGS", "ignore:Function `dev_command` is superseded")
            start = start_date(connection, days).isoformat()
            environment.setdefault(f"{PREFIX}START_DATE", start)
            if simulated:
                urls = ",".join(f"{name}=http://{_HOST}:{one}" for name, one in ports.items())
                environment[f"{PREFIX}EXCHANGE_URL"] = urls
                environment[f"{PREFIX}SYMBOLS"] = ",".join(symbols)
                settings = settings.model_copy(update={"exchange_url": urls, "symbols": symbols})
            exchange_settings(connection, settings)
            if not simulated:  # now it is known that the database has no simulated bars
                print(f"{invitation} (it takes some seconds to start)", flush=True)
            _migrate(environment)
            supervisor = Supervisor(_Printer(invitation, settings, verbose=verbose))
            _add_processes(supervisor, port, ports, days, environment)
            status = supervisor.run()
    return 0 if status == _CTRL_C else status


def start_date(connection: psycopg.Connection[Any], days: int) -> date:
    """Return the first UTC day that Dagster repairs: `days` before recording first began here.

    It stays the same at later starts, so that Dagster still requests old missing minutes.
    """
    row = connection.execute(queries["recording_began"]).fetchone()
    assert row is not None, "the statement always gives one row"
    began: datetime = row[0] or get_settings().clock.now()
    return (began.astimezone(UTC) - timedelta(days=days)).date()


def _exchange_ports(exchanges: dict[str, tuple[str, ...]], first: int) -> dict[str, int]:
    """Return the port of each exchange to simulate. Raises UserError if one cannot be simulated."""
    ports: dict[str, int] = {}
    for name in exchanges:
        if name not in _SIMULATED:
            raise UserError(
                f"{exchanges[name][0]}: {name} cannot be simulated, only {' and '.join(_SIMULATED)}"
                f" can: take it out of {PREFIX}SYMBOLS, or set {PREFIX}EXCHANGE for real exchanges"
            )
        ports[name] = first + len(ports)
        _require_free(ports[name], "--exchange-port")
    return ports


def _add_processes(
    supervisor: Supervisor,
    port: int,
    ports: dict[str, int],
    days: int,
    environment: dict[str, str],
) -> None:
    def add(name: str, *command: str, **options: Any) -> None:
        supervisor.add(name, command, environment, **options)

    platform = _script("feature-platform")
    symbols = by_exchange(environment.get(f"{PREFIX}SYMBOLS", "").split(","), _SIMULATED[0])
    for seed, (name, at) in enumerate(ports.items()):
        simulate = ("simulate", "--host", _HOST, "--port", str(at), "--seed", str(seed))
        names = ",".join(name_at(name, one) for one in symbols[name])
        add("exchange" if len(ports) == 1 else name, platform, *simulate, "--symbols", names)
    exchanges = [(_HOST, at) for at in ports.values()]
    add("recorder", platform, "record", "--days", str(days), after=exchanges)
    add("worker", platform, "worker")
    workspace = instance_file().with_name("workspace.yaml")
    command = (_script("dagster"), "dev", "-w", str(workspace), "-h", _HOST, "-p", str(port))
    add(_DAGSTER, *command, "--log-format", "json", patience=_DAGSTER_PATIENCE)


class _Printer(Printer):  # type: ignore[misc]
    """Print the lines of all processes: Dagster's shortened, and its address once it serves."""

    def __init__(self, invitation: str, settings: Settings, *, verbose: bool) -> None:
        super().__init__(sys.stdout)
        self._invitation = invitation
        embedded = settings.database_url is None
        self._dagster = None if verbose else DagsterLog(lambda: embedded and is_full(settings.home))

    def write(self, message: Message) -> None:
        """Print the lines of a message."""
        if message.name != _DAGSTER:
            self._print(message)
            return
        data = message.data
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        for line in text.splitlines():
            shown = line if self._dagster is None else self._dagster.show(line)
            if shown is not None:
                self._print(message._replace(data=shown))
            if _SERVES in line:
                self._print(message._replace(name="system", data=self._invitation))

    def _print(self, message: Message) -> None:
        with suppress(OSError):  # the terminal was closed; the processes still have to be stopped
            super().write(message)


@contextmanager
def _locked(home: Path, url: str) -> Iterator[None]:
    """Lock this home for one `dev`; raise UserError with the address of one that runs already."""
    # The server's OS user must pass through.
    home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    lock = os.open(home / "dev.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, where = os.read(lock, 1000).decode(errors="replace").partition(" ")
            raise UserError(
                f"`make dev` runs here already: open {where} (process {pid}, in {home}); end it"
                f" with Ctrl-C, or set {PREFIX}HOME and other ports for a second one"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()} {url}".encode())
        yield
    finally:
        os.close(lock)


def _migrate(environment: dict[str, str]) -> None:
    """Bring Dagster's own database up to date; print its output only if it fails."""
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
        raise UserError("Dagster could not set up its database: the reason is in the lines above")


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
                f"port {port} of {_HOST} cannot be used, {error.strerror}: choose another with"
                f" {option}"
            ) from None
