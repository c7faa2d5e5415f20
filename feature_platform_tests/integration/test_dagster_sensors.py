"""What the sensors report and request, tick by tick, to a real instance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.gaps import find_gaps, list_gaps, note_answer
from feature_platform.orchestration.assets import features_1m_policy
from feature_platform.orchestration.cursors import ReportedChecks, ReportedPolicy
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


def aged(cursor: str) -> str:
    """Return a cursor of `run_checks` as if its reports were six minutes older."""
    reported = ReportedChecks.parse(cursor)
    reported.reports = {name: at - 6 * 60 for name, at in reported.reports.items()}
    return reported.dump()


def aged_policy(cursor: str) -> str:
    """Return a cursor of `watch_refresh` as if its report were six minutes older."""
    reported = ReportedPolicy.parse(cursor)
    reported.heartbeat -= 6 * 60
    return reported.dump()


def report_all(live: Platform, cursor: str) -> list[Any]:
    """Tick until each asset was reported once more; return the events, one list a tick."""
    ticks = []
    cursor = aged(cursor)
    for _ in range(4):
        data = live.tick("run_checks", cursor)
        ticks.append(data.asset_events)
        cursor = data.cursor
    return ticks


def kinds(data: Any) -> list[str]:
    return [type(event).__name__ for event in data.asset_events]


def test_without_data_the_first_tick_reports_every_check(platform: Platform) -> None:
    data = platform.tick("run_checks")
    assert [event.check_name for event in data.asset_events] == [one.name for one in CHECKS]
    for check in CHECKS:
        found = platform.evaluation(check.name, check.table)
        assert found is not None
        assert found.passed
    assert platform.materializations("ohlcv_1m") == []


def test_nothing_is_reported_without_a_change_or_a_turn(live: Platform) -> None:
    first = live.tick("run_checks")
    assert "AssetMaterialization" in kinds(first)
    second = live.tick("run_checks", first.cursor)
    assert second.asset_events == []
    assert "no change" in second.skip_message
    turns = report_all(live, first.cursor)
    # One asset a tick, with all its checks; no newer bar has come, so no materialisation.
    assert all({type(event) for event in turn} <= {dg.AssetCheckEvaluation} for turn in turns)
    assert [{event.asset_key.to_user_string() for event in turn} for turn in turns] == [
        {"ohlcv_1m"},
        {"features_1m"},
        {"exchange_feed"},
        {"features_1m_policy"},
    ]
    assert sorted(event.check_name for turn in turns for event in turn) == sorted(
        check.name for check in CHECKS
    )


def test_slow_checks_run_only_in_the_turn_of_their_asset(live: Platform) -> None:
    first = live.tick("run_checks")
    live.connection.execute("UPDATE ohlcv_1m SET vol = 0")
    assert live.tick("run_checks", first.cursor).asset_events == []
    reported = ReportedChecks.parse(first.cursor)
    reported.reports["ohlcv_1m"] -= 6 * 60
    live.tick("run_checks", reported.dump())
    found = live.evaluation("bars_sane", "ohlcv_1m")
    assert found is not None
    assert not found.passed


def test_a_change_of_state_is_reported_at_once_and_alone(live: Platform) -> None:
    first = live.tick("run_checks")
    live.connection.execute("DROP INDEX features_1m_bucket_idx")
    data = live.tick("run_checks", first.cursor)
    assert [event.check_name for event in data.asset_events] == ["features_table"]
    found = live.evaluation("features_table", "features_1m")
    assert found is not None
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert "features_1m_bucket_idx" in str(found.metadata["offending rows"])
    assert live.tick("run_checks", data.cursor).asset_events == []


def test_a_wrong_row_stays_wrong_until_it_is_mended(live: Platform) -> None:
    """A sample would find one row of eight days now and then, and forget it in between."""
    first = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=8)
    insert_bars(live.connection, "BTC/USDT", first, 7 * 1440)
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    row = (first + timedelta(days=4),)
    live.connection.execute(
        "UPDATE features_1m SET vwap_gap = vwap_gap + 1e-9 WHERE bucket = %s", row
    )
    reported = ReportedChecks(suspects=[("BTC/USDT", row[0].isoformat())])
    for _ in range(2):
        data = live.tick("run_checks", aged(reported.dump()))
        reported = ReportedChecks.parse(data.cursor)
        assert "stored_equals_recomputed" in reported.failing
        assert len(reported.suspects) == 1
    live.connection.execute("CALL refresh_features_1m(%s, NULL, force => true)", row)
    data = live.tick("run_checks", reported.dump())  # a change of state, reported at once
    reported = ReportedChecks.parse(data.cursor)
    assert "stored_equals_recomputed" not in reported.failing
    assert reported.suspects == []


def test_new_findings_of_a_failing_check_are_reported_at_once(live: Platform) -> None:
    def break_row(back: int) -> None:
        live.connection.execute(
            "UPDATE features_1m SET vwap_gap = vwap_gap + 1e-9"
            " WHERE bucket = feature_platform.due_until() - %s * interval '1 minute'",
            (back,),
        )

    cursor = live.tick("run_checks").cursor
    break_row(5)
    first = live.tick("run_checks", cursor)
    assert [event.check_name for event in first.asset_events] == ["stored_equals_recomputed"]
    assert live.tick("run_checks", first.cursor).asset_events == []  # the same row
    break_row(7)
    second = live.tick("run_checks", first.cursor)
    assert [event.check_name for event in second.asset_events] == ["stored_equals_recomputed"]
    assert second.asset_events[0].metadata["offending"].value == 2


def test_the_cursor_stays_short(live: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1,000 symbols of long names that fail wherever symbols can."""
    many = [f"kraken:{'LONG' * 40}{number:04}/USDT" for number in range(1000)]
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", ",".join(many))
    get_settings.cache_clear()
    live.connection.execute(
        "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol, inserted_at)"
        " SELECT symbol, feature_platform.due_until() - k * interval '1 minute', k, 30, 1, k, 0,"
        "        now() - interval '1 hour'"
        "   FROM unnest(%s::text[]) AS symbol, generate_series(20, 21) AS k",
        (many,),
    )
    live.connection.execute("UPDATE features_1m SET vwap_gap = vwap_gap + 1e-9")
    data = live.tick("run_checks")
    failing = ReportedChecks.parse(data.cursor).failing
    assert {"bars_fresh", "features_fresh", "features_rows", "bars_sane"} <= set(failing)
    assert "stored_equals_recomputed" in failing
    assert len(data.cursor) < 4000
    keys = [one.run_key for one in live.tick("repair_missing_minutes").run_requests]
    assert max((len(key) for key in keys), default=0) < 200


