"""Assets of the lake, where one is configured: the daily copies, and the check that they are equal.

They are made when the code location loads, as those of the feature views.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg

from feature_platform.counted import counted
from feature_platform.errors import UserError
from feature_platform.orchestration.assets import GROUP
from feature_platform.orchestration.metadata import table
from feature_platform.orchestration.partitions import days, partition_key
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.settings import get_settings
from feature_platform.views.catalog import Version

CHECK = "lake_equals_table"
_DESCRIPTION = (
    "The rows of each symbol and day are as many in the lake as in the database and have the same"
    " checksum, and a sample is equal row by row. A day that differs is written again by the next"
    " sync."
)


def lake_assets(views: Sequence[Version]) -> list[dg.AssetsDefinition]:
    """Return an asset for each table of the lake; none where no lake is configured."""
    if get_settings().lake is None:
        return []
    return [_asset(name) for name in ("ohlcv_1m", "features_1m", *(view.name for view in views))]


def lake_checks(views: Sequence[Version]) -> list[dg.AssetChecksDefinition]:
    """Return the check of each table of the lake."""
    if get_settings().lake is None:
        return []
    return [_check(name) for name in ("ohlcv_1m", "features_1m", *(view.name for view in views))]


def _asset(name: str) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"lake_{name}",
        description=(
            f"The copy of `{name}` in the lake, a Delta table. Materialising a day writes all"
            " closed days up to it that the lake lacks, and all days whose rows have changed."
        ),
        deps=[name],
        group_name=GROUP,
        kinds={"deltalake", "table"},
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def asset_of_lake(
        context: dg.AssetExecutionContext, database: DatabaseResource
    ) -> dg.MaterializeResult[Any]:
        """Sync the lake up to the end of this run's days."""
        window = context.partition_time_window
        with database.connection() as connection:
            return dg.MaterializeResult(metadata=_synced(connection, name, window.end))

    return asset_of_lake


def _synced(
    connection: psycopg.Connection[Any], name: str, until: Any = None
) -> dict[str, dg.MetadataValue[Any] | Any]:
    """Sync a table; return the work as metadata."""
    # Arrow and deltalake, which a load of the definitions does not need.
    from feature_platform.lake.sync import sync

    try:
        (done,) = sync(connection, [name], until=until)
    except UserError as error:
        raise dg.Failure(str(error)) from None
    return {
        "rows written": done.rows,
        "commits": done.commits,
        "sync (s)": done.duration.total_seconds(),
        "complete until": "-" if done.until is None else done.until.isoformat(),
    }


def _compared(
    connection: psycopg.Connection[Any], name: str, *, nightly: bool = False
) -> tuple[bool, str, dict[str, dg.MetadataValue[Any] | Any]]:
    """Compare a table with the database; return the result, in words and as metadata."""
    from feature_platform.lake.verify import verify

    try:
        reports = list(verify(connection, [name], nightly=nightly))
    except UserError as error:
        return False, str(error), {}
    if not reports:
        return True, "no sync has begun to copy it", {}
    (report,) = reports
    differences = [
        {
            "symbol": one.symbol,
            "day": f"{one.day:%Y-%m-%d}",
            "rows in the lake": one.rows_in_lake,
            "rows in the database": one.rows_in_database,
        }
        for one in report.differences[:20]
    ]
    shown = {
        "rows": report.rows,
        "days of symbols": report.days,
        "waiting for a sync": report.pending,
        "sampled rows": report.sampled,
        "different": len(report.differences),
        "lost files": report.lost_files,
        "verify (s)": report.duration.total_seconds(),
        **({"examples": table(differences)} if differences else {}),
    }
    text = (
        f"{counted(report.days, 'day')} of symbols compared, different: {len(report.differences):,}"
    )
    return report.equal, text, shown


def _check(name: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=f"lake_{name}", name=CHECK, description=_DESCRIPTION)
    def check_of_lake(database: DatabaseResource) -> dg.AssetCheckResult:
        """Compare all rows of the table."""
        with database.connection() as connection:
            passed, text, shown = _compared(connection, name)
        return dg.AssetCheckResult(passed=passed, description=text, metadata=shown)

    return check_of_lake


@dg.op(
    description=(
        "Brings the lake up to date, compares it with the database, and compacts its files; does"
        " nothing where no lake is configured. Fails where they differ."
    )
)
def keep_lake(context: dg.OpExecutionContext, database: DatabaseResource) -> None:
    """Sync, verify and compact all tables of the lake."""
    if get_settings().lake is None:
        context.log.info("no lake is configured")
        return
    from feature_platform.lake.compact import compact
    from feature_platform.lake.tables import mirrored_tables

    different = []
    with database.connection() as connection:
        yesterday = partition_key(get_settings().clock.now() - timedelta(days=1))
        for name in [one.name for one in mirrored_tables(connection)]:
            shown = _synced(connection, name)
            for done in compact(connection, [name]):
                shown |= {
                    "partitions compacted": done.partitions,
                    "files": done.files,
                    "size (MB)": done.size / 1e6,
                }
            context.log_event(
                dg.AssetMaterialization(f"lake_{name}", partition=yesterday, metadata=shown)
            )
            passed, text, found = _compared(connection, name, nightly=True)
            # Without a partition: Dagster stores at most one such event for each partition.
            context.instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=dg.AssetKey(f"lake_{name}"),
                    check_name=CHECK,
                    passed=passed,
                    description=text,
                    metadata=found,
                )
            )
            if not passed:
                different.append(f"{name}: {text}")
    if different:
        raise dg.Failure("; ".join(different))
