"""Guards against features that differ from their definition.

The expected values are worked out by hand; the oracle is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log, sqrt

import pytest

from feature_platform_tests.fix_engine import Bench, assert_same_bits
from feature_platform_tests.histories import DAY_0, at, bar, write
from feature_platform_tests.oracle import MINUTE, Features

DAY = 1440

approx = pytest.approx


@pytest.fixture
def empty(bench: Bench) -> Bench:
    """Return a database without bars."""
    bench.empty()
    return bench


def rows(bench: Bench, symbol: str = "A") -> dict[int, Features]:
    """Refresh, and return a symbol's rows by their minute on the tests' time axis."""
    bench.refresh()
    return {
        bucket // MINUTE - DAY_0: row
        for (name, bucket), row in sorted(bench.features().items())
        if name == symbol
    }


def test_a_single_bar_has_the_features_of_one_bar(empty: Bench) -> None:
    write(empty.conn, [bar("A", 0, 102, vol=3, open=100, high=108, low=96)])
    (row,) = rows(empty).values()
    assert row[:7] == (102, 3, None, 1, None, None, None)
    assert row.vwap_gap == approx(102 - 101.5)
    assert row.parkinson_vol == approx(0.5 * log(108 / 96) ** 2)


def test_log_return_is_null_in_the_first_row_of_a_symbol_only(empty: Bench) -> None:
    write(empty.conn, [bar("A", 0, 10), bar("A", 1, 20), bar("B", 1, 7), bar("B", 2, 7)])
    assert [row.log_return for row in rows(empty).values()] == [None, approx(log(2))]
    assert [row.log_return for row in rows(empty, "B").values()] == [None, 0]


def test_log_return_refers_to_the_previous_row_at_any_distance(empty: Bench) -> None:
    write(empty.conn, [bar("A", 0, 10), bar("A", 30 * DAY, 5)])
    assert rows(empty)[30 * DAY].log_return == approx(-log(2))
    write(empty.conn, [bar("A", 0, 20)])
    assert rows(empty)[30 * DAY].log_return == approx(-log(4))
    write(empty.conn, [bar("A", 29 * DAY, 5)])
    assert rows(empty)[30 * DAY].log_return == 0
    empty.conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [at(29 * DAY)])
    assert rows(empty)[30 * DAY].log_return == approx(-log(4))
    empty.conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [at(0)])
    assert rows(empty)[30 * DAY].log_return is None


def test_the_window_is_the_day_up_to_the_row_without_its_first_instant(
    empty: Bench,
) -> None:
    write(empty.conn, [bar("A", m, vol=1) for m in (0, 1, 2, DAY - 1, DAY, DAY + 1)])
    assert {m: row.n_1d for m, row in rows(empty).items()} == {
        0: 1,
        1: 2,
        2: 3,
        DAY - 1: 4,  # from minute 0 on, which is 1439 minutes ago
        DAY: 4,  # minute 0 has just left the window
        DAY + 1: 4,
    }


def test_warm_up_ends_1439_minutes_after_the_first_row(empty: Bench) -> None:
    write(empty.conn, [bar("A", m, vol=v) for m, v in ((0, 2), (DAY - 2, 4), (DAY - 1, 9))])
    found = rows(empty)
    for minute in (0, DAY - 2):
        row = found[minute]
        assert (row.ma_vol_1d, row.std_vol_1d, row.volume_z) == (None, None, None)
    row = found[DAY - 1]
    assert row.ma_vol_1d == approx(5)
    assert row.std_vol_1d == approx(sqrt((3**2 + 1**2 + 4**2) / 3))
    assert row.volume_z == approx(4 / sqrt(26 / 3))


def test_warm_up_of_whole_days_is_the_first_1439_rows(empty: Bench) -> None:
    write(empty.conn, (bar("A", m, vol=m % 2) for m in range(1500)))
    found = rows(empty)
    assert [m for m, row in found.items() if row.ma_vol_1d is None] == list(range(1439))
    assert all(row.ma_vol_1d == row.std_vol_1d == 0.5 for m, row in found.items() if m >= 1439)
    assert [found[m].volume_z for m in (1440, 1441)] == [-1, 1]


def test_older_history_moves_the_warm_up(empty: Bench) -> None:
    write(empty.conn, [bar("A", m, vol=1 + m % 2) for m in (0, 1, 100)])
    assert all(row.ma_vol_1d is None for row in rows(empty).values())
    write(empty.conn, [bar("A", -5 * DAY)])
    assert {m: row.ma_vol_1d for m, row in rows(empty).items()} == {
        -5 * DAY: None,
        0: 1,
        1: 1.5,
        100: approx(4 / 3),
    }
    empty.conn.execute("DELETE FROM ohlcv_1m WHERE ts < %s", [at(0)])
    assert all(row.ma_vol_1d is None for row in rows(empty).values())


def test_volume_z_is_null_if_the_volume_is_constant(empty: Bench) -> None:
    write(empty.conn, [bar("A", m, vol=0.1) for m in (0, 2000, 2001, 2002)])
    found = rows(empty)
    assert [found[m].std_vol_1d for m in (2000, 2001, 2002)] == [0, 0, 0]
    assert [found[m].ma_vol_1d for m in (2000, 2001, 2002)] == [approx(0.1)] * 3
    assert [found[m].volume_z for m in (2000, 2001, 2002)] == [None, None, None]
    write(empty.conn, [bar("A", 2002, vol=0.1 + 2**-56)])  # the next larger number
    row = rows(empty)[2002]
    assert row.std_vol_1d is not None
    assert 0 < row.std_vol_1d < 1e-16
    assert row.volume_z is not None


def test_a_volume_spike_has_no_effect_after_it_leaves_the_window(empty: Bench) -> None:
    write(empty.conn, (bar("A", m, vol=0.3) for m in range(2 * DAY, 2 * DAY + 5)))
    write(empty.conn, [bar("A", 0), bar("A", 5, vol=1e12), bar("A", DAY + 4, vol=0.3)])
    found = rows(empty)
    assert found[DAY + 4].ma_vol_1d == approx(5e11)
    assert [found[2 * DAY + m].std_vol_1d for m in range(5)] == [0] * 5


def test_vwap_gap_is_the_close_less_the_volume_weighted_price(empty: Bench) -> None:
    write(
        empty.conn,
        [
            bar("A", 0.0, 10, vol=1, open=8, high=12, low=6),  # p = 9
            bar("A", 0.5, 20, vol=3, open=20, high=24, low=16),  # p = 20
        ],
    )
    assert rows(empty)[0].vwap_gap == approx(20 - (9 + 3 * 20) / 4)


def test_vwap_gap_without_volume_uses_the_mean_price(empty: Bench) -> None:
    write(empty.conn, [bar("A", 0, 10, vol=0, high=14), bar("B", 0, 10, vol=0, high=14)])
    write(empty.conn, [bar("B", 0.5, 20, vol=0)])
    assert rows(empty)[0].vwap_gap == approx(10 - 11)
    assert rows(empty, "B")[0].vwap_gap == approx(20 - (11 + 20) / 2)


def test_bars_inside_a_minute_give_one_row(empty: Bench) -> None:
    write(
        empty.conn,
        [
            bar("A", -1, 10),
            bar("A", 59.999 / 60, 30, vol=0.2, high=31),  # the last by time, not by storage
            bar("A", 0, 20, vol=0.1, low=19),
            bar("A", 0.5, 25, vol=0.4),
        ],
    )
    found = rows(empty)
    assert sorted(found) == [-1, 0]
    row = found[0]
    assert row.last_close == 30
    assert row.vol == 0.7  # not 0.1 + 0.4 + 0.2 in floating point, which is 0.7000000000000001
    assert row.n_1d == 2
    assert row.log_return == approx(log(3))
    assert row.parkinson_vol == approx(0.5 * log(31 / 19) ** 2)
    empty.conn.execute("DELETE FROM ohlcv_1m WHERE ts > %s AND ts <> %s", (at(0), at(0.5)))
    assert rows(empty)[0].last_close == 25


def test_parkinson_is_zero_if_the_price_was_constant(empty: Bench) -> None:
    write(empty.conn, [bar("A", 0, 10)])
    assert rows(empty)[0].parkinson_vol == 0


def test_the_most_extreme_bars_have_features(empty: Bench) -> None:
    extremes = [(1e-100, 1e100), (1e100, 1e-100), (1e100, 0), (1e-100, 1e-100)]
    write(
        empty.conn,
        (
            bar("A", day * DAY + m, close, vol, high=1e100, low=1e-100)
            for day in range(3)
            for m, (close, vol) in enumerate(extremes)
        ),
    )
    assert len(rows(empty)) == 12
    empty.check()


@pytest.fixture
def at_the_start_of_a_minute(empty: Bench) -> Iterator[Bench]:
    """Yield an empty database whose clock stands at 12:00:00 until the test sets it."""
    with empty.conn.transaction(force_rollback=True):
        set_clock(empty, "2024-05-05 12:00:00Z")
        yield empty


def set_clock(bench: Bench, moment: str) -> None:
    bench.conn.execute(
        "CREATE OR REPLACE FUNCTION feature_platform.clock() RETURNS timestamptz"
        " LANGUAGE sql VOLATILE PARALLEL SAFE"
        " RETURN current_setting('tests.clock')::timestamptz"
    )
    bench.conn.execute("SELECT set_config('tests.clock', %s, true)", [moment])


def test_a_minute_gets_its_row_when_it_closes(at_the_start_of_a_minute: Bench) -> None:
    bench = at_the_start_of_a_minute
    bench.conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'A', ts, 10, 11, 9, 10, 1
           FROM generate_series('2024-05-05 11:58Z'::timestamptz, '2024-05-05 12:03Z', '1 minute')
                AS ts"""
    )
    refresh = """SELECT feature_platform.refresh_slice('-infinity', feature_platform.due_until(),
                                                       feature_platform.dirty_horizon())"""
    newest = "SELECT to_char(max(bucket) AT TIME ZONE 'UTC', 'HH24:MI') FROM features_1m"
    seen = {}
    for clock in ("12:00:00", "12:00:59.999999", "12:01:00", "12:01:30", "12:02:00", "12:05:00"):
        set_clock(bench, f"2024-05-05 {clock}Z")
        bench.conn.execute(refresh)
        row = bench.conn.execute(newest).fetchone()
        assert row is not None
        seen[clock] = row[0]
    assert seen == {
        "12:00:00": "11:59",
        "12:00:59.999999": "11:59",
        "12:01:00": "12:00",
        "12:01:30": "12:00",
        "12:02:00": "12:01",
        "12:05:00": "12:03",
    }


