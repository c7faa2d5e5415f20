"""The sensor that reports feature views: new rows, complete past days and checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import dagster as dg
import psycopg
from psycopg import sql

from feature_platform.orchestration.cursors import ReportedViews
from feature_platform.orchestration.metadata import of_view
from feature_platform.orchestration.partitions import days, has_partition, partition_key
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.orchestration.sensors import EVERY_MINUTE, MOST_DAYS, Event, outdated
from feature_platform.orchestration.views import evaluation
from feature_platform.queries import queries
from feature_platform.settings import get_settings
from feature_platform.views import catalog
from feature_platform.views.catalog import Version, ViewStatus
from feature_platform.views.checks import evaluate


def view_sensor(views: Sequence[Version]) -> dg.SensorDefinition:
    """Return the sensor that reports these views, which have assets."""
    versions = {view.name: view.version for view in views}

    @dg.sensor(
        name="watch_views",
        description=(
            "Reports each feature view every five minutes, after a run, and when it begins or ends"
            " to be built or fails: its newest rows, the past days that are complete, and its"
            " checks."
        ),
        minimum_interval_seconds=EVERY_MINUTE,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def watch_views(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.SensorResult | dg.SkipReason:
        """Report the views whose turn it is; some each tick, so that no tick reports all."""
        reported = ReportedViews.parse(context.cursor)
        events: list[Event] = []
        with database.connection() as connection:
            served = {one.name: one for one in catalog.all_versions(connection) if one.served}
            advice = _advice(versions, {name: one.version for name, one in served.items()})
            states = {name: one.state for name, one in served.items() if name in versions}
            due = reported.due(states, outdated(context.instance, reported.reports, list(states)))
            for name in due:
                events += _events(connection, context.instance, name, reported)
        reported.note_reports(due, states)
        if not events:
            return dg.SkipReason(f"no view to report now{advice}")
        return dg.SensorResult(
            asset_events=events,
            cursor=reported.dump(),
            skip_reason=f"{len(events)} events reported of {', '.join(due)}{advice}",
        )

    return watch_views


def _advice(loaded: dict[str, int], served: dict[str, int]) -> str:
    """Return the advice to load the code location again if its views are not the served ones."""
    changed = sorted(name for name, _ in loaded.items() ^ served.items())
    if not changed:
        return ""
    names = ", ".join(dict.fromkeys(changed))
    return f"; reload the code location, which does not know the present state of {names}"


def _events(
    connection: psycopg.Connection[Any],
    instance: dg.DagsterInstance,
    name: str,
    reported: ReportedViews,
) -> Iterator[Event]:
    """Yield the materialisations of a view, then its checks.

    A check counts for the newest materialisation only when it is reported after it.
    """
    status = next(one for one in catalog.versions_of(connection, name) if one.served)
    done = instance.get_materialized_partitions(dg.AssetKey(name))
    yield from _whole_days(connection, name, done)
    yield from _newer_rows(connection, status, done, reported)
    for result in evaluate(connection, name):
        yield evaluation(name, result)


def _whole_days(
    connection: psycopg.Connection[Any], name: str, done: set[str]
) -> Iterator[dg.AssetMaterialization]:
    """Yield materialisations of past days in which nothing is missing or waits."""
    past = [key for key in days.get_partition_keys()[:-1] if key not in done]
    statement = sql.SQL(queries["view_whole_days"]).format(view=sql.Identifier("public", name))
    starts = [datetime.fromisoformat(f"{key}T00Z") for key in past]
    rows = connection.execute(statement, {"name": name, "days": starts})
    for (day,) in islice(rows, MOST_DAYS):
        key = partition_key(day.astimezone(UTC))
        done.add(key)
        yield dg.AssetMaterialization(
            name,
            partition=key,
            description="Every minute of the day is accounted for, and no row waits for a refresh.",
        )


def _newer_rows(
    connection: psycopg.Connection[Any],
    status: ViewStatus,
    done: set[str],
    reported: ReportedViews,
) -> Iterator[dg.AssetMaterialization]:
    """Yield a materialisation of a view if its newest bucket advanced.

    It has the partition of the day only if that day has no materialisation yet: a later one would
    hide the counts of a run.
    """
    shown, newest = of_view(connection, status)
    if newest is None:
        return
    text, last = newest.isoformat(), reported.newest.get(status.name, "")
    # If a reported bucket has not begun yet, the clock was set back.
    if last < text or last > get_settings().clock.now().isoformat():
        reported.newest[status.name] = text
        key = partition_key(newest)
        yield dg.AssetMaterialization(
            status.name,
            partition=key if has_partition(newest) and key not in done else None,
            description=f"Newer rows, up to {text}.",
            metadata=shown,
        )
