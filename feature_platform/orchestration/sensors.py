"""The sensors: each works in its tick, once a minute, and starts a run only to repair.

A tick every 58 seconds is one a minute: Dagster's own loop adds the rest.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

import dagster as dg
import psycopg
from psycopg.rows import dict_row

from feature_platform.gaps import find_gaps
from feature_platform.heartbeat import Feed, list_feeds
from feature_platform.orchestration.assets import PolicyConfig
from feature_platform.orchestration.checks import evaluation
from feature_platform.orchestration.cursors import ReportedChecks, ReportedPolicy
from feature_platform.orchestration.jobs import rest_backfill
from feature_platform.orchestration.metadata import SYMBOLS_SHOWN, table
from feature_platform.orchestration.partitions import days, has_partition, partition_key
from feature_platform.orchestration.repairs import (
    MOST_IN_FLIGHT,
    days_in_flight,
    due_days,
    first_requests,
    repair_requests,
)
from feature_platform.orchestration.resources import Database
from feature_platform.queries import queries
from feature_platform.settings import get_settings
from feature_platform.status import PolicyStatus, SymbolStatus, policy_status, symbol_status
from feature_platform.validation import CHECKS, RECOMPUTED, CheckResult, evaluate

EVERY_MINUTE = 58
# What the policy's sensor may spend on refreshing, in seconds, where nobody else refreshes.
_REFRESH_SECONDS = 20.0

# The most past days that a tick reports: years of imported history come a month at a time.
_MOST_DAYS = 31

TABLES = ("ohlcv_1m", "features_1m")
# Those that have checks, in the order of their reports.
ASSETS = (*TABLES, "exchange_feed", "features_1m_policy")

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dg.sensor(
    name="run_checks",
    description=(
        "Runs the checks once a minute, the slow ones every five minutes, and reports at once what"
        " changed. Every five minutes, and after a run, it reports each asset with its checks: how"
        " new its rows are, and which past days are complete."
    ),
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def run_checks(
    context: dg.SensorEvaluationContext, database: Database
) -> dg.SensorResult | dg.SkipReason:
    """Report checks that changed, and each asset in its turn."""
    reported = ReportedChecks.parse(context.cursor)
    due = reported.due(ASSETS, _outdated(context.instance, reported))
    names = [check.name for check in CHECKS if check.table in due or not check.slow]
    events: list[Event] = []
    with database.connection() as connection:
        results = evaluate(connection, names, suspects=reported.suspects)
        # A check counts for the newest materialisation only when it is reported after it.
        if "exchange_feed" in due:
            events += _feed_observation(list_feeds(connection))
        if tables := [table for table in TABLES if table in due]:
            events += _materializations(connection, context.instance, tables, reported)
    for result in results:
        findings = reported.failing.get(result.check.name)
        if result.check.table in due or findings != result.findings:
            events.append(evaluation(result))
    _note(results, reported)
    reported.note_reports(due)
    failing = ", ".join(sorted(reported.failing)) or "none"
    if not events:
        return dg.SkipReason(f"no change; failing: {failing}")
    return dg.SensorResult(
        asset_events=events,
        cursor=reported.dump(),
        # Dagster's word for a tick that starts no run.
        skip_reason=f"{len(events)} events reported; failing: {failing}",
    )


@dg.sensor(
    name="repair_missing_minutes",
    description=(
        "Finds missing minutes once a minute, and requests a run that fetches them over REST for"
        " each day that has some: the newest day first, and no day that a run works on already."
    ),
    job=rest_backfill,
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def repair_missing_minutes(
    context: dg.SensorEvaluationContext, database: Database
) -> dg.SensorResult | dg.SkipReason:
    """Request repairs."""
    in_flight = days_in_flight(context.instance)
    with database.connection() as connection:
        open_gaps = find_gaps(connection)
        requests = list(
            islice(
                chain(
                    first_requests(connection, get_settings().clock.now(), in_flight),
                    repair_requests(context.instance, due_days(connection), in_flight),
                ),
                max(MOST_IN_FLIGHT - len(in_flight), 0),
            )
        )
    if requests:
        return dg.SensorResult(run_requests=requests)
    running = f"; runs work on {', '.join(sorted(in_flight))}" if in_flight else ""
    return dg.SkipReason(f"{open_gaps} open gaps, none of them due{running}")


@dg.sensor(
    name="watch_refresh",
    description=(
        "Watches the refresh policy: reports its runs every five minutes, and a failed run at once."
        " Refreshes in this tick where neither a worker nor a job of the database has done so for"
        " two intervals."
    ),
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def watch_refresh(
    context: dg.SensorEvaluationContext, database: Database
) -> dg.SensorResult | dg.SkipReason:
    """Report the policy and its runs; refresh where no other process does."""
    reported = ReportedPolicy.parse(context.cursor)
    with database.connection() as connection:
        stood_in = _stand_in(connection)
        policy = policy_status(connection)
        with connection.cursor(row_factory=dict_row) as cursor:
            runs = cursor.execute(queries["policy_runs_since"], asdict(reported)).fetchone()
    assert runs is not None, "the statement always gives one row"
    if policy is None:
        return dg.SkipReason("there is no policy")
    events: list[Event] = []
    if (found := _words_of(policy)) != reported.policy:
        reported.policy = found
        events.append(_policy_materialization(found))
    if (runs["runs"] or runs["slices"]) and (reported.is_due or runs["failed"]):
        reported.heartbeat = time.time()
        reported.last, reported.rows = runs["last"], runs["last_rows"]
        reported.slices = runs["last_slices"]
        events.append(_policy_observation(policy, runs))
    if not events:
        return dg.SkipReason(
            f"{runs['runs']} runs since the last report"
            + (f"; refreshed in place of a worker: {stood_in} rows" if stood_in is not None else "")
        )
    return dg.SensorResult(
        asset_events=events, cursor=reported.dump(), skip_reason=f"{len(events)} events reported"
    )


def _outdated(instance: dg.DagsterInstance, reported: ReportedChecks) -> set[str]:
    """Return the assets that were materialised since their report, by a run or another sensor.

    The UI shows no state for their checks until these are reported again.
    """
    assets = {dg.AssetKey(name): name for name in ASSETS}
    outdated = set()
    for record in instance.get_asset_records(list(assets)):
        event, name = record.asset_entry.last_materialization, assets[record.asset_entry.asset_key]
        # This sensor's own materialisations have no run, and come before their checks.
        if event is None or not (event.run_id or name == "features_1m_policy"):
            continue
        if event.timestamp > reported.reports.get(name, 0):
            outdated.add(name)
    return outdated


def _note(results: list[CheckResult], reported: ReportedChecks) -> None:
    """Store the findings of failing checks, and the rows that differed from the bars.

    Without these, the random sample of the next tick might miss the row, and the check pass.
    """
    for result in results:
        name = result.check.name
        if result.findings is None:
            reported.failing.pop(name, None)
        else:
            reported.failing[name] = result.findings
        if name == RECOMPUTED:
            wrong = {(str(row["symbol"]), str(row["bucket"])) for row in result.rows}
            reported.suspects = sorted(wrong)


def _materializations(
    connection: psycopg.Connection[Any],
    instance: dg.DagsterInstance,
    tables: list[str],
    reported: ReportedChecks,
) -> Iterator[dg.AssetMaterialization]:
    """Yield the materialisations of tables: complete past days, then newer rows."""
    newest = connection.execute(queries["newest_minutes"]).fetchone()
    assert newest is not None, "the statement always gives one row"
    statuses = symbol_status(connection)
    for name in tables:
        done = instance.get_materialized_partitions(dg.AssetKey(name))
        yield from _whole_days(connection, name, done)
        yield from _newer_rows(statuses, name, newest[TABLES.index(name)], done, reported)


def _whole_days(
    connection: psycopg.Connection[Any], name: str, done: set[str]
) -> Iterator[dg.AssetMaterialization]:
    """Yield past days that came by stream or import, and are complete."""
    past = [key for key in days.get_partition_keys()[:-1] if key not in done]
    rows = connection.execute(
        queries["whole_days"], {"days": [datetime.fromisoformat(f"{key}T00Z") for key in past]}
    )
    for (day,) in islice(rows, _MOST_DAYS):
        key = partition_key(day.astimezone(UTC))
        done.add(key)
        yield dg.AssetMaterialization(
            name,
            partition=key,
            description="Every minute of the day is accounted for, and no row is dirty.",
        )


def _newer_rows(
    statuses: list[SymbolStatus],
    name: str,
    newest: datetime | None,
    done: set[str],
    reported: ReportedChecks,
) -> Iterator[dg.AssetMaterialization]:
    """Yield a materialisation of a table whose newest closed minute advanced.

    It names the day's partition only where no event has: a later one would hide the plot and the
    counts of a run. The freshness policy goes by the asset's newest event, with or without one.
    """
    if newest is None:
        return
    minute = newest.astimezone(UTC)
    text, last = minute.isoformat(), reported.newest.get(name, "")
    # A report of a minute that is not over comes from a clock that was set back.
    if last < text or last > get_settings().clock.now().isoformat():
        reported.newest[name] = text
        key = partition_key(minute)
        yield dg.AssetMaterialization(
            name,
            partition=key if has_partition(minute) and key not in done else None,
            description=f"Newer rows, up to {text}.",
            metadata=_state_of(statuses, minute),
        )


def _feed_observation(feeds: list[Feed]) -> list[Event]:
    """Return an observation of the recorder's stream, where a recorder has ever run."""
    if not feeds:
        return []
    rows = [
        {
            "symbol": feed.symbol,
            "state": feed.state,
            "heard_at": "" if feed.heard_at is None else f"{feed.heard_at.astimezone(UTC):%F %T}",
            "bar_at": "" if feed.bar_at is None else f"{feed.bar_at.astimezone(UTC):%F %T}",
            "rows_refused": feed.refused,
            "last_error": feed.last_error or "",
        }
        for feed in sorted(feeds, key=lambda feed: (feed.state == "live", feed.symbol))
    ]
    return [
        dg.AssetObservation(
            "exchange_feed",
            description="The state of the recorder's stream, by symbol.",
            metadata={
                "live": sum(feed.state == "live" for feed in feeds),
                "number of symbols": len(feeds),
                "oldest heartbeat (s)": max(feed.age for feed in feeds),
                "rows refused": sum(feed.refused for feed in feeds),
                "symbols": table(rows[:SYMBOLS_SHOWN]),
            },
        )
    ]


