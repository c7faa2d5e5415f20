"""A Dagster instance with its storage in PostgreSQL, and the platform's definitions beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from feature_platform.orchestration.instance import instance_file, storage_url
from feature_platform.orchestration.purge import connect_storage
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.orchestration.storage import pool_of
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform_tests.fix_database import copy_of

_LONGEST_TEST = timedelta(minutes=2)


@pytest.fixture(scope="session")
def dagster_storage(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a database with Dagster's tables, all empty.

    Their creation takes 50 times the processor time of a new instance on existing tables.
    """
    name = f"dagster_{uuid4().hex[:12]}"
    _send(server_url, copy_of("template0", name))
    url = storage_url(server_url, name)
    home = tmp_path_factory.mktemp("dagster")
    with pytest.MonkeyPatch.context() as patch, _instance(patch, home, url):
        pass
    yield url
    pool_of(url).dispose()
    _send(server_url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def instance(
    dagster_storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """Yield an instance of dagster.yaml's configuration with an empty storage."""
    home = tmp_path / "dagster"
    home.mkdir()
    with _instance(monkeypatch, home, dagster_storage) as made:
        yield made
        with connect_storage(made) as connection:
            assert connection is not None
            _empty(connection)


@dataclass(frozen=True)
class Platform:
    """The platform's definitions, its database and an instance of Dagster."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    connection: psycopg.Connection[Any]

    @property
    def repository(self) -> dg.RepositoryDefinition:
        """The definitions as Dagster resolves them."""
        return self.definitions.get_repository_def()

    def run(
        self, job: str, partition: str | None = None, **options: Any
    ) -> dg.ExecuteInProcessResult:
        """Run a job here and now."""
        return self.repository.get_job(job).execute_in_process(
            partition_key=partition, instance=self.instance, **options
        )

    def tick(self, sensor: str, cursor: str | None = None) -> Any:
        """Evaluate a sensor as the daemon does, and report its events."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            repository_def=self.repository,
            resources={"database": DatabaseResource()},
            sensor_name=sensor,
        ) as context:
            data = self.repository.get_sensor_def(sensor).evaluate_tick(context)
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return data

    def evaluation(self, check: str, asset: str) -> dg.AssetCheckEvaluation | None:
        """Return the newest evaluation of a check."""
        key = dg.AssetCheckKey(dg.AssetKey(asset), check)
        found = self.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
        record = found.get(key)
        if record is None or record.event is None:
            return None
        event = record.event.dagster_event
        assert event is not None
        return event.asset_check_evaluation_data

    def materializations(self, asset: str) -> list[dg.AssetMaterialization]:
        """Return the materialisations of an asset, the newest first."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=100).records
        return [record.asset_materialization for record in records if record.asset_materialization]


@pytest.fixture
def one_day() -> None:
    """Wait for midnight if it is near: a test that spans it would find another partition."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if midnight - now < _LONGEST_TEST:
        time.sleep((midnight - now).total_seconds())


@pytest.fixture
def platform(
    one_day: None,  # noqa: ARG001
    instance: dg.DagsterInstance,
    database: str,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Platform:
    """Return the platform on a fresh database."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    get_settings.cache_clear()
    # The database that tests are copied from, and its policy, are as old as their session.
    conn.execute("UPDATE feature_platform.policy SET changed_at = clock_timestamp()")
    return Platform(definitions(), instance, conn)


@pytest.fixture
def platform_with_exchange(
    platform: Platform, simulator: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> Platform:
    """Return the platform with a simulated exchange."""
    monkeypatch.setenv("FEATURE_PLATFORM_EXCHANGE_URL", simulator.url)
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", ",".join(simulator.truth.markets))
    get_settings.cache_clear()
    return platform


def definitions() -> dg.Definitions:
    """Load the definitions in a context of their own, as a process of Dagster does.

    Loading reads the storage of the instance that the context entered last, and the garbage
    collection of an instance can put one that is gone back into the context.
    """
    return Context().run(_load)


def _load() -> dg.Definitions:
    from feature_platform.definitions import defs

    loaded = defs.load() if hasattr(defs, "load") else defs()
    assert isinstance(loaded, dg.Definitions)
    loaded.get_repository_def()  # cached from here on
    return loaded


@contextmanager
def _instance(patch: pytest.MonkeyPatch, home: Path, url: str) -> Iterator[dg.DagsterInstance]:
    (home / "dagster.yaml").write_text(instance_file().read_text())
    patch.setenv("DAGSTER_HOME", str(home))
    patch.setenv("DAGSTER_POSTGRES_URL", url)
    with dg.DagsterInstance.from_config(str(home)) as made:
        yield made


def _empty(storage: psycopg.Connection[Any]) -> None:
    """Delete all rows but those that state the version of the tables."""
    tables = storage.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        " AND tablename NOT IN ('alembic_version', 'secondary_indexes')"
        " ORDER BY tablename"  # runs refer to snapshots
    ).fetchall()
    for (table,) in tables:
        storage.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))


def _send(server_url: str, statement: sql.Composed) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement)
