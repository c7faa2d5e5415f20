"""The definitions that Dagster loads; each kind is defined in a module of its name."""

from __future__ import annotations

import dagster as dg

from feature_platform.orchestration.assets import assets
from feature_platform.orchestration.checks import checks
from feature_platform.orchestration.drift import drift_checks, drift_sensor
from feature_platform.orchestration.jobs import jobs
from feature_platform.orchestration.lake import lake_assets, lake_checks
from feature_platform.orchestration.resources import DatabaseResource, ExchangeResource
from feature_platform.orchestration.schedules import schedules
from feature_platform.orchestration.sensors import sensors
from feature_platform.orchestration.view_sensor import view_sensor
from feature_platform.orchestration.views import applied_views, view_assets, view_checks


@dg.definitions
def defs() -> dg.Definitions:
    """Return all definitions; a run has one or two steps, which its own process executes."""
    views = applied_views()
    return dg.Definitions(
        assets=[*assets, *view_assets(views), *lake_assets(views)],
        asset_checks=[
            *checks,
            *view_checks(views),
            *lake_checks(views),
            drift_checks(views),
        ],
        jobs=jobs,
        schedules=schedules,
        sensors=[*sensors, view_sensor(views), drift_sensor(views)],
        resources={"database": DatabaseResource(), "exchange": ExchangeResource()},
        executor=dg.in_process_executor,
    )
