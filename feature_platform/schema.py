"""The schema of the database, set up from the files that `sql/feature_ca.sql` lists in order."""

from __future__ import annotations

import hashlib
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

# The time in which a set-up tries to get its locks.
_GIVE_UP_SECONDS = 60.0

_IN_USE = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

_INCLUDE = re.compile(r"^\\ir (?P<file>\S+)$", re.MULTILINE)
_NUMBER = re.compile(r"^SET LOCAL feature_platform\.schema_number = '(\d+)';$", re.MULTILINE)
_HASH = re.compile(r"^[0-9a-f]{64}\n", re.MULTILINE)
_END_OF_HASHES = re.compile(r"^';$", re.MULTILINE)


class WrongClockError(UserError):
    """A simulated clock in the settings, and a database of real bars."""


def schema_files() -> list[Path]:
    """Return the schema's files in the order in which they are applied."""
    text = (sql_dir() / "feature_ca.sql").read_text(encoding="utf-8")
    return [sql_dir() / match["file"] for match in _INCLUDE.finditer(text)]


def version_file() -> Path:
    """Return the file that holds the schema's number and hashes."""
    return sql_dir() / "007_version.sql"


def read_version(text: str) -> tuple[int, tuple[str, ...]]:
    """Return the schema's number and its hashes, the newest last, of the text of `version_file`.

    Raises ValueError where there is not exactly one number, or no hash.
    """
    numbers = _NUMBER.findall(text)
    hashes = tuple(line.strip() for line in _HASH.findall(text))
    if len(numbers) != 1 or not hashes:
        raise ValueError(f"{version_file()} needs one schema_number and a hash")
    return int(numbers[0]), hashes


