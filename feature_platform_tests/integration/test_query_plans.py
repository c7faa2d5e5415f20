"""Guards against statements whose cost grows with the history.

The rows and pages of a refresh are measured inside one transaction: rows by the server's counters,
and pages by EXPLAIN, which includes functions, triggers, indexes and planning. On TimescaleDB the
counters include the chunks and its catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from feature_platform._adbc import text_of
from feature_platform.bars import StreamBar, ts_of
from feature_platform.queries import queries
from feature_platform_tests.fix_plans import SYMBOLS, about_as_many, explain, nodes, pages_of
from feature_platform_tests.fix_processes import value

NEW_MINUTE = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT 'S' || s, current_setting('tests.newest')::timestamptz + interval '10 minutes',
           10, 10, 10, 10, 3
    FROM generate_series(1, 20) AS s
"""
INSIDE_A_MINUTE = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    VALUES ('S7', current_setting('tests.newest')::timestamptz + interval '9.5 minutes',
            10, 10, 10, 10, 3)
"""
CORRECTED = """
    UPDATE ohlcv_1m SET vol = vol + 5
    WHERE ts = current_setting('tests.newest')::timestamptz
"""
OLD_BAR = """
    UPDATE ohlcv_1m SET vol = vol + 5
    WHERE symbol = 'S7'
      AND ts = current_setting('tests.newest')::timestamptz - interval '2000 minutes'
"""
DELETED = """
    DELETE FROM ohlcv_1m
    WHERE symbol = 'S7'
      AND ts = current_setting('tests.newest')::timestamptz - interval '2000 minutes'
"""
REFRESH = """
    SELECT * FROM feature_platform.refresh_slice(
        '-infinity', feature_platform.due_until(), feature_platform.dirty_horizon())
"""
# The watermark of each symbol after its newest bar, without any gap.
ACCOUNTED = """
    INSERT INTO feature_platform.gap_watermark
    SELECT symbol, min(ts), max(ts) + interval '1 minute' FROM ohlcv_1m GROUP BY symbol
"""
NEWEST = "SELECT current_setting('tests.newest')"
COUNTERS = """
    SELECT coalesce(sum(seq_scan) FILTER (  -- of the lake there is one row for each of its tables
               WHERE relname NOT IN ('dirty_log', 'lake_table')), 0)::bigint,
           coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint
    FROM pg_stat_xact_user_tables
    WHERE schemaname IN ('public', 'feature_platform', '_timescaledb_internal')
