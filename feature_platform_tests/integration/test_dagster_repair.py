"""Guards against missing minutes that Dagster does not find, or does not fill."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.gaps import list_gaps
from feature_platform.heartbeat import begin_heartbeats
from feature_platform.settings import get_settings
from feature_platform.verify import verify
from feature_platform_tests.fix_dagster import Platform
from feature_platform_tests.fix_processes import value

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

DAY = timedelta(days=1)


def yesterday() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - DAY


def bars(connection: psycopg.Connection[Any]) -> int:
    count = value(connection, "SELECT count(*) FROM ohlcv_1m")
    assert isinstance(count, int)
    return count


def test_a_backfill_fetches_every_minute_of_a_day(platform_with_exchange: Platform) -> None:
    platform, day = platform_with_exchange, yesterday()
    done = platform.run(
        "rest_backfill",
        f"{day:%Y-%m-%d}",
        run_config={"ops": {"ohlcv_1m": {"config": {"only_gaps": False}}}},
    )
    assert done.success
    (fetched,) = platform.materializations("ohlcv_1m")
    assert fetched.partition == f"{day:%Y-%m-%d}"
    assert fetched.metadata["rows of this day"].value == bars(platform.connection)
    assert fetched.metadata["open minutes"].value == 0
    (refreshed, *_) = platform.materializations("features_1m")
    assert refreshed.metadata["rows of this day"].value == bars(platform.connection)
    assert "data:image/png;base64," in str(refreshed.metadata["plot"].value)
    report = verify(platform.connection)
    assert (report.pending, report.mismatches) == (0, 0)
    assert report.rows == bars(platform.connection)


def test_missing_minutes_are_found_requested_once_and_filled(
    platform_with_exchange: Platform,
) -> None:
    platform, day = platform_with_exchange, yesterday()
    fill(platform, day)
    before = bars(platform.connection)
    missing = day + timedelta(hours=9)
    cut(platform.connection, missing)
    assert bars(platform.connection) < before
    data = platform.tick("repair_missing_minutes")
    mine = [one for one in data.run_requests if one.partition_key == f"{day:%Y-%m-%d}"]
    (request,) = mine
    again = platform.tick("repair_missing_minutes")
    assert [
        one.run_key for one in again.run_requests if one.partition_key == request.partition_key
    ] == [request.run_key]
    assert platform.run(
        "rest_backfill", request.partition_key, run_config=request.run_config
    ).success
    assert bars(platform.connection) == before
    filled = [
        gap
        for gap in list_gaps(platform.connection, states=("filled",))
        if gap.start <= missing < gap.end
    ]
    assert filled
    verified = verify(platform.connection)
    assert (verified.pending, verified.mismatches) == (0, 0)
    # The same minutes again: with the same run key, Dagster would drop the run silently.
    cut(platform.connection, missing)
    (second,) = [
        one
        for one in platform.tick("repair_missing_minutes").run_requests
        if one.partition_key == request.partition_key
    ]
    assert second.run_key != request.run_key


def test_missing_minutes_of_a_symbol_that_was_removed_are_filled(
    platform_with_exchange: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, day = platform_with_exchange, yesterday()
    fill(platform, day)
    before = bars(platform.connection)
    symbols = get_settings().symbols
    begin_heartbeats(platform.connection, dict.fromkeys(symbols, "binance"))
    cut(platform.connection, day + timedelta(hours=9))
    rest = [symbol for symbol in symbols if symbol != "BTC/USDT"]
    begin_heartbeats(platform.connection, dict.fromkeys(rest, "binance"))
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", ",".join(rest))
    get_settings.cache_clear()
    (request,) = [
        one
        for one in platform.tick("repair_missing_minutes").run_requests
        if one.partition_key == f"{day:%Y-%m-%d}"
    ]
    assert request.tags["feature_platform/symbols"] == "BTC/USDT"
    assert platform.run(
        "rest_backfill", request.partition_key, run_config=request.run_config
    ).success
    assert bars(platform.connection) == before


def fill(platform: Platform, day: datetime) -> None:
    config = {"ops": {"ohlcv_1m": {"config": {"only_gaps": False}}}}
    assert platform.run("rest_backfill", f"{day:%Y-%m-%d}", run_config=config).success


def cut(connection: psycopg.Connection[Any], start: datetime) -> None:
    connection.execute(
        "DELETE FROM ohlcv_1m WHERE symbol = 'BTC/USDT' AND ts >= %s AND ts < %s",
        (start, start + timedelta(minutes=20)),
    )