def test_checks_count_for_the_newest_materialisation(live: Platform) -> None:
    """The bars' materialisation goes before the checks, or these would be out of date with it."""
    found = kinds(live.tick("run_checks"))
    assert found[: -len(CHECKS)] == ["AssetMaterialization"] * (len(found) - len(CHECKS))
    assert len(found) >= len(CHECKS) + 2  # after midnight, one more of yesterday for each table
    assert found[-len(CHECKS) :] == ["AssetCheckEvaluation"] * len(CHECKS)


def test_after_a_run_the_checks_are_reported_again(live: Platform) -> None:
    """A run's materialisation outdates the checks: until they are reported, they have no state."""
    first = live.tick("run_checks")
    assert live.tick("run_checks", first.cursor).asset_events == []
    assert dg.materialize(
        [features_1m_policy], resources={"database": Database()}, instance=live.instance
    ).success
    data = live.tick("run_checks", first.cursor)
    assert [event.check_name for event in data.asset_events] == [
        check.name for check in CHECKS if check.table == "features_1m_policy"
    ]
    assert live.tick("run_checks", data.cursor).asset_events == []


def test_only_a_newer_bar_is_a_materialisation(live: Platform) -> None:
    first = live.tick("run_checks")
    live.connection.execute(
        "UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts < now() - interval '1 hour'"
    )
    assert newer_rows(live, first.cursor) == []
    store_bars(live, value(live.connection, "SELECT max(ts) FROM ohlcv_1m"))
    # A bar of the minute that is not over yet is no newer row.
    assert newer_rows(live, first.cursor) == []
    reported = ReportedChecks.parse(first.cursor)
    reported.newest["ohlcv_1m"] = "2026-01-01T00:00:00+00:00"
    (materialized,) = newer_rows(live, reported.dump())
    assert materialized.asset_key == dg.AssetKey("ohlcv_1m")


