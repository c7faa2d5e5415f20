"""Guards against feature views that Dagster does not show, or shows as right when they are not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.orchestration.cursors import ReportedViews
from feature_platform.orchestration.views import applied_views
from feature_platform.settings import get_settings
from feature_platform.views import catalog
from feature_platform.views.checks import CHECKS
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
        "drift",
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


@pytest.fixture
def built(with_views: Platform) -> Platform:
    """Return the platform with two views of yesterday, which are built."""
    refresh_all(with_views.connection)
    return with_views


YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)


def kinds_of(data: Any) -> list[tuple[str, str]]:
    """Return the asset and the kind of each event of a tick."""
    return [(event.asset_key.path[-1], type(event).__name__) for event in data.asset_events]


def older(cursor: str) -> str:
    """Return a cursor as if its reports were six minutes older."""
    reported = ReportedViews.parse(cursor)
    reported.reports = {name: at - 6 * 60 for name, at in reported.reports.items()}
    return reported.dump()


@on_postgres
@pytest.mark.usefixtures("one_day")
def test_the_sensor_reports_new_rows_complete_days_and_checks(built: Platform) -> None:
    first = built.tick("watch_views")
    reports = ["AssetMaterialization"] * 2 + ["AssetCheckEvaluation"] * 4
    (name,) = {asset for asset, _ in kinds_of(first)}  # one of two views, the other one is next
    assert [kind for _, kind in kinds_of(first)] == reports
    second = built.tick("watch_views", first.cursor)
    (other,) = {asset for asset, _ in kinds_of(second)}
    assert {name, other} == {"short_1m", "candles_1h"}
    newest, whole = built.materializations("short_1m")
    assert (newest.partition, whole.partition) == (None, YESTERDAY.isoformat())
    shown = {label: value.value for label, value in newest.metadata.items()}
    last = datetime(YESTERDAY.year, YESTERDAY.month, YESTERDAY.day, 23, 59, tzinfo=UTC)
    assert shown["newest"] == last.timestamp()
    assert shown["number of symbols"] == 2
    assert shown["rows waiting for refresh"] == 0
    assert shown["history built (%)"] == 100
    lag = (datetime.now(UTC) - last).total_seconds() - 60
    assert isinstance(shown["lag (s)"], float)
    assert abs(shown["lag (s)"] - lag) < 60
    for asset in ("short_1m", "candles_1h"):
        for check in CHECKS:
            found = built.evaluation(check.name, asset)
            assert found is not None
            assert found.passed, found.description
    third = built.tick("watch_views", second.cursor)
    assert third.asset_events == []
    # Without newer rows, the checks alone are reported again.
    again = built.tick("watch_views", older(second.cursor))
    assert {kind for _, kind in kinds_of(again)} == {"AssetCheckEvaluation"}


@on_postgres
def test_a_view_that_fails_or_that_a_run_materialised_is_reported_at_once(built: Platform) -> None:
    cursor = built.tick("watch_views", built.tick("watch_views").cursor).cursor
    built.connection.execute(
        """UPDATE feature_platform.feature_view SET state = 'failed', error = 'e'
           WHERE name = 'short_1m'"""
    )
    failed = built.tick("watch_views", cursor)
    assert set(kinds_of(failed)) == {("short_1m", "AssetCheckEvaluation")}
    found = built.evaluation("nothing_waits_long", "short_1m")
    assert found is not None
    assert not found.passed
    assert found.description == "the view has failed: e"
    compared = built.evaluation("stored_equals_recomputed", "short_1m")
    assert compared is not None
    assert not compared.passed
    selected = [dg.AssetKey("candles_1h")]
    assert built.run("__ASSET_JOB", YESTERDAY.isoformat(), asset_selection=selected).success
    after_run = built.tick("watch_views", failed.cursor)
    assert set(kinds_of(after_run)) == {("candles_1h", "AssetCheckEvaluation")}


@on_postgres
def test_a_day_with_a_row_that_waits_is_not_reported_as_complete(built: Platform) -> None:
    built.connection.execute("UPDATE ohlcv_1m SET vol = 5 WHERE symbol = 'B' AND vol <> 5")
    cursor = None
    for _ in range(2):
        cursor = built.tick("watch_views", cursor).cursor
    partitions = {made.partition for made in built.materializations("short_1m")}
    assert partitions == {YESTERDAY.isoformat()}  # of the newest rows, not of the whole day
    (only,) = built.materializations("candles_1h")
    assert only.description is not None
    assert only.description.startswith("Newer rows")
    refresh_all(built.connection)
    for _ in range(2):
        cursor = built.tick("watch_views", older(cursor or "")).cursor
    (only,) = built.materializations("candles_1h")  # the day has its partition already


@on_postgres
def test_views_that_were_changed_since_the_load_are_named(built: Platform) -> None:
    first = built.tick("watch_views")
    assert "reload" not in first.skip_message
    catalog.drop(built.connection, "candles_1h")
    catalog.apply(built.connection, [replace(CANDLES, name="candles_60m")])
    data = built.tick("watch_views", first.cursor)
    assert "reload the code location" in data.skip_message
    assert "candles_1h, candles_60m" in data.skip_message
    assert "candles_1h" not in data.cursor


def test_each_tick_reports_its_share_of_many_views() -> None:
    reported = ReportedViews()
    states = {f"view_{number}": "live" for number in range(12)}
    seen = []
    for _ in range(4):
        due = reported.due(states, set())
        assert len(due) == 3
        seen += due
        reported.note_reports(due, states)
    assert sorted(seen) == sorted(states)
    assert reported.due(states, set()) == []
    assert reported.due({**states, "view_3": "failed"}, {"view_4"}) == ["view_3", "view_4"]


def test_a_database_that_does_not_answer_has_no_views(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    get_settings.cache_clear()
    assert applied_views() == []
