"""The schedules: what is still open every hour, and the audit every night. All times are UTC."""

from collections.abc import Iterator
from itertools import islice

import dagster as dg

from feature_platform.gaps import find_gaps
from feature_platform.orchestration.audit import audit
from feature_platform.orchestration.jobs import rest_backfill
from feature_platform.orchestration.requests import days_in_flight, due_days, repair_requests
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
    requests = list(
        islice(
            repair_requests(due, days_in_flight(context.instance), prefix=f"hourly/{hour}"),
            _MOST_DAYS,
        )
    )
    if not requests:
        yield dg.SkipReason("nothing is open and due")
    yield from requests


nightly_audit = dg.ScheduleDefinition(
    name="nightly_audit",
    cron_schedule="20 3 * * *",
    job=audit,
    execution_timezone="UTC",
    description="Runs the audit.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

schedules = [hourly_backfill, nightly_audit]
