"""Guards against changed bars without a mark, and against marks without a change."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from feature_platform_tests.fix_engine import Bench, assert_same_bits
from feature_platform_tests.histories import at, bar, copy, write

DAY = 1440


@dataclass(frozen=True)
class Mark:
    """One row of the dirty log, its ranges in minutes of the tests' time axis."""

    symbol: str
    buckets: tuple[tuple[int, int], ...]
    removed: bool


def marks(conn: psycopg.Connection) -> list[Mark]:
    """Return the dirty log, oldest mark first."""
    rows = conn.execute(
        "SELECT symbol, buckets, removed FROM feature_platform.dirty_log ORDER BY id"
    )

    def minute(moment: datetime | None) -> int:
        assert moment is not None
        return round((moment - at(0)) / timedelta(minutes=1))

    return [
        Mark(symbol, tuple((minute(r.lower), minute(r.upper)) for r in buckets), removed)
        for symbol, buckets, removed in rows
    ]


def day_from(*starts: int, symbol: str = "A", removed: bool = False) -> Mark:
    return Mark(symbol, tuple((start, start + DAY) for start in starts), removed)


@pytest.fixture
def two_days(bench: Bench) -> Bench:
    """Return a database with refreshed bars of two symbols.

    Their bars are at 00:00 to 00:09 of two days that are ten days apart.
    """
    bench.empty()
    starts = (0, 10 * DAY)
    write(bench.conn, (bar(s, d + m) for s in "AB" for d in starts for m in range(10)))
    bench.refresh()
    assert not marks(bench.conn)
    return bench


def test_an_insert_marks_the_window_of_each_bar(two_days: Bench) -> None:
    write(two_days.conn, [bar("A", 5.5), bar("A", 77), bar("C", 78)], "insert")
    assert marks(two_days.conn) == [
        Mark("A", ((5, 77 + DAY),), False),
        day_from(78, symbol="C"),
    ]


def test_bars_of_distant_days_do_not_mark_the_days_between(two_days: Bench) -> None:
    write(two_days.conn, [bar("A", 20), bar("A", 5 * DAY), bar("A", 9 * DAY)])
    assert marks(two_days.conn) == [day_from(20, 5 * DAY, 9 * DAY)]


def test_a_copy_marks_its_bars(two_days: Bench) -> None:
    copy(two_days.conn, (bar("A", 20 + m) for m in range(100)))
    assert marks(two_days.conn) == [Mark("A", ((20, 119 + DAY),), False)]


def test_an_update_marks_its_bars(two_days: Bench) -> None:
    two_days.conn.execute("UPDATE ohlcv_1m SET vol = 7 WHERE ts IN (%s, %s)", (at(3), at(10 * DAY)))
    assert marks(two_days.conn) == [
        day_from(3, 10 * DAY),
        day_from(3, 10 * DAY, symbol="B"),
    ]


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "vol"])
def test_a_change_of_any_value_marks_the_bar(two_days: Bench, column: str) -> None:
    change = SQL("UPDATE ohlcv_1m SET {c} = {c} + {d} WHERE symbol = 'A' AND ts = %s")
    two_days.conn.execute("UPDATE ohlcv_1m SET high = high + 1")  # so that others can rise
    two_days.refresh()
    step = SQL("-1") if column == "low" else SQL("1")
    two_days.conn.execute(change.format(c=Identifier(column), d=step), [at(4)])
    assert marks(two_days.conn) == [day_from(4)]


def test_columns_that_no_feature_uses_cause_no_mark(two_days: Bench) -> None:
    two_days.conn.execute("UPDATE ohlcv_1m SET source = 'rest', inserted_at = now()")
    assert not marks(two_days.conn)


@pytest.mark.parametrize("how", ["insert", "upsert", "guarded upsert", "update", "merge"])
def test_a_replay_of_equal_bars_causes_no_mark(two_days: Bench, how: str) -> None:
    before = two_days.features()
    if how == "update":
        two_days.conn.execute("UPDATE ohlcv_1m SET open = open, vol = vol, ts = ts")
    elif how == "merge" and two_days.engine == "timescaledb":
        pytest.skip("TimescaleDB has no MERGE with a columnstore")
    else:
        write(two_days.conn, two_days.bars(), how)
    assert not marks(two_days.conn)
    assert_same_bits(before, two_days.features())


