"""What the sensors report and request, tick by tick, to a real instance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.gaps import find_gaps, list_gaps, note_answer
from feature_platform.orchestration.assets import features_1m_policy
from feature_platform.orchestration.cursors import Cursor, ReportedPolicy, ReportedState
from feature_platform.orchestration.partitions import partition_key
from feature_platform.orchestration.resources import Database
from feature_platform.queries import queries
from feature_platform.settings import get_settings
from feature_platform.validation import CHECKS
from feature_platform_tests.fix_dagster import Platform
from feature_platform_tests.fix_processes import insert_bars, insert_recent, value

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


@pytest.fixture
def live(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Return the platform with the bars of a few hours, up to now."""
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT")
    get_settings.cache_clear()
    insert_recent(platform.connection, "BTC/USDT", 300)
    platform.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    find_gaps(platform.connection)
    return platform


def heart_stopped(cursor: str, kind: type[Cursor] = ReportedState) -> str:
    """Return a cursor as if its heartbeat were six minutes older."""
    reported = kind.parse(cursor)
    reported.heartbeat -= 6 * 60
    return reported.dump()


def kinds(data: Any) -> list[str]:
    return [type(event).__name__ for event in data.asset_events]


def test_without_data_the_first_tick_reports_every_check(platform: Platform) -> None:
    data = platform.tick("validation")
    assert [event.check_name for event in data.asset_events] == [one.name for one in CHECKS]
    for check in CHECKS:
        found = platform.evaluation(check.name, check.table)
        assert found is not None
        assert found.passed
    assert platform.materializations("ohlcv_1m") == []


def test_nothing_is_reported_without_a_change_or_a_heartbeat(live: Platform) -> None:
    first = live.tick("validation")
    assert "AssetMaterialization" in kinds(first)
    second = live.tick("validation", first.cursor)
    assert second.asset_events == []
    assert "no change" in second.skip_message
    beat = live.tick("validation", heart_stopped(first.cursor))
    # No newer bar has come, and so the dead man's switch is left alone.
    assert kinds(beat) == ["AssetCheckEvaluation"] * len(CHECKS)


def test_a_change_of_state_is_reported_at_once_and_alone(live: Platform) -> None:
    first = live.tick("validation")
    live.connection.execute("DROP INDEX features_1m_bucket_idx")
    data = live.tick("validation", first.cursor)
    assert [event.check_name for event in data.asset_events] == ["features_table"]
    found = live.evaluation("features_table", "features_1m")
    assert found is not None
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert "features_1m_bucket_idx" in str(found.metadata["offending rows"])
    assert live.tick("validation", data.cursor).asset_events == []


def test_a_wrong_row_stays_wrong_until_it_is_mended(live: Platform) -> None:
    """A sample would find one row of eight days now and then, and forget it in between."""
    first = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=8)
    insert_bars(live.connection, "BTC/USDT", first, 7 * 1440)
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    row = (first + timedelta(days=4),)
    live.connection.execute(
        "UPDATE features_1m SET vwap_gap = vwap_gap + 1e-9 WHERE bucket = %s", row
    )
    reported = ReportedState(suspects=[("BTC/USDT", row[0].isoformat())])
    for _ in range(2):
        data = live.tick("validation", heart_stopped(reported.dump()))
        reported = ReportedState.parse(data.cursor)
        assert reported.passed["stored_equals_recomputed"] is False
        assert len(reported.suspects) == 1
    live.connection.execute("CALL refresh_features_1m(%s, NULL, force => true)", row)
    data = live.tick("validation", reported.dump())  # a change of state, told at once
    reported = ReportedState.parse(data.cursor)
    assert reported.passed["stored_equals_recomputed"] is True
    assert reported.suspects == []


def test_checks_count_for_the_newest_materialisation(live: Platform) -> None:
    """The bars' materialisation goes before the checks, or these would be out of date with it."""
    found = kinds(live.tick("validation"))
    assert found[: -len(CHECKS)] == ["AssetMaterialization"] * (len(found) - len(CHECKS))
    assert len(found) >= len(CHECKS) + 2  # after midnight, one more of yesterday for each table
    assert found[-len(CHECKS) :] == ["AssetCheckEvaluation"] * len(CHECKS)


def test_after_a_run_the_checks_are_reported_again(live: Platform) -> None:
    """A run's materialisation outdates the checks: until they are reported, nothing is known."""
    first = live.tick("validation")
    assert live.tick("validation", first.cursor).asset_events == []
    assert dg.materialize(
        [features_1m_policy], resources={"database": Database()}, instance=live.instance
    ).success
    data = live.tick("validation", first.cursor)
    assert kinds(data) == ["AssetCheckEvaluation"] * len(CHECKS)
    assert live.tick("validation", data.cursor).asset_events == []


