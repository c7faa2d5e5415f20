"""Guards against wrong rows and dead sessions while views are applied, changed, dropped, killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from feature_platform.views import FeatureView, bar, catalog, mean, zscore
from feature_platform_tests.fix_engine import in_threads
from feature_platform_tests.fix_processes import COMMAND
from feature_platform_tests.fix_views import (
    CANDLES,
    RETURN,
    SHORT,
    add_bars,
    check_views,
    refresh_all,
    retry_soon,
    rows_of,
    state_of,
)

DAY_1 = datetime(2026, 2, 1, tzinfo=UTC)
SYMBOLS = ("A", "B", "C")
VERSIONS = [
    FeatureView("changing", "1 minute", {"x": mean(bar.vol, "5 minutes")}),
    FeatureView("changing", "1 minute", {"x": mean(bar.vol, "9 minutes"), "y": bar.close}),
    FeatureView("changing", "5 minutes", {"y": zscore(RETURN, "20 minutes")}),
]
Conn = psycopg.Connection[Any]


@pytest.mark.slow
def test_views_are_applied_changed_and_dropped_beside_writers_and_refreshers(
    conn: Conn, database: str
) -> None:
    add_bars(conn, DAY_1, 300, SYMBOLS)
    catalog.apply(conn, [SHORT, CANDLES])
    until = time.monotonic() + 6

    def write(conn: Conn, seed: int) -> None:
        r = random.Random(seed)
        while time.monotonic() < until:
            at = DAY_1 + timedelta(minutes=r.randint(0, 400))
            symbol = r.choice([*SYMBOLS, "D", "E"])
            conn.execute(
                """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
                   VALUES (%s, %s, 10, 12, 9, %s, %s) ON CONFLICT (symbol, ts)
                   DO UPDATE SET close = excluded.close, vol = excluded.vol""",
                (symbol, at, r.choice([10, 11, 11.5]), r.randint(0, 9)),
            )
            if r.random() < 0.1:
                conn.execute("DELETE FROM ohlcv_1m WHERE symbol = %s AND ts = %s", (symbol, at))

    def refresh(conn: Conn) -> None:
        while time.monotonic() < until:
            refresh_all(conn)

    def policy(conn: Conn) -> None:
        while time.monotonic() < until:
            run = conn.execute("SELECT feature_platform.policy_begin('worker')").fetchone()
            step = "SELECT feature_platform.policy_step(%s, feature_platform.dirty_horizon())"
            conn.execute(step, run)
            conn.execute("SELECT feature_platform.view_step(%s)", run)
            retry_soon(conn)

    def change(conn: Conn) -> None:
        r = random.Random(5)
        while time.monotonic() < until:
            if r.random() < 0.2 and state_of(conn, "changing"):
                catalog.drop(conn, "changing")
            else:
                catalog.apply(conn, [r.choice(VERSIONS)])
            time.sleep(r.random() / 2)

    def read(conn: Conn) -> None:
        while time.monotonic() < until:
            try:
                conn.execute("SELECT count(*) FROM changing")
            except psycopg.errors.UndefinedTable:
                time.sleep(0.05)

    writers = [partial(write, seed=seed) for seed in (1, 2)]
    in_threads(database, *writers, refresh, refresh, policy, change, read)
    catalog.apply(conn, VERSIONS[:1])
    refresh_all(conn)
    retry_soon(conn)
    refresh_all(conn)
    assert check_views(conn) > 900
    (only,) = state_of(conn, "changing")
    assert only[1:] == ("live", True)
    # No object of a version that was replaced or dropped is left.
    left = conn.execute(
        "SELECT DISTINCT split_part(relname, '_', 1) FROM pg_class"
        " WHERE relnamespace = 'feature_views'::regnamespace"
    ).fetchall()
    assert len(left) == 3


@pytest.mark.slow
def test_a_kill_in_any_phase_leaves_the_old_version_served(
    conn: Conn, database: str, tmp_path: Path
) -> None:
    add_bars(conn, DAY_1, 3000, SYMBOLS)
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    before = rows_of(conn, "std_10m, ema_3m", "short_1m")
    file = tmp_path / "mine.py"
    file.write_text(
        "from feature_platform.views import *\n"
        "r = ln(bar.close / lag(bar.close))\n"
        "v = FeatureView('short_1m', '1 minute', {'std_10m': std(r, '10 minutes'),\n"
        "    'ema_3m': ema(bar.close, '3 minutes'), 'z': zscore(r, '3 hours')})\n"
    )
    r = random.Random(3)
    killed = 0
    while state_of(conn, "short_1m")[-1] != (2, "live", True):
        process = subprocess.Popen(
            [*COMMAND, "views", "apply", file],
            env={**os.environ, "FEATURE_PLATFORM_DATABASE_URL": database},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # The first kills come while it applies, later ones while it builds or takes the name.
        if killed < 8:
            time.sleep(r.uniform(0.3, 2.5))
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        versions = state_of(conn, "short_1m")
        assert sum(served for _, _, served in versions) == 1
        retry_soon(conn)
        if killed >= 8:
            refresh_all(conn)
    assert rows_of(conn, "std_10m, ema_3m", "short_1m") == before
    assert check_views(conn) == 9000
