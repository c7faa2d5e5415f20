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

from feature_platform.database import database_url
from feature_platform.errors import UserError, one_line, redact
from feature_platform.queries import queries

TEXTS = pa.list_(pa.string())
MOMENT = pa.timestamp("us", "UTC")

_DEFAULTS = {"application_name": "feature_platform", "connect_timeout": "10"}
_UNDEFINED_TABLE, _UNDEFINED_COLUMN, _NO_SCHEMA = "42P01", "42703", "3F000"


class Reader:
    """A connection, in one transaction, whose answers are Arrow tables."""

    def __init__(self, connection: dbapi.Connection) -> None:
        self._connection = connection

    def ask(self, query: str, *parameters: pa.Array, **identifiers: Composable) -> pa.Table:
        """Return the answer to a small query by its name.

        parameters: $1, $2, … of it, each an array of the one value.
        identifiers: what stands in braces in it.
        """
        batch = pa.record_batch(list(parameters), list(map(str, range(len(parameters)))))
        with self._connection.cursor() as cursor:
            cursor.execute(text_of(query, **identifiers), batch)
            return cursor.fetch_arrow_table()

    def stream(self, query: str, **identifiers: Composable) -> pa.Table:
        """Return the answer to a query without parameters, by COPY: the fast way for many rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(text_of(query, **identifiers))
            return cursor.fetch_arrow_table()


class _Kept:
    """Stand for a database that stays when a connection to it is closed."""

    def close(self) -> None:
        """Do nothing."""


@cache
def _database(conninfo: str) -> AdbcDatabase:
    """Return a database, whose types it asks for when it is made, but no connection.

    To ask for them takes several times as long as a small query.
    """
    database: AdbcDatabase = adbc_driver_postgresql.connect(conninfo)
    return database


@contextmanager
def reader() -> Iterator[Reader]:
    """Connect to the platform's database, starting the embedded one where none is configured.

    Raises UserError, also for what goes wrong while it is used; it never holds the password.
    """
    url = database_url()
    conninfo = make_conninfo("", **{**_DEFAULTS, **conninfo_to_dict(url)})
    try:
        with dbapi.Connection(_Kept(), AdbcConnection(_database(conninfo))) as connection:
            yield Reader(connection)
    except Error as error:
        raise UserError(f"cannot read from {redact(url)}: {_reason(error)}") from None


def one(value: object, kind: pa.DataType) -> pa.Array:
    """Return a value as a parameter."""
    return pa.array([value], kind)


def text_of(query: str, **identifiers: Composable) -> str:
    """Return the text of a query by its name, in which identifiers take the place of braces."""
    return SQL(queries[query]).format(**identifiers).as_string().rstrip(";")  # COPY takes no ;


def _reason(error: Error) -> str:
    if error.sqlstate in (_UNDEFINED_TABLE, _UNDEFINED_COLUMN, _NO_SCHEMA):
        return "it has not the schema of this version: run `feature-platform db apply`"
    return one_line(error)