"""


@dataclass(frozen=True)
class Cost:
    """The sequential scans, rows and pages of a statement."""

    seq_scans: int
    rows: int
    pages: int


def cost_of_refresh(conn: psycopg.Connection, change: LiteralString) -> Cost:
    """Make a change, measure its refresh, and roll both back."""
    for _ in range(2):  # the session's first call reads the catalogues, too
        with conn.transaction(force_rollback=True):
            assert conn.execute(change).rowcount > 0
            before = conn.execute(COUNTERS).fetchone() or (0, 0)
            plan = explain(conn, REFRESH)
            after = conn.execute(COUNTERS).fetchone() or (0, 0)
            left = conn.execute("SELECT * FROM feature_platform.dirty").fetchall()
            assert not left, "one slice is not enough"
            conn.execute("SELECT pg_stat_force_next_flush()")
    return Cost(after[0] - before[0], after[1] - before[1], pages_of(plan))


@pytest.mark.parametrize(
    ("change", "most_rows"),
    [
        # Each symbol has bars that enter and leave, its first and last bar, the old row, and its
        # seven states, which are read three times.
        pytest.param(NEW_MINUTE, 36 * SYMBOLS, id="a new minute of each symbol"),
        pytest.param(CORRECTED, 44 * SYMBOLS, id="the newest bar of each symbol, corrected"),
        # The bars of two days and the rows of one, some of them twice.
        pytest.param(OLD_BAR, 6 * 144, id="an old bar"),
        pytest.param(DELETED, 10 * 144, id="an old bar that is deleted"),
        pytest.param(INSIDE_A_MINUTE, 4 * 144, id="a row inside a minute"),
    ],
)
def test_a_refresh_costs_the_same_at_ten_times_the_history(
    histories: tuple[psycopg.Connection, ...], change: LiteralString, most_rows: int
) -> None:
    short, long = (cost_of_refresh(conn, change) for conn in histories)
    assert short.seq_scans == long.seq_scans == 0
    assert 0 < short.rows <= most_rows
    assert long.rows <= short.rows * 1.1 + SYMBOLS
    assert about_as_many([short.pages, long.pages])


@pytest.mark.parametrize("change", [NEW_MINUTE, OLD_BAR, DELETED, INSIDE_A_MINUTE])
def test_a_write_costs_the_same_at_ten_times_the_history(
    histories: tuple[psycopg.Connection, ...], change: LiteralString
) -> None:
    pages = []
    for conn in histories:
        for _ in range(2):
            with conn.transaction(force_rollback=True):
                plan = explain(conn, change)
        pages.append(pages_of(plan))
    assert about_as_many(pages)


@pytest.mark.parametrize(
    ("query", "most_rows"),
    [
        ("SELECT COUNT(*) FROM features_1m WHERE bucket > now()-'30 minutes'::interval", 40),
        ("SELECT * FROM features_1m ORDER BY bucket DESC LIMIT 3", 3),
        (
            """SELECT bucket, log_return, volume_z, vwap_gap, parkinson_vol FROM features_1m
               WHERE bucket BETWEEN now() - interval '1 hour' AND now()""",
            100,
        ),
        (
            """SELECT bucket AS "time", volume_z FROM features_1m
               WHERE bucket BETWEEN now() - interval '1 hour' AND now()""",
            100,
        ),
        ("SELECT * FROM features_1m WHERE symbol = 'S3' ORDER BY bucket DESC LIMIT 60", 60),
    ],
)
def test_a_read_scans_only_the_rows_that_it_returns(
    histories: tuple[psycopg.Connection, ...], query: LiteralString, most_rows: int
) -> None:
    pages = []
    for conn in histories:
        explain(conn, query)
        plan = explain(conn, query)
        pages.append(pages_of(plan))
        scans = [node for node in nodes(plan["Plan"]) if "Relation Name" in node]
        assert scans
        assert "Seq Scan" not in {node["Node Type"] for node in scans}
        rows = [
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in scans
        ]
        assert max(rows) <= most_rows
    assert about_as_many(pages)


FEATURES = Identifier("public", "features_1m")
COLUMNS = SQL("volume_z, vwap_gap")


def frame_statement(query: str, newest: datetime) -> LiteralString:
    """Return a statement of frames of two symbols, in the hour up to a time."""
    since = Literal(newest - timedelta(hours=1))
    return text_of(
        query,
        columns=SQL(", ").join([SQL("symbol, bucket"), COLUMNS]),
        table=FEATURES,
        time=SQL("bucket"),
        symbols=Literal(["S3", "S7"]),
        start=since,
        end=Literal(newest),
        since=since,
    )


@pytest.mark.parametrize(
    ("query", "most_rows"), [("frames_read", 130), ("frames_latest", 2), ("frames_without_rows", 2)]
)
def test_a_frame_scans_only_the_rows_that_it_returns(
    histories: tuple[psycopg.Connection, ...], query: str, most_rows: int
) -> None:
    pages = []
    for conn in histories:
        statement = frame_statement(query, datetime.fromisoformat(value(conn, NEWEST)))
        for _ in range(2):
            plan = explain(conn, statement, *([["S3", "S7"]] if "$1" in statement else []))
        pages.append(pages_of(plan))
        scans = [
            node
            for node in nodes(plan["Plan"])
            if node.get("Relation Name", "known_symbol") != "known_symbol"  # a small table
        ]
        assert scans
        assert "Seq Scan" not in {node["Node Type"] for node in scans}
        assert max(node["Actual Rows"] * node["Actual Loops"] for node in scans) <= most_rows
    assert about_as_many(pages)


@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
@pytest.mark.parametrize("query", ["frames_read", "frames_latest", "frames_without_rows"])
def test_a_frame_of_recent_rows_plans_for_recent_chunks_only(
    conn: psycopg.Connection, query: str
) -> None:
    """A chunk that is excluded when the statement starts has been planned for."""
    conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT 'S3', feature_platform.due_until() - w * interval '7 days' - interval '1 minute',
                  1, 1, 1, 1, 1 FROM generate_series(0, 30) AS w"""
    )
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    assert value(conn, "SELECT count(*) FROM show_chunks('features_1m')") >= 30
    newest = value(conn, "SELECT feature_platform.due_until()")
    statement = frame_statement(query, newest)
    for _ in range(2):
        plan = explain(conn, statement, *([["S3", "S7"]] if "$1" in statement else []))
    found = list(nodes(plan["Plan"]))
    assert (
        1 <= sum("Relation Name" in node for node in found) <= 4
    )  # a chunk, and its compressed one
    assert sum(node.get("Chunks excluded during startup", 0) for node in found) == 0
    assert pages_of(plan) < 300


