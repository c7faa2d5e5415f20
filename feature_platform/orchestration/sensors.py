"""The sensors: each does its work in its tick, once a minute; only a repair starts a run."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import chain, islice
from typing import Any

import dagster as dg
import psycopg
from psycopg.rows import dict_row

from feature_platform.counted import counted
from feature_platform.gaps import find_gaps
from feature_platform.heartbeat import StoredHeartbeat, list_heartbeats
from feature_platform.orchestration.assets import offsets_of
from feature_platform.orchestration.checks import evaluation
from feature_platform.orchestration.cursors import ReportedChecks, ReportedPolicy
from feature_platform.orchestration.jobs import rest_backfill
from feature_platform.orchestration.materializations import newer_rows, whole_days
from feature_platform.orchestration.metadata import SYMBOLS_SHOWN, second, table
from feature_platform.orchestration.repairs import (
    MOST_IN_FLIGHT,
    days_in_flight,
    due_days,
    first_requests,
    repair_requests,
)
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.policy import run_policy
from feature_platform.queries import queries
from feature_platform.settings import get_settings
from feature_platform.status import PolicyStatus, SymbolStatus, policy_status, symbol_status
from feature_platform.validation import BY_NAME, CHECKS, RECOMPUTED, CheckResult, evaluate

# Seconds. Dagster's own loop adds about two, which makes one tick a minute.
EVERY_MINUTE = 58
# The most seconds that `watch_refresh` refreshes in a tick.
_REFRESH_SECONDS = 20.0

TABLES = ("ohlcv_1m", "features_1m")
# The assets with checks, in the order of their reports.
ASSETS = (*TABLES, "exchange_feed", "features_1m_policy")

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dg.sensor(
    name="run_checks",
    description=(
        "Warns you when prices or features are late, incomplete or wrong: runs the checks once a"
        " minute, the slow ones every five minutes, and reports a change at once. Every five"
        " minutes, and after a run, it reports each asset with its checks, the age of the newest"
        " rows and the past days that are complete."
    ),
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def run_checks(
    context: dg.SensorEvaluationContext, database: DatabaseResource
) -> dg.SensorResult | dg.SkipReason:
    """Report the checks that changed, and each asset in its turn."""
    reported = ReportedChecks.parse(context.cursor)
    due = reported.due(ASSETS, outdated(context.instance, reported.reports, ASSETS))
    names = [check.name for check in CHECKS if check.table in due or not check.slow]
    events: list[Event] = []
    with database.connection() as connection:
        results = evaluate(connection, names, suspects=reported.suspects)
        # A check counts for the newest materialisation only when it is reported after it.
        if "exchange_feed" in due:
            events += _stream_observation(list_heartbeats(connection))
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
        # Dagster shows this text for a tick that starts no run.
        skip_reason=f"{counted(len(events), 'event')} reported; failing: {failing}",
    )


@dg.sensor(
    name="repair_missing_minutes",
    description=(
        "Completes the prices: finds missing minutes once a minute, and requests a run for each day"
        " that has some, which fetches them over REST. The newest day comes first, and a day with a"
        " run in progress is not requested again."
    ),
    job=rest_backfill,
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def repair_missing_minutes(
    context: dg.SensorEvaluationContext, database: DatabaseResource
) -> dg.SensorResult | dg.SkipReason:
    """Request runs that fetch missing minutes; find_gaps() is in sql/035_gaps.sql."""
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
    running = f"; runs in progress: {', '.join(sorted(in_flight))}" if in_flight else ""
    return dg.SkipReason(f"{counted(open_gaps, 'open gap')}, none to request now{running}")


@dg.sensor(
    name="watch_refresh",
    description=(
        "Keeps the features current: reports the runs of the refresh policy every five minutes, and"
        " a failed run at once. It refreshes in its own tick when neither a worker nor a job of the"
        " database has run the policy for two intervals."
    ),
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def watch_refresh(
    context: dg.SensorEvaluationContext, database: DatabaseResource
) -> dg.SensorResult | dg.SkipReason:
    """Report the policy and its runs; refresh if no other process does."""
    reported = ReportedPolicy.parse(context.cursor)
    with database.connection() as connection:
        refreshed = _refresh_if_late(connection)
        policy = policy_status(connection)
        with connection.cursor(row_factory=dict_row) as cursor:
            runs = cursor.execute(queries["policy_runs_since"], asdict(reported)).fetchone()
    assert runs is not None, "the statement always gives one row"
    if policy is None:
        return dg.SkipReason("features_1m has no refresh policy")
    events: list[Event] = []
    if (found := offsets_of(policy)) != reported.policy:
        reported.policy = found
        events.append(_policy_materialization(found))
    if (runs["runs"] or runs["slices"]) and (reported.is_due or runs["failed"]):
        reported.heartbeat = time.time()
        reported.last, reported.rows = runs["last"], runs["last_rows"]
        reported.slices = runs["last_slices"]
        events.append(_policy_observation(policy, runs))
    if not events:
        return dg.SkipReason(
            f"runs since the last report: {runs['runs']}"
            + (
                f"; no worker is running: refreshed {counted(refreshed, 'row')}"
                if refreshed is not None
                else ""
            )
        )
    return dg.SensorResult(
        asset_events=events,
        cursor=reported.dump(),
        skip_reason=f"{counted(len(events), 'event')} reported",
    )


def outdated(
    instance: dg.DagsterInstance, reports: Mapping[str, float], names: Sequence[str]
) -> set[str]:
    """Return the assets that a run or another sensor materialised after their last report.

    The UI shows no state of their checks until these are reported again.
    reports: when each asset was last reported, in seconds since 1970.
    """
    assets = {dg.AssetKey(name): name for name in names}
    found = set()
    for record in instance.get_asset_records(list(assets)):
        event, name = record.asset_entry.last_materialization, assets[record.asset_entry.asset_key]
        # The caller's own materialisations have no run; it reports the checks after them.
        if event is None or not (event.run_id or name == "features_1m_policy"):
            continue
        if event.timestamp > reports.get(name, 0):
            found.add(name)
    return found


def _note(results: list[CheckResult], reported: ReportedChecks) -> None:
    """Store the findings of failing checks, and the rows that differed from the bars.

    Without these rows, the random sample of the next tick could miss them and the check pass.
    """
    # A cursor of an older version may hold a check that was renamed.
    reported.failing = {name: one for name, one in reported.failing.items() if name in BY_NAME}
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
    """Yield materialisations of tables: of complete past days, then of newer rows."""
    newest = connection.execute(queries["newest_minutes"]).fetchone()
    assert newest is not None, "the statement always gives one row"
    statuses = symbol_status(connection)
    for name in tables:
        done = instance.get_materialized_partitions(dg.AssetKey(name))
        yield from whole_days(
            name, done, lambda past: connection.execute(queries["whole_days"], {"days": past})
        )
        yield from newer_rows(
            name,
            newest[TABLES.index(name)],
            done,
            reported.newest,
            lambda minute: _state_of(statuses, minute),
        )


def _stream_observation(beats: list[StoredHeartbeat]) -> list[Event]:
    """Return an observation of the recorder's stream; none if no recorder has ever run."""
    if not beats:
        return []
    rows = [
        {
            "symbol": beat.symbol,
            "state": beat.state,
            "last_update": second(beat.update_at),
            "newest_bar": second(beat.bar_at),
            "rows_rejected": beat.rejected,
            "last_error": beat.last_error or "",
        }
        for beat in sorted(beats, key=lambda beat: (beat.state == "live", beat.symbol))
    ]
    return [
        dg.AssetObservation(
            "exchange_feed",
            description="The state of the recorder's stream, by symbol.",
            metadata={
                "live": sum(beat.state == "live" for beat in beats),
                "number of symbols": len(beats),
                "oldest heartbeat (s)": max(beat.age for beat in beats),
                "rows rejected": sum(beat.rejected for beat in beats),
                "symbols": table(rows[:SYMBOLS_SHOWN]),
            },
        )
    ]


