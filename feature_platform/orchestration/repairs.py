"""Which days the venue is to be asked for: nothing twice, the newest day first."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import psycopg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from psycopg.rows import class_row

from feature_platform.orchestration.jobs import REST_BACKFILL, repair_config
from feature_platform.orchestration.partitions import DAY, has_partition, partition_key
from feature_platform.queries import queries
from feature_platform.settings import get_settings

# So many days may be asked for, or wait for it, at a time: the newest minutes must not queue up
# behind a year of history.
MOST_IN_FLIGHT = 3

# Where a run died together with the code server, nobody sees it: until it is over time, it holds
# the venue's only place. What it has fetched by then is stored, the rest is requested again.
_TIME = {"dagster/max_runtime": "1800"}

_IN_FLIGHT = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
_IDENTITY = "feature_platform/identity"
# So often gaps are requested again after runs that failed without a note in the gaps: they were
# killed, or what stands in the way is no matter of the venue's. From then on, once an hour.
_MOST_FAILURES = 3

_PARTITION = "dagster/partition"
_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class DueDay:
    """A UTC day with gaps that the venue may be asked for now.

    identity: names these gaps and how often each was asked for.
    """

    day: datetime
    gaps: int
    symbols: list[str]
    minutes: int
    identity: str


def due_days(connection: psycopg.Connection[Any]) -> list[DueDay]:
    """Return days with due gaps, the newest first; only days that are partitions."""
    with connection.cursor(row_factory=class_row(DueDay)) as cursor:
        symbols = {"symbols": list(get_settings().symbols)}
        found = cursor.execute(queries["due_days"], symbols).fetchall()
    return [due for due in found if has_partition(due.day.astimezone(UTC))]


def days_in_flight(instance: DagsterInstance) -> set[str]:
    """Return the days that runs ask the venue for, or wait to."""
    keys: set[str] = set()
    for run in instance.get_runs(RunsFilter(job_name=REST_BACKFILL, statuses=_IN_FLIGHT)):
        first = run.tags.get(_PARTITION) or run.tags.get(_RANGE_START)
        last = run.tags.get(_PARTITION) or run.tags.get(_RANGE_END)
        if first is None or last is None:
            continue
        day = datetime.fromisoformat(first)
        while partition_key(day) <= last:
            keys.add(partition_key(day))
            day += DAY
    return keys


def repair_requests(
    instance: DagsterInstance,
    days: Collection[DueDay],
    in_flight: Collection[str],
    *,
    prefix: str = "gaps",
) -> Iterator[dg.RunRequest]:
    """Yield a run for each due day that none is in flight for.

    A run key is used once in the life of a sensor: it is the identity of the gaps, so that they
    are asked for again after an attempt that is noted in them, and not before, or after a run that
    failed without one.
    """
    for due in days:
        key = partition_key(due.day.astimezone(UTC))
        if key in in_flight:
            continue
        failures = min(_failures(instance, due), _MOST_FAILURES)
        yield dg.RunRequest(
            run_key=f"{prefix}/{key}/{due.identity}" + (f"/{failures}" if failures else ""),
            job_name=REST_BACKFILL,
            partition_key=key,
            run_config=repair_config(),
            tags={
                **_TIME,
                _IDENTITY: due.identity,
                "feature_platform/gaps": str(due.gaps),
                "feature_platform/minutes": str(due.minutes),
                "feature_platform/symbols": ", ".join(due.symbols)[:200],
            },
        )


def _failures(instance: DagsterInstance, due: DueDay) -> int:
    """Count the runs that failed, and left the gaps of a day as they were."""
    return instance.get_runs_count(
        RunsFilter(
            job_name=REST_BACKFILL,
            tags={_IDENTITY: due.identity},
            statuses=[DagsterRunStatus.FAILURE],
        )
    )


def _digest(symbols: Collection[str]) -> str:
    return hashlib.sha256(",".join(symbols).encode()).hexdigest()[:16]


def first_requests(
    connection: psycopg.Connection[Any], now: datetime, in_flight: Collection[str]
) -> Iterator[dg.RunRequest]:
    """Yield runs that fetch today and yesterday of symbols that have no bars at all.

    A symbol without a first bar has no gaps, so that nothing else would ever ask for it.
    """
    known = {row[0] for row in connection.execute(queries["bar_symbols"])}
    fresh = sorted(set(get_settings().symbols) - known)
    if not fresh:
        return
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for day in (today, today - DAY):
        key = partition_key(day)
        if key not in in_flight and has_partition(day):
            yield dg.RunRequest(
                # Requested again every hour, as long as a symbol has no bars. A digest, since
                # Dagster stores the key in an indexed column.
                run_key=f"first/{key}/{now:%Y-%m-%dT%H}/{_digest(fresh)}",
                job_name=REST_BACKFILL,
                partition_key=key,
                run_config=repair_config(only_gaps=False, symbols=fresh),
                tags={**_TIME, "feature_platform/symbols": ", ".join(fresh)[:200]},
            )
