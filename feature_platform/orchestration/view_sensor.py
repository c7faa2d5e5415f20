"""The sensor that reports feature views: new rows, complete past days and checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import psycopg
from psycopg import sql

from feature_platform.counted import counted
from feature_platform.orchestration.cursors import ReportedViews
from feature_platform.orchestration.materializations import newer_rows, whole_days
from feature_platform.orchestration.metadata import of_view
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.orchestration.sensors import EVERY_MINUTE, Event, outdated
from feature_platform.orchestration.views import evaluation
from feature_platform.queries import queries
from feature_platform.views import catalog
from feature_platform.views.catalog import Version
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
            skip_reason=f"{counted(len(events), 'event')} reported of {', '.join(due)}{advice}",
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
    statement = sql.SQL(queries["view_whole_days"]).format(view=sql.Identifier("public", name))
    yield from whole_days(
        name, done, lambda past: connection.execute(statement, {"name": name, "days": past})
    )
    shown, newest = of_view(connection, status)
    yield from newer_rows(name, newest, done, reported.newest, lambda _bucket: shown)
    for result in evaluate(connection, name):
        yield evaluation(name, result)
