"""The assets: the exchange's stream, the bars, the features and their refresh policy."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import psycopg
from pydantic import Field

from feature_platform.counted import counted
from feature_platform.errors import UserError
from feature_platform.gaps import find_gaps
from feature_platform.orchestration import metadata
from feature_platform.orchestration.partitions import (
    DAY,
    day_and_day_before,
    days,
    days_of,
    has_partition,
    partition_key,
)
from feature_platform.orchestration.resources import DatabaseResource, ExchangeResource
from feature_platform.queries import queries
from feature_platform.refresh import refresh
from feature_platform.status import PolicyStatus, policy_status
from feature_platform.tables import BAR_COLUMNS, FEATURE_COLUMNS

if TYPE_CHECKING:
    from feature_platform.backfill import BackfillReport

GROUP = "feature_platform"

# One run at a time requests bars of an exchange: dagster.yaml gives this pool one place.
EXCHANGE_POOL = "exchange"

# Dagster's own alarm; it also works when the sensors do not run. `run_checks` reports a
# materialisation about every five minutes, as long as there are newer rows.
_DEAD_MANS_SWITCH = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(minutes=20), warn_window=timedelta(minutes=10)
)


exchange_feed = dg.AssetSpec(
    "exchange_feed",
    description=(
        "The live prices of your exchange. This asset is external: the process"
        " `feature-platform record` writes each closed bar into `ohlcv_1m`, so Dagster never"
        " materialises it and shows it in grey. Its state is in the check `recorder_alive` and, by"
        " symbol, in the observations below (*View events*); `feature-platform status` shows the"
        " same."
    ),
    group_name=GROUP,
    kinds={"websocket"},
    metadata={
        "dagster/table_name": "feature_platform.heartbeat",
        **metadata.sql_references(
            ("037_heartbeat.sql", "CREATE TABLE IF NOT EXISTS feature_platform.heartbeat")
        ),
    },
)


class BarsConfig(dg.Config):
    """The bars that a run requests of the exchanges."""

    only_gaps: bool = Field(
        default=False,
        description="Request the minutes that are known to be missing, not the whole day.",
    )
    symbols: list[str] = Field(
        default=[],
        description="The symbols to request; by default those of FEATURE_PLATFORM_SYMBOLS.",
    )


@dg.asset(
    description=(
        "The one-minute prices and volumes (OHLCV bars) that your exchange published."
        " Materialising a day requests the whole day over REST: afterwards each minute has its"
        " bar, or a row in `ohlcv_1m_gaps` with the reason why it has none."
    ),
    deps=[exchange_feed],
    group_name=GROUP,
    kinds={"postgres", "table"},
    partitions_def=days,
    backfill_policy=dg.BackfillPolicy.single_run(),
    freshness_policy=_DEAD_MANS_SWITCH,
    pool=EXCHANGE_POOL,
    metadata={
        "dagster/table_name": "public.ohlcv_1m",
        "dagster/column_schema": metadata.column_schema("ohlcv_1m", BAR_COLUMNS),
        **metadata.sql_references(
            ("020_bars.sql", "CREATE TABLE IF NOT EXISTS public.ohlcv_1m"),
            ("035_gaps.sql", "CREATE TABLE IF NOT EXISTS public.ohlcv_1m_gaps"),
        ),
    },
)
def ohlcv_1m(
    context: dg.AssetExecutionContext,
    config: BarsConfig,
    database: DatabaseResource,
    exchange: ExchangeResource,
) -> dg.MaterializeResult[Any]:
    """Fetch the missing minutes of this run's days, or the whole days."""
    # ccxt, which takes half a second that a load of the definitions does not need.
    from feature_platform.backfill import backfill_day, backfill_gaps
    from feature_platform.exchange.client import ExchangeUnavailable

    window = context.partition_time_window
    with database.connection() as connection:
        try:
            with exchange.clients() as clients:
                find_gaps(connection)
                reports: list[BackfillReport] = []
                for day in days_of(window):
                    if config.only_gaps:
                        reports += backfill_gaps(connection, clients, day=day)
                    else:
                        reports += backfill_day(connection, clients, day, config.symbols or None)
                find_gaps(connection)
        except (UserError, ExchangeUnavailable) as error:
            raise dg.Failure(str(error)) from None
        _log(context, reports)
        shown = {
            **metadata.of_bars(connection, window.start, window.end),
            "bars fetched": sum(report.fetched for report in reports),
            "bars inserted": sum(report.stored.inserted for report in reports),
            "bars updated": sum(report.stored.updated for report in reports),
            "bars rejected": sum(report.rejected_rows for report in reports),
        }
        failed = sorted({report.error for report in reports if report.error is not None})
        if failed:
            raise dg.Failure(f"not all bars could be fetched: {'; '.join(failed)}", shown)
        return dg.MaterializeResult(metadata=shown)


class FeaturesConfig(dg.Config):
    """The rows that a run recomputes."""

    force: bool = Field(
        default=False, description="Recompute all rows, not only those that wait for a refresh."
    )
    next_day: bool = Field(
        default=False,
        description="Also refresh the next day: its features read the bars of the day before.",
    )


