"""Guards against a refresh that mixes data from before and after a writer's commit.

Each test stops a refresh half-way, commits a change, finishes the refresh, and refreshes once more.
Then the rows must be right, and neither refresh may have failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from feature_platform_tests.fix_engine import STOPS, Bench, Stop
from feature_platform_tests.histories import at, bar, write
from feature_platform_tests.oracle import Bar

# Days of the tests' time axis, in minutes.
DAY = 1440
OLDEST, NEWEST = 0, 2 * DAY


def saw(lo: int, hi: int) -> Iterator[Bar]:
    return (bar("A", m, 10 + m % 3, 1 + m % 60) for m in range(lo, hi, 10))


@contextmanager
def overtaken(bench: Bench, stop: Stop) -> Iterator[None]:
    """Refresh the hour after two days, and run the body while the refresh is stopped."""
    bench.empty()
    write(bench.conn, saw(OLDEST, NEWEST))
    bench.refresh()
    write(bench.conn, saw(NEWEST, NEWEST + 60))
    with bench.refresh_stopped_at(stop):
        yield
    bench.refresh()
    bench.check()
    # The cache of the newest row must be right, too.
    write(bench.conn, saw(NEWEST + 60, NEWEST + 90))
    bench.refresh()
    bench.check()


stopped_anywhere = pytest.mark.parametrize("stop", STOPS)


@stopped_anywhere
@pytest.mark.parametrize("vol", [0.0, 7.5, 1e12])
def test_a_bar_that_leaves_the_window_is_corrected_during_a_refresh(
    bench: Bench, stop: Stop, vol: float
) -> None:
    with overtaken(bench, stop):
        write(bench.conn, [bar("A", NEWEST - DAY + 30, vol=vol)])


@stopped_anywhere
def test_a_bar_that_leaves_the_window_is_deleted_during_a_refresh(bench: Bench, stop: Stop) -> None:
    with overtaken(bench, stop):
        bench.conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [at(NEWEST - DAY + 30)])


@stopped_anywhere
def test_late_bars_fill_a_gap_during_a_refresh(bench: Bench, stop: Stop) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 0), bar("A", DAY)])
    bench.refresh()
    write(bench.conn, [bar("A", 2 * DAY - 1)])
    with bench.refresh_stopped_at(stop):
        write(bench.conn, [bar("A", 1), bar("A", 2, vol=3)])
    bench.refresh()
    bench.check()
    write(bench.conn, [bar("A", 2 * DAY + 5)])
    bench.refresh()
    bench.check()


@stopped_anywhere
@pytest.mark.parametrize("where", [NEWEST + 10, NEWEST - 10, NEWEST - DAY + 20])
def test_the_first_row_inside_a_minute_is_stored_during_a_refresh(
    bench: Bench, stop: Stop, where: int
) -> None:
    with overtaken(bench, stop):
        write(bench.conn, [bar("A", where + 0.5, close=99, vol=4)])


@stopped_anywhere
def test_a_minute_of_one_inside_row_is_stored_during_a_refresh(bench: Bench, stop: Stop) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 0), bar("A", 9)])
    with bench.refresh_stopped_at(stop):
        write(bench.conn, [bar("A", 4.5, close=99)])
    bench.refresh()
    bench.check()


@stopped_anywhere
def test_the_bar_before_the_range_is_corrected_during_a_refresh(bench: Bench, stop: Stop) -> None:
    with overtaken(bench, stop):
        write(bench.conn, [bar("A", NEWEST - 10, close=1234)])


@stopped_anywhere
def test_the_first_bars_are_deleted_during_a_refresh(bench: Bench, stop: Stop) -> None:
    with overtaken(bench, stop):
        bench.conn.execute("DELETE FROM ohlcv_1m WHERE ts < %s", [at(OLDEST + 700)])


@stopped_anywhere
def test_older_history_is_imported_during_a_refresh(bench: Bench, stop: Stop) -> None:
    with overtaken(bench, stop):
        write(bench.conn, [bar("A", OLDEST - 5 * DAY)])


@stopped_anywhere
def test_all_bars_are_deleted_during_a_refresh(bench: Bench, stop: Stop) -> None:
    with overtaken(bench, stop):
        bench.conn.execute("DELETE FROM ohlcv_1m")


@pytest.mark.parametrize(
    ("change", "skips"),
    [
        ("INSERT", False),
        ("UPDATE", False),
        ("DELETE", True),  # the symbol's first bar may be another one
        ("UPDATE of a bar in the window", True),
        ("UPDATE of a bar that leaves the window", True),
        ("UPDATE of the bar that has just left the window", False),
    ],
)
def test_a_step_skips_a_symbol_only_where_its_state_may_lack_a_change(
    bench: Bench, change: str, skips: bool
) -> None:
    """Otherwise a steady import of old bars would keep new minutes waiting."""
    bench.empty()
    write(bench.conn, (bar("A", m, 10 + m % 3, 1 + m % 60) for m in range(NEWEST)))
    bench.refresh()
    write(bench.conn, [bar("A", NEWEST, vol=4)])
    newest = NEWEST - 1  # its state holds the day from the next minute of the day before on
    match change:
        case "INSERT":
            write(bench.conn, [bar("A", -5, vol=9)])
        case "DELETE":
            bench.conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [at(10)])
        case "UPDATE":
            write(bench.conn, [bar("A", 10, vol=9)])
        case "UPDATE of a bar in the window":
            write(bench.conn, [bar("A", newest - 10, vol=9)])
        case "UPDATE of a bar that leaves the window":
            write(bench.conn, [bar("A", NEWEST - DAY, vol=9)])
        case _:
            write(bench.conn, [bar("A", newest - DAY, vol=9)])
    # The mark of the new minute itself has been processed.
    bench.conn.execute(
        "DELETE FROM feature_platform.dirty_log WHERE lower(buckets) = %s", [at(NEWEST)]
    )
    row = bench.conn.execute(
        """SELECT written, skipped_symbols FROM feature_platform.run_steps(
               'feature_platform', 'features_1m', '1 minute', ARRAY['A'],
               ARRAY[%s::timestamptz], ARRAY[%s::timestamptz], ARRAY[%s::timestamptz],
               feature_platform.next_refresh())""",
        (at(newest), at(NEWEST + 1), at(0)),
    ).fetchone()
    assert row == ((0, ["A"]) if skips else (1, []))
    if skips:
        bench.refresh(force=True)
    else:
        bench.refresh()
    bench.check()
    write(bench.conn, [bar("A", NEWEST + 1, vol=3)])
    bench.refresh()
    bench.check()
