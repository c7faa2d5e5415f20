"""Guards against sensors that report wrong states, or request missing or repeated runs."""

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
from feature_platform.orchestration.purge import connect_storage
from feature_platform.orchestration.resources import DatabaseResource
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
    """Tick until each asset is reported again; return the events, a list for each tick."""
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


def test_a_tick_without_a_change_or_a_due_asset_reports_no_event(live: Platform) -> None:
    first = live.tick("run_checks")
    assert "AssetMaterialization" in kinds(first)
    second = live.tick("run_checks", first.cursor)
    assert second.asset_events == []
    assert "no change" in second.skip_message
    turns = report_all(live, first.cursor)
    # One asset a tick, with all its checks; without newer bars there is no materialisation.
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


def test_slow_checks_run_only_when_their_asset_is_due(live: Platform) -> None:
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
    assert "features_1m_bucket_idx" in str(found.metadata["findings"])
    assert live.tick("run_checks", data.cursor).asset_events == []


def test_a_wrong_row_is_reported_until_it_is_corrected(live: Platform) -> None:
    """A random sample finds one row of eight days only now and then."""
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
    assert second.asset_events[0].metadata["wrong"].value == 2


def test_the_cursor_stays_short(live: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1,000 symbols of long names, all of which fail."""
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


def test_checks_are_reported_after_the_materialisations(live: Platform) -> None:
    """Checks that were reported before a materialisation would have no state in the UI."""
    found = kinds(live.tick("run_checks"))
    assert found[: -len(CHECKS)] == ["AssetMaterialization"] * (len(found) - len(CHECKS))
    # After midnight there is one more for yesterday's partition of each table.
    assert len(found) >= len(CHECKS) + 2
    assert found[-len(CHECKS) :] == ["AssetCheckEvaluation"] * len(CHECKS)


def test_after_a_run_the_checks_are_reported_again(live: Platform) -> None:
    """After a run's materialisation the checks have no state until they are reported again."""
    first = live.tick("run_checks")
    assert live.tick("run_checks", first.cursor).asset_events == []
    assert dg.materialize(
        [features_1m_policy], resources={"database": DatabaseResource()}, instance=live.instance
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
    # A bar of an open minute is not a newer row: of the next minute, as the current one may close.
    store_bars(live, value(live.connection, "SELECT feature_platform.due_until()"))
    assert newer_rows(live, first.cursor) == []
    reported = ReportedChecks.parse(first.cursor)
    reported.newest["ohlcv_1m"] = "2026-01-01T00:00:00+00:00"
    (materialized,) = newer_rows(live, reported.dump())
    assert materialized.asset_key == dg.AssetKey("ohlcv_1m")


def test_a_bar_of_the_future_does_not_stop_the_reports(live: Platform) -> None:
    """It is stored and reported, then deleted: newer bars are reported again."""
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
    """Newer rows of the day are reported later, without a plot."""
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
    """Return the materialisations of the next report of each asset."""
    return [
        event
        for turn in report_all(live, cursor)
        for event in turn
        if isinstance(event, dg.AssetMaterialization)
    ]


def store_bars(live: Platform, last: datetime) -> None:
    """Store a bar for the minute after `last`."""
    insert_bars(live.connection, "BTC/USDT", last + timedelta(minutes=1), 1)


def test_days_of_streamed_bars_are_shown_as_materialised(live: Platform) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # Without yesterday: the gap finder reaches its last minutes ten minutes after midnight.
    earlier = [today - timedelta(days=back) for back in (4, 3, 2)]
    live.connection.execute("DELETE FROM ohlcv_1m WHERE ts < %s", (today,))
    insert_bars(live.connection, "BTC/USDT", earlier[0], 3 * 1440)
    insert_bars(live.connection, "ETH/USDT", earlier[1] + timedelta(hours=1), 30)
    find_gaps(live.connection)
    # The rows of these days still wait for a refresh.
    assert materialized_days(live, today) == {"ohlcv_1m": [], "features_1m": []}
    live.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    # Two of the three days have open gaps of ETH/USDT.
    whole = [partition_key(earlier[0])]
    assert materialized_days(live, today) == {"ohlcv_1m": whole, "features_1m": whole}
    note_answer(live.connection, "ETH/USDT", earlier[1], earlier[2] + timedelta(days=1))
    others = [partition_key(day) for day in (earlier[2], earlier[1])]
    assert materialized_days(live, today) == {"ohlcv_1m": others, "features_1m": others}
    assert materialized_days(live, today) == {"ohlcv_1m": [], "features_1m": []}


def materialized_days(live: Platform, today: datetime) -> dict[str, list[str]]:
    """Tick; return the days before `today` that it materialised, by table.

    Midnight may pass between two ticks.
    """
    found: dict[str, list[str]] = {"ohlcv_1m": [], "features_1m": []}
    for event in live.tick("run_checks").asset_events:
        day = event.partition if isinstance(event, dg.AssetMaterialization) else None
        if day is not None and day < partition_key(today):
            found[event.asset_key.to_user_string()].append(day)
    return found


def test_a_cursor_that_cannot_be_read_counts_as_empty(live: Platform) -> None:
    for cursor in ("", "nonsense", "[]", '{"unknown": 1}'):
        assert live.tick("run_checks", cursor).asset_events


def test_a_check_without_a_run_has_no_partition(live: Platform) -> None:
    """Dagster rejects the second evaluation of a partition without a run."""
    for event in live.tick("run_checks").asset_events:
        if isinstance(event, dg.AssetCheckEvaluation):
            assert event.partition is None


def test_a_run_in_flight_is_not_requested_again(live: Platform) -> None:
    day = delete_minutes(live)
    (request,) = live.tick("repair_missing_minutes").run_requests
    assert request.partition_key == partition_key(day)
    assert request.run_config["ops"]["ohlcv_1m"]["config"]["only_gaps"] is True
    # The longest time that it counts as in flight after its process dies.
    assert request.tags["dagster/max_runtime"] == "1800"
    start(live, request)
    data = live.tick("repair_missing_minutes")
    assert data.run_requests == []
    assert f"runs in progress: {request.partition_key}" in data.skip_message


def test_a_run_that_was_killed_is_requested_again_a_few_times(live: Platform) -> None:
    """It stored no attempt, so the gaps are the same as when it was requested."""
    delete_minutes(live)
    keys = []
    for _ in range(6):
        (request,) = live.tick("repair_missing_minutes").run_requests
        keys.append(request.run_key)
        start(live, request, dg.DagsterRunStatus.FAILURE)
    assert len(set(keys)) == 4  # Dagster starts no run for a known key


def test_an_outage_that_goes_on_keeps_its_run_key(live: Platform) -> None:
    delete_minutes(live)
    (first,) = live.tick("repair_missing_minutes").run_requests
    live.connection.execute("UPDATE ohlcv_1m_gaps SET end_ts = end_ts + interval '1 minute'")
    (second,) = live.tick("repair_missing_minutes").run_requests
    assert second.run_key == first.run_key


def test_after_a_failed_attempt_the_run_key_changes(live: Platform) -> None:
    delete_minutes(live)
    (first,) = live.tick("repair_missing_minutes").run_requests
    live.connection.execute(
        "SELECT feature_platform.gap_failed('BTC/USDT', now() - interval '1 day', now(), 'away')"
    )
    assert live.tick("repair_missing_minutes").run_requests == []  # the next attempt is later
    live.connection.execute("UPDATE ohlcv_1m_gaps SET next_attempt_at = now()")
    (second,) = live.tick("repair_missing_minutes").run_requests
    assert second.run_key != first.run_key


def test_at_most_three_days_are_requested_the_newest_first(live: Platform) -> None:
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


def test_a_symbol_that_is_not_recorded_causes_no_request_and_no_failure(live: Platform) -> None:
    """An import of long ago ends without an outage."""
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
    # Its minutes are accounted for.
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


def test_reports_are_stored_without_new_connections(live: Platform) -> None:
    with connect_storage(live.instance) as storage:
        assert storage is not None

        def sessions() -> set[int]:
            rows = storage.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return {pid for (pid,) in rows}

        live.tick("run_checks")
        before = sessions()
        assert before
        assert len(live.tick("run_checks").asset_events) > len(CHECKS)
        # The code server makes an instance for each tick.
        with dg.DagsterInstance.from_ref(live.instance.get_ref()) as another:
            assert another.get_runs_count() == 0
            assert sessions() == before


def test_the_sensor_runs_the_policy_if_no_other_process_does(live: Platform) -> None:
    connection = live.connection
    connection.execute("UPDATE feature_platform.policy SET changed_at = now() - interval '1 hour'")
    connection.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts > now() - interval '5 minutes'")
    data = live.tick("watch_refresh")
    assert value(connection, "SELECT max(runner) FROM feature_platform.policy_run") == "sensor"
    assert value(connection, "SELECT count(*) FROM feature_platform.dirty") == 0
    _, observed = data.asset_events
    assert observed.metadata["runs"].value == 1
    assert observed.metadata["rows written"].value > 0
    # It does so in each tick: its own runs do not count as those of another process.
    live.tick("watch_refresh", data.cursor)
    assert value(connection, "SELECT count(*) FROM feature_platform.policy_run") == 2


def test_the_sensor_does_not_refresh_while_a_worker_runs(live: Platform) -> None:
    live.connection.execute(
        "SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'))"
    )
    data = live.tick("watch_refresh")
    assert value(live.connection, "SELECT count(*) FROM feature_platform.policy_run") == 1
    assert kinds(data) == ["AssetMaterialization", "AssetObservation"]
    for event in data.asset_events:
        assert event.asset_key == dg.AssetKey("features_1m_policy")
    assert live.tick("watch_refresh", data.cursor).asset_events == []


def test_rows_that_wake_ups_add_to_a_reported_run_are_reported_once(live: Platform) -> None:
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


def test_a_new_or_changed_policy_is_materialised(live: Platform) -> None:
    first = live.tick("watch_refresh")
    (policy,) = live.materializations("features_1m_policy")
    assert policy.metadata["start_offset"].value == "1:00:00"
    assert live.tick("watch_refresh", first.cursor).asset_events == []
    live.connection.execute("SELECT alter_features_1m_policy(start_offset => '2 hours')")
    live.tick("watch_refresh", first.cursor)
    policy, _ = live.materializations("features_1m_policy")
    assert policy.metadata["start_offset"].value == "2:00:00"


def test_a_failed_run_of_the_policy_is_reported_at_once(live: Platform) -> None:
    cursor = live.tick("watch_refresh").cursor
    live.connection.execute(
        "SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'), 'disk full')"
    )
    data = live.tick("watch_refresh", cursor)
    (observed,) = data.asset_events
    assert observed.metadata["failed runs"].value == 1
    assert observed.metadata["last error"].value == "disk full"


def test_a_tick_costs_the_same_with_a_longer_history(live: Platform) -> None:
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
        touched(name)  # this tick accounts for the new history
    for name, few in little.items():
        assert touched(name) <= few + 100, name


def rows_read(connection: psycopg.Connection[Any]) -> int:
    return int(
        value(
            connection,
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables",
        )
    )


def delete_minutes(live: Platform) -> datetime:
    """Delete some bars of one day, and return the day."""
    missing = value(
        live.connection,
        "DELETE FROM ohlcv_1m WHERE ts = (SELECT ts FROM ohlcv_1m ORDER BY ts LIMIT 1 OFFSET 100)"
        " RETURNING ts",
    )
    assert isinstance(missing, datetime)
    return missing.astimezone(UTC)


def start(
    live: Platform,
    request: dg.RunRequest,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> None:
    """Create a requested run in the state that the daemon gives it."""
    job = live.repository.get_job("rest_backfill")
    live.instance.create_run_for_job(
        job,
        run_config=request.run_config,
        status=status,
        tags={**request.tags, "dagster/partition": request.partition_key or ""},
    )


def test_yesterday_is_requested_every_night(live: Platform) -> None:
    (request,) = schedule_tick(
        live, "daily_reconciliation", datetime(2026, 3, 2, 0, 30, tzinfo=UTC)
    )
    assert request.partition_key == "2026-03-01"
    assert request.run_config["ops"]["ohlcv_1m"]["config"]["only_gaps"] is False
    assert request.run_key == "reconciliation/2026-03-01"
    first = datetime.combine(get_settings().start_date, datetime.min.time(), UTC)
    assert schedule_tick(live, "daily_reconciliation", first) == []


def schedule_tick(live: Platform, name: str, at: datetime) -> list[dg.RunRequest]:
    """Evaluate a schedule as the daemon does at a time."""
    context = dg.build_schedule_context(
        instance=live.instance,
        scheduled_execution_time=at,
        repository_def=live.repository,
        resources={"database": DatabaseResource()},
    )
    data = live.repository.get_schedule_def(name).evaluate_tick(context)
    return list(data.run_requests or ())


def test_the_hourly_schedule_requests_open_gaps_again(live: Platform) -> None:
    """The run of the sensor's request may have died without a stored attempt."""
    day, now = delete_minutes(live), datetime.now(UTC)

    def tick(hour: int) -> list[dg.RunRequest]:
        return schedule_tick(live, "hourly_backfill", now + timedelta(hours=hour))

    (first,) = tick(1)
    assert first.partition_key == partition_key(day)
    (second,) = tick(2)
    assert second.run_key != first.run_key
    start(live, first)
    assert tick(3) == []
    assert tick(-48) == []
