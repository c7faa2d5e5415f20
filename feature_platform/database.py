"""Connections to the configured database, or without one to the embedded server."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, dict_row

from feature_platform.clock import SimulatedClock
from feature_platform.errors import UserError, one_line, redact
from feature_platform.queries import queries
from feature_platform.settings import Settings, get_settings

OLDEST_POSTGRES = 15

# Seconds after which a command that shows a state fails without an answer. libpq's shortest
# connection timeout is 2 s.
BRIEF_SECONDS = 2.5
_BRIEF_CONNECT = 2

_log = logging.getLogger(__name__)

TimescaleEdition = Literal["none", "apache", "community"]


@dataclass(frozen=True)
class Capabilities:
    """The features of a database beyond those of every PostgreSQL.

    timescaledb: the edition of TimescaleDB that is installed in the database; only the
        community edition has jobs and the columnstore.
    timescaledb_version: such as "2.26.4", None where it is not installed.
    """

    timescaledb: TimescaleEdition
    timescaledb_version: str | None


def database_url(settings: Settings | None = None, silence: float | None = None) -> str:
    """Return the URL of the database, starting the embedded server when none is configured.

    The embedded server then runs at least until this process exits.
    silence: seconds after which to give up an embedded server that does not answer.
    Raises UserError when a setting is bad or the server cannot run.
    """
    settings = settings or get_settings()
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    # Imported here because a configured server needs none of it.
    from feature_platform.embedded.server import embedded_server

    server = embedded_server(settings.home)
    server.start(silence)
    return server.url()


def with_clock(conninfo: str) -> str:
    """Return the connection string with the setting of the platform's clock.

    Code that does not use `connect` sets the clock of its sessions by it. The string is unchanged
    for the wall clock, which is the database's default.
    Raises psycopg.ProgrammingError where it is not a connection string.
    """
    clock = get_settings().clock
    if not isinstance(clock, SimulatedClock):
        return conninfo
    options = conninfo_to_dict(conninfo).get("options") or ""
    return make_conninfo(conninfo, options=f"{options} -c feature_platform.clock={clock}".strip())


def connect(url: str | None = None, **options: Any) -> psycopg.Connection[TupleRow]:
    """Connect to `url`, by default the platform's database, in autocommit mode.

    The session waits at most 30 s for a lock.
    options: any of psycopg.connect's, which override the platform's own.
    Raises UserError, without the password, when the server cannot be reached, rejects the
    connection, or is too old.
    """
    conninfo = database_url() if url is None else url
    defaults = {"autocommit": True, "application_name": "feature_platform", "connect_timeout": 10}
    try:
        connection = psycopg.connect(with_clock(conninfo), **{**defaults, **options})
    except psycopg.ProgrammingError:
        raise UserError(f"{redact(conninfo)} is not a PostgreSQL URL") from None
    except psycopg.OperationalError as error:
        raise UserError(f"cannot connect to {redact(conninfo)}: {one_line(error)}") from None
    try:
        check_version(connection)
        connection.execute(queries["database_session"])
    except UserError:
        connection.close()
        raise
    return connection


@contextmanager
def connect_briefly(url: str | None = None, **options: Any) -> Iterator[Brief]:
    """Connect as `connect` does, with a time limit for the statements of the body.

    Raises UserError as `connect` does, and psycopg.OperationalError where the server does not
    answer in time, because it is stopped or its tables are locked.
    """
    brief = Brief(time.monotonic() + BRIEF_SECONDS)
    conninfo = database_url(silence=_BRIEF_CONNECT) if url is None else url
    with connect(conninfo, **{"connect_timeout": _BRIEF_CONNECT, **options}) as connection:
        brief.connection = connection
        brief.limit()
        try:
            yield brief
        except psycopg.OperationalError:
            if brief.is_silent:
                raise psycopg.OperationalError(
                    f"the database does not answer within {BRIEF_SECONDS:g} s: its server is"
                    " stopped or overloaded, or a table is locked"
                ) from None
            raise
        finally:
            brief.lift()


class Brief:
    """A connection that is closed when the server does not answer in time.

    deadline: of time.monotonic().
    """

    connection: psycopg.Connection[TupleRow]

    def __init__(self, deadline: float) -> None:
        self.is_silent = False
        self._deadline = deadline
        self._timer: threading.Timer | None = None

    def lift(self) -> None:
        """End the time limit."""
        if self._timer is not None:
            self._timer.cancel()

    def limit(self) -> None:
        """Limit the time of the next statements to the deadline, at least half a second."""
        self._timer = threading.Timer(max(0.5, self._deadline - time.monotonic()), self._hang_up)
        self._timer.daemon = True
        self._timer.start()

    def _hang_up(self) -> None:
        if not self.connection.closed:
            self.is_silent = True
            shut_down(self.connection)


def shut_down(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Close the socket of a connection without a message to its server.

    A regular cancellation would wait for the server again.
    """
    line = socket.socket(fileno=connection.fileno())
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        _log.debug("the connection was lost already: %s", error)
    finally:
        line.detach()


def check_version(connection: psycopg.Connection[Any]) -> None:
    """Raise UserError when the server is older than PostgreSQL 15."""
    if connection.info.server_version < OLDEST_POSTGRES * 10_000:
        raise UserError(
            f"the server at {_address(connection)} is PostgreSQL {_version(connection)}:"
            f" the platform needs {OLDEST_POSTGRES} or newer"
        )


def capabilities(connection: psycopg.Connection[Any]) -> Capabilities:
    """Return the capabilities of this database, in one round trip."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(queries["server_capabilities"]).fetchone()
    if row is None or row["timescaledb_version"] is None:
        return Capabilities("none", None)
    community = row["timescaledb_license"] == "timescale"
    return Capabilities("community" if community else "apache", row["timescaledb_version"])


def server_description(connection: psycopg.Connection[Any]) -> str:
    """Describe the database in use in one line, without any password."""
    able = capabilities(connection)
    parts = [f"PostgreSQL {_version(connection)}", _address(connection)]
    if able.timescaledb != "none":
        parts.insert(1, f"TimescaleDB {able.timescaledb_version} ({able.timescaledb} edition)")
    return ", ".join(parts)


def _version(connection: psycopg.Connection[Any]) -> str:
    return (connection.info.parameter_status("server_version") or "unknown").split()[0]


def _address(connection: psycopg.Connection[Any]) -> str:
    info = connection.info
    if info.host.startswith("/"):
        return f"database {info.dbname} at {info.host}"
    return f"database {info.dbname} at {info.host}:{info.port}"