def _state_of(statuses: list[SymbolStatus], newest: datetime) -> dict[str, Any]:
    lags = [one.lag.total_seconds() for one in statuses if one.lag is not None]
    rows = [
        {
            "symbol": one.symbol,
            "last_bar": second(one.last_bar),
            "last_row": second(one.last_feature),
            "rows_waiting_for_refresh": one.rows_dirty,
            "lag_seconds": -1.0 if one.lag is None else round(one.lag.total_seconds(), 1),
        }
        for one in statuses
    ]
    return {
        "newest": dg.MetadataValue.timestamp(newest),
        "number of symbols": len(statuses),
        "rows waiting for refresh": sum(one.rows_dirty for one in statuses),
        "lag (s)": max(lags, default=0.0),
        "symbols": table(rows[:SYMBOLS_SHOWN]),
    }


def _refresh_if_late(connection: psycopg.Connection[Any]) -> int | None:
    """Run the policy once if no other process does; return the rows written, None if one does."""
    late = connection.execute(queries["policy_is_late"]).fetchone()
    if late is None or not late[0]:
        return None
    locked = connection.execute(queries["worker_claim"]).fetchone()
    if locked is None or not locked[0]:
        return None  # a worker is running, and works on a long slice
    # The claim ends with the connection: a worker that starts now waits until then.
    connection.execute(queries["worker_session"])
    end = time.monotonic() + _REFRESH_SECONDS

    def until(seconds: float) -> bool:
        time.sleep(seconds)
        return time.monotonic() >= end

    return run_policy(connection, "sensor", until).rows_written


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
        "rows waiting for refresh": policy.rows_dirty,
        "longest wait (s)": 0.0 if oldest is None else oldest.total_seconds(),
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
