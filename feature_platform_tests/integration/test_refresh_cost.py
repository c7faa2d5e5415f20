"""Guards against a refresh whose cost exceeds that of its dirty rows, in any shape of data.

Each test runs on tables with and without statistics, because plans must not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest

from feature_platform._adbc import text_of
from feature_platform.queries import queries
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_plans import about_as_many, explain, pages_of, processor_seconds
from feature_platform_tests.fix_processes import value

# Two bars of each symbol, 300 days apart, and one symbol whose newest minute is dirty.
FEW, MANY = 300, 3000
SPARSE = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT 'S' || s, ts, 10, 10, 10, 10, s
    FROM generate_series(1, %s) AS s,
         unnest(ARRAY['2025-01-05 00:00Z', '2025-11-01 00:00Z']::timestamptz[]) AS ts
"""
LIVE = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT %s, feature_platform.due_until() - interval '1 minute', 10, 10, 10, 10, 1
"""
PICK = """
    SELECT picked FROM feature_platform.pick_symbols(
        tstzrange({}, feature_platform.due_until()), feature_platform.dirty_horizon(),
        20000, 10, {})
"""
LIVE_FROM = "feature_platform.due_until() - interval '1 hour'"
SLICE = """
    SELECT symbols, rows_written, more FROM feature_platform.refresh_slice(
        '-infinity', feature_platform.due_until(), feature_platform.dirty_horizon())
"""
REFRESH = "CALL refresh_features_1m(NULL, NULL)"
ENTIRE = "CALL refresh_features_1m(NULL, NULL, true)"


@pytest.fixture(params=["analysed", "never analysed"])
def analysed(request: pytest.FixtureRequest) -> bool:
    """Return whether the tables have statistics."""
    return bool(request.param == "analysed")


@pytest.fixture
def conn(conn: psycopg.Connection) -> psycopg.Connection:
    """Return a connection to a database without autovacuum of its tables."""
    for table in ("public.ohlcv_1m", "public.features_1m", "feature_platform.dirty_log"):
        conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)".encode())
    return conn


@pytest.fixture
def crowds(databases: Databases, analysed: bool) -> Iterator[list[psycopg.Connection]]:
    """Yield two databases, the second with ten times as many dirty symbols; one is live."""
    with databases.fresh() as few, databases.fresh() as many:
        conns = []
        for url, symbols in ((few, FEW), (many, MANY)):
            conn = psycopg.connect(url, autocommit=True)
            conn.execute("ALTER TABLE feature_platform.dirty_log SET (autovacuum_enabled = false)")
            conn.execute(LIVE, ["Z"])
            conn.execute(SPARSE, [symbols])
            if analysed:
                conn.execute("VACUUM (ANALYZE)")
            conns.append(conn)
        yield conns
        for conn in conns:
            conn.close()


def store_minutes(conn: psycopg.Connection, minutes: int, analysed: bool) -> None:
    """Store bars of a symbol S up to this minute of 2026, and refresh their rows."""
    conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'S', '2026-01-01 00:00Z'::timestamptz + m * interval '1 minute',
                  10, 10, 10, 10, m
           FROM generate_series(1, %s) AS m ON CONFLICT DO NOTHING""",
        [minutes],
    )
    conn.execute(REFRESH)
    if analysed:
        conn.execute("VACUUM (ANALYZE)")


@pytest.mark.parametrize("live", [True, False])
def test_the_cost_of_picking_a_slice_does_not_depend_on_the_marks(
    crowds: list[psycopg.Connection], live: bool
) -> None:
    pick = PICK.format(LIVE_FROM if live else "'-infinity'", live)
    pages = []
    for conn in crowds:
        for _ in range(2):
            with conn.transaction(force_rollback=True):
                plan = explain(conn, pick)
        with conn.transaction(force_rollback=True):
            picked = value(conn, pick)
        assert picked == ["Z"] if live else len(picked) == 10
        pages.append(pages_of(plan))
    assert about_as_many(pages)


def test_a_slice_is_sized_by_rows_not_by_minutes(conn: psycopg.Connection, analysed: bool) -> None:
    conn.execute(SPARSE, [FEW])
    if analysed:
        conn.execute("VACUUM (ANALYZE)")
    assert conn.execute(SLICE).fetchone() == (FEW, 2 * FEW, False)
    conn.execute("TRUNCATE ohlcv_1m")
    assert conn.execute(SLICE).fetchone() == (FEW, 2 * FEW, False)


def test_a_new_minute_counts_as_one_row_of_a_slice(
    conn: psycopg.Connection, analysed: bool
) -> None:
    symbols = 40
    minute = """
        INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
        SELECT 'S' || s, '2025-01-05 00:00Z'::timestamptz + m * interval '1 minute',
               10, 10, 10, 10, 1
        FROM generate_series(1, %s) AS s, generate_series(%s::integer, %s) AS m"""
    conn.execute(minute, [symbols, 1, 1500])
    conn.execute(REFRESH)
    if analysed:
        conn.execute("VACUUM (ANALYZE)")
    conn.execute(minute, [symbols, 1501, 1501])
    # The sums are cached, so the bars of the day before are not read and do not count.
    slice_ = SLICE.replace("())", "(), slice_rows => 10 * %s)")
    assert conn.execute(slice_, [symbols]).fetchone() == (symbols, symbols, False)
    # Old bars of the same symbols leave the sums as they are.
    conn.execute(minute, [symbols, -50_001, -50_000])
    conn.execute(REFRESH)
    conn.execute(minute, [symbols, -49_999, -49_999])
    conn.execute(minute, [symbols, 1502, 1502])
    slice_ = slice_.replace("'-infinity'", "'2025-01-05 00:00Z'").replace("10 *", "20 *")
    assert conn.execute(slice_, [symbols]).fetchone() == (symbols, symbols, False)


