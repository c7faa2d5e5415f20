"""The service's way to the database: a pool that says within a second when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from feature_platform.database import shut_down
from feature_platform.queries import queries

PATIENCE = 0.8  # seconds that the database may take for a query, its connection included

_MOST_CONNECTIONS = 8
_RECONNECT = 0.5  # seconds; how often a database that is down is looked for

_Connection = psycopg.AsyncConnection[TupleRow]

# Of these, a retry may be rid: the server is down, starting, stopping, full or too slow.
_PASSING = (psycopg.OperationalError, psycopg.InterfaceError)
# The server is there, its set-up is not, or not yet.
_NOT_SET_UP = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)


class DatabaseUnavailableError(Exception):
    """Say that the database gave no answer in time, and that it is worth asking again."""


class Database:
    """Send queries by their name, each on a connection of the pool.

    conninfo: asked before each new connection where the database is.
    patience: seconds after which a query is given up.
    """

    def __init__(
        self, conninfo: Callable[[], Awaitable[str]], *, patience: float = PATIENCE
    ) -> None:
        self._patience = patience
        self._pool: AsyncConnectionPool[_Connection] = AsyncConnectionPool(
            conninfo,
            connection_class=_Connection,
            # What the kernel keeps trying to send to a server that is gone is given up, too.
            kwargs={
                "autocommit": True,
                "application_name": "feature_platform serve",
                "connect_timeout": 2,
                "tcp_user_timeout": 5000,
            },
            configure=self._configure,
            min_size=1,
            max_size=_MOST_CONNECTIONS,
            # More than this many in line could not be served in time.
            max_waiting=10 * _MOST_CONNECTIONS,
            reconnect_timeout=_RECONNECT,
            open=False,
        )

    async def open(self) -> None:
        """Begin to connect; does not wait for it."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close(timeout=2)

    async def fetch(
        self, query: str, parameters: Mapping[str, object] | None = None
    ) -> list[TupleRow]:
        """Return the rows of a query of `sql/queries/service.sql`.

        Raises DatabaseUnavailableError when they do not come in time, or cannot.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            connection: _Connection | None = None
            try:
                async with self._pool.connection(deadline - loop.time()) as connection:
                    alarm = loop.call_at(deadline, _hang_up, connection)
                    try:
                        cursor = await connection.execute(
                            queries[query], parameters, prepare=True, binary=True
                        )
                        return await cursor.fetchall()
                    finally:
                        alarm.cancel()
            except _PASSING as error:
                # A connection from before the server's restart: the next one may be good.
                stale = connection is not None and connection.closed
                if not stale or loop.time() >= deadline:
                    raise DatabaseUnavailableError("the database does not answer") from error
            except _NOT_SET_UP as error:
                raise DatabaseUnavailableError("the database is not set up") from error

    async def _configure(self, connection: _Connection) -> None:
        """Make the server, too, give up on time, and refuse to write whatever is asked of it."""
        alarm = asyncio.get_running_loop().call_later(self._patience, _hang_up, connection)
        try:
            await connection.execute(
                queries["service_session"],
                {"statement_timeout": f"{round(self._patience * 1000)}ms"},
            )
        finally:
            alarm.cancel()


def _hang_up(connection: _Connection) -> None:
    """Cut a connection off at once, so that no request waits for its server any longer."""
    if connection.closed:
        return
    shut_down(connection)
