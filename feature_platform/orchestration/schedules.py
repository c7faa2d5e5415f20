"""The schedules: what is open every hour, all of yesterday and the audit every night; in UTC."""

from collections.abc import Iterator
from itertools import islice

import dagster as dg

from feature_platform.gaps import find_gaps
from feature_platform.orchestration.audit import audit
from feature_platform.orchestration.jobs import repair_config, rest_backfill
from feature_platform.orchestration.partitions import DAY, has_partition, partition_key
from feature_platform.orchestration.repairs import days_in_flight, due_days, repair_requests
from feature_platform.orchestration.resources import Database

# Days that an hour may ask for: what is left over is for the next hour.
_MOST_DAYS = 24


@dg.schedule(
    name="hourly_backfill",
    cron_schedule="7 * * * *",
    job=rest_backfill,
    execution_timezone="UTC",
    description=(
        "Requests a repair of what is still open, whatever became of the requests of the sensor:"
        " also of a run that died before it could note an attempt."
    ),
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def hourly_backfill(
    context: dg.ScheduleEvaluationContext, database: Database
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Request a repair of each day with open gaps."""
    hour = f"{context.scheduled_execution_time:%Y-%m-%dT%H}"
    with database.connection() as connection:
        find_gaps(connection)
        # A tick that is made up for after midnight knows no partition of the new day.
        due = [one for one in due_days(connection) if one.day <= context.scheduled_execution_time]
    in_flight = days_in_flight(context.instance)
    found = repair_requests(context.instance, due, in_flight, prefix=f"hourly/{hour}")
    requests = list(islice(found, _MOST_DAYS))
    if not requests:
        yield dg.SkipReason("nothing is open and due")
    yield from requests


@dg.schedule(
    name="daily_reconciliation",
    cron_schedule="30 0 * * *",
    job=rest_backfill,
    execution_timezone="UTC",
    description=(
        "Asks the venue for all of yesterday once more, so that bars which it corrected after it"
        " had published them are corrected here, too."
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
    description="Runs the audit.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

schedules = [hourly_backfill, daily_reconciliation, nightly_audit]
