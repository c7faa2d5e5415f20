"""The jobs: repair over REST, refresh, and the nightly audit."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from feature_platform.orchestration.audit import audit

REST_BACKFILL = "rest_backfill"


def repair_config(*, only_gaps: bool = True, symbols: list[str] | None = None) -> dict[str, Any]:
    """Return the run configuration of `rest_backfill`."""
    bars: dict[str, Any] = {"only_gaps": only_gaps}
    if symbols is not None:
        bars["symbols"] = symbols
    return {"ops": {"ohlcv_1m": {"config": bars}, "features_1m": {"config": {"next_day": True}}}}


# Without the checks: the sensor `run_checks` reports them within a minute.
rest_backfill = dg.define_asset_job(
    REST_BACKFILL,
    selection=dg.AssetSelection.assets("ohlcv_1m", "features_1m").without_checks(),
    description=(
        "Requests the missing minutes of a day from the exchange, then refreshes the features that"
        " depend on them: those of the day and of the next day."
    ),
    config=repair_config(),
)

refresh_features = dg.define_asset_job(
    "refresh_features",
    selection=dg.AssetSelection.assets("features_1m").without_checks(),
    description="Refreshes the features of a day, or of a range of days.",
)

jobs: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    rest_backfill,
    refresh_features,
    audit,
]
