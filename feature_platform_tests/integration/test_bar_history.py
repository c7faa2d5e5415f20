"""Guards against bars as of a number that differ from those that its refresh used."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from feature_platform import views as v
from feature_platform.skew import skew
from feature_platform.views import FeatureView, catalog
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_engine import Bench, in_threads
from feature_platform_tests.fix_plans import about_as_many, explain, pages_of
from feature_platform_tests.fix_processes import value
from feature_platform_tests.fix_skew import (
    MINUTE,
    VIEWS,
    Row,
    bars_as_of,
    check_row,
    number_of,
    rows_with_numbers,
    serve,
)
from feature_platform_tests.fix_views import add_bars, ago, check_views, refresh_all
from feature_platform_tests.histories import at, bar, write
from feature_platform_tests.integration.test_refresh_concurrency import DAY, refresher, writer

Conn = psycopg.Connection[Any]
HISTORY = ("bar_history", "bar_refresh", "bar_known")
ALL_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def delete(conn: Conn, minute: float) -> None:
    conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts = %s", [at(minute)])


def refreshed(bench: Bench, *minutes: float) -> int:
    """Refresh a window, by default all of time; return the number of A."""
    bench.refresh(*(at(minute) for minute in minutes))
    return number_of(bench.conn)


def check_rows(bench: Bench) -> None:
    """Check some thirty of the rows, all of a short history."""
    rows = sorted(rows_with_numbers(bench.conn))
    for row in rows[:: 1 + len(rows) // 30]:
        check_row(bench.conn, row)


@pytest.fixture
def ten(bench: Bench) -> int:
    """Store and refresh ten bars; return the number of the refresh."""
    bench.empty()
    write(bench.conn, [bar("A", minute, 10, 1) for minute in range(10)])
    return refreshed(bench)


TEN = dict.fromkeys(map(float, range(10)), 1.0)


def test_a_bar_of_an_open_transaction_is_known_when_its_mark_is_taken(
    bench: Bench, ten: int
) -> None:
    with bench.holder.transaction():
        write(bench.holder, [bar("A", 4.5, 10, 7), bar("A", 20, 10, 7)])
        write(bench.conn, [bar("A", 21, 10, 3)])
        before = refreshed(bench)
    after = refreshed(bench)
    assert bars_as_of(bench.conn, ten) == TEN
    assert bars_as_of(bench.conn, before) == {**TEN, 21.0: 3.0}
    assert bars_as_of(bench.conn, after) == {**TEN, 4.5: 7.0, 20.0: 7.0, 21.0: 3.0}
    check_rows(bench)


def test_a_late_bar_is_known_since_the_window_that_used_it(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, (bar("A", minute, 10, 1) for minute in range(700) if minute != 100))
    first = refreshed(bench)
    write(bench.conn, [bar("A", 100, 10, 5)])
    live = refreshed(bench, 600, 700)
    assert rows_with_numbers(bench.conn)[-1][3] == live
    own = refreshed(bench)
    assert own > live
    known = [bars_as_of(bench.conn, number).get(100) for number in (first, live, own)]
    assert known == [None, 5, 5]
    check_rows(bench)


def test_a_first_bar_is_known_as_before_when_a_row_inside_its_minute_has_gone(
    bench: Bench, ten: int
) -> None:
    delete(bench.conn, 0)
    second = refreshed(bench)
    write(bench.conn, [bar("A", 1.5, 10, 7)])
    delete(bench.conn, 1.5)
    third = refreshed(bench)
    assert bars_as_of(bench.conn, ten) == TEN
    later = {minute: vol for minute, vol in TEN.items() if minute}
    assert bars_as_of(bench.conn, second) == bars_as_of(bench.conn, third) == later
    check_rows(bench)


def test_a_change_outside_of_the_window_is_not_known(bench: Bench, ten: int) -> None:
    write(bench.conn, [bar("A", 8, 10, 2), bar("A", 9, 10, 2)])
    write(bench.conn, [bar("A", 3, 10, 2)])
    before = refreshed(bench, 0, 6)
    after = refreshed(bench)
    assert bars_as_of(bench.conn, ten) == TEN
    assert bars_as_of(bench.conn, before) == {**TEN, 3: 2}
    assert bars_as_of(bench.conn, after) == {**TEN, 3: 2, 8: 2, 9: 2}
    check_rows(bench)


# With TimescaleDB each deleted bar has a mark of its own.
@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_minute_without_a_bar_is_gone_with_the_refresh_that_takes_the_deletion(
    bench: Bench, ten: int
) -> None:
    bench.conn.execute("DELETE FROM ohlcv_1m WHERE ts IN (%s, %s)", (at(2), at(7)))
    before = refreshed(bench, 0, 5)
    serve(bench.conn, "A")
    after = refreshed(bench)
    without = {minute: 1.0 for minute in TEN if minute not in (2, 7)}
    assert bars_as_of(bench.conn, ten) == TEN
    assert bars_as_of(bench.conn, before) == bars_as_of(bench.conn, after) == without
    check_rows(bench)
    report = skew(bench.conn, since=ALL_TIME)
    assert (report.rows, report.is_right) == (1, True), report


def test_versions_between_two_refreshes_are_one_change(bench: Bench, ten: int) -> None:
    write(bench.conn, [bar("A", 1, 10, 2)])  # two updates
    write(bench.conn, [bar("A", 1, 10, 3)])
    delete(bench.conn, 2)  # deleted, and again
    write(bench.conn, [bar("A", 2, 10, 4)])
    write(bench.conn, [bar("A", 11, 10, 9)])  # never seen
    delete(bench.conn, 11)
    write(bench.conn, [bar("A", 12, 10, 9)])
    write(bench.conn, [bar("A", 12, 10, 8)])
    bench.conn.execute("UPDATE ohlcv_1m SET ts = %s WHERE ts = %s", (at(14), at(4)))
    second = refreshed(bench)
    delete(bench.conn, 2)
    third = refreshed(bench)
    write(bench.conn, [bar("A", 2, 10, 6)])
    fourth = refreshed(bench)
    write(bench.conn, [bar("A", 2, 10, 7)])
    refreshed(bench)
    now = {**TEN, 1: 3, 2: 4, 12: 8, 14: 1}
    del now[4]
    assert bars_as_of(bench.conn, ten) == TEN
    assert bars_as_of(bench.conn, second) == now
    del now[2]
    assert bars_as_of(bench.conn, third) == now
    assert bars_as_of(bench.conn, fourth) == {**now, 2: 6}
    check_rows(bench)


# With TimescaleDB each deleted bar has a mark of its own.
@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_bar_that_comes_again_before_its_row_is_deleted_was_absent_between(
    bench: Bench, ten: int
) -> None:
    # One mark: a window up to minute 3 takes it, and the row of minute 8 has to wait.
    bench.conn.execute("DELETE FROM ohlcv_1m WHERE ts IN (%s, %s)", (at(1), at(8)))
    bench.conn.execute("UPDATE ohlcv_1m SET vol = 3 WHERE ts = %s", [at(0)])
    gone = refreshed(bench, 0, 3)
    write(bench.conn, [bar("A", 2, 10, 5), bar("A", 8, 10, 5)])
    refreshed(bench, 0, 3)
    after = refreshed(bench)
    assert bars_as_of(bench.conn, ten) == TEN
    assert bars_as_of(bench.conn, gone).keys() == TEN.keys() - {1, 8}
    changed: dict[float, float] = {0: 3.0, 2: 5.0, 8: 5.0}
    assert bars_as_of(bench.conn, after) == {
        minute: changed.get(minute, 1.0) for minute in TEN if minute != 1
    }
    check_rows(bench)


def test_a_row_inside_a_minute_is_known_apart_from_the_others(bench: Bench, ten: int) -> None:
    write(bench.conn, [bar("A", 3.5, 10, 5), bar("A", 20.5, 10, 6)])
    inside = refreshed(bench)
    write(bench.conn, [bar("A", 20, 10, 7), bar("A", 3.25, 10, 8)])
    later = refreshed(bench)
    delete(bench.conn, 3)
    last = refreshed(bench)
    assert bars_as_of(bench.conn, ten) == TEN
    assert bars_as_of(bench.conn, inside) == {**TEN, 3.5: 5, 20.5: 6}
    assert bars_as_of(bench.conn, later) == {**TEN, 3.5: 5, 3.25: 8, 20: 7, 20.5: 6}
    assert 3 not in bars_as_of(bench.conn, last)
    check_rows(bench)


def test_an_older_first_bar_ends_the_warm_up_later(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, (bar("A", DAY + minute, 10, 1 + minute % 3) for minute in range(DAY)))
    refreshed(bench)
    (seen,) = (row for row in rows_with_numbers(bench.conn) if row[2] == at(2 * DAY - 2))
    write(bench.conn, [bar("A", 0, 10, 1)])
    refreshed(bench, DAY, 2 * DAY)  # the row of the first bar has to wait
    window = rows_with_numbers(bench.conn)
    assert seen not in window
    refreshed(bench)
    for row in (seen, window[-1], window[-2]):
        check_row(bench.conn, row)
    check_rows(bench)


@pytest.mark.usefixtures("ten")
def test_serves_from_before_a_truncate_are_not_kept(bench: Bench) -> None:
    bench.conn.execute("DELETE FROM feature_platform.served")
    serve(bench.conn, "A")
    bench.conn.execute("TRUNCATE ohlcv_1m")
    write(bench.conn, [bar("A", minute, 10, 2) for minute in range(12)])
    refreshed(bench)
    serve(bench.conn, "A")
    report = skew(bench.conn, since=ALL_TIME)
    assert (report.rows, report.not_kept, report.is_right) == (1, 1, True), report
    check_rows(bench)


@pytest.mark.usefixtures("ten")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE feature_platform.served SET values[2] = values[2] + 1e-9", (1, 0, 0)),
        (
            "UPDATE feature_platform.served SET bucket = bucket - interval '1 minute'",
            (1, 1, 0),
        ),
        (
            "UPDATE feature_platform.served SET bucket = bucket + interval '1 minute'",
            (0, 0, 1),
        ),
    ],
)
def test_a_wrong_answer_is_found(
    bench: Bench, change: LiteralString, expected: tuple[int, int, int]
) -> None:
    bench.conn.execute("DELETE FROM feature_platform.served")
    serve(bench.conn, "A")
    assert skew(bench.conn, since=ALL_TIME).is_right
    bench.conn.execute(change)
    report = skew(bench.conn, since=ALL_TIME)
    assert (report.mismatch, report.missing, report.extra) == expected, report
    served_at = value(bench.conn, "SELECT min(served_at) FROM feature_platform.served")
    for one in report.examples:
        assert one.served_at == served_at
        assert (one.column is not None) == (one.problem == "mismatch")
        assert (repr(one.served) != repr(one.computed)) == (one.problem == "mismatch")


@pytest.mark.usefixtures("ten")
@pytest.mark.parametrize(("change", "served"), [("-0", "-0.0"), (None, "None"), ("NaN", "nan")])
def test_a_mismatch_has_its_first_column_and_both_values(
    bench: Bench, change: str | None, served: str
) -> None:
    """The logged volume is 0, then another one that is equal by its value or has none."""
    write(bench.conn, [bar("A", 9, 10, 0)])
    refreshed(bench)
    bench.conn.execute("DELETE FROM feature_platform.served")
    serve(bench.conn, "A", times=2)
    bench.conn.execute(
        "UPDATE feature_platform.served SET values[2] = %s::double precision, values[5] = 7",
        [change],
    )
    (one,) = skew(bench.conn, since=ALL_TIME).examples
    assert (one.column, str(one.served), one.computed) == ("vol", served, 0.0)
    assert one.as_json()["served"] == ("NULL" if change is None else served)


def count_of(conn: Conn, *tables: str) -> dict[str, int]:
    """Return the number of rows of tables of the schema feature_platform."""
    query = SQL("SELECT count(*) FROM {}")
    return {
        table: conn.execute(query.format(Identifier("feature_platform", table))).fetchall()[0][0]
        for table in tables
    }


def test_the_retention_writes_no_versions(conn: Conn) -> None:
    add_bars(conn, ago(5 * DAY), 4 * DAY)
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts = (SELECT min(ts) FROM ohlcv_1m)")
    assert value(conn, "SELECT count(*) FROM feature_platform.bar_history") == 1
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute("SELECT set_features_1m_retention(bars => '3 days', features => '2 days')")
    conn.execute("CALL feature_platform.apply_retention()")
    assert value(conn, "SELECT count(*) FROM ohlcv_1m") < 3 * DAY
    assert not any(count_of(conn, *HISTORY).values())
    conn.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts = (SELECT max(ts) FROM ohlcv_1m)")
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    assert value(conn, "SELECT count(*) FROM feature_platform.bar_history") == 1
    serve(conn, "A")
    assert skew(conn, since=ALL_TIME).is_right
    conn.execute("SELECT feature_platform.forget_symbol('A')")
    assert not any(count_of(conn, *HISTORY, "served").values())


def test_bars_are_known_as_before_when_versions_of_rows_are_deleted(databases: Databases) -> None:
    start = ago(3 * DAY)
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        catalog.apply(conn, VIEWS)
        add_bars(conn, start, 2000)
        refresh_all(conn)
        serve(conn, "A")
        # The rows of the next day get other values, but not the newest ones.
        conn.execute("UPDATE ohlcv_1m SET vol = 77 WHERE ts = %s", [start + 500 * MINUTE])
        conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [start + 900 * MINUTE])
        refresh_all(conn)
        serve(conn, "A")
        before = bars_as_of(conn, 1)
        conn.execute("UPDATE feature_platform.refresh SET known_by = known_by - interval '2 days'")
        conn.execute("SELECT set_features_1m_retention(versions => '1 day')")
        conn.execute("CALL feature_platform.apply_retention()")
        assert value(conn, "SELECT count(*) FROM feature_platform.features_1m_history") == 0
        assert bars_as_of(conn, 1) == before
        serve(conn, "A")
        report = skew(conn, since=ALL_TIME)
        assert (report.is_right, report.not_kept) == (True, 0), report


@pytest.mark.parametrize("deleted", [1, 2])
def test_a_view_keeps_buckets_waiting_whose_bars_a_new_mark_has_deleted(
    databases: Databases, deleted: int
) -> None:
    start = ago(600).replace(minute=0)
    new = [start + 240 * MINUTE, start + 300 * MINUTE]
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        catalog.apply(conn, VIEWS)
        add_bars(conn, start, 180)
        refresh_all(conn)
        for ts in new:
            add_bars(conn, ts, 1)
        conn.execute("CALL refresh_features_1m(NULL, NULL)")
        conn.execute("DELETE FROM ohlcv_1m WHERE ts = ANY (%s)", [new[-deleted:]])
        for view in (1, 2):
            conn.execute("SELECT feature_platform.view_slice(%s, '-infinity', 'infinity')", [view])
        serve(conn, "A")
        assert skew(conn, since=ALL_TIME).is_right
        refresh_all(conn)
        check_views(conn)
        serve(conn, "A")
        assert skew(conn, since=ALL_TIME).is_right


def test_a_view_that_looks_back_beyond_a_day_reads_a_bar_before_its_own_row_is_stored(
    databases: Databases,
) -> None:
    lagged = FeatureView("lagged", "1 minute", {"close": v.lag(v.bar.close, "2 days")})
    late, newest = ago(3000), ago(3000) + 2880 * MINUTE
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        catalog.apply(conn, [lagged])
        add_bars(conn, late - 70 * MINUTE, 70)
        add_bars(conn, late + MINUTE, 2879)
        refresh_all(conn)
        add_bars(conn, late, 1)
        add_bars(conn, newest, 1)
        window = (newest - 60 * MINUTE, newest + MINUTE)
        conn.execute(
            "SELECT feature_platform.refresh_slice(%s, %s, feature_platform.dirty_horizon())",
            window,
        )
        conn.execute("SELECT feature_platform.view_slice(1, %s, %s)", window)
        serve(conn, "A")
        refresh_all(conn)
        serve(conn, "A")
        report = skew(conn, since=ALL_TIME)
        assert report.is_right, report


def test_a_step_skips_a_symbol_whose_bar_a_new_mark_has_deleted(bench: Bench, ten: int) -> None:
    delete(bench.conn, 9)
    row = bench.conn.execute(
        """SELECT written, skipped_symbols FROM feature_platform.run_steps(
               'feature_platform', 'features_1m', '1 minute', ARRAY['A'],
               ARRAY[%s::timestamptz], ARRAY[%s::timestamptz], ARRAY[%s::timestamptz], %s)""",
        (at(8), at(10), at(0), ten),
    ).fetchone()
    assert row == (0, ["A"])


@pytest.mark.parametrize("seed", range(2))
def test_all_rows_that_were_seen_are_computed_again(databases: Databases, seed: int) -> None:
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        catalog.apply(conn, VIEWS)
        done = threading.Event()
        seen: set[Row] = set()

        def writers(_: Conn) -> None:
            try:
                in_threads(url, *(writer(seed * 10 + i, 250) for i in range(2)))
            finally:
                done.set()

        def view_refresher(conn: Conn) -> None:
            while not done.is_set():
                for view in (1, 2):
                    conn.execute(
                        "SELECT feature_platform.view_slice(%s, '-infinity', 'infinity')", [view]
                    )

        in_threads(
            url,
            writers,
            *(refresher(seed * 10 + i, done) for i in range(2)),
            view_refresher,
            reader(done, seen),
        )
        refresh_all(conn)
        serve(conn, *"ABC")
        seen.update(rows_with_numbers(conn))
        report = skew(conn, since=ALL_TIME)
        assert report.rows > 0, report
        assert report.is_right, report
        chosen = random.Random(seed).sample(sorted(seen), min(len(seen), 200))
        for row in chosen:
            check_row(conn, row)


def reader(done: threading.Event, seen: set[Row]) -> Callable[[Conn], None]:
    """Return a job that logs and collects rows until `done` is set."""

    def job(conn: Conn) -> None:
        while not done.is_set():
            serve(conn, *"ABC")
            seen.update(rows_with_numbers(conn))

    return job


def test_the_bars_of_a_day_are_read_by_their_indexes(
    histories: tuple[Conn, Conn],
) -> None:
    statement = """
        SELECT * FROM feature_platform.bars_as_of(
            'S1', current_setting('tests.newest')::timestamptz - interval '1 day',
            current_setting('tests.newest')::timestamptz, 1)
    """
    pages = []
    for conn in histories:
        explain(conn, statement)  # plans it
        pages.append(pages_of(explain(conn, statement)))
    assert about_as_many(pages), pages