def _state_of(statuses: list[SymbolStatus], newest: datetime) -> dict[str, Any]:
    lags = [one.lag.total_seconds() for one in statuses if one.lag is not None]
    rows = [
        {
            "symbol": one.symbol,
            "last_bar": "" if one.last_bar is None else f"{one.last_bar.astimezone(UTC):%F %T}",
            "last_row": ""
            if one.last_feature is None
            else f"{one.last_feature.astimezone(UTC):%F %T}",
            "rows_dirty": one.rows_dirty,
            "lag_seconds": -1.0 if one.lag is None else round(one.lag.total_seconds(), 1),
        }
        for one in statuses
    ]
    return {
        "newest": dg.MetadataValue.timestamp(newest),
        "number of symbols": len(statuses),
        "rows dirty": sum(one.rows_dirty for one in statuses),
        "lag (s)": max(lags, default=0.0),
        "symbols": table(rows[:SYMBOLS_SHOWN]),
    }


def _stand_in(connection: psycopg.Connection[Any]) -> int | None:
    """Run the policy once where no other process does; return the rows written, None if not."""
    late = connection.execute(queries["policy_is_late"]).fetchone()
    if late is None or not late[0]:
        return None
    locked = connection.execute(queries["worker_claim"]).fetchone()
    if locked is None or not locked[0]:
        return None  # a worker lives, and has a long slice in hand
    # The claim ends with the connection: a worker that comes now waits that long.
    begun = connection.execute(queries["policy_begin"]).fetchone()
    assert begun is not None, "the statement always gives one row"
    step = {"run_id": begun[0], "horizon": begun[1]}
    problem: str | None = None
    until = time.monotonic() + _REFRESH_SECONDS
    try:
        more = True
        while more and time.monotonic() < until:
            row = connection.execute(queries["worker_step"], step).fetchone()
            more = bool(row and row[0])
    except psycopg.Error as error:
        if connection.broken:
            raise
        problem = " ".join(str(error).split())
    connection.execute(queries["worker_end"], {"run_id": begun[0], "error": problem})
    done = connection.execute(queries["worker_run"], {"run_id": begun[0]}).fetchone()
    return 0 if done is None else int(done[1])


def _words_of(policy: PolicyStatus) -> dict[str, str]:
    """Return what a policy is, as the configuration of its asset names it."""
    return {name: str(getattr(policy, name)) for name in PolicyConfig.model_fields}


def _policy_materialization(policy: dict[str, str]) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        "features_1m_policy",
        description="The refresh policy was added or changed.",
        metadata=policy,
    )


def _policy_observation(policy: PolicyStatus, runs: dict[str, Any]) -> dg.AssetObservation:
    oldest = policy.oldest_dirty_age
    shown: dict[str, Any] = {
        "runs": runs["runs"],
        "rows written": runs["rows_written"],
        "slices": runs["slices"],
        "failed runs": runs["failed"],
        "longest run (s)": runs["longest_seconds"],
        "rows dirty": policy.rows_dirty,
        "oldest dirty row (s)": 0.0 if oldest is None else oldest.total_seconds(),
        "runs in": policy.runs_in,
        "last runner": policy.last_runner or "",
    }
    if policy.last_error is not None:
        shown["last error"] = policy.last_error
    return dg.AssetObservation(
        "features_1m_policy",
        description="Runs of the policy since the last report.",
        metadata=shown,
    )


sensors = [run_checks, repair_missing_minutes, watch_refresh]
