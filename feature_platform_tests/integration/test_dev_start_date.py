"""Guards against days that Dagster no longer repairs after `make dev` starts again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.dev.run import start_date
from feature_platform.heartbeat import begin_heartbeats

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def test_without_a_recorder_the_start_date_is_counted_from_now(
    conn: psycopg.Connection[Any],
) -> None:
    before = datetime.now(UTC)
    found = start_date(conn, 2)
    after = datetime.now(UTC)
    assert found in {(at - timedelta(days=2)).date() for at in (before, after)}


def test_missing_minutes_of_earlier_days_stay_in_the_partitions(
    conn: psycopg.Connection[Any],
) -> None:
    """Recording began five days ago, and `make dev` is started again today."""
    began = datetime.now(UTC) - timedelta(days=5)
    begin_heartbeats(conn, {"BTC/USDT": "binance"})
    conn.execute("UPDATE feature_platform.heartbeat SET first_at = %s", [began])
    begin_heartbeats(conn, {"BTC/USDT": "binance", "ETH/USDT": "binance"})
    assert start_date(conn, 2) == (began - timedelta(days=2)).date()


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_the_start_date_is_a_day_of_utc(conn: psycopg.Connection[Any], zone: str) -> None:
    begin_heartbeats(conn, {"BTC/USDT": "binance"})
    conn.execute("UPDATE feature_platform.heartbeat SET first_at = '2026-03-10 00:30Z'")
    conn.execute("SELECT set_config('timezone', %s, false)", [zone])
    assert start_date(conn, 2).isoformat() == "2026-03-08"