def test_a_bar_of_the_future_does_not_stop_the_reports(live: Platform) -> None:
    """It was stored and reported, and is deleted: newer bars are reported all the same."""
    live.connection.execute(
        "UPDATE ohlcv_1m SET ts = ts + interval '2 hours' WHERE ts = (SELECT max(ts) FROM ohlcv_1m)"
    )
    cursor = live.tick("run_checks").cursor
    newest = datetime.fromisoformat(ReportedChecks.parse(cursor).newest["ohlcv_1m"])
    last = value(live.connection, "SELECT max(ts) FROM ohlcv_1m WHERE ts < now()")
    assert newest == last
    live.connection.execute("DELETE FROM ohlcv_1m WHERE ts > now()")
    store_bars(live, last)
    (materialized,) = newer_rows(live, cursor)
    assert materialized.asset_key == dg.AssetKey("ohlcv_1m")


def test_a_clock_that_was_set_back_does_not_stop_the_reports(live: Platform) -> None:
    reported = ReportedChecks.parse(live.tick("run_checks").cursor)
    ahead = datetime.now(UTC) + timedelta(days=1)
    reported.newest = dict.fromkeys(reported.newest, ahead.isoformat())
    assert len(newer_rows(live, reported.dump())) == 2


def test_the_plot_of_a_run_stays_with_its_day(live: Platform) -> None:
    """Newer rows of the day are reported later, without a plot of their own."""
    first = live.tick("run_checks")
    newest = value(live.connection, "SELECT max(ts) FROM ohlcv_1m").astimezone(UTC)
    live.run("refresh_features", partition_key(newest))
    reported = ReportedChecks.parse(first.cursor)
    reported.newest["features_1m"] = "2026-01-01T00:00:00+00:00"
    (materialized,) = newer_rows(live, reported.dump())
    assert materialized.asset_key == dg.AssetKey("features_1m")
    shown = live.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("features_1m"), [partition_key(newest)]), limit=1
    ).records[0]
    assert shown.asset_materialization is not None
    assert "plot" in shown.asset_materialization.metadata
    assert shown.run_id


def newer_rows(live: Platform, cursor: str) -> list[dg.AssetMaterialization]:
    """Return the materialisations that the next turn of each asset reports."""
    return [
        event
        for turn in report_all(live, cursor)
        for event in turn
        if isinstance(event, dg.AssetMaterialization)
    ]


def store_bars(live: Platform, last: datetime) -> None:
    """Store a bar for the minute after a moment."""
    insert_bars(live.connection, "BTC/USDT", last + timedelta(minutes=1), 1)


def test_days_that_came_by_stream_are_shown_as_materialised(live: Platform) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # Without yesterday: its last minutes settle ten minutes after midnight only.
    earlier = [today - timedelta(days=back) for back in (4, 3, 2)]
    live.connection.execute("DELETE FROM ohlcv_1m WHERE ts < %s", (today,))
    insert_bars(live.connection, "BTC/USDT", earlier[0], 3 * 1440)
    insert_bars(live.connection, "ETH/USDT", earlier[1] + timedelta(hours=1), 30)
    find_gaps(live.connection)
    # Dirty, they are not what the bars say.
    assert materialized_days(live.tick("run_checks")) == {"ohlcv_1m": [], "features_1m": []}
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    # Of the others, two have minutes of ETH/USDT that nobody has explained.
    whole = [partition_key(earlier[0])]
    assert materialized_days(live.tick("run_checks")) == {"ohlcv_1m": whole, "features_1m": whole}
    note_answer(live.connection, "ETH/USDT", earlier[1], earlier[2] + timedelta(days=1))
    others = [partition_key(day) for day in (earlier[2], earlier[1])]
    assert materialized_days(live.tick("run_checks")) == {"ohlcv_1m": others, "features_1m": others}
    assert materialized_days(live.tick("run_checks")) == {"ohlcv_1m": [], "features_1m": []}


