"""Probes of services that serve no HTTP: some milliseconds of SQL."""

from __future__ import annotations

import os
from typing import Literal

import psycopg
from psycopg.conninfo import make_conninfo

from feature_platform.database import BRIEF_SECONDS, connect_briefly, database_url
from feature_platform.errors import UserError, one_line
from feature_platform.queries import queries
from feature_platform.schema import WrongClockError, require_clock
from feature_platform.settings import get_settings

Service = Literal["recorder", "worker", "daemon"]

_VARIABLE = "DAGSTER_POSTGRES_URL"


def problem_of(service: Service) -> str | None:
    """Return the fault of a service of the configured database, None where it does its work.

    The daemon's heartbeat is in Dagster's own database: that of DAGSTER_POSTGRES_URL, or else that
    of the Dagster that runs in the platform's home. A database that cannot be reached, or does not
    answer within three seconds, is a fault, too.
    Raises UserError where DAGSTER_POSTGRES_URL is not set and the home has no Dagster, and
    WrongClockError where the clock of the settings is not that of the database.
    """
    if service == "daemon":
        _require_dagster()
    try:
        url = _dagster_url() if service == "daemon" else None
        with connect_briefly(url, application_name="feature_platform health") as brief:
            if url is None:
                require_clock(brief.connection)
            row = brief.connection.execute(queries[f"health_{service}"]).fetchone()
    except WrongClockError:
        raise
    except (psycopg.OperationalError, UserError) as error:
        return one_line(error)
    return None if row is None else row[0]


def _require_dagster() -> None:
    home = get_settings().home
    if not os.environ.get(_VARIABLE) and not (home / "dagster" / "dagster.yaml").is_file():
        raise UserError(
            f"{_VARIABLE} is not set, and no Dagster has run in {home}: set it, or run this command"
            " in Dagster's environment"
        )


def _dagster_url() -> str:
    url = os.environ.get(_VARIABLE)
    if not url:
        return make_conninfo(database_url(silence=BRIEF_SECONDS), dbname="dagster")
    # libpq does not know SQLAlchemy's name of the driver.
    return url.replace("postgresql+psycopg2://", "postgresql://", 1)
