"""Guards against a database job that does not keep features current without other processes."""

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
    """Wait until half a second after the end of a minute; return the start of that minute."""
    now: datetime = value(conn, "SELECT clock_timestamp()")
    ended = now.replace(second=0, microsecond=0) + MINUTE
    moment = ended + timedelta(seconds=0.5)
    wait_until(lambda: value(conn, "SELECT clock_timestamp() >= %s", moment), "a minute ends", 90)
    return ended - MINUTE


def test_the_rows_of_a_minute_are_stored_within_seconds(conn: Conn) -> None:
    newest = value(conn, "SELECT feature_platform.due_until()") - MINUTE
    insert_bars(conn, "BTC/USDT", newest - 20 * MINUTE, 21)
    refresh(conn)
    conn.execute("SELECT _timescaledb_functions.start_background_workers()")
    for _ in range(2):  # the first run may be the one after the start of the job
        ended = wait_for_next_minute(conn)
        insert_bars(conn, "BTC/USDT", ended, 1)
        wait_until(
            lambda: value(conn, USERS_COUNT) >= 9, "nine rows of the last ten minutes", patience=3
        )
        seconds = value(conn, "SELECT clock_timestamp() - %s", ended + MINUTE).total_seconds()
        assert seconds < 4, "the rows were stored later than the job can"
    conn.execute("SELECT _timescaledb_functions.stop_background_workers()")
