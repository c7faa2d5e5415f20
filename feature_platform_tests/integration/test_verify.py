"""Guards against a verification that misses damage, reports pending rows as damage, or writes."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from feature_platform.errors import UserError
from feature_platform.refresh import refresh
from feature_platform.verify import EXAMPLES, Mismatch, verify
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_processes import insert_bars, rejection, run_on, value

Conn = psycopg.Connection[Any]

A, B = "AAA/USDT", "B'B%s"
START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BUCKET = START + timedelta(days=1, hours=12, minutes=7)  # every feature of A has a value here
BUCKET_TEXT = "2026-01-02T12:07:00Z"
COLUMNS = (
    "last_close",
    "vol",
    "log_return",
    "n_1d",
    "ma_vol_1d",
    "std_vol_1d",
    "volume_z",
    "vwap_gap",
    "parkinson_vol",
)
ROWS_A, ROWS_B = 2 * 1440, 200
ROWS = ROWS_A + ROWS_B


@pytest.fixture(scope="module")
def built(databases: Databases) -> Iterator[str]:
    """Yield a refreshed database: A is gapless with rows inside minutes, B has gaps."""
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as connection:
        insert_bars(connection, A, START, ROWS_A)
        insert_bars(connection, A, START + timedelta(hours=30, seconds=20), 60)
        insert_bars(connection, B, START, ROWS_B, step=7)
        refresh(connection)
        yield url


@pytest.fixture
def damaged(built: str) -> Iterator[Conn]:
    """Yield a connection to that database in a transaction that is rolled back."""
    with (
        psycopg.connect(built, autocommit=True) as connection,
        connection.transaction(force_rollback=True),
    ):
        yield connection


def stored(connection: Conn, column: str, bucket: datetime = BUCKET) -> Any:
    query = sql.SQL("SELECT {} FROM features_1m WHERE symbol = %s AND bucket = %s")
    row = connection.execute(query.format(sql.Identifier(column)), [A, bucket]).fetchone()
    assert row is not None
    return row[0]


def store(connection: Conn, column: str, number: object, bucket: datetime = BUCKET) -> None:
    query = sql.SQL("UPDATE features_1m SET {} = %s WHERE symbol = %s AND bucket = %s")
    done = connection.execute(query.format(sql.Identifier(column)), [number, A, bucket])
    assert done.rowcount == 1


def add_row(connection: Conn, bucket: datetime, symbol: str = A, close: float = 1.5) -> None:
    connection.execute(
        "INSERT INTO features_1m (symbol, bucket, last_close) VALUES (%s, %s, %s)",
        [symbol, bucket, close],
    )


def now(connection: Conn) -> datetime:
    """Return the start of the open minute by the database's clock."""
    moment = value(connection, "SELECT feature_platform.bucket_of(feature_platform.clock())")
    assert isinstance(moment, datetime)
    return moment


def test_a_refreshed_database_has_no_mismatch(built: str) -> None:
    with psycopg.connect(built, autocommit=True) as connection:
        report = verify(connection)
    assert (report.symbols, report.rows) == (2, ROWS)
    assert (report.mismatches, report.pending, report.examples) == (0, 0, [])


@pytest.mark.parametrize("column", COLUMNS)
def test_a_wrong_last_bit_of_any_column_is_found(damaged: Conn, column: str) -> None:
    right = stored(damaged, column)
    wrong = right + 1 if column == "n_1d" else math.nextafter(right, math.inf)
    store(damaged, column, wrong)
    report = verify(damaged)
    assert (report.rows, report.mismatches, report.pending) == (ROWS, 1, 0)
    assert report.examples == [Mismatch(A, BUCKET_TEXT, column, wrong, right)]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_value_is_found(damaged: Conn, column: str) -> None:
    right = stored(damaged, column)
    store(damaged, column, None)
    assert verify(damaged).examples == [Mismatch(A, BUCKET_TEXT, column, None, right)]


@pytest.mark.parametrize("column", ["log_return", "ma_vol_1d", "std_vol_1d", "volume_z"])
def test_a_value_instead_of_null_is_found(damaged: Conn, column: str) -> None:
    store(damaged, column, 0.0, START)
    assert verify(damaged).examples == [Mismatch(A, "2026-01-01T00:00:00Z", column, 0.0, None)]


