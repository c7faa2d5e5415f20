"""Guards against a refresh of fewer or more rows than the window and the marks require."""

from __future__ import annotations

from datetime import datetime

import psycopg
import pytest

from feature_platform_tests.fix_engine import Bench
from feature_platform_tests.histories import DAY_0, Refresh, at, bar, write
from feature_platform_tests.oracle import MINUTE, Key

DAY = 1440
DAYS = 3


@pytest.fixture
def whole_days(bench: Bench) -> Bench:
    """Return a database with refreshed bars of some whole days of A, and some bars of B."""
    bench.empty()
    write(bench.conn, (bar("A", m, 10 + m % 3, 1 + m % 9) for m in range(DAYS * DAY)))
    write(bench.conn, (bar("B", m, 10 + m % 3, 1 + m % 9) for m in range(0, DAYS * DAY, 50)))
    bench.refresh()
    return bench


def versions(conn: psycopg.Connection) -> dict[Key, str]:
    """Return the identity of the stored version of each feature row."""
    rows = conn.execute(
        """SELECT symbol, (extract(epoch FROM bucket) * 1000000)::bigint,
                  tableoid || ' ' || ctid || ' ' || xmin
           FROM features_1m"""
    )
    return {(symbol, bucket): version for symbol, bucket, version in rows}


def rewritten(before: dict[Key, str], after: dict[Key, str]) -> set[tuple[str, int]]:
    """Return the symbols and minutes of the rows that were stored or deleted."""
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    return {(symbol, bucket // MINUTE - DAY_0) for symbol, bucket in changed}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ohlcv_1m SET vol = 1000, close = low WHERE symbol = 'A' AND ts = %s",
        "DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts = %s",
    ],
)
@pytest.mark.parametrize("forgotten", [False, True])
def test_a_repair_rewrites_at_most_a_day_of_one_symbol(
    whole_days: Bench, change: str, forgotten: bool
) -> None:
    conn = whole_days.conn
    before = versions(conn)
    conn.execute(change.encode(), [at(1500)])
    if forgotten:
        conn.execute(
            """DELETE FROM feature_platform.symbol_state;
               DELETE FROM feature_platform.features_1m_state"""
        )
    whole_days.refresh()
    changed = rewritten(before, versions(conn))
    assert len(changed) in (DAY - 1, DAY)  # a mean may by chance be equal
    assert {symbol for symbol, _ in changed} == {"A"}
    assert (min(changed)[1], max(changed)[1]) == (1500, 1500 + DAY - 1)


