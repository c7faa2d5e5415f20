"""Guards against materialisations from Dagster's UI that fail or store wrong rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.orchestration.partitions import DAY, partition_key
from feature_platform.plot import window_png
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.validation import CHECKS
from feature_platform.verify import verify
from feature_platform_tests.fix_dagster import Platform
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_exchange import quick
from feature_platform_tests.fix_processes import insert_bars, insert_recent, value

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

ALL_ASSETS = "__ASSET_JOB"


def midnight(back: int) -> datetime:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - back * DAY


def test_a_range_of_days_is_one_run(platform_with_exchange: Platform) -> None:
    platform = platform_with_exchange
    keys = [partition_key(midnight(back)) for back in (3, 2, 1)]
    tags = {
        "dagster/asset_partition_range_start": keys[0],
        "dagster/asset_partition_range_end": keys[-1],
    }
    done = platform.run(
        ALL_ASSETS, asset_selection=[dg.AssetKey("ohlcv_1m"), dg.AssetKey("features_1m")], tags=tags
    )
    assert done.success
    for asset in ("ohlcv_1m", "features_1m"):
        reported = platform.materializations(asset)
        assert sorted(one.partition or "" for one in reported) == keys
    days = value(platform.connection, "SELECT count(DISTINCT ts::date) FROM ohlcv_1m")
    assert days == 3
    report = verify(platform.connection)
    assert (report.pending, report.mismatches) == (0, 0)


def test_the_first_partition_can_be_materialised(platform: Platform) -> None:
    """The features read bars of the day before, which is no partition."""
    first = get_settings().start_date.isoformat()
    insert_bars(platform.connection, "BTC/USDT", datetime.fromisoformat(first + "T00:00Z"), 30)
    assert platform.run("refresh_features", first).success
    (refreshed,) = platform.materializations("features_1m")
    assert refreshed.metadata["rows of this day"].value == 30


def test_materialising_by_a_click_also_runs_the_checks(platform_with_exchange: Platform) -> None:
    platform = platform_with_exchange
    key = partition_key(midnight(1))
    for _ in range(2):  # Dagster must store a second evaluation of a partition's check
        assert platform.run(ALL_ASSETS, key, asset_selection=[dg.AssetKey("ohlcv_1m")]).success
    for check in CHECKS:
        if check.table == "ohlcv_1m":
            assert platform.evaluation(check.name, check.table) is not None


def test_some_checks_can_be_run_by_hand(platform: Platform) -> None:
    keys = [
        dg.AssetCheckKey(dg.AssetKey("features_1m"), "features_table"),
        dg.AssetCheckKey(dg.AssetKey("ohlcv_1m"), "bars_table"),
    ]
    job = platform.repository.get_job(ALL_ASSETS)
    part = job.get_subset(asset_selection=set(), asset_check_selection=set(keys))
    done = part.execute_in_process(instance=platform.instance)
    assert done.success
    evaluated = {one.asset_check_key for one in done.get_asset_check_evaluations()}
    assert evaluated == set(keys)


def test_repaired_bars_also_refresh_the_next_day(platform_with_exchange: Platform) -> None:
    platform = platform_with_exchange
    for back in (3, 2, 1):
        config = {"ops": {"ohlcv_1m": {"config": {"only_gaps": False}}}}
        key = partition_key(midnight(back))
        assert platform.run("rest_backfill", key, run_config=config).success
    end = midnight(2) - timedelta(minutes=5)
    platform.connection.execute(
        "DELETE FROM ohlcv_1m WHERE symbol = 'BTC/USDT' AND ts >= %s AND ts < %s",
        (end - timedelta(minutes=5), end),
    )
    platform.connection.execute("CALL refresh_features_1m(NULL, NULL)")
    platform.connection.execute("SELECT feature_platform.find_gaps()")
    before = len(platform.materializations("features_1m"))
    assert platform.run("rest_backfill", partition_key(midnight(3)), run_config=only_gaps()).success
    now = platform.materializations("features_1m")
    assert {one.partition for one in now[: len(now) - before]} == {
        partition_key(midnight(3)),
        partition_key(midnight(2)),
    }
    report = verify(platform.connection)
    assert (report.pending, report.mismatches) == (0, 0)


def test_an_unreachable_exchange_fails_the_run_and_counts_as_an_attempt(
    platform_with_exchange: Platform, simulator: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = platform_with_exchange
    simulator.set_faults({"kind": "server_error"})
    monkeypatch.setattr("feature_platform.exchange.client.Patience", quick)
    insert_bars(platform.connection, "BTC/USDT", midnight(1), 30)
    insert_bars(platform.connection, "BTC/USDT", midnight(1) + timedelta(hours=1), 30)
    platform.connection.execute("SELECT feature_platform.find_gaps()")
    done = platform.run(
        "rest_backfill", partition_key(midnight(1)), run_config=only_gaps(), raise_on_error=False
    )
    assert not done.success
    (failure,) = done.get_step_failure_events()
    assert "not all bars could be fetched" in str(failure.event_specific_data)
    attempts = value(platform.connection, "SELECT max(attempts) FROM ohlcv_1m_gaps")
    assert attempts == 1
    assert platform.materializations("ohlcv_1m") == []


def test_materialising_the_policy_sets_it(platform: Platform) -> None:
    config = {"start_offset": "2 hours", "end_offset": "2 minutes", "schedule_interval": "30 s"}

    def materialise(raise_on_error: bool = True) -> dg.ExecuteInProcessResult:
        return platform.run(
            ALL_ASSETS,
            asset_selection=[dg.AssetKey("features_1m_policy")],
            run_config={"ops": {"features_1m_policy": {"config": config}}},
            raise_on_error=raise_on_error,
        )

    platform.connection.execute("SELECT remove_features_1m_policy()")
    assert materialise().success
    (added,) = platform.materializations("features_1m_policy")
    assert added.metadata["action"].value == "added"
    interval = value(platform.connection, "SELECT schedule_interval FROM feature_platform.policy")
    assert interval == timedelta(seconds=30)
    config["end_offset"] = "3 hours"
    assert not materialise(raise_on_error=False).success
    config["end_offset"] = "soon"
    assert not materialise(raise_on_error=False).success
    end = value(platform.connection, "SELECT end_offset FROM feature_platform.policy")
    assert end == timedelta(minutes=2)


def test_materialising_all_keeps_an_altered_policy(platform: Platform) -> None:
    """`Materialize all` runs the asset with the default configuration."""

    def materialise(**config: str) -> dg.AssetMaterialization:
        assert platform.run(
            ALL_ASSETS,
            asset_selection=[dg.AssetKey("features_1m_policy")],
            run_config={"ops": {"features_1m_policy": {"config": config}}},
        ).success
        return platform.materializations("features_1m_policy")[0]

    def offsets() -> tuple[timedelta, ...]:
        row = platform.connection.execute(
            "SELECT start_offset, end_offset, schedule_interval FROM feature_platform.policy"
        ).fetchone()
        assert row is not None
        return tuple(row)

    altered = (timedelta(hours=6), timedelta(minutes=3), timedelta(seconds=20))
    platform.connection.execute("SELECT alter_features_1m_policy(%s, %s, %s)", altered)
    kept = materialise()
    assert offsets() == altered
    assert kept.metadata["action"].value == "kept"
    assert kept.metadata["schedule_interval"].value == "0:00:20"
    assert materialise(start_offset="2 hours").metadata["action"].value == "changed"
    assert offsets() == (timedelta(hours=2), *altered[1:])
    platform.connection.execute("SELECT remove_features_1m_policy()")
    assert materialise().metadata["action"].value == "added"
    assert offsets() == (timedelta(hours=1), timedelta(minutes=1), timedelta(minutes=1))


@pytest.mark.parametrize("zone", ["Etc/UTC", "Europe/Berlin"])
def test_a_picture_is_drawn_in_a_session_of_any_time_zone(
    conn: psycopg.Connection[Any], zone: str
) -> None:
    conn.execute("SELECT set_config('timezone', %s, false)", [zone])
    insert_recent(conn, "A", 20)
    refresh(conn)
    assert window_png(conn, ["A"], midnight(1), midnight(-1)).startswith(b"\x89PNG")


def only_gaps() -> dict[str, object]:
    return {
        "ops": {
            "ohlcv_1m": {"config": {"only_gaps": True}},
            "features_1m": {"config": {"next_day": True}},
        }
    }
