"""Whether a service that serves no HTTP does its work: a probe of some milliseconds in SQL."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Literal

from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.schema import require_clock

Service = Literal["recorder", "worker", "daemon"]


def problem_of(service: Service) -> str | None:
    """Return what is wrong with a service of the database that is configured, None if nothing is.

    Of the daemon it asks the database that Dagster keeps its events in, DAGSTER_POSTGRES_URL.
    Raises UserError when the database cannot be reached, or does not follow this process's clock.
    """
    url = _dagster_url() if service == "daemon" else None
    with closing(connect(url, application_name="feature_platform health")) as connection:
        if url is None:
            require_clock(connection)
        row = connection.execute(queries[f"health_{service}"]).fetchone()
    return None if row is None else row[0]


def _dagster_url() -> str:
    url = os.environ.get("DAGSTER_POSTGRES_URL")
    if not url:
        raise UserError("DAGSTER_POSTGRES_URL is not set: whose daemon is meant?")
    # SQLAlchemy's driver is nothing that libpq knows.
    return url.replace("postgresql+psycopg2://", "postgresql://", 1)
