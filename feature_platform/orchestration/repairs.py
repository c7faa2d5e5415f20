"""Requests for runs that fetch missing minutes: the newest day first, no day twice."""

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

# The most days that runs fetch, or wait to fetch, at a time: the newest minutes must not queue
# behind a year of history.
MOST_IN_FLIGHT = 3

# Seconds. Dagster does not notice a run that died together with its code server: until this time
# is over, the run holds the only place in the pool. Bars that it fetched are stored; the other
# minutes are requested again.
_TIME = {"dagster/max_runtime": "1800"}

_IN_FLIGHT = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
_IDENTITY = "feature_platform/identity"
# The most times that gaps are requested again after runs that failed without a noted attempt: such
# a run was killed, or failed for another reason than the exchange. After that, once an hour.
_MOST_FAILURES = 3

_PARTITION = "dagster/partition"
_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class DueDay:
    """A UTC day with gaps that are due for a request.

    identity: a digest of these gaps and of their attempts.
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
    """Return the days that runs fetch, or wait to fetch."""
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
    """Yield a run for each due day without a run in flight.

    Dagster starts one run for a run key, for ever. The key holds the identity of the gaps: they
    are requested again after an attempt is noted in them, or after a run failed without one.
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
    """Count the failed runs that did not change the gaps of a day."""
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

    A symbol without a first bar has no gaps, and no gap would ever cause a request.
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
                # With the hour, so that it is requested each hour while a symbol has no bars. With
                # a digest, because Dagster stores the key in an indexed column.
                run_key=f"first/{key}/{now:%Y-%m-%dT%H}/{_digest(fresh)}",
                job_name=REST_BACKFILL,
                partition_key=key,
                run_config=repair_config(only_gaps=False, symbols=fresh),
                tags={**_TIME, "feature_platform/symbols": ", ".join(fresh)[:200]},
            )