@dg.asset(
    description=(
        "The features of each closed minute, such as the return and the z-score of the volume:"
        " always equal to a recomputation from the bars. The refresh policy keeps them current;"
        " materialising a day refreshes that day now."
    ),
    deps=[
        dg.AssetDep("ohlcv_1m", partition_mapping=day_and_day_before),
        # The policy is upstream: it decides when rows are written, and does not read them.
        "features_1m_policy",
    ],
    group_name=GROUP,
    kinds={"postgres", "table"},
    partitions_def=days,
    backfill_policy=dg.BackfillPolicy.single_run(),
    freshness_policy=_DEAD_MANS_SWITCH,
    metadata={
        "dagster/table_name": "public.features_1m",
        "dagster/column_schema": metadata.column_schema("features_1m", FEATURE_COLUMNS),
        **metadata.sql_references(
            ("030_features.sql", "CREATE TABLE IF NOT EXISTS public.features_1m"),
            ("050_refresh.sql", "CREATE OR REPLACE PROCEDURE public.refresh_features_1m"),
        ),
    },
)
def features_1m(
    context: dg.AssetExecutionContext, config: FeaturesConfig, database: DatabaseResource
) -> dg.MaterializeResult[Any]:
    """Refresh the days of this run."""
    window = context.partition_time_window
    with database.connection() as connection:
        done = refresh(connection, window.start, window.end, force=config.force)
        if config.next_day and has_partition(window.end):
            for event in _refresh_next_day(connection, window.end, force=config.force):
                context.log_event(event)
        shown = metadata.of_features(connection, window.start, window.end)
        return dg.MaterializeResult(
            metadata={
                **shown,
                "rows written": done.rows_written,
                "slices": done.slices,
                "refresh (s)": done.seconds,
            }
        )


class PolicyConfig(dg.Config):
    """The offsets of the policy, as PostgreSQL writes intervals; an empty one does not change."""

    start_offset: str = Field(
        default="",
        description=(
            "Refresh minutes up to this age before all older ones, such as '1 hour'. Empty: not"
            " changed; 1 hour in a new policy."
        ),
    )
    end_offset: str = Field(
        default="",
        description=(
            "Refresh a minute at this age, such as '1 minute'. Empty: not changed; 1 minute in a"
            " new policy."
        ),
    )
    schedule_interval: str = Field(
        default="",
        description=(
            "The time between two runs, such as '1 minute'. Empty: not changed; 1 minute in a new"
            " policy."
        ),
    )


@dg.asset(
    description=(
        "The refresh policy: how soon a new or corrected bar changes the features. Materialising"
        " it adds the policy, or sets the offsets that the run's configuration names. A worker or"
        " a job of the database runs the policy; where neither does, the sensor `watch_refresh`"
        " refreshes."
    ),
    group_name=GROUP,
    kinds={"postgres"},
    metadata={
        "dagster/table_name": "feature_platform.policy",
        **metadata.sql_references(
            ("060_policy.sql", "CREATE OR REPLACE FUNCTION public.add_features_1m_policy")
        ),
    },
)
def features_1m_policy(
    config: PolicyConfig, database: DatabaseResource
) -> dg.MaterializeResult[Any]:
    """Add the policy, or change the offsets that the configuration names."""
    with database.connection() as connection:
        try:
            row = connection.execute(queries["policy_set"], config.model_dump()).fetchone()
        except (psycopg.errors.RaiseException, psycopg.DataError) as error:
            raise dg.Failure(error.diag.message_primary) from None
        policy = policy_status(connection)
    assert row is not None, "the statement always gives one row"
    assert policy is not None, "the statement adds a policy where there is none"
    return dg.MaterializeResult(metadata={**offsets_of(policy), "action": row[0]})


def offsets_of(policy: PolicyStatus) -> dict[str, str]:
    """Return the offsets of a policy, by the fields of `PolicyConfig`."""
    return {name: str(getattr(policy, name)) for name in PolicyConfig.model_fields}


def _refresh_next_day(
    connection: psycopg.Connection[Any], day: datetime, *, force: bool
) -> Iterator[dg.AssetMaterialization]:
    """Refresh the day after a repaired one; yield its materialisation if rows were written."""
    done = refresh(connection, day, day + DAY, force=force)
    if done.rows_written:
        yield dg.AssetMaterialization(
            "features_1m",
            partition=partition_key(day),
            description="Bars of the day before were repaired, and features of this day read them.",
            metadata={
                **metadata.of_features(connection, day, day + DAY),
                "rows written": done.rows_written,
            },
        )


def _log(context: dg.AssetExecutionContext, reports: Sequence["BackfillReport"]) -> None:
    for report in reports:
        context.log.info(
            f"{report.symbol}: {report.start:%Y-%m-%d %H:%M} to {report.end:%Y-%m-%d %H:%M}:"
            f" {counted(report.fetched, 'bar')}, {report.stored.inserted} new,"
            f" {counted(report.quiet_minutes, 'minute')} without trades"
        )
        for rejected in report.rejected:
            context.log.warning(f"{report.symbol}: rejected: {rejected.reason}: {rejected.text}")
        if report.error is not None:
            context.log.error(f"{report.symbol}: {report.error}")


assets: list[dg.AssetSpec | dg.AssetsDefinition] = [
    exchange_feed,
    ohlcv_1m,
    features_1m,
    features_1m_policy,
]