def materialized_days(data: Any) -> dict[str, list[str]]:
    """Return the past days that a tick told of, by the name of the table."""
    today = partition_key(datetime.now(UTC))
    found: dict[str, list[str]] = {"ohlcv_1m": [], "features_1m": []}
    for event in data.asset_events:
        if isinstance(event, dg.AssetMaterialization) and event.partition not in (today, None):
            assert event.partition is not None
            found[event.asset_key.to_user_string()].append(event.partition)
    return found


def test_an_old_cursor_is_no_reason_to_fail(live: Platform) -> None:
    for cursor in ("", "nonsense", "[]", '{"unknown": 1}'):
        assert live.tick("run_checks", cursor).asset_events


def test_no_partition_is_named_by_a_runless_check(live: Platform) -> None:
    """Dagster refuses the second evaluation of a partition that no run reports."""
    for event in live.tick("run_checks").asset_events:
        if isinstance(event, dg.AssetCheckEvaluation):
            assert event.partition is None


def test_a_run_in_flight_is_not_requested_again(live: Platform) -> None:
    day = cut_hole(live)
    (request,) = live.tick("repair_missing_minutes").run_requests
    assert request.partition_key == partition_key(day)
    assert request.run_config["ops"]["ohlcv_1m"]["config"]["only_gaps"] is True
    # Where its process dies, it is in flight no longer than that.
    assert request.tags["dagster/max_runtime"] == "1800"
    start(live, request)
    data = live.tick("repair_missing_minutes")
    assert data.run_requests == []
    assert f"runs work on {request.partition_key}" in data.skip_message


def test_a_run_that_was_killed_is_requested_again_a_few_times(live: Platform) -> None:
    """It has noted nothing in the gaps, and so they look as they did when it was requested."""
    cut_hole(live)
    keys = []
    for _ in range(6):
        (request,) = live.tick("repair_missing_minutes").run_requests
        keys.append(request.run_key)
        start(live, request, dg.DagsterRunStatus.FAILURE)
    assert len(set(keys)) == 4  # of a key that it knows, Dagster starts no run


def test_an_outage_that_goes_on_keeps_its_run_key(live: Platform) -> None:
    cut_hole(live)
    (first,) = live.tick("repair_missing_minutes").run_requests
    live.connection.execute("UPDATE ohlcv_1m_gaps SET end_ts = end_ts + interval '1 minute'")
    (second,) = live.tick("repair_missing_minutes").run_requests
    assert second.run_key == first.run_key


def test_after_a_failed_attempt_the_key_is_another_one(live: Platform) -> None:
    cut_hole(live)
    (first,) = live.tick("repair_missing_minutes").run_requests
    live.connection.execute(
        "SELECT feature_platform.gap_failed('BTC/USDT', now() - interval '1 day', now(), 'away')"
    )
    assert live.tick("repair_missing_minutes").run_requests == []  # it is asked for later
    live.connection.execute("UPDATE ohlcv_1m_gaps SET next_attempt_at = now()")
    (second,) = live.tick("repair_missing_minutes").run_requests
    assert second.run_key != first.run_key


def test_the_newest_days_come_first_and_few_at_a_time(live: Platform) -> None:
    for back in range(2, 9):
        live.connection.execute(
            "INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts)"
            " SELECT 'BTC/USDT', t, t + interval '5 minutes'"
            "   FROM (SELECT date_trunc('day', now(), 'UTC') - %s * interval '1 day') AS day (t)",
            (back,),
        )
    requested = [one.partition_key for one in live.tick("repair_missing_minutes").run_requests]
    today = datetime.now(UTC)
    assert requested == [partition_key(today - timedelta(days=back)) for back in (2, 3, 4)]