@pytest.mark.parametrize(
    "query",
    ["SELECT * FROM feature_platform.bar_symbol", "SELECT * FROM feature_platform.feature_symbol"],
)
def test_the_list_of_symbols_costs_the_same_at_ten_times_the_history(
    histories: tuple[psycopg.Connection, ...], query: LiteralString
) -> None:
    pages = []
    for conn in histories:
        for _ in range(2):
            plan = explain(conn, query)
        assert plan["Plan"]["Actual Rows"] == SYMBOLS
        pages.append(pages_of(plan))
    assert about_as_many(pages)


@pytest.mark.parametrize("change", [NEW_MINUTE, OLD_BAR, DELETED])
def test_a_search_for_gaps_costs_the_same_at_ten_times_the_history(
    histories: tuple[psycopg.Connection, ...], change: LiteralString
) -> None:
    pages = []
    for conn in histories:
        for _ in range(7):  # from the sixth run on, the session uses a stored plan
            with conn.transaction(force_rollback=True):
                conn.execute(ACCOUNTED)
                conn.execute(change)
                plan = explain(conn, "SELECT feature_platform.find_gaps()")
                assert value(conn, "SELECT count(*) FROM ohlcv_1m_gaps") > 0
        pages.append(pages_of(plan))
    assert about_as_many(pages)


def test_the_state_of_the_policy_costs_the_same_at_ten_times_the_history(
    histories: tuple[psycopg.Connection, ...],
) -> None:
    pages = []
    for conn in histories:
        with conn.transaction(force_rollback=True):
            conn.execute(NEW_MINUTE)
            for _ in range(2):
                plan = explain(conn, "SELECT * FROM feature_platform.policy_status")
        pages.append(pages_of(plan))
    assert about_as_many(pages)


def test_a_recorded_minute_costs_the_same_at_ten_times_the_history(
    histories: tuple[psycopg.Connection, ...],
) -> None:
    pages = []
    for conn in histories:
        newest = datetime.fromisoformat(value(conn, NEWEST))
        # Half of the bars are new, half are stored with other values.
        bars = [
            StreamBar(f"S{symbol}", ts_of(newest + timedelta(minutes=late)), 10, 12, 9, 11, 2)
            for symbol in range(1, SYMBOLS + 1)
            for late in (0, 10)
        ]
        columns = dict(zip(StreamBar._fields, map(list, zip(*bars, strict=True)), strict=True))
        ends = {"first": newest, "last": newest + timedelta(minutes=10)}
        statement = psycopg.ClientCursor(conn).mogrify(
            queries["recorder_store"], {**columns, **ends}
        )
        for _ in range(2):
            with conn.transaction(force_rollback=True):
                plan = explain(conn, statement)
        scans = [node for node in nodes(plan["Plan"]) if "Relation Name" in node]
        assert "Seq Scan" not in {node["Node Type"] for node in scans if node["Actual Loops"]}
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) <= 2 * len(bars)
        pages.append(pages_of(plan))
    assert about_as_many(pages)


# Before PostgreSQL 18 a disabled scan adds 1e10 to the cost, far above jit_above_cost.
COMPILED = """
    SELECT oid::regprocedure::text FROM pg_proc
    WHERE EXISTS (SELECT FROM unnest(proconfig) AS one WHERE one LIKE 'enable%=off')
      AND NOT proconfig @> '{jit=off}'
"""


def test_functions_that_disable_a_scan_are_not_compiled(conn: psycopg.Connection) -> None:
    assert conn.execute(COMPILED).fetchall() == []
