"""Connections to the database: the one that is configured, or else the embedded one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, dict_row

from feature_platform.clock import SimulatedClock
from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.settings import Settings, get_settings, redact

OLDEST_POSTGRES = 15

TimescaleEdition = Literal["none", "apache", "community"]


@dataclass(frozen=True)
class Capabilities:
    """Say what a database can do beside what every PostgreSQL can.

    timescaledb: the edition of TimescaleDB that is installed in the database; only the
        community edition has jobs and the columnstore.
    timescaledb_version: such as "2.26.4", None where it is not installed.
    """

    timescaledb: TimescaleEdition
    timescaledb_version: str | None


def database_url(settings: Settings | None = None) -> str:
    """Return the URL of the database, starting the embedded server when none is configured.

    The embedded server then runs at least until this process exits.
    Raises UserError when a setting is bad or the server cannot run.
    """
    settings = settings or get_settings()
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    # Imported here because a configured server needs none of it.
    from feature_platform.embedded import embedded_server

    server = embedded_server(settings.home)
    server.start()
    return server.url()


def with_clock(conninfo: str) -> str:
    """Return the connection string with the platform's clock for feature_platform.clock() to tell.

    Whoever does not connect by `connect` gives his sessions the clock so. It is the same string
    where that is the wall clock, which the database has by itself.
    Raises psycopg.ProgrammingError where it is no connection string.
    """
    clock = get_settings().clock
    if not isinstance(clock, SimulatedClock):
        return conninfo
    options = conninfo_to_dict(conninfo).get("options") or ""
    return make_conninfo(conninfo, options=f"{options} -c feature_platform.clock={clock}".strip())


def connect(url: str | None = None, **options: Any) -> psycopg.Connection[TupleRow]:
    """Connect to `url`, by default the platform's database, in autocommit mode.

    options: any of psycopg.connect's, which override the platform's own.
    Raises UserError when the server cannot be reached, refuses, or is too old; what it says
    never holds the password.
    """
    conninfo = database_url() if url is None else url
    defaults = {"autocommit": True, "application_name": "feature_platform", "connect_timeout": 10}
    try:
        connection = psycopg.connect(with_clock(conninfo), **{**defaults, **options})
    except psycopg.ProgrammingError:
        raise UserError(f"{redact(conninfo)} is not a PostgreSQL URL") from None
    except psycopg.OperationalError as error:
        reason = " ".join(redact(str(error)).split())
        raise UserError(f"cannot connect to {redact(conninfo)}: {reason}") from None
    try:
        check_version(connection)
    except UserError:
        connection.close()
        raise
    return connection


def check_version(connection: psycopg.Connection[Any]) -> None:
    """Raise UserError when the server is older than the platform can use."""
    if connection.info.server_version < OLDEST_POSTGRES * 10_000:
        raise UserError(
            f"the server at {_address(connection)} is PostgreSQL {_version(connection)}:"
            f" the platform needs {OLDEST_POSTGRES} or newer"
        )


def capabilities(connection: psycopg.Connection[Any]) -> Capabilities:
    """Find out, in one round trip, what this database can do."""
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
