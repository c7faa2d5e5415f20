"""The definitions that Dagster loads: every part is made in a module named for it."""

from __future__ import annotations

import dagster as dg

from feature_platform.orchestration.assets import assets
from feature_platform.orchestration.checks import checks
from feature_platform.orchestration.jobs import jobs
from feature_platform.orchestration.resources import Database, Venue
from feature_platform.orchestration.schedules import schedules
from feature_platform.orchestration.sensors import sensors


@dg.definitions
def defs() -> dg.Definitions:
    """Return everything, to be run in the run's own process: a run is one or two steps."""
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=jobs,
        schedules=schedules,
        sensors=sensors,
        resources={"database": Database(), "venue": Venue()},
        executor=dg.in_process_executor,
    )