def test_a_changed_close_also_rewrites_the_next_row_after_a_gap(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", m) for m in (0, 1, 2, 20 * DAY, 20 * DAY + 1)])
    bench.refresh()
    before = versions(bench.conn)
    write(bench.conn, [bar("A", 2, 55)])
    bench.refresh()
    assert rewritten(before, versions(bench.conn)) == {("A", 2), ("A", 20 * DAY)}


def test_a_statement_on_distant_bars_rewrites_only_their_windows(whole_days: Bench) -> None:
    before = versions(whole_days.conn)
    write(whole_days.conn, [bar("A", m, vol=77) for m in (10, 2 * DAY)])
    whole_days.refresh()
    changed = rewritten(before, versions(whole_days.conn))
    assert changed <= {("A", m) for m in range(DAYS * DAY) if 10 <= m < 10 + DAY or m >= 2 * DAY}
    whole_days.check()


def test_a_changed_price_rewrites_two_rows(whole_days: Bench) -> None:
    before = versions(whole_days.conn)
    write(whole_days.conn, [bar("A", 1500, 99, 1 + 1500 % 9)])
    whole_days.refresh()
    assert rewritten(before, versions(whole_days.conn)) == {("A", 1500), ("A", 1501)}


def test_a_new_minute_stores_one_row(whole_days: Bench) -> None:
    before = versions(whole_days.conn)
    write(whole_days.conn, [bar("A", DAYS * DAY)])
    whole_days.refresh()
    assert rewritten(before, versions(whole_days.conn)) == {("A", DAYS * DAY)}


def test_slices_are_cut_by_rows_in_every_time_zone(bench: Bench) -> None:
    bench.empty()
    # The older range spans the end of summer time in Berlin.
    write(bench.conn, [bar("A", m) for m in (4 * DAY + 720, 8 * DAY, 9 * DAY)])
    bench.conn.execute("SET TimeZone = 'Europe/Berlin'")
    cut = """SELECT minutes, rows_written, more FROM feature_platform.refresh_slice(
                 '-infinity', feature_platform.due_until(), feature_platform.dirty_horizon(), 1)"""
    slices = [bench.conn.execute(cut).fetchone() for _ in range(3)]
    # A row depends on the row before it, so the minutes without bars between them count, too.
    assert slices == [(DAY, 1, True), (3.5 * DAY, 1, True), (1, 1, False)]
    bench.check()


def test_clean_rows_are_not_rewritten(whole_days: Bench) -> None:
    conn = whole_days.conn
    before = versions(conn)
    whole_days.refresh()
    assert not rewritten(before, versions(conn))
    whole_days.refresh(force=True)
    assert not rewritten(before, versions(conn)), "a forced refresh stores only what differs"


def test_force_repairs_rows_that_were_changed_by_hand(whole_days: Bench) -> None:
    conn = whole_days.conn
    conn.execute("UPDATE features_1m SET vol = 0, log_return = NULL WHERE bucket = %s", [at(500)])
    conn.execute("DELETE FROM features_1m WHERE bucket = %s", [at(550)])
    conn.execute(
        "INSERT INTO features_1m (symbol, bucket, vol) VALUES ('A', %s, 1), ('C', %s, 1)",
        (at(-10), at(500)),
    )
    Refresh(501, 600, force=True)(whole_days)
    Refresh(400, 501, force=True)(whole_days)
    whole_days.refresh(force=True)
    whole_days.check()


def test_force_uses_no_state_of_bars_that_changed_without_marks(whole_days: Bench) -> None:
    conn = whole_days.conn
    newest = DAYS * DAY - 1
    conn.execute("ALTER TABLE ohlcv_1m DISABLE TRIGGER USER")
    conn.execute("UPDATE ohlcv_1m SET vol = 99 WHERE symbol = 'A' AND ts = %s", [at(newest - 30)])
    conn.execute("ALTER TABLE ohlcv_1m ENABLE TRIGGER USER")
    Refresh(newest - 2, None, force=True)(whole_days)
    whole_days.refresh(force=True)
    whole_days.check()


def test_a_refresh_that_ends_before_the_newest_bar_leaves_states(whole_days: Bench) -> None:
    """As the policy does where its `end_offset` is longer than a minute."""
    conn = whole_days.conn
    states = "SELECT bucket FROM feature_platform.features_1m_state WHERE symbol = 'A' ORDER BY 1"
    conn.execute("DELETE FROM feature_platform.features_1m_state")
    first = DAYS * DAY
    write(conn, [bar("A", first + m, vol=m) for m in range(10)])
    whole_days.refresh(None, at(first + 3))
    assert conn.execute(states).fetchall() == [(at(first + m),) for m in range(3)]
    whole_days.refresh()
    newest = [(at(first + m),) for m in range(3, 10)]
    assert conn.execute(states).fetchall() == newest
    # A refresh of older rows leaves the newest states.
    write(conn, [bar("A", 10, vol=50)])
    whole_days.refresh(None, at(DAY))
    assert conn.execute(states).fetchall() == newest
    whole_days.refresh()
    whole_days.check()


def test_no_row_between_a_state_and_the_window_is_stored(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", m) for m in range(5)])
    bench.refresh()
    write(bench.conn, [bar("A", m) for m in range(5, 10)])
    bench.refresh(at(6), at(8))
    assert sorted(bucket // MINUTE - DAY_0 for _, bucket in bench.features()) == [*range(5), 6, 7]
    bench.refresh()
    bench.check()


def test_a_window_includes_its_start_and_excludes_its_end(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", m) for m in range(10)])

    def stored() -> list[int]:
        return sorted(bucket // MINUTE - DAY_0 for _, bucket in bench.features())

    bench.refresh(at(3), at(5))
    assert stored() == [3, 4]
    bench.refresh(at(5.5), at(7.5))  # the bucket of minute 5 began before the window
    assert stored() == [3, 4, 6, 7]
    bench.refresh(at(8.5), at(8.9))
    assert stored() == [3, 4, 6, 7]
    bench.refresh(None, at(1))
    assert stored() == [0, 3, 4, 6, 7]
    bench.refresh(at(9), None)
    assert stored() == [0, 3, 4, 6, 7, 9]
    bench.refresh("-infinity", "infinity")
    assert stored() == list(range(10))
    bench.check()


@pytest.mark.parametrize("window", [(at(5), at(5)), (at(6), at(5)), ("infinity", "-infinity")])
def test_an_empty_window_is_rejected(bench: Bench, window: tuple[datetime | str, ...]) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 5)])
    with pytest.raises(psycopg.errors.RaiseException, match="the refresh window is empty"):
        bench.refresh(*window, force=True)
    assert not bench.features()


def test_a_window_in_the_future_stores_no_row(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 5)])
    bench.refresh("2999-01-01", "2999-01-02", force=True)
    assert not bench.features()