def test_what_is_not_recorded_is_history(live: Platform) -> None:
    """An import of long ago is no outage: nothing is requested for it, and no check fails."""
    insert_bars(live.connection, "OLD/USDT", datetime(2025, 3, 1, tzinfo=UTC), 2000)
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    assert live.tick("repair_missing_minutes").run_requests == []
    live.tick("run_checks")
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
    requests = live.tick("repair_missing_minutes").run_requests
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
    data = live.tick("watch_refresh")
    assert value(connection, "SELECT max(runner) FROM feature_platform.policy_run") == "sensor"
    assert value(connection, "SELECT count(*) FROM feature_platform.dirty") == 0
    _, observed = data.asset_events
    assert observed.metadata["runs"].value == 1
    assert observed.metadata["rows written"].value > 0
    # It goes on doing so: its own runs do not count as somebody else's.
    live.tick("watch_refresh", data.cursor)
    assert value(connection, "SELECT count(*) FROM feature_platform.policy_run") == 2


def test_the_policy_is_left_to_a_worker(live: Platform) -> None:
    live.connection.execute(
        "SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'))"
    )
    data = live.tick("watch_refresh")
    assert value(live.connection, "SELECT count(*) FROM feature_platform.policy_run") == 1
    assert kinds(data) == ["AssetMaterialization", "AssetObservation"]
    for event in data.asset_events:
        assert event.asset_key == dg.AssetKey("features_1m_policy")
    assert live.tick("watch_refresh", data.cursor).asset_events == []


def test_what_wakes_add_to_a_reported_run_is_reported_once(live: Platform) -> None:
    connection = live.connection
    run_id = value(connection, "SELECT feature_platform.policy_begin('worker')")
    connection.execute("SELECT feature_platform.policy_end(%s)", [run_id])
    cursor = live.tick("watch_refresh").cursor
    connection.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts > now() - interval '5 minutes'")
    connection.execute(queries["worker_wake"], {"run_id": run_id})
    data = live.tick("watch_refresh", aged_policy(cursor))
    (observed,) = data.asset_events
    assert observed.metadata["runs"].value == 0
    assert observed.metadata["rows written"].value > 0
    assert live.tick("watch_refresh", aged_policy(data.cursor)).asset_events == []


def test_the_policy_is_told_of_when_it_is_new_or_changed(live: Platform) -> None:
    first = live.tick("watch_refresh")
    (told,) = live.materializations("features_1m_policy")
    assert told.metadata["start_offset"].value == "1:00:00"
    assert live.tick("watch_refresh", first.cursor).asset_events == []
    live.connection.execute("SELECT alter_features_1m_policy(start_offset => '2 hours')")
    live.tick("watch_refresh", first.cursor)
    told, _ = live.materializations("features_1m_policy")
    assert told.metadata["start_offset"].value == "2:00:00"


def test_a_failed_run_of_the_policy_is_reported_at_once(live: Platform) -> None:
    cursor = live.tick("watch_refresh").cursor
    live.connection.execute(
        "SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'), 'disk full')"
    )
    data = live.tick("watch_refresh", cursor)
    (observed,) = data.asset_events
    assert observed.metadata["failed runs"].value == 1
    assert observed.metadata["last error"].value == "disk full"


def test_a_tick_costs_the_same_whatever_the_history(live: Platform) -> None:
    def touched(sensor: str) -> int:
        live.connection.execute("SELECT pg_stat_force_next_flush()")
        before = rows_read(live.connection)
        live.tick(sensor)
        return rows_read(live.connection) - before

    for name in ("repair_missing_minutes", "watch_refresh"):
        touched(name)
    little = {name: touched(name) for name in ("repair_missing_minutes", "watch_refresh")}
    live.connection.execute(
        "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)"
        " SELECT symbol, ts - k * interval '300 minutes', open, high, low, close, vol"
        "   FROM ohlcv_1m, generate_series(1, 30) AS k"
    )
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    live.connection.execute("VACUUM ANALYZE")
    for name in ("repair_missing_minutes", "watch_refresh"):
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