def test_a_value_that_is_not_finite_is_found(damaged: Conn) -> None:
    store(damaged, "volume_z", math.nan)
    store(damaged, "vwap_gap", math.inf)
    gap, score = verify(damaged).examples[::-1]
    assert (gap.column, gap.stored) == ("vwap_gap", math.inf)
    assert score.column == "volume_z"
    assert score.stored is not None
    assert math.isnan(score.stored)


@pytest.mark.parametrize("number", [1e300, -1e-300, 5e-324, 12345678901234567890.0])
def test_huge_and_tiny_values_are_reported_exactly(damaged: Conn, number: float) -> None:
    store(damaged, "vwap_gap", number)
    (example,) = verify(damaged).examples
    assert isinstance(example.stored, float)
    assert example.stored == number


def test_a_missing_row_is_found(damaged: Conn) -> None:
    close = stored(damaged, "last_close")
    damaged.execute("DELETE FROM features_1m WHERE symbol = %s AND bucket = %s", [A, BUCKET])
    report = verify(damaged)
    assert (report.rows, report.mismatches) == (ROWS - 1, 1)
    assert report.examples == [Mismatch(A, BUCKET_TEXT, "row", None, close)]


@pytest.mark.parametrize(
    ("symbol", "bucket", "text"),
    [
        (B, START + 3 * MINUTE, "2026-01-01T00:03:00Z"),  # between bars
        (A, START - MINUTE, "2025-12-31T23:59:00Z"),  # before the first
        (A, START + timedelta(days=99), "2026-04-10T00:00:00Z"),  # after the last
        ("no bars", START, "2026-01-01T00:00:00Z"),
    ],
)
def test_a_row_without_bars_is_found(
    damaged: Conn, symbol: str, bucket: datetime, text: str
) -> None:
    add_row(damaged, bucket, symbol)
    report = verify(damaged)
    assert report.mismatches == 1
    assert report.examples == [Mismatch(symbol, text, "row", 1.5, None)]


def test_a_row_of_an_open_minute_is_found(damaged: Conn) -> None:
    for bucket in (now(damaged), START.replace(year=9998)):
        add_row(damaged, bucket)
    report = verify(damaged)
    assert report.mismatches == 2
    assert [one.column for one in report.examples] == ["row", "row"]


def test_a_row_of_an_open_minute_is_wrong_also_if_its_bar_is_stored(
    damaged: Conn,
) -> None:
    bucket = now(damaged) + MINUTE  # because the minute may end while this test runs
    insert_bars(damaged, A, bucket, 1)
    assert verify(damaged).mismatches == 0
    add_row(damaged, bucket)
    assert verify(damaged).mismatches == 1


def test_the_first_mismatches_are_listed_and_all_are_counted(damaged: Conn) -> None:
    damaged.execute("UPDATE features_1m SET vol = vol + 1, n_1d = -1")
    report = verify(damaged)
    assert report.mismatches == ROWS
    assert len(report.examples) == EXAMPLES
    assert {one.bucket for one in report.examples} == {
        f"2026-01-01T00:{minute:02}:00Z" for minute in range(EXAMPLES // 2)
    }


def test_dirty_rows_are_pending(damaged: Conn) -> None:
    damaged.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE symbol = %s AND ts = %s", [A, BUCKET])
    report = verify(damaged)
    behind = START + timedelta(days=2) - BUCKET  # all rows whose window contains the bar
    assert (report.mismatches, report.pending) == (0, behind // MINUTE)


def test_dirty_rows_do_not_hide_mismatches_of_other_rows(damaged: Conn) -> None:
    damaged.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE symbol = %s AND ts = %s", [A, BUCKET])
    store(damaged, "vol", -1.0, BUCKET - MINUTE)
    damaged.execute("DELETE FROM features_1m WHERE symbol = %s AND bucket = %s", [B, START])
    report = verify(damaged)
    assert report.mismatches == 2
    assert [(one.symbol, one.column) for one in report.examples] == [(A, "vol"), (B, "row")]


def test_a_verification_can_be_limited_to_one_symbol(damaged: Conn) -> None:
    store(damaged, "vol", -1.0)
    assert verify(damaged, symbol=A).rows == ROWS_A
    assert verify(damaged, symbol=A).mismatches == 1
    report = verify(damaged, symbol=B)
    assert (report.symbols, report.rows, report.mismatches) == (1, ROWS_B, 0)


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (BUCKET, None, 1),
        (BUCKET, BUCKET + MINUTE, 1),
        (None, BUCKET, 0),
        (BUCKET + MINUTE, None, 0),
        (BUCKET - 0.5 * MINUTE, BUCKET + 0.5 * MINUTE, 1),
        (BUCKET + 0.5 * MINUTE, None, 0),
        (BUCKET.astimezone(), BUCKET + MINUTE, 1),
    ],
)
def test_the_verified_window_excludes_its_end(
    damaged: Conn, start: datetime | None, end: datetime | None, found: int
) -> None:
    store(damaged, "vol", -1.0)
    report = verify(damaged, start=start, end=end)
    assert report.mismatches == found


