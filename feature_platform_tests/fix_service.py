"""The model service on loopback, over a real database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from feature_platform.service.server import Service
from feature_platform.settings import Settings
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_processes import PATIENCE, WorkerProcess, insert_bars, value

# A symbol that is valid: quotes, SQL, HTML, and characters of several planes of Unicode.
STRANGE = 'Ö/$ "x", \';-- %s {} \u202e😀'


class ServedDatabase:
    """A database, a service that reads it, and clients of both.

    conn: an autocommit connection. http: an HTTP client whose paths are the service's.
    """

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self.conn: psycopg.Connection[Any] = stack.enter_context(
            psycopg.connect(url, autocommit=True)
        )
        self._stack = stack
        self.service, self.http = self.serve()

    def serve(self, role: str | None = None, **settings: Any) -> tuple[Service, httpx.Client]:
        """Serve the database a second time, with other settings or another role."""
        url = self.url if role is None else make_conninfo(self.url, options=f"-c role={role}")
        service = Service(Settings(database_url=SecretStr(url), **settings))
        self._stack.enter_context(service)
        client = httpx.Client(base_url=service.url, timeout=PATIENCE, trust_env=False)
        return service, self._stack.enter_context(client)

    def add(self, symbol: str, count: int, *, minutes_ago: int = 0) -> datetime:
        """Write `count` bars and their features; return the first minute."""
        first: datetime = value(
            self.conn,
            "SELECT feature_platform.due_until() - %s * interval '1 minute'",
            count + minutes_ago,
        )
        insert_bars(self.conn, symbol, first, count)
        refresh(self.conn)
        return first


class ServiceProcess(WorkerProcess):
    """A process of `feature-platform serve` on a free port, and its log."""

    arguments = ("serve", "--port", "0")

    def client(self) -> httpx.Client:
        """Wait until the service listens, and return a client."""
        self.wait_for("serving at ")
        url = self.log.partition("serving at ")[2].split()[0]
        return httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)


@pytest.fixture(scope="module")
def served(databases: Databases) -> Iterator[ServedDatabase]:
    """Yield a served database for all tests of a module, which add symbols of their own."""
    with databases.fresh() as url, ExitStack() as stack:
        yield ServedDatabase(url, stack)
