"""Guards against unseen changes of Dagster's definitions, by a snapshot of all of them.

FEATURE_PLATFORM_TEST_WRITE_SNAPSHOT=1 writes `definitions.json` again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from feature_platform.orchestration.assets import EXCHANGE_POOL
from feature_platform.orchestration.instance import storage_url
from feature_platform_tests.fix_dagster import definitions

WRITE = "FEATURE_PLATFORM_TEST_WRITE_SNAPSHOT"
SNAPSHOT = Path(__file__).parents[1] / "definitions.json"
ROOT = Path(__file__).parents[2]


def test_definitions_equal_the_snapshot() -> None:
    text = json.dumps(described(definitions().get_repository_def()), indent=1, sort_keys=True)
    if os.environ.get(WRITE):
        SNAPSHOT.write_text(text + "\n")
    assert text + "\n" == SNAPSHOT.read_text(), f"see the diff of {SNAPSHOT.name} after {WRITE}=1"


def described(repository: dg.RepositoryDefinition) -> dict[str, Any]:
    """Describe all definitions in plain values, without paths of this machine."""
    graph = repository.asset_graph
    return {
        "assets": {
            key.to_user_string(): asset(graph.get(key)) for key in graph.get_all_asset_keys()
        },
        "checks": {
            f"{key.asset_key.to_user_string()}: {key.name}": graph.get_check_spec(key).description
            for key in graph.asset_check_keys
        },
        "jobs": {
            job.name: {"description": job.description, "nodes": sorted(job.graph.node_dict)}
            for job in repository.get_all_jobs()
            if not job.name.startswith("__")
        },
        "sensors": {
            sensor.name: {
                "description": sensor.description,
                "every": sensor.minimum_interval_seconds,
                "status": sensor.default_status.value,
                "jobs": [target.job_name for target in sensor.targets],
            }
            for sensor in repository.sensor_defs
        },
        "schedules": {
            schedule.name: {
                "cron": schedule.cron_schedule,
                "description": schedule.description,
                "job": schedule.job_name,
                "status": schedule.default_status.value,
                "timezone": schedule.execution_timezone,
            }
            for schedule in repository.schedule_defs
        },
    }


def asset(node: Any) -> dict[str, Any]:
    schema = node.metadata.get("dagster/column_schema")
    references = node.metadata["dagster/code_references"].code_references
    partitions = node.partitions_def
    return {
        "description": node.description,
        "group": node.group_name,
        "kinds": sorted(node.kinds),
        "pools": sorted(node.pools or ()),
        "parents": {
            key.to_user_string(): str(node.partition_mappings.get(key)) for key in node.parent_keys
        },
        "partitions": None if partitions is None else str(partitions),
        "single run": node.backfill_policy is not None
        and node.backfill_policy.max_partitions_per_run is None,
        "freshness": str(node.freshness_policy),
        "table": node.metadata["dagster/table_name"],
        "columns": None
        if schema is None
        else {column.name: column.type for column in schema.columns},
        "sql": [reference.label for reference in references],
    }


def test_every_reference_to_sql_points_at_its_statement() -> None:
    for key in (graph := definitions().get_repository_def().asset_graph).get_all_asset_keys():
        for one in graph.get(key).metadata["dagster/code_references"].code_references:
            line = Path(one.file_path).read_text().splitlines()[one.line_number - 1]
            assert line.startswith("CREATE"), one


def test_sensors_and_schedules_run_by_default_every_minute() -> None:
    repository = definitions().get_repository_def()
    assert all(
        one.default_status is dg.DefaultSensorStatus.RUNNING for one in repository.sensor_defs
    )
    assert all(
        one.default_status is dg.DefaultScheduleStatus.RUNNING for one in repository.schedule_defs
    )
    # An interval of 60 seconds gives a tick every 60 to 65 seconds.
    assert {one.minimum_interval_seconds for one in repository.sensor_defs} == {58}


def test_one_run_at_a_time_requests_bars_of_an_exchange(instance: dg.DagsterInstance) -> None:
    pools = instance.get_concurrency_config().pool_config
    assert pools.default_pool_limit == 1
    assert pools.pool_granularity is not None
    assert pools.pool_granularity.value == "run"
    graph = definitions().get_repository_def().asset_graph
    assert graph.get(dg.AssetKey("ohlcv_1m")).pools == {EXCHANGE_POOL}


def test_telemetry_is_off_and_runs_are_monitored(instance: dg.DagsterInstance) -> None:
    assert not instance.telemetry_enabled
    assert instance.run_monitoring_enabled


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://postgres@/feature_platform?host=/run/pg&port=5432",
            "postgresql+psycopg2://postgres@/dagster?host=%2Frun%2Fpg&port=5432",
        ),
        (
            "postgresql://me:p%40ss@db.example:5433/bars?sslmode=require",
            "postgresql+psycopg2://me:p%40ss@/dagster?host=db.example&port=5433&sslmode=require",
        ),
        ("host=db.example dbname=bars", "postgresql+psycopg2:///dagster?host=db.example"),
    ],
)
def test_dagsters_storage_is_a_database_on_the_platforms_server(url: str, expected: str) -> None:
    assert storage_url(url) == expected


def test_dagster_validates_the_definitions(tmp_path: Path) -> None:
    """`dagster definitions validate` loads them through workspace.yaml."""
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("dagster")),
            "definitions",
            "validate",
            "-w",
            str(ROOT / "workspace.yaml"),
        ],
        cwd=tmp_path,
        env={**os.environ, "DAGSTER_HOME": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful" in done.stderr + done.stdout
