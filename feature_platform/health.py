"""Probes of services that serve no HTTP: some milliseconds of SQL."""

from __future__ import annotations

import os
from typing import Literal

import psycopg

from feature_platform.database import connect_briefly
from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.schema import require_clock
from feature_platform.settings import redact

Service = Literal["recorder", "worker", "daemon"]


def problem_of(service: Service) -> str | None:
    """Return the fault of a service of the configured database, None where it does its work.

    The daemon's heartbeat is in Dagster's own database, DAGSTER_POSTGRES_URL. A database that
    cannot be reached, or does not answer within three seconds, is a fault, too.
    Raises UserError where DAGSTER_POSTGRES_URL is not set.
    """
    url = _dagster_url() if service == "daemon" else None
    try:
        with connect_briefly(url, application_name="feature_platform health") as brief:
            if url is None:
                require_clock(brief.connection)
            row = brief.connection.execute(queries[f"health_{service}"]).fetchone()
    except (psycopg.OperationalError, UserError) as error:
        return " ".join(redact(str(error)).split())
    return None if row is None else row[0]


def _dagster_url() -> str:
    url = os.environ.get("DAGSTER_POSTGRES_URL")
    if not url:
        raise UserError("DAGSTER_POSTGRES_URL is not set: whose daemon is meant?")
    # SQLAlchemy's driver is nothing that libpq knows.
    return url.replace("postgresql+psycopg2://", "postgresql://", 1)
