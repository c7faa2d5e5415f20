"""Queries of the service: a pool of connections that fails within a second without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from feature_platform.database import shut_down
from feature_platform.queries import queries

PATIENCE = 0.8  # seconds for a query, its connection included

_MOST_CONNECTIONS = 8
_RECONNECT = 0.5  # seconds between attempts to connect to a database that is down

CONNECTION: Mapping[str, Any] = MappingProxyType(
    {
        "autocommit": True,
        "application_name": "feature_platform serve",
        "connect_timeout": 2,
        # The kernel, too, stops sending to a server that does not exist any more.
        "tcp_user_timeout": 5000,
    }
)

_Connection = psycopg.AsyncConnection[TupleRow]

# Transient errors, worth a retry: the server is down, starting, stopping, full or too slow.
_TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError)
# The server runs, and the database is not set up, or not yet.
_NOT_SET_UP = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)


class DatabaseUnavailableError(Exception):
    """The database gave no answer in time; a later request may succeed."""


class QueryPool:
    """A pool of connections that sends queries by their name.

    conninfo: returns the connection string; called before each new connection.
    patience: seconds after which a query is given up.
    """

    def __init__(
        self, conninfo: Callable[[], Awaitable[str]], *, patience: float = PATIENCE
    ) -> None:
        self._patience = patience
        self._pool: AsyncConnectionPool[_Connection] = AsyncConnectionPool(
            conninfo,
            connection_class=_Connection,
            kwargs=dict(CONNECTION),
            configure=self._configure,
            min_size=1,
            max_size=_MOST_CONNECTIONS,
            # More waiting queries could not be answered in time.
            max_waiting=10 * _MOST_CONNECTIONS,
            reconnect_timeout=_RECONNECT,
            open=False,
        )

    async def open(self) -> None:
        """Begin to connect, without waiting for it."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close(timeout=2)

    async def fetch(
        self,
        query: str,
        parameters: Mapping[str, object] | None = None,
        **identifiers: sql.Composable,
    ) -> list[TupleRow]:
        """Return the rows of a query of `sql/queries/service.sql`.

        identifiers: the identifiers for its braces. Such a query is not prepared, since a new
            version of a feature view may have other columns.
        Raises DatabaseUnavailableError if they do not come in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            connection: _Connection | None = None
            try:
                async with self._pool.connection(deadline - loop.time()) as connection:
                    alarm = loop.call_at(deadline, hang_up, connection)
                    try:
                        cursor = await connection.execute(
                            sql.SQL(queries[query]).format(**identifiers)
                            if identifiers
                            else queries[query],
                            parameters,
                            prepare=not identifiers,
                            binary=True,
                        )
                        return await cursor.fetchall()
                    finally:
                        alarm.cancel()
            except _TRANSIENT as error:
                # A connection from before the server's restart: the next one may be good.
                stale = connection is not None and connection.closed
                if not stale or loop.time() >= deadline:
                    raise DatabaseUnavailableError("the database does not answer") from error
            except _NOT_SET_UP as error:
                # A new version of a feature view drops the tables of the old one.
                subject = "view has changed" if identifiers else "database is not set up"
                raise DatabaseUnavailableError(f"the {subject}") from error

    async def _configure(self, connection: _Connection) -> None:
        """Set the server's own time limit for queries, and make the session read-only."""
        alarm = asyncio.get_running_loop().call_later(self._patience, hang_up, connection)
        try:
            await connection.execute(
                queries["service_session"],
                {"statement_timeout": f"{round(self._patience * 1000)}ms"},
            )
        finally:
            alarm.cancel()


def hang_up(connection: _Connection) -> None:
    """Cut a connection off at once, so that no request waits for its server."""
    if connection.closed:
        return
    shut_down(connection)
