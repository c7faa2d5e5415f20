"""The sensors: each looks once a minute, in the tick itself, and starts a run only to repair.

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
from feature_platform.orchestration.cursors import ReportedPolicy, ReportedState
from feature_platform.orchestration.jobs import rest_backfill
from feature_platform.orchestration.metadata import SYMBOLS_SHOWN, table
from feature_platform.orchestration.partitions import days, has_partition, partition_key
from feature_platform.orchestration.requests import (
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
from feature_platform.validation import RECOMPUTED, CheckResult, evaluate

EVERY_MINUTE = 58
# What the policy's sensor may spend on refreshing, in seconds, where nobody else refreshes.
_REFRESH_SECONDS = 20.0

# Past days that a tick may tell of: years of imported history come a month at a time.
_MOST_DAYS = 31

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dg.sensor(
    name="validation",
    description=(
        "Evaluates every check once a minute, and reports what changed, and everything every five"
        " minutes and after a run: the checks and, where something newer has come, the newest bars"
        " and features."
    ),
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def validation_sensor(
    context: dg.SensorEvaluationContext, database: Database
) -> dg.SensorResult | dg.SkipReason:
    """Report checks on a change of state and on a heartbeat."""
    reported = ReportedState.parse(context.cursor)
    beats = reported.beats or _outdated(context.instance, reported.heartbeat)
    events: list[Event] = []
    with database.connection() as connection:
        results = evaluate(connection, suspects=reported.suspects)
        if beats:
            events += _heartbeats(list_feeds(connection))
            # A check counts for the newest materialisation only when it is reported after it.
            events += _whole_days(connection, context.instance)
            events += _what_is_newer(symbol_status(connection), reported)
            reported.heartbeat = time.time()
    for result in results:
        if beats or reported.passed.get(result.check.name) is not result.passed:
            events.append(evaluation(result))
    reported.passed = {result.check.name: result.passed for result in results}
    reported.suspects = _suspects(results)
    failing = ", ".join(result.check.name for result in results if not result.passed) or "none"
    if not events:
        return dg.SkipReason(f"no change; failing: {failing}")
    return dg.SensorResult(
        asset_events=events,
        cursor=reported.dump(),
        # Dagster's word for a tick that starts no run.
        skip_reason=f"{len(events)} events reported; failing: {failing}",
    )


@dg.sensor(
    name="gaps",
    description=(
        "Finds missing minutes once a minute, and requests a repair over REST of each day that has"
        " some: the newest day first, and none that a run already sees to."
    ),
    job=rest_backfill,
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def gaps_sensor(
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
    seen_to = f"; runs see to {', '.join(sorted(in_flight))}" if in_flight else ""
    return dg.SkipReason(f"{open_gaps} gaps are open, and none is to be requested{seen_to}")


@dg.sensor(
    name="policy",
    description=(
        "Tells every five minutes, and at once of an error, what the refresh policy did; refreshes"
        " by itself where no worker and no job of the database has for two intervals."
    ),
    minimum_interval_seconds=EVERY_MINUTE,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def policy_sensor(
    context: dg.SensorEvaluationContext, database: Database
) -> dg.SensorResult | dg.SkipReason:
    """Report the policy and its runs, or do what nobody else does."""
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
    if (runs["runs"] or runs["slices"]) and (reported.beats or runs["failed"]):
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


def _outdated(instance: dg.DagsterInstance, since: float) -> bool:
    """Tell whether somebody else has materialised since: until told again, checks are unknown."""
    for name in ("ohlcv_1m", "features_1m", "features_1m_policy"):
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        # Those of this sensor come from no run, and before their checks.
        by_others = event is not None and (event.run_id or name == "features_1m_policy")
        if event is not None and by_others and event.timestamp > since:
            return True
    return False


def _suspects(results: list[CheckResult]) -> list[tuple[str, str]]:
    """Return the rows that are wrong: a sample of the next tick might miss them."""
    (recomputed,) = (result for result in results if result.check.name == RECOMPUTED)
    wrong = {(str(row["symbol"]), str(row["bucket"])) for row in recomputed.rows}
    return sorted(wrong)


def _whole_days(
    connection: psycopg.Connection[Any], instance: dg.DagsterInstance
) -> Iterator[dg.AssetMaterialization]:
    """Yield a materialisation of each past day that came by stream or import, and is whole."""
    for name in ("ohlcv_1m", "features_1m"):
        told = instance.get_materialized_partitions(dg.AssetKey(name))
        past = [key for key in days.get_partition_keys()[:-1] if key not in told]
        rows = connection.execute(
            queries["whole_days"], {"days": [datetime.fromisoformat(f"{key}T00Z") for key in past]}
        )
        for (day,) in islice(rows, _MOST_DAYS):
            yield dg.AssetMaterialization(
                name,
                partition=partition_key(day.astimezone(UTC)),
                description="Every minute of the day is accounted for, and no row is dirty.",
            )


def _heartbeats(feeds: list[Feed]) -> list[Event]:
    """Return an observation of what the recorder hears, where there ever was one."""
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
            description="What the recorder hears.",
            metadata={
                "live": sum(feed.state == "live" for feed in feeds),
                "number of symbols": len(feeds),
                "oldest heartbeat (s)": max(feed.age for feed in feeds),
                "rows refused": sum(feed.refused for feed in feeds),
                "symbols": table(rows[:SYMBOLS_SHOWN]),
            },
        )
    ]


def _what_is_newer(statuses: list[SymbolStatus], reported: ReportedState) -> list[Event]:
    """Return a materialisation of each table whose newest row advanced since the last."""
    newest = {
        "ohlcv_1m": max((one.last_bar for one in statuses if one.last_bar), default=None),
        "features_1m": max(
            (one.last_feature for one in statuses if one.last_feature), default=None
        ),
    }
    events: list[Event] = []
    for name, newest_row in newest.items():
        if newest_row is None:
            continue
        moment = newest_row.astimezone(UTC)
        text = moment.isoformat()
        if text > reported.newest.get(name, ""):
            reported.newest[name] = text
            events.append(
                dg.AssetMaterialization(
                    name,
                    partition=partition_key(moment) if has_partition(moment) else None,
                    description=f"Newer rows have come, up to {text}.",
                    metadata=_state_of(statuses, moment),
                )
            )
    return events


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
    """Run the policy once where nobody else does; return the rows written, None if not."""
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
        description="The policy is this, whoever has set it.",
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


sensors = [validation_sensor, gaps_sensor, policy_sensor]
