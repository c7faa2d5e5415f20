"""Dagster's instance: where its processes find their settings and their database."""

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
    """Make Dagster's home and database, and return the environment for its processes.

    The home is `dagster` in the platform's, with the project's dagster.yaml; the database is
    `dagster` on the platform's server, which the caller keeps running.
    Raises UserError when the server cannot be used, or the database not be made.
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
        "DAGSTER_EVENT_BATCH_SIZE": "100",  # or a year in one run is slow to report
    }


def storage_url(url: str, database: str = DATABASE) -> str:
    """Return the URL of a database beside that of `url`, as SQLAlchemy takes it for psycopg2.

    url: in any form that libpq takes, Unix sockets included.
    """
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    parts.pop("dbname", None)
    return URL.create(
        "postgresql+psycopg2",
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        database=database,
        # Hosts and ports too: there they may be the directory of a socket, or several.
        query=parts,
    ).render_as_string(hide_password=False)


def instance_file() -> Path:
    """Return the project's dagster.yaml: inside an installed wheel, or beside the package."""
    package = Path(__file__).parents[1]
    installed = package / "dagster.yaml"
    return installed if installed.is_file() else package.parent / "dagster.yaml"


def ensure_database(connection: psycopg.Connection[Any], owner: str) -> None:
    """Make Dagster's database on the server of a connection, unless it is there.

    Raises UserError when the user may not.
    """
    if connection.execute(queries["database_exists"], {"name": DATABASE}).fetchone():
        return
    statement = sql.SQL("CREATE DATABASE {} OWNER {}").format(
        sql.Identifier(DATABASE), sql.Identifier(owner)
    )
    try:
        connection.execute(statement)
    except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        return  # another process was quicker
    except psycopg.errors.InsufficientPrivilege:
        raise UserError(
            f"the user {connection.info.user} may not make the database {DATABASE}, which Dagster"
            f" keeps its events in: CREATE DATABASE {DATABASE} OWNER {owner}, as a superuser"
        ) from None