def test_only_a_newer_bar_is_a_materialisation(live: Platform) -> None:
    first = live.tick("validation")
    live.connection.execute(
        "UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts < now() - interval '1 hour'"
    )
    beat = live.tick("validation", heart_stopped(first.cursor))
    assert "AssetMaterialization" not in kinds(beat)
    live.connection.execute(
        "INSERT INTO ohlcv_1m SELECT symbol, ts + interval '1 minute', open, high, low, close, vol"
        "  FROM ohlcv_1m ORDER BY ts DESC LIMIT 1"
    )
    beat = live.tick("validation", heart_stopped(beat.cursor))
    (materialized,) = [one for one in beat.asset_events if isinstance(one, dg.AssetMaterialization)]
    assert materialized.asset_key == dg.AssetKey("ohlcv_1m")
    assert materialized.partition == partition_key(datetime.now(UTC))


def test_days_that_came_by_stream_are_shown_as_materialised(live: Platform) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # Without yesterday: its last minutes settle ten minutes after midnight only.
    earlier = [today - timedelta(days=back) for back in (4, 3, 2)]
    live.connection.execute("DELETE FROM ohlcv_1m WHERE ts < %s", (today,))
    insert_bars(live.connection, "BTC/USDT", earlier[0], 3 * 1440)
    insert_bars(live.connection, "ETH/USDT", earlier[1] + timedelta(hours=1), 30)
    find_gaps(live.connection)
    # Dirty, they are not what the bars say.
    assert materialized_days(live.tick("validation")) == {"ohlcv_1m": [], "features_1m": []}
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    # Of the others, two have minutes of ETH/USDT that nobody has explained.
    whole = [partition_key(earlier[0])]
    assert materialized_days(live.tick("validation")) == {"ohlcv_1m": whole, "features_1m": whole}
    note_answer(live.connection, "ETH/USDT", earlier[1], earlier[2] + timedelta(days=1))
    others = [partition_key(day) for day in (earlier[2], earlier[1])]
    assert materialized_days(live.tick("validation")) == {"ohlcv_1m": others, "features_1m": others}
    assert materialized_days(live.tick("validation")) == {"ohlcv_1m": [], "features_1m": []}


def materialized_days(data: Any) -> dict[str, list[str]]:
    """Return the past days that a tick told of, by the name of the table."""
    today = partition_key(datetime.now(UTC))
    found: dict[str, list[str]] = {"ohlcv_1m": [], "features_1m": []}
    for event in data.asset_events:
        if isinstance(event, dg.AssetMaterialization) and event.partition != today:
            assert event.partition is not None
            found[event.asset_key.to_user_string()].append(event.partition)
    return found


def test_an_old_cursor_is_no_reason_to_fail(live: Platform) -> None:
    for cursor in ("", "nonsense", "[]", '{"unknown": 1}'):
        assert live.tick("validation", cursor).asset_events


def test_no_partition_is_named_by_a_runless_check(live: Platform) -> None:
    """Dagster refuses the second evaluation of a partition that no run reports."""
    for event in live.tick("validation").asset_events:
        if isinstance(event, dg.AssetCheckEvaluation):
            assert event.partition is None


def test_a_run_in_flight_is_not_requested_again(live: Platform) -> None:
    day = cut_hole(live)
    (request,) = live.tick("gaps").run_requests
    assert request.partition_key == partition_key(day)
    assert request.run_config["ops"]["ohlcv_1m"]["config"]["only_gaps"] is True
    # Where its process dies, it is in flight no longer than that.
    assert request.tags["dagster/max_runtime"] == "1800"
    start(live, request)
    data = live.tick("gaps")
    assert data.run_requests == []
    assert f"runs see to {request.partition_key}" in data.skip_message


def test_a_run_that_was_killed_is_requested_again_a_few_times(live: Platform) -> None:
    """It has noted nothing in the gaps, and so they look as they did when it was requested."""
    cut_hole(live)
    keys = []
    for _ in range(6):
        (request,) = live.tick("gaps").run_requests
        keys.append(request.run_key)
        start(live, request, dg.DagsterRunStatus.FAILURE)
    assert len(set(keys)) == 4  # of a key that it knows, Dagster starts no run


def test_an_outage_that_goes_on_keeps_its_run_key(live: Platform) -> None:
    cut_hole(live)
    (first,) = live.tick("gaps").run_requests
    live.connection.execute("UPDATE ohlcv_1m_gaps SET end_ts = end_ts + interval '1 minute'")
    (second,) = live.tick("gaps").run_requests
    assert second.run_key == first.run_key


