"""The partitions of bars and features: UTC days."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import dagster as dg

from feature_platform.settings import get_settings

DAY = timedelta(days=1)

# From the configured start to today; today is a partition from its first minute on.
days = dg.DailyPartitionsDefinition(
    start_date=get_settings().start_date.isoformat(), timezone="UTC", end_offset=1
)

# A feature reads bars of the day before. The day before the first partition is not a partition,
# which must not stop a run.
day_and_day_before = dg.TimeWindowPartitionMapping(
    start_offset=-1, allow_nonexistent_upstream_partitions=True
)


def days_of(window: dg.TimeWindow) -> Iterator[datetime]:
    """Yield the start of each day of a window."""
    day = window.start
    while day < window.end:
        yield day
        day += DAY


def partition_key(day: datetime) -> str:
    """Return the key of the day's partition."""
    return day.strftime("%Y-%m-%d")


def has_partition(day: datetime) -> bool:
    """Return whether a day is one of the partitions."""
    return days.has_partition_key(partition_key(day))