def test_the_cost_of_a_forced_refresh_is_linear(conn: psycopg.Connection, analysed: bool) -> None:
    seconds = []
    for minutes in (5000, 20000):
        store_minutes(conn, minutes, analysed)
        seconds.append(min(processor_seconds(conn, ENTIRE) for _ in range(2)))
    assert seconds[1] < 8 * seconds[0] + 0.05, "four times the rows cost far more than four times"


def test_the_cost_of_deleting_rows_without_bars_is_linear(
    conn: psycopg.Connection, analysed: bool
) -> None:
    seconds = []
    for minutes in (5000, 20000):
        store_minutes(conn, minutes, analysed)
        conn.execute("DELETE FROM ohlcv_1m WHERE ts > '2026-01-01 12:00Z'")
        seconds.append(processor_seconds(conn, REFRESH))
        assert value(conn, "SELECT count(*) FROM features_1m") == 720
    assert seconds[1] < 8 * seconds[0] + 0.05, "four times the rows cost far more than four times"


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_rows_are_deleted_by_their_key(conn: psycopg.Connection, analysed: bool) -> None:
    """The index on the bucket finds the rows of all symbols, so n symbols would cost n²."""
    conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'S' || s, ts, 10, 10, 10, 10, 1
           FROM generate_series(1, 2000) AS s,
                unnest('{2025-06-01 00:00Z,2026-04-01 00:00Z}'::timestamptz[]) AS ts"""
    )
    conn.execute(REFRESH)
    if analysed:
        conn.execute("VACUUM (ANALYZE)")
    conn.execute("TRUNCATE ohlcv_1m")
    conn.execute(REFRESH)
    assert value(conn, "SELECT count(*) FROM features_1m") == 0
    conn.execute("SELECT pg_stat_force_next_flush()")
    read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = %s"
    assert value(conn, read, "features_1m_bucket_idx") <= 2 * 4000


STEP = "SELECT feature_platform.policy_step(%s, %s)"


def begun(conn: psycopg.Connection) -> tuple[int, int]:
    row = conn.execute(
        "SELECT feature_platform.policy_begin('worker'), feature_platform.dirty_horizon()"
    ).fetchone()
    assert row is not None
    return row


def test_the_newest_mark_is_refreshed_before_many_older_ones(
    conn: psycopg.Connection, analysed: bool
) -> None:
    conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'S' || s, feature_platform.due_until() - interval '1 minute', 10, 10, 10, 10, 1
           FROM generate_series(1, 4000) AS s"""
    )
    if analysed:
        conn.execute("VACUUM (ANALYZE)")
    run = begun(conn)
    conn.execute(STEP, run)
    conn.execute(LIVE, ["Z"])
    assert value(conn, STEP, *run) is True
    assert value(conn, "SELECT count(*) FROM features_1m WHERE symbol = 'Z'") == 1
    assert value(conn, "SELECT count(*) FROM features_1m") < 4001


def test_a_live_bar_is_refreshed_between_the_steps_of_many_windows(
    conn: psycopg.Connection, analysed: bool
) -> None:
    symbols = 40
    conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'S' || s, feature_platform.due_until() - m * interval '1 minute',
                  10, 10, 10, 10, 1
           FROM generate_series(1, %s) AS s, generate_series(1, 1500) AS m""",
        [symbols],
    )
    conn.execute(REFRESH)
    if analysed:
        conn.execute("VACUUM (ANALYZE)")
    conn.execute(
        """UPDATE ohlcv_1m SET vol = 2
           WHERE ts = (SELECT max(ts) - interval '50 minutes' FROM ohlcv_1m WHERE symbol = 'S1')"""
    )
    run = begun(conn)
    conn.execute(STEP, run)
    conn.execute(LIVE, ["Z"])
    conn.execute(STEP, run)
    assert value(conn, "SELECT count(*) FROM features_1m WHERE symbol = 'Z'") == 1
    corrected = value(conn, "SELECT count(*) FROM features_1m WHERE vol = 2")
    assert 0 < corrected < symbols
    while value(conn, STEP, *run):
        pass
    assert value(conn, "SELECT count(*) FROM features_1m WHERE vol = 2") == symbols


@pytest.mark.parametrize(
    "query", ["frames_unknown", "frames_without_rows", "service_symbol_is_known"]
)
def test_the_search_for_an_unknown_symbol_reads_few_pages(
    conn: psycopg.Connection, analysed: bool, query: LiteralString
) -> None:
    store_minutes(conn, 20000, analysed)
    if query == "service_symbol_is_known":
        statement = psycopg.ClientCursor(conn).mogrify(queries[query], {"symbol": "X"})
    else:
        names = psycopg.sql.Identifier("public", "features_1m"), psycopg.sql.Identifier("bucket")
        ever = psycopg.sql.Literal("-infinity")
        statement = text_of(query, table=names[0], time=names[1], since=ever).replace(
            "$1::text[]", "ARRAY['S', 'X']"
        )
    explain(conn, statement)
    assert pages_of(explain(conn, statement)) < 100
