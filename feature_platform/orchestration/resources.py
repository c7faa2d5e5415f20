"""What assets, checks and sensors are given: the database, and the venue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import psycopg

from feature_platform.database import connect
from feature_platform.exchange.client import Exchanges
from feature_platform.origin import exchange_settings
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
    """The exchanges that bars are fetched from, as the settings name them."""

    @contextmanager
    def exchange(self) -> Iterator[Exchanges]:
        """Give clients of the exchanges, and close their connections."""
        with connect(application_name="feature_platform dagster") as connection:
            settings = exchange_settings(connection)
        with Exchanges(settings) as exchanges:
            yield exchanges