@pytest.mark.parametrize("force", [False, True])
def test_a_refresh_inside_a_transaction_fails_without_a_change(bench: Bench, force: bool) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 5)])
    marks = "SELECT * FROM feature_platform.dirty_log"
    before = bench.conn.execute(marks).fetchall()
    with bench.conn.transaction(force_rollback=True):
        with (
            pytest.raises(psycopg.errors.InvalidTransactionTermination),
            bench.conn.transaction(),
        ):
            bench.refresh(force=force)
        assert bench.conn.execute(marks).fetchall() == before
        assert not bench.features()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_refresh_rejects_a_fixed_snapshot(bench: Bench, isolation: str) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 5)])
    bench.conn.execute("SELECT set_config('default_transaction_isolation', %s, false)", [isolation])
    with pytest.raises(
        psycopg.errors.RaiseException, match=f"needs READ COMMITTED.* is {isolation.upper()}"
    ):
        bench.refresh()
    bench.conn.execute("RESET default_transaction_isolation")
    assert not bench.features()


@pytest.mark.parametrize("minutes", [1, 7, 1000])
def test_slices_are_bounded_and_begin_with_the_newest(bench: Bench, minutes: int) -> None:
    bench.empty()
    write(bench.conn, (bar("A", m) for m in range(20)))
    done = 0
    while True:
        row = bench.conn.execute(
            """SELECT more, rows_written, minutes FROM feature_platform.refresh_slice(
                   '-infinity', 'infinity', feature_platform.dirty_horizon(), slice_rows => %s)
            """,
            [minutes],
        ).fetchone()
        assert row is not None
        more, written, spanned = row
        assert written <= spanned <= minutes
        done += written
        stored = sorted(bucket // MINUTE - DAY_0 for _, bucket in bench.features())
        assert stored == list(range(20 - done, 20))
        if not more:
            break
    assert done == 20
    bench.check()


def test_a_slice_refreshes_at_most_the_given_symbols(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar(s, 0) for s in "ABCDE"])
    taken = []
    more = True
    while more:
        row = bench.conn.execute(
            """SELECT symbols, more FROM feature_platform.refresh_slice(
                   '-infinity', 'infinity', feature_platform.dirty_horizon(), slice_symbols => 2)
            """
        ).fetchone()
        assert row is not None
        taken.append(row[0])
        more = row[1]
    assert [symbols for symbols in taken if symbols] == [2, 2, 1]
    bench.check()


def test_a_refresh_ignores_marks_newer_than_its_horizon(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 0)])
    (horizon,) = bench.conn.execute("SELECT feature_platform.dirty_horizon()").fetchone() or (0,)
    write(bench.conn, [bar("B", 0)])
    bench.conn.execute(
        "SELECT feature_platform.refresh_slice('-infinity', 'infinity', %s)", [horizon]
    )
    assert {symbol for symbol, _ in bench.features()} == {"A"}


@pytest.mark.parametrize("a_day_earlier", [True, False], ids=["bar a day earlier", "none"])
@pytest.mark.parametrize("second", [0, 30], ids=["same bar", "row inside the minute"])
def test_repeated_corrections_of_the_newest_minute_stay_exact(
    bench: Bench, a_day_earlier: bool, second: int
) -> None:
    """The sums come from the cache, less the old row and the minute that leaves the window."""
    bench.empty()
    newest = DAY + 100
    minutes = [m for m in range(newest + 1) if a_day_earlier or m != newest - DAY]
    write(bench.conn, [bar("A", m, vol=1 + m % 7 / 10) for m in minutes])
    bench.refresh()
    for vol in (0.1, 1e-9, 12345678.9):
        write(bench.conn, [bar("A", newest + second / 60, vol=vol)])
        bench.refresh()
        bench.check()
    write(bench.conn, [bar("A", newest, vol=3), bar("A", newest + 1, vol=4)])
    bench.refresh()
    bench.check()
    write(bench.conn, [bar("A", newest, vol=5), bar("A", newest - 1, vol=6)])
    bench.refresh()
    bench.check()
    write(bench.conn, [bar("A", newest + 1, vol=7), bar("A", newest + 1 - DAY, vol=8)])
    bench.refresh()
    bench.check()
