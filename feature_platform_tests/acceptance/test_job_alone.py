"""The job of the database keeps features current with no process of the platform beside it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.refresh import refresh
from feature_platform_tests.fix_processes import insert_bars, value, wait_until

pytestmark = [
    pytest.mark.timing,
    pytest.mark.parametrize("engine", ["timescaledb"], indirect=True),
]

Conn = psycopg.Connection[Any]

MINUTE = timedelta(minutes=1)
USERS_COUNT = "SELECT count(*) FROM features_1m WHERE bucket > now()-'10 minutes'::interval"


def wait_for_next_minute(conn: Conn) -> datetime:
    """Wait until half a second after a minute has ended, as a recorder does; return its start."""
    now: datetime = value(conn, "SELECT clock_timestamp()")
    ended = now.replace(second=0, microsecond=0) + MINUTE
    moment = ended + timedelta(seconds=0.5)
    wait_until(lambda: value(conn, "SELECT clock_timestamp() >= %s", moment), "a minute ends", 90)
    return ended - MINUTE


def test_the_users_count_is_right_from_the_first_seconds_of_a_minute(conn: Conn) -> None:
    newest = value(conn, "SELECT feature_platform.due_until()") - MINUTE
    insert_bars(conn, "BTC/USDT", newest - 20 * MINUTE, 21)
    refresh(conn)
    conn.execute("SELECT _timescaledb_functions.start_background_workers()")
    for _ in range(2):  # the first may be the run of the job that its start brings
        ended = wait_for_next_minute(conn)
        insert_bars(conn, "BTC/USDT", ended, 1)
        wait_until(
            lambda: value(conn, USERS_COUNT) >= 9, "nine rows of the last ten minutes", patience=3
        )
        seconds = value(conn, "SELECT clock_timestamp() - %s", ended + MINUTE).total_seconds()
        assert seconds < 4, "the job started at second 5, before it waited for the bars"
    conn.execute("SELECT _timescaledb_functions.stop_background_workers()")