def test_a_window_may_begin_and_end_inside_a_minute(built: str) -> None:
    inside = START + timedelta(hours=30, minutes=5, seconds=10)  # before the row at 20 seconds
    with psycopg.connect(built, autocommit=True) as connection:
        report = verify(connection, symbol=A, start=inside, end=inside + 10 * MINUTE)
    assert (report.rows, report.mismatches) == (10, 0)


@pytest.mark.parametrize(
    "window",
    [
        (START - timedelta(days=9), START),
        (START + timedelta(days=2), None),
        (datetime.min.replace(tzinfo=UTC), START),
        (datetime.max.replace(tzinfo=UTC), None),
    ],
)
def test_a_window_may_have_no_rows(built: str, window: tuple[datetime, datetime | None]) -> None:
    with psycopg.connect(built, autocommit=True) as connection:
        report = verify(connection, start=window[0], end=window[1])
    assert (report.symbols, report.rows, report.mismatches) == (0, 0, 0)


def test_a_window_of_all_time_includes_all_rows(built: str) -> None:
    with psycopg.connect(built, autocommit=True) as connection:
        report = verify(
            connection,
            start=datetime.min.replace(tzinfo=UTC),
            end=datetime.max.replace(tzinfo=UTC),
        )
    assert (report.rows, report.mismatches) == (ROWS, 0)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu"])
def test_the_time_zone_of_a_session_has_no_effect(damaged: Conn, zone: str) -> None:
    damaged.execute("SELECT set_config('TimeZone', %s, true)", [zone])
    assert verify(damaged).mismatches == 0
    store(damaged, "vol", -1.0)
    (example,) = verify(damaged).examples
    assert example.bucket == BUCKET_TEXT


def test_an_unknown_symbol_to_verify_is_rejected(built: str) -> None:
    with (
        psycopg.connect(built, autocommit=True) as connection,
        pytest.raises(UserError, match=r"no bars and no features of 'unknown'"),
    ):
        verify(connection, symbol="unknown")


@pytest.mark.parametrize("end", [START, START - MINUTE])
def test_an_empty_window_to_verify_is_rejected(built: str, end: datetime) -> None:
    with (
        psycopg.connect(built, autocommit=True) as connection,
        pytest.raises(UserError, match=r"window to verify is empty"),
    ):
        verify(connection, start=START, end=end)


