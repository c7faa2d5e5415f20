"""The schema of the database: set up by the files that `sql/feature_ca.sql` lists, in its order."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import psycopg
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from feature_platform.clock import SimulatedClock
from feature_platform.errors import UserError
from feature_platform.queries import queries, sql_dir
from feature_platform.settings import PREFIX, get_settings

_log = logging.getLogger(__name__)

# What the files set up, as 010_guard.sql and 090_version.sql say too; a test keeps them equal.
SCHEMA_VERSION = 3

# How long a set-up tries to get its locks.
_GIVE_UP_SECONDS = 60.0

_IN_USE = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

_INCLUDE = re.compile(r"^\\ir (?P<file>\S+)$", re.MULTILINE)


def schema_files() -> list[Path]:
    """Return the schema's files in the order in which they are applied."""
    text = (sql_dir() / "feature_ca.sql").read_text(encoding="utf-8")
    return [sql_dir() / match["file"] for match in _INCLUDE.finditer(text)]


def apply(connection: psycopg.Connection[Any], *, simulated: bool | None = None) -> None:
    """Set up the database, or bring its set-up up to date, in one transaction.

    It tries again, for a minute, while other sessions use the tables; between two attempts it holds
    no lock. Concurrent set-ups wait for each other.
    simulated: whether the database is for simulated bars. By default an existing database stays
        what it is, and a new one is simulated where FEATURE_PLATFORM_CLOCK is set.
    Raises UserError, and changes nothing, when the database is newer than this code, has other
    tables of the names `ohlcv_1m` or `features_1m`, or has bars of the other origin.
    """
    settings = {"origin": _origin(simulated), "lock_first": ""}

    def begin_with_the_table(state: RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        assert isinstance(error, psycopg.Error)
        settings["lock_first"] = error.diag.table_name or ""
        pause = 0.0 if state.next_action is None else state.next_action.sleep
        _log.warning("%s. Trying again in %.0f s", error.diag.message_primary, pause)

    retrying = Retrying(
        retry=retry_if_exception_type(_IN_USE),
        wait=wait_random_exponential(multiplier=1, max=8),
        stop=stop_after_delay(_GIVE_UP_SECONDS),
        before_sleep=begin_with_the_table,
        reraise=True,
    )
    try:
        retrying(_apply_files, connection, settings)
    except psycopg.errors.RaiseException as error:
        raise UserError(_one_line(error)) from None
    except _IN_USE as error:
        raise UserError(
            f"database {connection.info.dbname} was not set up within {_GIVE_UP_SECONDS:.0f} s and"
            f" was left as it was: {_one_line(error)}"
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"the database's set-up needs its owner: {error.diag.message_primary};"
            " run `feature-platform db apply` as that user"
        ) from None


def _apply_files(connection: psycopg.Connection[Any], settings: dict[str, str]) -> None:
    """Apply the files in one transaction, which takes all of its locks first, within 2 s."""
    with connection.transaction():
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute("SET LOCAL lock_timeout = '2s'")
        connection.execute(queries["schema_set_up_as"], settings)
        for file in schema_files():
            connection.execute(file.read_text(encoding="utf-8"))


def prepare(connection: psycopg.Connection[Any], *, simulated: bool = False) -> None:
    """Make sure that the database has this code's schema and clock before it is used.

    The embedded server's database is set up on the spot, as it is the platform's own; any other
    is its owner's to set up.
    simulated: whether the caller stores simulated bars.
    Raises UserError when the database is not set up, or is newer than this code, when the user
    may not use it, and when simulated bars or a simulated clock have no place in it.
    """
    _prepare_version(connection, simulated)
    if simulated and not is_simulated(connection):
        if get_settings().database_url is not None:
            raise UserError(
                f"simulated bars have no place in database {connection.info.dbname}, which was not"
                " set up as a simulated one: use another database, or run"
                " `feature-platform db apply --simulated` while it has no bars"
            )
        apply(connection, simulated=True)
    require_clock(connection)


def require_clock(connection: psycopg.Connection[Any]) -> None:
    """Raise UserError where this process has a simulated clock and the database is a real one."""
    if isinstance(get_settings().clock, SimulatedClock) and not is_simulated(connection):
        raise UserError(
            f"{PREFIX}CLOCK is set, and database {connection.info.dbname} was not set up as a"
            f" simulated one: unset {PREFIX}CLOCK, or use another database"
        )


def is_simulated(connection: psycopg.Connection[Any]) -> bool:
    """Return whether this database was set up for simulated bars."""
    row = connection.execute(queries["schema_is_simulated"]).fetchone()
    return row is not None and bool(row[0])


def _origin(simulated: bool | None) -> str:
    if simulated is not None:
        return "simulated" if simulated else "real"
    return "clock" if isinstance(get_settings().clock, SimulatedClock) else ""


def _prepare_version(connection: psycopg.Connection[Any], simulated: bool) -> None:
    """Make sure that the database has this code's schema."""
    try:
        version = _version(connection)
    except psycopg.errors.InsufficientPrivilege:
        raise UserError(
            f"the user {connection.info.user} may not use feature_platform in database"
            f" {connection.info.dbname}: grant it one of the roles, such as feature_platform_reader"
        ) from None
    if version == SCHEMA_VERSION:
        return
    if get_settings().database_url is None and (version is None or version < SCHEMA_VERSION):
        apply(connection, simulated=simulated or None)
    elif version is None:
        raise UserError(
            f"database {connection.info.dbname} is not set up: run `feature-platform db apply`"
        )
    elif version < SCHEMA_VERSION:
        raise UserError(
            f"database {connection.info.dbname} has schema version {version}, this code needs"
            f" {SCHEMA_VERSION}: run `feature-platform db apply`"
        )
    else:
        raise UserError(
            f"database {connection.info.dbname} has schema version {version}, this code knows"
            f" only up to {SCHEMA_VERSION}: install a newer feature_platform"
        )


def _version(connection: psycopg.Connection[Any]) -> int | None:
    """Return the version of the schema that is set up here, None for none."""
    applied = connection.execute(queries["schema_is_applied"]).fetchone()
    if applied is None or not applied[0]:
        return None
    version = connection.execute(queries["schema_version"]).fetchone()
    return None if version is None else version[0]


def _one_line(error: psycopg.Error) -> str:
    parts = [error.diag.message_primary, error.diag.message_hint]
    return ". ".join(part.rstrip(".") for part in parts if part)