def test_after_a_failed_attempt_the_key_is_another_one(live: Platform) -> None:
    cut_hole(live)
    (first,) = live.tick("gaps").run_requests
    live.connection.execute(
        "SELECT feature_platform.gap_failed('BTC/USDT', now() - interval '1 day', now(), 'away')"
    )
    assert live.tick("gaps").run_requests == []  # it is asked for later
    live.connection.execute("UPDATE ohlcv_1m_gaps SET next_attempt_at = now()")
    (second,) = live.tick("gaps").run_requests
    assert second.run_key != first.run_key


def test_the_newest_days_come_first_and_few_at_a_time(live: Platform) -> None:
    for back in range(2, 9):
        live.connection.execute(
            "INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts)"
            " SELECT 'BTC/USDT', t, t + interval '5 minutes'"
            "   FROM (SELECT date_trunc('day', now(), 'UTC') - %s * interval '1 day') AS day (t)",
            (back,),
        )
    requested = [one.partition_key for one in live.tick("gaps").run_requests]
    first_bar = value(live.connection, "SELECT min(ts) FROM ohlcv_1m").astimezone(UTC)
    # The gaps are older than the first bar: all that lies between is open now, too.
    assert requested == [partition_key(first_bar - timedelta(days=back)) for back in (0, 1, 2)]


def test_what_is_not_recorded_is_history(live: Platform) -> None:
    """An import of long ago is no outage: nothing is requested for it, and no check fails."""
    insert_bars(live.connection, "OLD/USDT", datetime(2025, 3, 1, tzinfo=UTC), 2000)
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    assert live.tick("gaps").run_requests == []
    live.tick("validation")
    for name, asset in (
        ("bars_fresh", "ohlcv_1m"),
        ("minute_gaps", "ohlcv_1m"),
        ("features_rows", "features_1m"),
        ("features_fresh", "features_1m"),
    ):
        found = live.evaluation(name, asset)
        assert found is not None
        assert found.passed, found
    # It is accounted for all the same.
    (gap,) = list_gaps(live.connection, "OLD/USDT")
    assert (gap.state, gap.start) == ("open", datetime(2025, 3, 2, 9, 20, tzinfo=UTC))


