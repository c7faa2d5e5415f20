"""Dagster's storage in PostgreSQL with connections that stay open."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from dagster import StringSource
from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.sql import create_engine
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import Engine

# Connections that a process keeps open while it does not use them.
_KEPT = 4


class PooledStorage(DagsterPostgresStorage):
    """Dagster's storage, whose instances in one process share a pool of connections.

    Dagster's own opens two or three connections for each event that it stores, and ten for each
    tick of a sensor, because the code server makes an instance for each. On a busy machine these
    take longer than the tick itself.
    """

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        engine = pool_of(postgres_url)
        super().__init__(postgres_url, should_autocreate_tables=False, inst_data=inst_data)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Return the fields of the configuration."""
        return {"postgres_url": StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Return the storage that dagster.yaml configures."""
        return cls(config_value["postgres_url"], inst_data)


@cache
def pool_of(url: str) -> Engine:
    """Return this process's connections to a database of Dagster.

    The first call creates Dagster's tables where there are none.
    """
    DagsterPostgresStorage(url)
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=_KEPT,
        # Without a limit: Dagster uses a second connection while it holds the first, and threads
        # that wait for each other's would never end.
        max_overflow=-1,
        pool_pre_ping=True,  # the server may have been restarted
    )
