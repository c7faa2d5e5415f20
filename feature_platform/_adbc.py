"""Arrow tables straight from PostgreSQL, over ADBC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import adbc_driver_postgresql
import pyarrow as pa
from adbc_driver_manager import AdbcConnection, AdbcDatabase, Error
from adbc_driver_postgresql import dbapi
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Composable

from feature_platform.database import database_url, with_clock
from feature_platform.errors import UserError, one_line, redact
from feature_platform.queries import queries

TEXTS = pa.list_(pa.string())

_DEFAULTS = {"application_name": "feature_platform", "connect_timeout": "10"}
# An error that a function of the platform raises; its message is one for the user.
_RAISED = "P0001"
_UNDEFINED_TABLE, _UNDEFINED_COLUMN, _NO_SCHEMA = "42P01", "42703", "3F000"


class Reader:
    """A connection in one transaction; it returns Arrow tables."""

    def __init__(self, connection: dbapi.Connection) -> None:
        self._connection = connection

    def freeze(self) -> None:
        """Let all later queries read the rows as of the first of them."""
        with self._connection.cursor() as cursor:
            cursor.execute(queries["frames_freeze"])

    def fetch(self, query: str, *parameters: pa.Array, **parts: Composable) -> pa.Table:
        """Return the rows of a small query by its name.

        parameters: its $1, $2, …, each an array of one value.
        parts: the identifiers and values for its braces.
        """
        batch = pa.record_batch(list(parameters), list(map(str, range(len(parameters)))))
        with self._connection.cursor() as cursor:
            cursor.execute(text_of(query, **parts), batch)
            return cursor.fetch_arrow_table()

    def stream(self, query: str, **parts: Composable) -> pa.Table:
        """Return the rows of a query without parameters, by COPY: the fast way for many rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(text_of(query, **parts))
            return cursor.fetch_arrow_table()


class _KeepOpen:
    """A handle for ADBC's Connection to close, which leaves the shared database open."""

    def close(self) -> None:
        """Do nothing."""


@cache
def _database(conninfo: str) -> AdbcDatabase:
    """Return ADBC's handle of a database, without a connection.

    It reads the database's types when it is made, which takes several times as long as a small
    query: there is one for each connection string.
    """
    database: AdbcDatabase = adbc_driver_postgresql.connect(conninfo)
    return database


@contextmanager
def reader() -> Iterator[Reader]:
    """Connect to the platform's database, starting the embedded one where none is configured.

    Raises UserError, also for errors of its queries; the message never holds the password.
    """
    url = database_url()
    conninfo = with_clock(make_conninfo("", **{**_DEFAULTS, **conninfo_to_dict(url)}))
    try:
        with dbapi.Connection(_KeepOpen(), AdbcConnection(_database(conninfo))) as connection:
            yield Reader(connection)
    except Error as error:
        if error.sqlstate == _RAISED:
            raise UserError(_primary(error)) from None
        raise UserError(f"cannot read from {redact(url)}: {_reason(error)}") from None


def one(value: object, kind: pa.DataType) -> pa.Array:
    """Return a value as a parameter."""
    return pa.array([value], kind)


def text_of(query: str, **parts: Composable) -> str:
    """Return the text of a query by its name, with identifiers and values for its braces."""
    return SQL(queries[query]).format(**parts).as_string().rstrip(";")  # COPY takes no ;


def _primary(error: Error) -> str:
    """Return the message of an error of the server without its context."""
    for field, text in error.details:
        if field in (b"PG_DIAG_MESSAGE_PRIMARY", "PG_DIAG_MESSAGE_PRIMARY"):
            return one_line(text.decode() if isinstance(text, bytes) else text)
    return one_line(error)


def _reason(error: Error) -> str:
    if error.sqlstate in (_UNDEFINED_TABLE, _UNDEFINED_COLUMN, _NO_SCHEMA):
        return "it does not have the schema of this version: run `feature-platform db apply`"
    return one_line(error)