def test_a_symbol_without_any_bar_is_fetched_first(
    live: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT,ETH/USDT")
    get_settings.cache_clear()
    requests = live.tick("gaps").run_requests
    today = datetime.now(UTC)
    assert [one.partition_key for one in requests] == [
        partition_key(today),
        partition_key(today - timedelta(days=1)),
    ]
    config = requests[0].run_config["ops"]["ohlcv_1m"]["config"]
    assert config == {"only_gaps": False, "symbols": ["ETH/USDT"]}


def test_the_policy_is_run_where_nobody_else_does(live: Platform) -> None:
    connection = live.connection
    connection.execute("UPDATE feature_platform.policy SET changed_at = now() - interval '1 hour'")
    connection.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts > now() - interval '5 minutes'")
    data = live.tick("policy")
    assert value(connection, "SELECT max(runner) FROM feature_platform.policy_run") == "sensor"
    assert value(connection, "SELECT count(*) FROM feature_platform.dirty") == 0
    _, observed = data.asset_events
    assert observed.metadata["runs"].value == 1
    assert observed.metadata["rows written"].value > 0
    # It goes on doing so: its own runs do not count as somebody else's.
    live.tick("policy", data.cursor)
    assert value(connection, "SELECT count(*) FROM feature_platform.policy_run") == 2


def test_the_policy_is_left_to_a_worker(live: Platform) -> None:
    live.connection.execute(
        "SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'))"
    )
    data = live.tick("policy")
    assert value(live.connection, "SELECT count(*) FROM feature_platform.policy_run") == 1
    assert kinds(data) == ["AssetMaterialization", "AssetObservation"]
    for event in data.asset_events:
        assert event.asset_key == dg.AssetKey("features_1m_policy")
    assert live.tick("policy", data.cursor).asset_events == []


def test_what_wakes_add_to_a_reported_run_is_reported_once(live: Platform) -> None:
    connection = live.connection
    run_id = value(connection, "SELECT feature_platform.policy_begin('worker')")
    connection.execute("SELECT feature_platform.policy_end(%s)", [run_id])
    cursor = live.tick("policy").cursor
    connection.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts > now() - interval '5 minutes'")
    connection.execute(queries["worker_wake"], {"run_id": run_id})
    data = live.tick("policy", heart_stopped(cursor, ReportedPolicy))
    (observed,) = data.asset_events
    assert observed.metadata["runs"].value == 0
    assert observed.metadata["rows written"].value > 0
    assert live.tick("policy", heart_stopped(data.cursor, ReportedPolicy)).asset_events == []


def test_the_policy_is_told_of_when_it_is_new_or_changed(live: Platform) -> None:
    first = live.tick("policy")
    (told,) = live.materializations("features_1m_policy")
    assert told.metadata["start_offset"].value == "1:00:00"
    assert live.tick("policy", first.cursor).asset_events == []
    live.connection.execute("SELECT alter_features_1m_policy(start_offset => '2 hours')")
    live.tick("policy", first.cursor)
    told, _ = live.materializations("features_1m_policy")
    assert told.metadata["start_offset"].value == "2:00:00"


def test_a_failed_run_of_the_policy_is_reported_at_once(live: Platform) -> None:
    cursor = live.tick("policy").cursor
    live.connection.execute(
        "SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'), 'disk full')"
    )
    data = live.tick("policy", cursor)
    (observed,) = data.asset_events
    assert observed.metadata["failed runs"].value == 1
    assert observed.metadata["last error"].value == "disk full"


def test_a_tick_costs_the_same_whatever_the_history(live: Platform) -> None:
    def touched(sensor: str) -> int:
        live.connection.execute("SELECT pg_stat_force_next_flush()")
        before = rows_read(live.connection)
        live.tick(sensor)
        return rows_read(live.connection) - before

    for name in ("gaps", "policy"):
        touched(name)
    little = {name: touched(name) for name in ("gaps", "policy")}
    live.connection.execute(
        "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)"
        " SELECT symbol, ts - k * interval '300 minutes', open, high, low, close, vol"
        "   FROM ohlcv_1m, generate_series(1, 30) AS k"
    )
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    live.connection.execute("VACUUM ANALYZE")
    for name in ("gaps", "policy"):
        touched(name)  # the tick that takes the new history up
    for name, few in little.items():
        assert touched(name) <= few + 100, name


def rows_read(connection: psycopg.Connection[Any]) -> int:
    return int(
        value(
            connection,
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables",
        )
    )


def cut_hole(live: Platform) -> datetime:
    """Delete some bars of one day, and return the day."""
    hole = value(
        live.connection,
        "DELETE FROM ohlcv_1m WHERE ts = (SELECT ts FROM ohlcv_1m ORDER BY ts LIMIT 1 OFFSET 100)"
        " RETURNING ts",
    )
    assert isinstance(hole, datetime)
    return hole.astimezone(UTC)


def start(
    live: Platform,
    request: dg.RunRequest,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> None:
    """Have a requested run, as the daemon starts it."""
    job = live.repository.get_job("rest_backfill")
    live.instance.create_run_for_job(
        job,
        run_config=request.run_config,
        status=status,
        tags={**request.tags, "dagster/partition": request.partition_key or ""},
    )


def test_yesterday_is_asked_for_once_more(live: Platform) -> None:
    (request,) = schedule_tick(
        live, "daily_reconciliation", datetime(2026, 3, 2, 0, 30, tzinfo=UTC)
    )
    assert request.partition_key == "2026-03-01"
    assert request.run_config["ops"]["ohlcv_1m"]["config"]["only_gaps"] is False
    assert request.run_key == "reconciliation/2026-03-01"
    first = datetime.combine(get_settings().start_date, datetime.min.time(), UTC)
    assert schedule_tick(live, "daily_reconciliation", first) == []


def schedule_tick(live: Platform, name: str, moment: datetime) -> list[dg.RunRequest]:
    """Evaluate a schedule as the daemon does at a moment."""
    context = dg.build_schedule_context(
        instance=live.instance,
        scheduled_execution_time=moment,
        repository_def=live.repository,
        resources={"database": Database()},
    )
    data = live.repository.get_schedule_def(name).evaluate_tick(context)
    return list(data.run_requests or ())


def test_the_hour_asks_again_for_what_is_open(live: Platform) -> None:
    """Whatever became of the sensor's request: a run may have died and noted nothing."""
    day, now = cut_hole(live), datetime.now(UTC)

    def tick(hour: int) -> list[dg.RunRequest]:
        return schedule_tick(live, "hourly_backfill", now + timedelta(hours=hour))

    (first,) = tick(1)
    assert first.partition_key == partition_key(day)
    (second,) = tick(2)
    assert second.run_key != first.run_key
    start(live, first)
    assert tick(3) == []
    assert tick(-48) == []
