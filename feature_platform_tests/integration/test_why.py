"""Guards against a history of a row that is wrong, slow to read or unreadable."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.errors import UserError
from feature_platform.skew import skew
from feature_platform.views import catalog
from feature_platform.why import why
from feature_platform_tests.fix_plans import about_as_many
from feature_platform_tests.fix_processes import run_on, value
from feature_platform_tests.fix_skew import serve
from feature_platform_tests.fix_views import CANDLES, add_bars, ago, refresh_all

Conn = psycopg.Connection[Any]
WIDTH = 80


def refresh(conn: Conn) -> int:
    refresh_all(conn)
    return int(value(conn, "SELECT max(no) FROM feature_platform.refresh"))


def change(conn: Conn, ts: datetime, vol: float) -> None:
    conn.execute("UPDATE ohlcv_1m SET vol = %s WHERE symbol = 'A' AND ts = %s", (vol, ts))


@pytest.fixture
def history(conn: Conn) -> datetime:
    """Store 30 minutes, and change bars of it; return the minute of the row that they reach."""
    catalog.apply(conn, [CANDLES])
    first = ago(150)  # its hour has closed
    add_bars(conn, first, 30)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [first + timedelta(minutes=5)])
    refresh(conn)
    change(conn, first + timedelta(minutes=20), 100)
    refresh(conn)
    change(conn, first + timedelta(minutes=20), 200)
    add_bars(conn, first + timedelta(minutes=5), 1)
    refresh(conn)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [first + timedelta(minutes=6)])
    change(conn, first + timedelta(minutes=20), 300)
    return first + timedelta(minutes=20)


def test_a_reader_asks_for_a_row_and_compares_what_was_served(
    conn: Conn, history: datetime
) -> None:
    serve(conn, "A")
    with conn.transaction():
        conn.execute("SET LOCAL ROLE feature_platform_reader")
        assert why(conn, "A", history).bucket == history
        assert why(conn, "A", history, view=CANDLES.name).bucket <= history
        assert skew(conn, since=history).is_right


def test_every_version_is_listed_with_its_refresh(conn: Conn, history: datetime) -> None:
    found = why(conn, "A", history + timedelta(seconds=30))
    assert found.bucket == history
    assert [row.values[1] for row in found.rows] == [200, 100, 1 + 20 * 13 % 7]
    numbers = [row.since for row in found.rows]
    assert numbers == sorted(numbers, reverse=True)
    assert [row.until for row in found.rows] == [None, *numbers[:2]]
    assert all(row.known_by for row in found.rows)
    assert [(one.source, one.bars) for one in found.sources] == [("stream", 20)]
    own = [bar for bar in found.bars if bar.ts == history]
    assert [bar.vol for bar in own] == [300, 200, 100, 1 + 20 * 13 % 7]
    assert [bar.is_stored for bar in own] == [True, False, False, False]
    # The last change waits for its refresh.
    assert [bar.no for bar in own] == [None, *numbers]
    (deleted,) = (bar for bar in found.bars if bar.ts == history - timedelta(minutes=14))
    assert (deleted.gone, deleted.no, deleted.until) == (True, numbers[2], None)
    late = [bar for bar in found.bars if bar.ts == history - timedelta(minutes=15)]
    assert [(bar.no, bar.is_stored) for bar in late] == [(numbers[0], True)]
    assert not found.has_more


def test_a_deleted_bar_that_waits_and_rows_of_a_view_are_shown(
    conn: Conn, history: datetime
) -> None:
    refresh(conn)
    found = why(conn, "A", history - timedelta(minutes=14))
    assert found.rows[0].until is not None
    (bar,) = (bar for bar in found.bars if bar.ts == found.bucket)
    assert (bar.gone, bar.until) == (True, found.rows[0].until)
    candle = why(conn, "A", history, "candles_1h")
    assert candle.columns == list(CANDLES.columns)
    with pytest.raises(UserError, match="never had a row of B"):
        why(conn, "B", history)
    with pytest.raises(UserError, match="no feature view 'candles'"):
        why(conn, "A", history, "candles")


def test_the_commands_are_readable_at_80_columns(
    conn: Conn, database: str, history: datetime
) -> None:
    done = run_on(database, "why", "A", history.isoformat())
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH, done.stdout
    assert lines[0] == f"features_1m A {history:%Y-%m-%d %H:%M} UTC, stored"
    assert any(line.startswith("volume_z") for line in lines)
    assert any("changed" in line for line in lines)
    assert any("deleted" in line for line in lines)
    done = run_on(database, "why", "NONE", history.isoformat())
    assert (done.returncode, done.stdout) == (2, "")

    refresh(conn)
    serve(conn, "A")
    done = run_on(database, "skew", "--since", "2020-01-01")
    found = "skew: 2 served rows computed again: 0 mismatch, 0 missing, 0 extra\n"
    assert (done.returncode, done.stdout) == (0, found)
    conn.execute("UPDATE feature_platform.served SET values[1] = 1")
    done = run_on(database, "skew", "--since", "2020-01-01", "--sample", "1")
    assert done.returncode == 1
    assert done.stdout.startswith("skew: 1 served rows computed again: 1 mismatch")


# All chunks of a hypertable count, too.
_PAGES = (
    "SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relkind IN ('r', 'i')"
)


def test_the_history_of_a_row_is_read_by_indexes(histories: tuple[Conn, Conn]) -> None:
    pages = []
    for conn in histories:
        minute = value(conn, "SELECT max(bucket) FROM features_1m WHERE symbol = 'S1'")
        why(conn, "S1", minute)  # plans its statements
        with conn.transaction():
            before = value(conn, _PAGES)
            found = why(conn, "S1", minute)
            pages.append(int(value(conn, _PAGES) - before))
        assert [one.bars for one in found.sources] == [144]
    assert min(pages) > 0
    assert about_as_many(pages), pages


def test_a_bar_that_came_again_and_a_row_inside_a_minute_wait_for_their_refresh(conn: Conn) -> None:
    first = ago(30)
    again, inside = first + timedelta(minutes=2), first + timedelta(minutes=3, seconds=30)
    add_bars(conn, first, 5)
    refresh(conn)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [again])
    refresh(conn)
    for ts in (again, inside):
        add_bars(conn, ts, 1)
    for waits in (True, False):
        found = why(conn, "A", first + timedelta(minutes=4))
        stored = [bar for bar in found.bars if bar.is_stored and bar.ts in (again, inside)]
        assert {bar.ts for bar in stored} >= {again}
        assert all((bar.no is None) == waits for bar in stored)
        refresh(conn)