def test_an_upsert_marks_new_and_changed_bars_only(two_days: Bench) -> None:
    write(two_days.conn, [*two_days.bars(), bar("A", 3, vol=9), bar("A", 10 * DAY + 50)])
    assert sorted(m.buckets for m in marks(two_days.conn)) == [
        ((3, 3 + DAY),),
        ((10 * DAY + 50, 11 * DAY + 50),),
    ]


def test_a_merge_marks_its_bars(two_days: Bench) -> None:
    if two_days.engine == "timescaledb":
        pytest.skip("TimescaleDB has no MERGE with a columnstore")
    changed, new, gone = bar("A", 3, vol=9), bar("A", 50), bar("A", 10 * DAY, vol=7)
    write(two_days.conn, [changed, new, gone], "merge")
    assert sorted(marks(two_days.conn), key=lambda mark: mark.buckets) == [
        day_from(3),
        day_from(50),
        day_from(10 * DAY, removed=True),
    ]


def test_a_delete_marks_its_bars(two_days: Bench) -> None:
    two_days.conn.execute("DELETE FROM ohlcv_1m WHERE ts < %s AND ts >= %s", (at(6), at(4)))
    found = marks(two_days.conn)
    if two_days.engine == "timescaledb":  # one mark for each bar
        assert sorted(found, key=lambda m: (m.symbol, m.buckets)) == [
            day_from(start, symbol=symbol, removed=True) for symbol in "AB" for start in (4, 5)
        ]
    else:
        assert found == [Mark(symbol, ((4, 5 + DAY),), True) for symbol in "AB"]


def test_a_changed_key_marks_the_old_and_the_new_place(two_days: Bench) -> None:
    two_days.conn.execute(
        "UPDATE ohlcv_1m SET ts = ts + '30 minutes' WHERE symbol = 'A' AND ts = %s", [at(4)]
    )
    two_days.conn.execute(
        "UPDATE ohlcv_1m SET symbol = 'C' WHERE symbol = 'A' AND ts = %s", [at(5)]
    )
    assert marks(two_days.conn) == [
        Mark("A", ((4, 34 + DAY),), True),
        day_from(5, removed=True),
        day_from(5, symbol="C"),
    ]


def test_a_truncate_marks_all_bars(two_days: Bench) -> None:
    two_days.conn.execute("TRUNCATE ohlcv_1m")
    assert marks(two_days.conn) == [
        Mark(symbol, ((0, 10 * DAY + 9 + DAY),), True) for symbol in "AB"
    ]
    two_days.refresh()
    assert not two_days.features()


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_truncate_also_marks_rows_outside_of_its_snapshot(
    bench: Bench, isolation: LiteralString
) -> None:
    bench.empty()
    bench.holder.execute(SQL("BEGIN ISOLATION LEVEL {}").format(SQL(isolation)))
    try:
        bench.holder.execute("SELECT count(*) FROM pg_class")  # takes the snapshot
        write(bench.conn, [bar("A", 0), bar("A", 1)])
        bench.refresh()
        # An error is right, too: TRUNCATE removes rows that such a snapshot cannot see.
        with suppress(psycopg.errors.RaiseException):
            bench.holder.execute("TRUNCATE ohlcv_1m")
            bench.holder.execute("COMMIT")
    finally:
        bench.holder.rollback()
    bench.refresh()
    bench.check()


@pytest.mark.parametrize("rows_before", [[0], [0, 3 * DAY]])
def test_a_truncate_resets_the_cached_first_bucket(bench: Bench, rows_before: list[int]) -> None:
    bench.empty()
    write(bench.conn, [bar("A", m) for m in rows_before])
    bench.refresh(at(3 * DAY), at(4 * DAY))  # stores no row of the first bucket
    bench.conn.execute("TRUNCATE ohlcv_1m")
    write(bench.conn, [bar("A", 2 * DAY)])
    bench.refresh(None, at(2 * DAY + 1))
    (row,) = (row for key, row in bench.features().items() if key[1] == bar("A", 2 * DAY).ts)
    assert row.ma_vol_1d is None
    bench.refresh()
    bench.check()


