"""What a recorder needs to be tried: a database that can go away, and processes of it."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from feature_platform.settings import get_settings


class GoingDatabase:
    """A database that refuses its users for a while, as one that restarts does.

    url: a superuser's.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._name = urlsplit(url).path.lstrip("/")
        self._server = urlsplit(url)._replace(path="/postgres").geturl()

    def leave(self) -> None:
        """End all sessions, and take no new ones."""
        self._send("ALTER DATABASE {} ALLOW_CONNECTIONS false")
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
                [self._name],
            )

    def come_back(self) -> None:
        """Take sessions again."""
        self._send("ALTER DATABASE {} ALLOW_CONNECTIONS true")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Be away while the body runs."""
        self.leave()
        try:
            yield
        finally:
            self.come_back()

    def _send(self, statement: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(self._name)))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Have the system refuse to let a file grow larger, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def going(database: str, monkeypatch: pytest.MonkeyPatch) -> GoingDatabase:
    """Return a fresh database, which is the platform's, and can be made to go away."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    get_settings.cache_clear()
    return GoingDatabase(database)
