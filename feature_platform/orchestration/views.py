"""An asset and its checks for each feature view that is applied in the database.

They are made when the code location loads: reload it in Dagster's UI after an apply.
"""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg

from feature_platform.database import connect_briefly
from feature_platform.embedded.server import embedded_server
from feature_platform.errors import UserError, one_line
from feature_platform.orchestration.assets import GROUP
from feature_platform.orchestration.checks import SEVERITIES
from feature_platform.orchestration.metadata import of_view, of_view_rows, table
from feature_platform.orchestration.partitions import days
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.refresh import refresh
from feature_platform.schema import require_version
from feature_platform.settings import get_settings
from feature_platform.views import catalog
from feature_platform.views.catalog import Version
from feature_platform.views.checks import CHECKS, ViewCheckResult, evaluate
from feature_platform.views.expressions import span_words

_log = logging.getLogger(__name__)


def applied_views() -> list[Version]:
    """Return the views that can be read; none where the database does not answer.

    An embedded server is not started for this.
    """
    settings = get_settings()
    if settings.database_url is None and not embedded_server(settings.home).is_running:
        return []
    try:
        with connect_briefly() as brief:
            require_version(brief.connection)
            return [view for view in catalog.all_versions(brief.connection) if view.served]
    except (UserError, psycopg.Error) as error:
        _log.warning("no assets of feature views: %s", one_line(error))
        return []


def view_assets(views: list[Version]) -> list[dg.AssetsDefinition]:
    """Return an asset for each view, partitioned by day."""
    return [_asset(view) for view in views]


def view_checks(views: list[Version]) -> list[dg.AssetChecksDefinition]:
    """Return the checks of each view."""
    return [_checks(view) for view in views]


def _asset(view: Version) -> dg.AssetsDefinition:
    columns = [
        dg.TableColumn("symbol", "text", description="The symbol, as in ohlcv_1m."),
        dg.TableColumn("bucket", "timestamp with time zone", description="UTC start."),
        *(
            dg.TableColumn(name, "double precision", description=source)
            for name, source in zip(view.columns, view.sources, strict=True)
        ),
    ]

    @dg.asset(
        name=view.name,
        description=(
            f"{view.description or 'A feature view.'} Always equal to its formulas over the bars;"
            " the refresh policy keeps it current, and materialising a day refreshes that day now."
        ),
        deps=[
            dg.AssetDep(
                "ohlcv_1m",
                partition_mapping=dg.TimeWindowPartitionMapping(
                    start_offset=-(view.look_back // timedelta(days=1)) - 1,
                    allow_nonexistent_upstream_partitions=True,
                ),
            ),
            "features_1m_policy",
        ],
        group_name=GROUP,
        kinds={"postgres", "table"},
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        # Dagster's own alarm: `watch_views` reports new rows about every five minutes, and a view
        # has new rows once a bucket.
        freshness_policy=dg.FreshnessPolicy.time_window(
            fail_window=view.every + timedelta(minutes=20),
            warn_window=view.every + timedelta(minutes=10),
        ),
        metadata={
            "dagster/table_name": f"public.{view.name}",
            "dagster/column_schema": dg.TableSchema(columns),
            "version": view.version,
            "every": span_words(view.every),
            "look-back": span_words(view.look_back),
        },
    )
    def asset_of_view(
        context: dg.AssetExecutionContext, database: DatabaseResource
    ) -> dg.MaterializeResult[Any]:
        """Refresh the days of this run."""
        window = context.partition_time_window
        with database.connection() as connection:
            # It sends the changes of the bars to the views.
            refresh(connection, window.start, window.end)
            written = catalog.refresh_views(connection, window.start, window.end, name=view.name)
            status = next(one for one in catalog.versions_of(connection, view.name) if one.served)
            shown, _ = of_view(connection, status)
            rows = of_view_rows(connection, view.name, window.start, window.end)
        return dg.MaterializeResult(metadata={**rows, "rows written": written, **shown})

    return asset_of_view


def evaluation(name: str, result: ViewCheckResult) -> dg.AssetCheckEvaluation:
    """Return a result as an event that is reported without a run.

    It has no partition: Dagster stores at most one such event for each partition.
    """
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(name),
        check_name=result.check.name,
        passed=result.passed,
        severity=SEVERITIES[result.check.severity],
        description=result.summary,
        metadata=_of_check(result),
    )


def _of_check(result: ViewCheckResult) -> dict[str, Any]:
    return {"findings": table(result.findings)} if result.findings else {}


def _checks(view: Version) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=f"{view.name}_checks",
        specs=[
            dg.AssetCheckSpec(check.name, asset=view.name, description=check.description)
            for check in CHECKS
        ],
        can_subset=True,
    )
    def checks_of_view(
        context: dg.AssetCheckExecutionContext, database: DatabaseResource
    ) -> Iterator[dg.AssetCheckResult]:
        """Evaluate the selected checks of a view."""
        names = {key.name for key in context.selected_asset_check_keys}
        with database.connection() as connection:
            for result in evaluate(connection, view.name, names):
                yield dg.AssetCheckResult(
                    passed=result.passed,
                    asset_key=view.name,
                    check_name=result.check.name,
                    severity=SEVERITIES[result.check.severity],
                    description=result.summary,
                    metadata=_of_check(result),
                )

    return checks_of_view