def test_a_mark_is_committed_with_its_change_or_not_at_all(two_days: Bench) -> None:
    with two_days.conn.transaction(force_rollback=True):
        write(two_days.conn, [bar("A", 20)])
        two_days.conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'B'")
        assert {mark.symbol for mark in marks(two_days.conn)} == {"A", "B"}
        assert not marks(two_days.holder)
    assert not marks(two_days.conn)
    with two_days.conn.transaction():
        write(two_days.conn, [bar("A", 20)])
        assert not marks(two_days.holder)
    assert marks(two_days.holder) == [day_from(20)]


def test_a_statement_writes_one_mark_for_each_symbol(two_days: Bench) -> None:
    write(two_days.conn, (bar(s, d * DAY + m) for s in "ABC" for d in range(5) for m in (50, 600)))
    assert [mark.symbol for mark in marks(two_days.conn)] == ["A", "B", "C"]


def test_a_writer_needs_rights_on_the_bars_only(two_days: Bench) -> None:
    role = Identifier(f"feature_platform_test_{uuid4().hex[:12]}")
    two_days.conn.execute(
        SQL(
            "CREATE ROLE {0}; GRANT INSERT, SELECT, UPDATE, DELETE, TRUNCATE ON ohlcv_1m TO {0}"
        ).format(role)
    )
    try:
        with two_days.conn.transaction():
            two_days.conn.execute(SQL("SET LOCAL ROLE {}").format(role))
            write(two_days.conn, [bar("A", 20)])
            two_days.conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'B' AND ts = %s", [at(0)])
            two_days.conn.execute("UPDATE ohlcv_1m SET vol = 2 WHERE ts = %s", [at(5)])
            two_days.conn.execute("TRUNCATE ohlcv_1m")
        assert len(marks(two_days.conn)) == 6
    finally:
        two_days.conn.execute(SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def test_a_writers_temporary_names_do_not_hide_the_platforms(two_days: Bench) -> None:
    with two_days.conn.transaction(force_rollback=True):
        two_days.conn.execute(
            """CREATE TEMP TABLE dirty_log (LIKE feature_platform.dirty_log);
               CREATE TEMP TABLE new_rows (LIKE ohlcv_1m);
               CREATE FUNCTION pg_temp.date_bin(interval, timestamptz, timestamptz)
                   RETURNS timestamptz LANGUAGE sql RETURN '1999-01-01'::timestamptz;
               SET LOCAL search_path = pg_temp, public, feature_platform""",
        )
        write(two_days.conn, [bar("A", 20)])
        row = two_days.conn.execute("SELECT count(*) FROM feature_platform.dirty_log").fetchone()
        assert row == (1,)


def test_a_volume_of_negative_zero_counts_as_zero(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", m, vol=-0.0) for m in range(3)])
    bench.refresh()
    write(bench.conn, [bar("A", 5.5)])  # a full build then handles rows inside minutes
    bench.refresh()
    bench.check()
    bench.check_build()


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
def test_a_day_has_24_hours_in_every_time_zone(bench: Bench, zone: str) -> None:
    bench.empty()
    bench.conn.execute("SELECT set_config('timezone', %s, false)", [zone])
    # Clocks change on 2023-10-29 at 01:00 UTC in Europe, on 2023-11-05 at 06:00 UTC in America.
    for change in (datetime(2023, 10, 29, 1, tzinfo=UTC), datetime(2023, 11, 5, 6, tzinfo=UTC)):
        around = round((change - at(0)) / timedelta(minutes=1))
        offsets = (-1501, -1440, -1439, -90, -60, -1, 0, 1, 59, 60, 1380, 1439, 1440, 1500, 1501)
        write(bench.conn, (bar("A", around + m, vol=2 + m % 5) for m in offsets))
        bench.refresh()
        bench.check()
        write(bench.conn, [bar("A", around - 1439, vol=50)])
        assert marks(bench.conn) == [day_from(around - 1439)]
        bench.refresh()
        bench.check()