def hash_files() -> str:
    """Return the SHA-256 of the schema's files, without the lines that hold hashes."""
    digest = hashlib.sha256()
    for file in (sql_dir() / "feature_ca.sql", *schema_files()):
        digest.update(_HASH.sub("", file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def update_hash() -> str:
    """Make the present hash the last one in `version_file`, and return it."""
    present = hash_files()
    text = version_file().read_text(encoding="utf-8").replace(f"{present}\n", "")
    version_file().write_text(_END_OF_HASHES.sub(f"{present}\n';", text), encoding="utf-8")
    return present


def apply(connection: psycopg.Connection[Any], *, simulated: bool | None = None) -> None:
    """Set up the database, or bring its set-up up to date, in one transaction.

    It retries for a minute while other sessions use the tables, and holds no lock between two
    attempts. Concurrent set-ups wait for each other.
    simulated: whether the database is for simulated bars. By default an existing database keeps its
        origin, and a new one is simulated where FEATURE_PLATFORM_CLOCK is set.
    Raises UserError, and changes nothing, when the database is newer than this code, has other
    tables of the names `ohlcv_1m` or `features_1m`, or has bars of the other origin.
    """
    settings = {"origin": _origin(simulated), "lock_first": ""}

    def begin_with_the_table(state: RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        assert isinstance(error, psycopg.Error)
        settings["lock_first"] = error.diag.table_name or ""
        pause = 0.0 if state.next_action is None else state.next_action.sleep
        _log.warning("%s. Retrying in %.1f s", error.diag.message_primary, pause)

    retrying = Retrying(
        retry=retry_if_exception_type(_IN_USE),
        wait=wait_random_exponential(multiplier=0.1, max=1),
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
            f" was not changed: {_one_line(error)}"
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"the database's set-up needs its owner: {error.diag.message_primary};"
            " run `feature-platform db apply` as that user"
        ) from None


def _apply_files(connection: psycopg.Connection[Any], settings: dict[str, str]) -> None:
    """Apply the files in one transaction, which first takes all of its locks within 2 s."""
    with connection.transaction():
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute("SET LOCAL lock_timeout = '2s'")
        connection.execute(queries["schema_set_up_as"], settings)
        for file in schema_files():
            connection.execute(file.read_text(encoding="utf-8"))


def prepare(connection: psycopg.Connection[Any], *, simulated: bool = False) -> None:
    """Make sure that the database has this code's schema and clock before it is used.

    That of the embedded server is set up or upgraded at once; the owner of any other database has
    to run `feature-platform db apply`.
    simulated: whether the caller stores simulated bars.
    Raises UserError when the database is not set up, older or newer than this code, when the user
    has no right to use it, and when simulated bars or a simulated clock do not belong in it.
    """
    _prepare_version(connection, simulated)
    if simulated and not is_simulated(connection):
        if get_settings().database_url is not None:
            raise UserError(
                f"simulated bars cannot be stored in database {connection.info.dbname}, which was"
                " not set up as a simulated one: use another database, or run"
                " `feature-platform db apply --simulated` while it has no bars"
            )
        apply(connection, simulated=True)
    require_clock(connection)


def require_clock(connection: psycopg.Connection[Any]) -> None:
    """Raise WrongClockError where this process has a simulated clock and the database is real."""
    if isinstance(get_settings().clock, SimulatedClock) and not is_simulated(connection):
        raise WrongClockError(
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


def require_version(connection: psycopg.Connection[Any]) -> None:
    """Raise UserError where the database does not have exactly this code's schema."""
    installed = _installed(connection)
    fault = None if installed is None else version_fault(*installed)
    if installed is None:
        fault = "is not set up: run `feature-platform db apply`"
    if fault is not None:
        raise UserError(f"database {connection.info.dbname} {fault}")


def version_fault(version: int, hash_: str | None) -> str | None:
    """Return how a database's schema differs from this code's and the remedy; None where equal.

    The text begins with a verb: "has schema version 2, ...".
    """
    if (version, hash_) == (SCHEMA_VERSION, SCHEMA_HASH):
        return None
    if version > SCHEMA_VERSION:
        return (
            f"has schema version {version}, this code knows only up to {SCHEMA_VERSION}:"
            " install a newer feature_platform"
        )
    if version < SCHEMA_VERSION:
        return (
            f"has schema version {version}, this code needs {SCHEMA_VERSION}:"
            " run `feature-platform db apply`"
        )
    if is_newer(version, hash_):
        return (
            f"has files of schema version {version} that this code does not know (hash"
            f" {_short(hash_)}, this code's is {_short(SCHEMA_HASH)}):"
            " install a newer feature_platform"
        )
    return (
        f"has older files of schema version {version} (hash {_short(hash_)}, this code's is"
        f" {_short(SCHEMA_HASH)}): run `feature-platform db apply`"
    )


def is_newer(version: int, hash_: str | None) -> bool:
    """Return whether a database's schema is newer than this code's.

    With an equal number, it is newer where its hash is unknown: neither this code's nor one that
    the files had before. A database without a hash is older.
    """
    if version != SCHEMA_VERSION:
        return version > SCHEMA_VERSION
    return hash_ is not None and hash_ not in _KNOWN_HASHES


def _short(hash_: str | None) -> str:
    return "none" if hash_ is None else hash_[:12]


def _prepare_version(connection: psycopg.Connection[Any], simulated: bool) -> None:
    """Make sure that the database has this code's schema."""
    if get_settings().database_url is None:
        installed = _installed(connection)
        if installed == (SCHEMA_VERSION, SCHEMA_HASH):
            return
        if installed is None or not is_newer(*installed):
            apply(connection, simulated=simulated or None)
            return
    require_version(connection)


def _installed(connection: psycopg.Connection[Any]) -> tuple[int, str | None] | None:
    """Return the number and the hash of the schema that is set up here, None for none.

    Raises UserError where the user may not read them.
    """
    try:
        applied = connection.execute(queries["schema_is_applied"]).fetchone()
        if applied is None or not applied[0]:
            return None
        row = connection.execute(queries["schema_version"]).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        raise UserError(
            f"the user {connection.info.user} may not use feature_platform in database"
            f" {connection.info.dbname}: grant it one of the roles, such as feature_platform_reader"
        ) from None
    return None if row is None or row[0] is None else (row[0], row[1])


def _one_line(error: psycopg.Error) -> str:
    parts = [error.diag.message_primary, error.diag.message_hint]
    return ". ".join(part.rstrip(".") for part in parts if part)


SCHEMA_VERSION, _KNOWN_HASHES = read_version(version_file().read_text(encoding="utf-8"))
SCHEMA_HASH = _KNOWN_HASHES[-1]

if __name__ == "__main__":
    print(update_hash())
