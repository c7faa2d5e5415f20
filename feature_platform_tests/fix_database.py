"""Fresh databases for tests, each with the schema, on both engines.

Environment:
FEATURE_PLATFORM_TEST_TIMESCALE_URL: a superuser's URL of a server with TimescaleDB. Without it,
    tests run on PostgreSQL only, and the end of the session's report states that.
FEATURE_PLATFORM_TEST_POSTGRES_URL: a superuser's URL of a plain server, instead of an embedded one.

A test with the fixture `database` or `conn` runs once on each engine. One that concerns a single
engine has the mark `@pytest.mark.parametrize("engine", ["postgres"], indirect=True)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from feature_platform import schema
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.settings import get_settings
from feature_platform_tests.fix_environment import passable_directory

TIMESCALE_URL = "FEATURE_PLATFORM_TEST_TIMESCALE_URL"
POSTGRES_URL = "FEATURE_PLATFORM_TEST_POSTGRES_URL"

Engine = Literal["postgres", "timescaledb"]
ENGINES = ("postgres", "timescaledb") if os.environ.get(TIMESCALE_URL) else ("postgres",)


def copy_of(template: str, name: str) -> sql.Composed:
    """Return the statement that copies a database.

    A copy of the files takes a tenth of the processor time of one through the write-ahead log.
    """
    return sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
        sql.Identifier(name), sql.Identifier(template)
    )


class Databases:
    """Make and drop databases on one server.

    engine: of the server.
    url: a superuser's URL of any database on it.
    """

    def __init__(self, engine: Engine, url: str) -> None:
        self.engine = engine
        self.url = url
        self._template: str | None = None

    def create(self) -> str:
        """Create a database with the schema and return its URL."""
        if self._template is None:
            self._template = self._create_template()
        name = self._create(template=self._template)
        self._stop_jobs(name)
        if self.engine == "timescaledb":  # a job may have run before it was stopped
            self._send(name, "DELETE FROM feature_platform.policy_run")
        return self._url(name)

    def create_empty(self) -> str:
        """Create a database without the schema (with TimescaleDB, if it is the engine)."""
        name = self._create()
        if self.engine == "timescaledb":
            self._send(name, "CREATE EXTENSION IF NOT EXISTS timescaledb")
        self._stop_jobs(name)
        return self._url(name)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Create a database with the schema, give its URL, and drop it."""
        url = self.create()
        try:
            yield url
        finally:
            self.drop(url)

    @contextmanager
    def simulated(self) -> Iterator[str]:
        """Create a database for simulated bars, with its jobs at work, and drop it."""
        url = self.create_empty()
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                schema.apply(connection, simulated=True)
                if self.engine == "timescaledb":
                    connection.execute("SELECT _timescaledb_functions.start_background_workers()")
            yield url
        finally:
            self.drop(url)

    def drop(self, url: str) -> None:
        """Drop the database of `url` and end its sessions."""
        name = sql.Identifier(urlsplit(url).path.lstrip("/"))
        self._send(None, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def close(self) -> None:
        """Drop the template."""
        if self._template is not None:
            name = sql.Identifier(self._template)
            self._send(None, sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
            self.drop(self._url(self._template))

    def _create_template(self) -> str:
        url = self.create_empty()
        name = urlsplit(url).path.lstrip("/")
        with psycopg.connect(url, autocommit=True) as connection:
            schema.apply(connection)
        get_settings.cache_clear()  # the test that comes first may set others
        # A template must have no connections, TimescaleDB's own included.
        identifier = sql.Identifier(name)
        self._send(None, sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(identifier))
        self._send(
            None,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
            name,
        )
        return name

    def _create(self, template: str = "template0") -> str:
        name = f"feature_platform_test_{uuid4().hex[:12]}"
        self._send(None, copy_of(template, name))
        return name

    def _stop_jobs(self, name: str) -> None:
        """Stop TimescaleDB's jobs, which a test does not expect.

        A test of jobs begins with SELECT _timescaledb_functions.start_background_workers().
        """
        if self.engine == "timescaledb":
            self._send(name, "SELECT _timescaledb_functions.stop_background_workers()")

    def _url(self, name: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def _send(self, database: str | None, statement: Any, *parameters: object) -> None:
        url = self.url if database is None else self._url(database)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement, parameters or None)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """Yield a superuser's URL of a plain PostgreSQL server."""
    given = os.environ.get(POSTGRES_URL)
    if given:
        yield given
        return
    # Faster; the data need not survive a power cut.
    conf = {"fsync": "off", "full_page_writes": "off"}
    with passable_directory() as home, EmbeddedServer(home, conf=conf) as server:
        yield server.url("postgres")


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Return the engine that the test runs on."""
    if request.param not in ENGINES:
        pytest.skip(f"{TIMESCALE_URL} is not set: not tried on TimescaleDB")
    engine: Engine = request.param
    return engine


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """State which engine was not tried."""
    if "timescaledb" not in ENGINES:
        terminalreporter.write_line(f"{TIMESCALE_URL} is not set: nothing was tried on TimescaleDB")


@pytest.fixture(scope="session")
def binaries(engine: Engine) -> Path | None:
    """Return the folder of the given server's programs, for servers that a test stops itself.

    None, if no server is given, stands for the embedded programs. The test is skipped if the given
    server does not run on this machine.
    """
    variable = TIMESCALE_URL if engine == "timescaledb" else POSTGRES_URL
    url = os.environ.get(variable)
    if not url:
        return None
    with psycopg.connect(url) as connection:
        query = "SELECT setting FROM pg_config WHERE name = 'BINDIR'"
        (found,) = connection.execute(query).fetchone() or ("",)
    folder = Path(found)
    if not (folder / "initdb").is_file():
        pytest.skip(f"the server of {variable} runs elsewhere: no second one can be started")
    return folder


@pytest.fixture(scope="session")
def makers(server_url: str) -> Iterator[dict[Engine, Databases]]:
    """Yield the makers of databases, each with a template that serves all files of tests.

    pytest ends a fixture that depends on `engine` whenever the next test has another engine.
    """
    urls: dict[Engine, str] = {"postgres": server_url}
    if "timescaledb" in ENGINES:
        urls["timescaledb"] = os.environ[TIMESCALE_URL]
    made = {engine: Databases(engine, url) for engine, url in urls.items()}
    yield made
    for maker in made.values():
        maker.close()


@pytest.fixture(scope="session")
def databases(engine: Engine, makers: dict[Engine, Databases]) -> Databases:
    """Return the maker of databases on the engine, for tests that need several databases."""
    return makers[engine]


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """Yield the URL of a fresh database with the schema."""
    with databases.fresh() as url:
        yield url


@pytest.fixture
def simulated_database(database: str) -> str:
    """Return the URL of a fresh database for simulated bars, which follows a session's clock."""
    make_simulated(database)
    return database


def make_simulated(url: str) -> None:
    """Make a database without bars one for simulated bars."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE feature_platform.database_origin SET simulated = true")


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[str]:
    """Yield the URL of a fresh database without the schema."""
    url = databases.create_empty()
    yield url
    databases.drop(url)


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection]:
    """Yield an autocommit connection to a fresh database with the schema."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection
