"""Guards against a lake that Dagster does not keep, or shows as equal when it is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.orchestration.lake import CHECK
from feature_platform.refresh import refresh
from feature_platform.settings import get_settings
from feature_platform_tests.fix_dagster import Platform, definitions
from feature_platform_tests.fix_views import add_bars

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
YESTERDAY = (TODAY - timedelta(days=1)).date().isoformat()


@pytest.fixture
def with_lake(
    conn: psycopg.Connection[Any],
    instance: dg.DagsterInstance,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Platform:
    """Return the platform with a lake, and two days of two symbols in the database."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    monkeypatch.setenv("FEATURE_PLATFORM_LAKE", str(tmp_path / "lake"))
    get_settings.cache_clear()
    add_bars(conn, TODAY - timedelta(days=2), 2 * 1440, ("A", "B"))
    refresh(conn)
    return Platform(definitions(), instance, conn)


@on_postgres
def test_a_day_of_the_lake_is_materialised_and_checked(with_lake: Platform) -> None:
    selected = [dg.AssetKey("lake_ohlcv_1m"), dg.AssetKey("lake_features_1m")]
    done = with_lake.run("__ASSET_JOB", YESTERDAY, asset_selection=selected)
    assert done.success
    for asset in ("lake_ohlcv_1m", "lake_features_1m"):
        (made,) = with_lake.materializations(asset)
        assert made.metadata["rows written"].value == 2 * 2 * 1440
        evaluation = with_lake.evaluation(CHECK, asset)
        assert evaluation is not None
        assert evaluation.passed, evaluation.description
        assert evaluation.metadata["days of symbols"].value == 4


@on_postgres
def test_the_audit_keeps_the_lake_and_finds_a_difference(with_lake: Platform) -> None:
    assert with_lake.run("audit").success
    with_lake.connection.execute(
        "DELETE FROM features_1m WHERE symbol = 'B' AND bucket < %s", [TODAY - timedelta(days=1)]
    )
    assert not with_lake.run("audit", raise_on_error=False).success
    evaluation = with_lake.evaluation(CHECK, "lake_features_1m")
    assert evaluation is not None
    assert not evaluation.passed
    assert evaluation.metadata["different"].value == 1
    equal = with_lake.evaluation(CHECK, "lake_ohlcv_1m")
    assert equal is not None
    assert equal.passed


@on_postgres
def test_without_a_lake_there_are_no_assets_of_one(
    with_lake: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(lake_keys(with_lake.repository)) == 2
    monkeypatch.delenv("FEATURE_PLATFORM_LAKE")
    get_settings.cache_clear()
    assert lake_keys(definitions().get_repository_def()) == []


def lake_keys(repository: dg.RepositoryDefinition) -> list[dg.AssetKey]:
    keys = repository.asset_graph.get_all_asset_keys()
    return [key for key in keys if key.path[0].startswith("lake_")]
