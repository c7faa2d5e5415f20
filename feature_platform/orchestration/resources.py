"""The resources of assets, checks and sensors: the database and the exchanges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg
import psycopg

from feature_platform.database import connect
from feature_platform.origin import exchange_settings
from feature_platform.schema import prepare

if TYPE_CHECKING:
    from feature_platform.exchange.client import Exchanges


class DatabaseResource(dg.ConfigurableResource[Any]):
    """The platform's database, given by its settings."""

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Open a connection for the length of a block; it costs a few milliseconds."""
        with connect(application_name="feature_platform dagster") as connection:
            prepare(connection)
            yield connection


class ExchangeResource(dg.ConfigurableResource[Any]):
    """The exchanges that bars are fetched from, given by the settings."""

    @contextmanager
    def clients(self) -> Iterator[Exchanges]:
        """Open clients of the exchanges for the length of a block."""
        from feature_platform.exchange.client import Exchanges  # ccxt, only for runs that fetch

        with connect(application_name="feature_platform dagster") as connection:
            settings = exchange_settings(connection)
        with Exchanges(settings) as exchanges:
            yield exchanges
