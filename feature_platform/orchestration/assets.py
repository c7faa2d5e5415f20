"""The assets: the bars, the features, and the policy that keeps the features."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
from pydantic import Field

from feature_platform.backfill import BackfillReport, backfill_day, backfill_gaps
from feature_platform.errors import UserError
from feature_platform.exchange.client import ExchangeUnavailable
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
from feature_platform.orchestration.resources import Database, Venue
from feature_platform.queries import queries
from feature_platform.refresh import refresh
from feature_platform.validation import BAR_COLUMNS, FEATURE_COLUMNS

GROUP = "feature_platform"

# Runs that ask the venue take the only place in this pool; its size is in dagster.yaml.
VENUE_POOL = "venue"

# Dagster's own alarm, which works even when no sensor ticks any more: `run_checks` reports a
# materialisation about every five minutes, as long as there are newer rows.
_DEAD_MANS_SWITCH = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(minutes=20), warn_window=timedelta(minutes=10)
)


exchange_feed = dg.AssetSpec(
    "exchange_feed",
    description=(
        "The exchange's stream of bars: `feature-platform record` writes each closed bar into"
        " `ohlcv_1m`. Dagster does not materialise it; the sensor `run_checks` reports its"
        " heartbeats."
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
    """What to ask the venue for."""

    only_gaps: bool = Field(
        default=False,
        description="Ask for the minutes that are known to be missing, not for the whole day.",
    )
    symbols: list[str] = Field(
        default=[],
        description="The markets to ask for; none are those of FEATURE_PLATFORM_SYMBOLS.",
    )


@dg.asset(
    description=(
        "One-minute OHLCV bars, as the venue published them. Materialising a day asks the venue"
        " for all of it, over REST: afterwards every minute has its bar, or a row in"
        " `ohlcv_1m_gaps` that says why not."
    ),
    deps=[exchange_feed],
    group_name=GROUP,
    kinds={"postgres", "table"},
    partitions_def=days,
    backfill_policy=dg.BackfillPolicy.single_run(),
    freshness_policy=_DEAD_MANS_SWITCH,
    pool=VENUE_POOL,
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
    context: dg.AssetExecutionContext, config: BarsConfig, database: Database, venue: Venue
) -> dg.MaterializeResult[Any]:
    """Make the days of this run gapless."""
    window = context.partition_time_window
    with database.connection() as connection:
        try:
            with venue.exchange() as exchange:
                find_gaps(connection)
                reports: list[BackfillReport] = []
                for day in days_of(window):
                    if config.only_gaps:
                        reports += backfill_gaps(connection, exchange, day=day)
                    else:
                        reports += backfill_day(connection, exchange, day, config.symbols or None)
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
            raise dg.Failure(f"not all of it could be fetched: {'; '.join(failed)}", shown)
        return dg.MaterializeResult(metadata=shown)


class FeaturesConfig(dg.Config):
    """How to refresh."""

    force: bool = Field(
        default=False, description="Recompute all rows, whether they are dirty or not."
    )
    next_day: bool = Field(
        default=False,
        description="Refresh the day after, too: repaired bars reach into it.",
    )


@dg.asset(
    description=(
        "Features of each closed minute, equal to what the bars give. The policy keeps the newest"
        " minutes current; materialising a day brings that day up to date, now."
    ),
    deps=[
        dg.AssetDep("ohlcv_1m", partition_mapping=day_and_day_before),
        # Upstream, since the policy decides when rows are written; it reads nothing of them.
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
    context: dg.AssetExecutionContext, config: FeaturesConfig, database: Database
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
    """What the policy is to be, in PostgreSQL's words for intervals."""

    start_offset: str = Field(
        default="1 hour", description="The minutes that are refreshed before all older ones."
    )
    end_offset: str = Field(default="1 minute", description="How old a row is when it is due.")
    schedule_interval: str = Field(default="1 minute", description="How often the policy runs.")


@dg.asset(
    description=(
        "The refresh policy: how often `features_1m` is refreshed, and how far back first."
        " Materialising it sets the policy. A worker or a job of the database runs it; without"
        " either, the sensor `watch_refresh` does."
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
def features_1m_policy(config: PolicyConfig, database: Database) -> dg.MaterializeResult[Any]:
    """Set the policy."""
    wanted = config.model_dump()
    with database.connection() as connection:
        try:
            row = connection.execute(queries["policy_set"], wanted).fetchone()
        except (psycopg.errors.RaiseException, psycopg.DataError) as error:
            raise dg.Failure(error.diag.message_primary) from None
    assert row is not None, "the statement always gives one row"
    return dg.MaterializeResult(metadata={**wanted, "what was done": row[0]})


def _refresh_next_day(
    connection: psycopg.Connection[Any], day: datetime, *, force: bool
) -> Iterator[dg.AssetMaterialization]:
    """Refresh the day after a repaired one, and tell of it where anything came of it."""
    done = refresh(connection, day, day + DAY, force=force)
    if done.rows_written:
        yield dg.AssetMaterialization(
            "features_1m",
            partition=partition_key(day),
            description="Repaired bars of the day before reached into this day.",
            metadata={
                **metadata.of_features(connection, day, day + DAY),
                "rows written": done.rows_written,
            },
        )


def _log(context: dg.AssetExecutionContext, reports: Sequence[BackfillReport]) -> None:
    for report in reports:
        context.log.info(
            f"{report.symbol}: {report.start:%Y-%m-%d %H:%M} to {report.end:%Y-%m-%d %H:%M}:"
            f" {report.fetched} bars, {report.stored.inserted} new, {report.quiet_minutes} minutes"
            f" without trades"
        )
        for rejected in report.rejected:
            context.log.warning(f"{report.symbol}: left out: {rejected.reason}: {rejected.text}")
        if report.error is not None:
            context.log.error(f"{report.symbol}: {report.error}")


assets: list[dg.AssetSpec | dg.AssetsDefinition] = [
    exchange_feed,
    ohlcv_1m,
    features_1m,
    features_1m_policy,
]
