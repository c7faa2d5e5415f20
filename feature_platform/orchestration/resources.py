"""What assets, checks and sensors are given: the database, and the venue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import psycopg

from feature_platform.database import connect
from feature_platform.exchange import Exchange
from feature_platform.schema import prepare


class Database(dg.ConfigurableResource[Any]):
    """The platform's database, as its settings name it."""

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Connect for as long as the block lasts: a connection costs a few milliseconds."""
        with connect(application_name="feature_platform dagster") as connection:
            prepare(connection)
            yield connection


class Venue(dg.ConfigurableResource[Any]):
    """The exchange that bars are fetched from, as the settings name it."""

    @contextmanager
    def exchange(self) -> Iterator[Exchange]:
        """Give a client of the exchange, and close its connections."""
        with Exchange.configured() as exchange:
            yield exchange
