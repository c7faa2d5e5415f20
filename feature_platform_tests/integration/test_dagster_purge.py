"""Guards against a database of Dagster's that grows without a bound."""

from __future__ import annotations

from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.orchestration.purge import connect_storage, purge
from feature_platform.validation import CHECKS
from feature_platform_tests.fix_dagster import Platform
from feature_platform_tests.fix_processes import insert_recent, value

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

# One report every five minutes.
DAYS = 30
BEATS = DAYS * 24 * 12

_REPEAT_EVENTS = """
    INSERT INTO event_logs
           (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    SELECT run_id, event, dagster_event_type, timestamp - beat * interval '5 minutes', step_key,
           asset_key, partition
      FROM event_logs, generate_series(1, %(beats)s) AS beat ORDER BY beat DESC
"""
_REPEAT_CHECKS = """
    INSERT INTO asset_check_executions
           (asset_key, check_name, run_id, execution_status, evaluation_event,
            evaluation_event_timestamp, create_timestamp)
    SELECT asset_key, check_name, run_id, execution_status, evaluation_event,
           evaluation_event_timestamp - beat * interval '5 minutes',
           create_timestamp - beat * interval '5 minutes'
      FROM asset_check_executions, generate_series(1, %(beats)s) AS beat ORDER BY beat DESC
"""


@pytest.fixture
def storage(platform: Platform) -> Any:
    """Yield a connection to Dagster's database."""
    with connect_storage(platform.instance) as connection:
        yield connection


def test_a_month_of_ticks_is_purged_to_two_weeks(
    platform: Platform, storage: psycopg.Connection[Any]
) -> None:
    insert_recent(platform.connection, "BTC/USDT", 100)
    data = platform.tick("run_checks")
    newest = {event.check_name: platform_evaluation(platform, event) for event in checks_of(data)}
    # Copies of the events are older and have lower ids, as if reported every 5 minutes.
    age(storage)
    storage.execute("VACUUM ANALYZE")
    counted = rows(storage)
    assert counted["event_logs"] > BEATS * len(CHECKS)
    done = purge(storage)
    assert done.events > 0.5 * counted["event_logs"]
    assert done.check_executions > 0.5 * counted["asset_check_executions"]
    left = rows(storage)
    # Two weeks of a month stay, and the newest row of each kind.
    assert left["event_logs"] < 0.52 * counted["event_logs"]
    assert left["asset_check_executions"] < 0.52 * counted["asset_check_executions"]
    for event in checks_of(data):
        assert platform_evaluation(platform, event) == newest[event.check_name]
    assert platform.materializations("ohlcv_1m")
    assert done.bytes_before < 1e9
    print(
        f"\na month of ticks is {done.bytes_before / 1e6:.0f} MB;"
        f" {left['event_logs'] + left['asset_check_executions']:,} rows stay of"
        f" {sum(counted.values()):,}"
    )
    assert purge(storage).events == 0


def test_the_newest_materialisation_of_a_month_old_run_stays(
    platform: Platform, storage: psycopg.Connection[Any]
) -> None:
    insert_recent(platform.connection, "BTC/USDT", 10)
    today = value(platform.connection, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
    assert platform.run("refresh_features", today).success
    assert platform.run("refresh_features", today).success
    storage.execute("UPDATE event_logs SET timestamp = timestamp - interval '40 days'")
    storage.execute("UPDATE runs SET update_timestamp = update_timestamp - interval '40 days'")
    purge(storage)
    left = storage.execute("SELECT dagster_event_type FROM event_logs ORDER BY 1").fetchall()
    assert left == [("ASSET_MATERIALIZATION",), ("ASSET_MATERIALIZATION_PLANNED",)]
    assert value(storage, "SELECT count(*) FROM runs") == 1
    (kept,) = platform.materializations("features_1m")
    assert kept.partition == today


def test_a_run_in_progress_is_not_purged(
    platform: Platform, storage: psycopg.Connection[Any]
) -> None:
    run = platform.instance.create_run_for_job(
        platform.repository.get_job("audit"), status=dg.DagsterRunStatus.STARTED
    )
    platform.instance.report_engine_event("waits", dagster_run=run)
    storage.execute("UPDATE event_logs SET timestamp = timestamp - interval '40 days'")
    storage.execute("UPDATE runs SET update_timestamp = update_timestamp - interval '40 days'")
    done = purge(storage)
    assert (done.events, done.runs) == (0, 0)


def test_the_audit_runs_all_parts_even_if_one_fails(platform: Platform) -> None:
    insert_recent(platform.connection, "BTC/USDT", 6000)
    platform.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    done = platform.run("audit")
    assert done.success
    platform.connection.execute("UPDATE features_1m SET volume_z = volume_z + 1")
    failed = platform.run("audit", raise_on_error=False)
    assert not failed.success
    (failure,) = failed.get_step_failure_events()
    assert failure.step_key == "verify_features"
    # The other parts ran.
    succeeded = {event.step_key for event in failed.get_step_success_events()}
    assert succeeded == {"recheck_gaps", "apply_retention", "purge_events", "keep_lake"}


def age(storage: psycopg.Connection[Any]) -> None:
    """Copy all events and results into the past; the originals get the highest ids."""
    storage.execute("CREATE TEMPORARY TABLE newest_events AS SELECT * FROM event_logs")
    storage.execute("CREATE TEMPORARY TABLE newest_checks AS SELECT * FROM asset_check_executions")
    storage.execute(_REPEAT_EVENTS, {"beats": BEATS})
    storage.execute(_REPEAT_CHECKS, {"beats": BEATS})
    storage.execute(
        "UPDATE event_logs l SET id = l.id + 10000000 FROM newest_events n WHERE n.id = l.id"
    )
    storage.execute(
        "UPDATE asset_check_executions e SET id = e.id + 10000000,"
        " evaluation_event_storage_id = e.evaluation_event_storage_id + 10000000,"
        " materialization_event_storage_id = e.materialization_event_storage_id + 10000000"
        " FROM newest_checks n WHERE n.id = e.id"
    )


def rows(storage: psycopg.Connection[Any]) -> dict[str, int]:
    return {
        "event_logs": value(storage, "SELECT count(*) FROM event_logs"),
        "asset_check_executions": value(storage, "SELECT count(*) FROM asset_check_executions"),
    }


def checks_of(data: Any) -> list[dg.AssetCheckEvaluation]:
    return [event for event in data.asset_events if isinstance(event, dg.AssetCheckEvaluation)]


def platform_evaluation(
    platform: Platform, event: dg.AssetCheckEvaluation
) -> dg.AssetCheckEvaluation | None:
    return platform.evaluation(event.check_name, event.asset_key.to_user_string())
