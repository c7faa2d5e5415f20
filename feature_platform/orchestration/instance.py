"""Dagster's instance: its home, its database, and the environment of its processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from feature_platform.database import connect, database_url
from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.settings import Settings, get_settings

DATABASE = "dagster"


def prepare_instance(settings: Settings | None = None) -> dict[str, str]:
    """Create Dagster's home and database, and return the environment for its processes.

    The home is `dagster` in the platform's home, with the project's dagster.yaml. The database is
    `dagster` on the platform's server; the caller keeps that server running.
    Raises UserError when the server cannot be used, or the database cannot be created.
    """
    settings = settings or get_settings()
    server = database_url(settings)
    with connect(server) as connection:
        ensure_database(connection, connection.info.user)
    home = settings.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(instance_file().read_text(encoding="utf-8"))
    return {
        "DAGSTER_HOME": str(home),
        "DAGSTER_POSTGRES_URL": storage_url(server),
        "DAGSTER_EVENT_BATCH_SIZE": "100",  # one event each makes a run of a year slow
    }


def storage_url(url: str, database: str = DATABASE) -> str:
    """Return the URL of another database on the server of `url`, for SQLAlchemy and psycopg2.

    url: in any form that libpq accepts, Unix sockets included.
    """
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    parts.pop("dbname", None)
    return URL.create(
        "postgresql+psycopg2",
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        database=database,
        # With hosts and ports: as parameters they may be several, or the directory of a socket.
        query=parts,
    ).render_as_string(hide_password=False)


def instance_file() -> Path:
    """Return the path of dagster.yaml: inside an installed wheel, or beside the package."""
    package = Path(__file__).parents[1]
    installed = package / "dagster.yaml"
    return installed if installed.is_file() else package.parent / "dagster.yaml"


def ensure_database(connection: psycopg.Connection[Any], owner: str) -> None:
    """Create Dagster's database on the server of a connection, if it does not exist.

    Raises UserError when the user lacks the right.
    """
    if connection.execute(queries["database_exists"], {"name": DATABASE}).fetchone():
        return
    statement = sql.SQL("CREATE DATABASE {} OWNER {}").format(
        sql.Identifier(DATABASE), sql.Identifier(owner)
    )
    try:
        connection.execute(statement)
    except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        return  # another process created it meanwhile
    except psycopg.errors.InsufficientPrivilege:
        raise UserError(
            f"the user {connection.info.user} may not create the database {DATABASE}, in which"
            f" Dagster stores its events: run CREATE DATABASE {DATABASE} OWNER {owner} as a"
            " superuser"
        ) from None