def test_a_verification_writes_no_row(built: str) -> None:
    with psycopg.connect(built, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = on")
        assert verify(connection).rows == ROWS


def test_windows_may_need_bars_of_earlier_slices(conn: Conn) -> None:
    """The last bar is 45 days after 65 days of bars, so its features need distant bars."""
    insert_bars(conn, A, START, 65 * 48, step=30)
    late = START + timedelta(days=110)
    insert_bars(conn, A, late, 2)
    refresh(conn)
    calls: list[tuple[int, int]] = []
    report = verify(conn, progress=lambda done, total: calls.append((done, total)))
    assert (report.rows, report.mismatches) == (65 * 48 + 2, 0)
    assert calls == [(number, 4) for number in range(1, 5)]
    for bucket in (START + timedelta(days=30), START + timedelta(days=60), late):
        for column in ("log_return", "ma_vol_1d", "n_1d"):
            right = stored(conn, column, bucket)
            assert right is not None
            store(conn, column, 7, bucket)
            (example,) = verify(conn).examples
            assert (example.column, example.stored, example.expected) == (column, 7, right)
            store(conn, column, right, bucket)


def test_writes_during_a_verification_are_no_mismatch(database: str) -> None:
    over = threading.Event()

    def write(connection: Conn) -> None:
        insert_bars(connection, A, START, 300)
        connection.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE random() < 0.1")
        connection.execute("DELETE FROM ohlcv_1m WHERE symbol = %s", [A])

    def go_on(work: Callable[[Conn], object]) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            while not over.is_set():
                work(connection)

    seen = 0
    with psycopg.connect(database, autocommit=True) as connection, ThreadPoolExecutor() as pool:
        insert_bars(connection, B, START, 300)
        refresh(connection)
        others = [pool.submit(go_on, work) for work in (write, refresh)]
        try:
            for _ in range(25):
                report = verify(connection)
                assert report.examples == []
                seen += report.rows
        finally:
            over.set()
        for other in others:
            other.result()
    assert seen > 0


def test_the_command_shows_a_mismatch_and_exits_with_1(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        insert_bars(connection, A, START, ROWS_A)
        refresh(connection)
        done = run_on(database, "verify")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (f"verified: {ROWS_A:,} rows of 1 symbol checked, all equal\n")
        right = stored(connection, "volume_z")
        store(connection, "volume_z", math.nextafter(right, math.inf))
    done = run_on(database, "verify", "--symbol", A, "--start", BUCKET_TEXT, "--end", "2026-01-03")
    assert (done.returncode, done.stderr) == (1, "")
    summary, heading, line = done.stdout.splitlines()
    assert re.fullmatch(
        rf"verified: 1 of [\d,]+ rows is wrong: {re.escape(A)} {BUCKET_TEXT} volume_z", summary
    )
    assert heading.split() == ["view", "symbol", "bucket", "column", "stored", "recomputed"]
    assert line.split() == [
        "features_1m",
        A,
        BUCKET_TEXT,
        "volume_z",
        repr(math.nextafter(right, math.inf)),
        repr(right),
    ]
    done = run_on(database, "verify", "--end", BUCKET_TEXT)
    assert done.returncode == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts = %s", [BUCKET])
    done = run_on(database, "verify")
    assert done.returncode == 0
    assert ", all equal; " in done.stdout
    assert "not compared, waiting for refresh: " in done.stdout


HOSTILE = [
    "'; DROP TABLE ohlcv_1m; --",
    '"; DROP TABLE ohlcv_1m; --',
    "%s %(symbol)s {0} {symbol}",
    "Ω≈ç√∫ 中文 🚀",
    "[bold]/[/] :smile:",
    "\\'; SELECT 1",
    "x" * 200,
]
NO_SYMBOLS = ["a\nb\tc", "\x1b[31mred\x07", " ", "x" * 2000, ""]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_hostile_symbols_are_only_values(database: str) -> None:
    for name in HOSTILE:
        line = rejection(run_on(database, "verify", "--symbol", name))
        assert line.startswith("there are no bars and no features of ")
        assert line.isprintable()
    for name in NO_SYMBOLS:
        line = rejection(run_on(database, "verify", "--symbol", name))
        assert " is not a symbol: " in line
        assert line.isprintable()
    assert "is not valid UTF-8" in rejection(run_on(database, "verify", "--symbol", "\udcff"))
    with psycopg.connect(database, autocommit=True) as connection:
        for name in HOSTILE:
            insert_bars(connection, name, START, 3)
        refresh(connection)
        for name in HOSTILE:
            report = verify(connection, symbol=name)
            assert (report.symbols, report.rows, report.mismatches) == (1, 3, 0)
        connection.execute("UPDATE features_1m SET vol = -1 WHERE bucket = %s", [START])
    done = run_on(database, "verify")
    assert (done.returncode, done.stderr) == (1, "")
    for name in HOSTILE:
        assert name in done.stdout


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_wrong_windows_get_one_line(database: str) -> None:
    line = rejection(run_on(database, "verify", "--start", "2026-01-02", "--end", "2026-01-01"))
    assert line.startswith("the window to verify is empty")
    line = rejection(run_on(database, "verify", "--start", "yesterday"))
    assert "'yesterday' is not an ISO-8601 time" in line
    assert line.endswith("(see feature-platform verify --help)")
