"""Guards against feature views that Dagster does not show, or shows as right when they are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.orchestration.views import applied_views
from feature_platform.settings import get_settings
from feature_platform.views import catalog
from feature_platform_tests.fix_dagster import Platform, definitions
from feature_platform_tests.fix_views import CANDLES, SHORT, add_bars, check_views, refresh_all

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


@pytest.fixture
def with_views(
    conn: psycopg.Connection[Any],
    instance: dg.DagsterInstance,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Platform:
    """Return the platform on a database with two views that are not built yet."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    get_settings.cache_clear()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    add_bars(conn, midnight - timedelta(days=1), 1440, ("A", "B"))
    catalog.apply(conn, [SHORT, CANDLES])
    return Platform(definitions(), instance, conn)


@on_postgres
def test_each_view_is_an_asset_with_columns_lineage_and_checks(with_views: Platform) -> None:
    graph = with_views.repository.asset_graph
    node = graph.get(dg.AssetKey("short_1m"))
    assert dg.AssetKey("ohlcv_1m") in node.parent_keys
    assert node.partitions_def is not None
    schema = node.metadata["dagster/column_schema"]
    assert [column.name for column in schema.columns] == ["symbol", "bucket", *SHORT.columns]
    checks = {key.name for key in graph.asset_check_keys if key.asset_key.path == ["candles_1h"]}
    assert checks == {
        "newest_bucket_is_stored",
        "nothing_waits_long",
        "stored_equals_recomputed",
        "no_nulls_after_warm_up",
    }


@on_postgres
def test_a_day_of_a_view_is_materialised_and_checked(with_views: Platform) -> None:
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    selected = [dg.AssetKey("short_1m"), dg.AssetKey("candles_1h")]
    done = with_views.run("__ASSET_JOB", yesterday, asset_selection=selected)
    assert done.success
    check_views(with_views.connection)
    (made,) = with_views.materializations("short_1m")
    assert made.metadata["rows written"].value == 2 * 1440
    for asset in ("short_1m", "candles_1h"):
        evaluation = with_views.evaluation("stored_equals_recomputed", asset)
        assert evaluation is not None
        assert evaluation.passed, evaluation.description
    # A row that another writer changed is found.
    refresh_all(with_views.connection)
    with_views.connection.execute("UPDATE short_1m SET mean_5m = 1 WHERE mean_5m IS NOT NULL")
    with_views.run("__ASSET_JOB", yesterday, asset_selection=selected)
    evaluation = with_views.evaluation("stored_equals_recomputed", "short_1m")
    assert evaluation is not None
    assert not evaluation.passed
    assert evaluation.metadata["findings"] is not None


def test_a_database_that_does_not_answer_has_no_views(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    get_settings.cache_clear()
    assert applied_views() == []
