"""Guards against services that do not start or work with the environment of the compose file.

Processes of this machine replace the containers. The names of the containers are replaced by an
address of loopback, and the paths of the image by the files that the image copies.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from feature_platform.embedded.server import EmbeddedServer, bin_dir
from feature_platform.simulator.server import SimulatedExchange
from feature_platform_tests.compose import example, image_environment, required, services
from feature_platform_tests.fix_database import Engine
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import PATIENCE, wait_until

pytestmark = pytest.mark.slow

_INTERVAL = 0.5
# A password that breaks a URL, a shell or a key=value list without quotes.
PASSWORD = "p@ss:w/0rd #%%1?&='\"x"
LOADED = """{ workspaceOrError { ... on Workspace { locationEntries {
    locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
KEY = "a-key-of-16-characters"


class Deployment:
    """The services of the compose file, on one address.

    address: an address of loopback for every container.
    folder: the directory with the files of the image's root.
    """

    def __init__(self, address: str, folder: Path, values: Mapping[str, str]) -> None:
        self._address = address
        self._folder = folder
        self._services = services(values)
        self._image = image_environment()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "bin").mkdir()
        (folder / "bin/feature-platform-set-up").symlink_to(CHECKOUT / "deploy/set-up.sh")
        (folder / "dagster/storage").mkdir(parents=True)
        (folder / "platform").mkdir()
        shutil.copy(CHECKOUT / "dagster.yaml", folder / "dagster")

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service's process."""
        given = {**self._image, **self._services[name]["environment"]}
        here = {key: self._here(value) for key, value in given.items()}
        programs = [str(self._folder / "bin"), str(Path(sys.executable).parent), os.defpath]
        return {**here, "PATH": os.pathsep.join(programs), "HOME": str(self._folder)}

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a service to its end."""
        return self._run(self._services[name]["command"], name)

    def start(self, name: str) -> None:
        """Start a service."""
        log = (self._folder / f"{name}.log").open("wb")
        with log:
            self.processes[name] = subprocess.Popen(
                [self._here(word) for word in self._services[name]["command"]],
                cwd=self._folder / "platform",
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_healthy(self, name: str) -> bool:
        """Run the health check of a service once."""
        kind, *test = self._services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self._run(test, name).returncode == 0

    def wait_until_healthy(self, name: str) -> None:
        """Run the health check of a service at an interval, as Docker does, until it passes."""

        def healthy() -> bool:
            assert self.processes[name].poll() is None, self.log(name)
            return self.is_healthy(name)

        wait_until(healthy, f"{name} is healthy", PATIENCE, _INTERVAL, lambda: self.log(name))

    def stop(self, name: str) -> int:
        """Stop a service as Docker does; fail if Docker had to kill it."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        grace = self._services[name].get("stop_grace_period", "10s")
        return process.wait({"s": 1, "m": 60}[grace[-1]] * int(grace[:-1]))

    def log(self, name: str) -> str:
        """Return the log of a service."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Kill the processes that still run."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _run(self, command: list[str], name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._here(word) for word in command],
            cwd=self._folder / "platform",
            env=self.environment(name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def _here(self, text: str) -> str:
        """Replace addresses and paths of a container by those of this machine."""
        for there, here in (
            ("@db:", f"@{self._address}:"),
            ("0.0.0.0", self._address),
            ("127.0.0.1", self._address),
            ("/var/lib/feature_platform", str(self._folder / "platform")),
            ("/var/lib/dagster", str(self._folder / "dagster")),
            ("/etc/feature_platform/workspace.yaml", str(CHECKOUT / "deploy/workspace.yaml")),
        ):
            text = text.replace(there, here)
        return self._address if text in ("db", "code") else text


@pytest.fixture
def address() -> str:
    """Return an unused address of loopback."""
    return f"127.{random.randint(1, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"


@pytest.fixture
def deployment(
    address: str, simulator: SimulatedExchange, engine: Engine, binaries: Path | None
) -> Iterator[Deployment]:
    """Yield the services, of which only the database is started."""
    values = {name: value for name, value in example().items() if value}
    values |= {**dict.fromkeys(required(), PASSWORD), "FEATURE_PLATFORM_API_KEY": KEY}
    values["FEATURE_PLATFORM_EXCHANGE_URL"] = simulator.url.replace("127.0.0.1", "localhost")
    values["FEATURE_PLATFORM_SYMBOLS"] = "BTC/USDT"
    with ExitStack() as stack:
        folder = stack.enter_context(passable_directory())
        access = folder / "pg_hba.conf"
        access.write_text("local all all trust\nhost all all 127.0.0.0/8 scram-sha-256\n")
        conf = {"listen_addresses": address, "hba_file": str(access), "fsync": "off"}
        if engine == "timescaledb":
            conf["shared_preload_libraries"] = "timescaledb"
        server = stack.enter_context(EmbeddedServer(folder / "db", conf=conf, binaries=binaries))
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(PASSWORD))
        if engine == "timescaledb":  # as the image does in each new database
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute("CREATE EXTENSION timescaledb")
        made = Deployment(address, folder, values)
        (folder / "bin/pg_isready").symlink_to(bin_dir() / "pg_isready")
        stack.callback(made.kill)
        yield made


def fetch(url: str, body: object = None, **headers: str) -> Any:
    """Send a request, with a body if there is one, and return the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def has_a_fresh_row(address: str) -> bool:
    """Return whether the model service has a row of the last closed minutes."""
    latest = f"http://{address}:8000/v1/features/latest?symbol=BTC/USDT"
    try:
        (row,) = fetch(latest, Authorization=f"Bearer {KEY}")["rows"]
    except urllib.error.HTTPError:  # the service has no such symbol yet
        return False
    return row["stale"] is False


def test_every_service_of_the_compose_file_starts_and_works(
    deployment: Deployment, address: str
) -> None:
    assert deployment.is_healthy("db")
    done = deployment.run("set-up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    for name in ("code", "recorder", "worker", "serve"):
        deployment.start(name)
    deployment.wait_until_healthy("code")
    for name in ("daemon", "webserver"):
        deployment.start(name)
    for name in deployment.processes:
        deployment.wait_until_healthy(name)

    wait_until(lambda: has_a_fresh_row(address), "a row of recorded bars is served")

    answer = fetch(f"http://{address}:3000/graphql", {"query": LOADED})
    (entry,) = answer["data"]["workspaceOrError"]["locationEntries"]
    assert entry["locationOrLoadError"]["__typename"] == "RepositoryLocation", entry

    for name in reversed(list(deployment.processes)):
        status = deployment.stop(name)
        assert status in (0, -signal.SIGTERM), deployment.log(name)
        assert PASSWORD not in deployment.log(name)