def test_bars_of_open_and_future_minutes_give_no_row(empty: Bench) -> None:
    now = """SELECT feature_platform.bucket_of(clock_timestamp())"""
    (before,) = empty.conn.execute(now).fetchone() or (None,)
    empty.conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'A', %s::timestamptz + m * interval '1 minute', 10, 11, 9, 10, 1
           FROM generate_series(-3, 6) AS m""",
        [before],
    )
    empty.refresh(force=True)
    empty.refresh("-infinity", "infinity")
    (newest,) = empty.conn.execute("SELECT max(bucket) FROM features_1m").fetchone() or (None,)
    (after,) = empty.conn.execute(now).fetchone() or (None,)
    assert newest < after
    if before == after:
        assert len(empty.features()) == 3


@pytest.mark.parametrize("symbols", ["A", "AB"])
def test_appending_changes_no_older_row(empty: Bench, symbols: str) -> None:
    """Store a history with gaps bar by bar, and compare all older rows after each bar."""
    history = sorted({*range(3), *range(700, 704), *range(1437, 1444), *range(2877, 2884), 9000})
    before: dict[tuple[str, int], Features] = {}
    for i, minute in enumerate(history):
        write(empty.conn, [bar(s, minute, 10 + i % 4, 1 + i % 5, high=20) for s in symbols])
        empty.refresh()
        after = empty.features()
        assert_same_bits(before, {key: after[key] for key in before})
        assert len(after) == len(before) + len(symbols)
        before = after
    empty.check()


def test_another_symbol_changes_nothing(empty: Bench) -> None:
    write(empty.conn, [bar("A", m) for m in (0, 5, DAY + 5, 2 * DAY + 7)])
    empty.refresh()
    before = empty.features()
    write(empty.conn, [bar("B", m, 99, vol=1e9) for m in (-DAY, 0, 5, DAY + 5, 3 * DAY)])
    empty.refresh()
    after = empty.features()
    assert_same_bits(before, {key: row for key, row in after.items() if key[0] == "A"})
