"""The schedules, in UTC: open gaps every hour, yesterday and the audit every night."""

from collections.abc import Iterator
from itertools import islice

import dagster as dg

from feature_platform.gaps import find_gaps
from feature_platform.orchestration.audit import audit
from feature_platform.orchestration.jobs import repair_config, rest_backfill
from feature_platform.orchestration.partitions import DAY, has_partition, partition_key
from feature_platform.orchestration.repairs import days_in_flight, due_days, repair_requests
from feature_platform.orchestration.resources import DatabaseResource

# The most days that one hour requests; the next hour requests the others.
_MOST_DAYS = 24


@dg.schedule(
    name="hourly_backfill",
    cron_schedule="7 * * * *",
    job=rest_backfill,
    execution_timezone="UTC",
    description=(
        "Every hour, fetches minutes that are still missing, so that prices become complete even"
        " if an earlier attempt failed or was killed."
    ),
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def hourly_backfill(
    context: dg.ScheduleEvaluationContext, database: DatabaseResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Request a repair of each day with open gaps."""
    hour = f"{context.scheduled_execution_time:%Y-%m-%dT%H}"
    with database.connection() as connection:
        find_gaps(connection)
        # A missed tick that runs after midnight must not request a partition of the new day.
        due = [one for one in due_days(connection) if one.day <= context.scheduled_execution_time]
    in_flight = days_in_flight(context.instance)
    found = repair_requests(context.instance, due, in_flight, prefix=f"hourly/{hour}")
    requests = list(islice(found, _MOST_DAYS))
    if not requests:
        yield dg.SkipReason("no open gap is due")
    yield from requests


@dg.schedule(
    name="daily_reconciliation",
    cron_schedule="30 0 * * *",
    job=rest_backfill,
    execution_timezone="UTC",
    description=(
        "Every night, fetches all of yesterday once more, so that prices which the exchange"
        " corrected later are corrected here, too."
    ),
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def daily_reconciliation(
    context: dg.ScheduleEvaluationContext,
) -> dg.RunRequest | dg.SkipReason:
    """Request all of yesterday."""
    yesterday = context.scheduled_execution_time - DAY
    if not has_partition(yesterday):
        return dg.SkipReason(f"{yesterday:%Y-%m-%d} is before FEATURE_PLATFORM_START_DATE")
    key = partition_key(yesterday)
    return dg.RunRequest(
        run_key=f"reconciliation/{key}",
        partition_key=key,
        run_config=repair_config(only_gaps=False),
    )


nightly_audit = dg.ScheduleDefinition(
    name="nightly_audit",
    cron_schedule="20 3 * * *",
    job=audit,
    execution_timezone="UTC",
    description=(
        "Every night, compares old features with the prices they come from, searches all history"
        " for missing minutes, and deletes old records: it runs the job `audit`."
    ),
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

schedules = [hourly_backfill, daily_reconciliation, nightly_audit]
