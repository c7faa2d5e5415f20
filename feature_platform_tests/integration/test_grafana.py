"""Guards against dashboard queries that fail, show wrong rows, or read more than their range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from feature_platform.gaps import STATES
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_plans import SYMBOLS, about_as_many, explain, nodes, pages_of
from feature_platform_tests.fix_processes import insert_bars
from feature_platform_tests.grafana import Query, View, expand, fetch, queries

QUERIES = queries()
NEWEST = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=5)
MINUTE = timedelta(minutes=1)
# A symbol that tries to break out of its SQL literal.
HOSTILE = "O'Brien') OR true; --/USDT"
MISSING = (NEWEST - timedelta(minutes=60), NEWEST - timedelta(minutes=50))

each_query = pytest.mark.parametrize("query", QUERIES, ids=[query.where for query in QUERIES])


def the_query(where: str) -> Query:
    (found,) = (query for query in QUERIES if query.where == where)
    return found


def view(**options: Any) -> View:
    """Return a view of the last six hours of both symbols."""
    return View(**{"start": NEWEST - timedelta(hours=6), "end": NEWEST, **options})


@pytest.fixture(scope="module")
def traded(databases: Databases) -> Iterator[psycopg.Connection[Any]]:
    """Yield a database of two symbols, with gaps in each state and a failed run."""
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        for symbol in (HOSTILE, "BTC/USDT"):
            insert_bars(conn, symbol, NEWEST - timedelta(minutes=1800), 1801)
        conn.execute(
            "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s", [HOSTILE, *MISSING]
        )
        conn.execute("CALL refresh_features_1m(NULL, NULL)")
        for minutes, state in (
            (300, "quiet"),
            (200, "filled"),
            (150, "not_recorded"),
            (100, "unavailable"),
            (60, "open"),
        ):
            start = NEWEST - timedelta(minutes=minutes)
            conn.execute(
                "INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts, state, changed_at)"
                " VALUES (%s, %s, %s, %s, %s)",
                [HOSTILE, start, start + 10 * MINUTE, state, start + timedelta(minutes=20)],
            )
        conn.execute(
            """INSERT INTO feature_platform.policy_run
                   (runner, started_at, finished_at, rows_written, error)
               SELECT 'worker', t, t + interval '2 seconds', 7, CASE WHEN n = 3 THEN 'no' END
                 FROM generate_series(0, 9) AS n,
                      LATERAL (SELECT %s - n * interval '1 minute') AS started (t)""",
            [NEWEST],
        )
        conn.execute(
            """INSERT INTO feature_platform.heartbeat (symbol, state, state_at, first_at, beat_at)
               VALUES ('BTC/USDT', 'live', now(), now(), now())"""
        )
        conn.execute(
            """INSERT INTO feature_platform.feed_outage (from_at, to_at, reason)
               VALUES (%s, %s, 'no recorder was running')""",
            MISSING,
        )
        result = {"rows": 5, "mismatch": 1, "missing": 0, "extra": 0, "not_kept": 0, "examples": []}
        conn.execute("SELECT feature_platform.note_skew(%s)", [Jsonb(result)])
        conn.execute("UPDATE feature_platform.skew_check SET at = %s", [NEWEST - MINUTE])
        conn.execute("SET ROLE feature_platform_reader")  # the role of Grafana
        yield conn


@each_query
def test_each_query_returns_rows_that_a_panel_can_show(
    traded: psycopg.Connection[Any], query: Query
) -> None:
    for symbols in (HOSTILE, [HOSTILE, "BTC/USDT"]):
        if query.where.startswith("features") and not isinstance(symbols, str):
            continue  # these show one symbol at a time
        names, rows = fetch(traded, query, view(symbols=symbols))
        assert rows
        assert len(set(names)) == len(names)
        if query.format == "time_series":
            assert names[0] == "time"
            times = [row[0] for row in rows]
            assert times == sorted(set(times))
            values = [value for row in rows for value in row[1:] if value is not None]
            assert values
            assert all(math.isfinite(value) for value in values)  # a text would name a series


def test_every_query_runs_on_an_empty_database(conn: psycopg.Connection[Any]) -> None:
    for query in QUERIES:
        fetch(conn, query, view(symbols="" if query.where.startswith("features") else []))


@pytest.mark.parametrize("column", ["volume_z", "log_return", "vwap_gap", "parkinson_vol"])
def test_features_are_shown_as_stored_with_null_for_missing_minutes(
    traded: psycopg.Connection[Any], column: str
) -> None:
    title = {
        "volume_z": "Volume z-score",
        "log_return": "Log return",
        "vwap_gap": "VWAP gap",
        "parkinson_vol": "Parkinson volatility",
    }[column]
    names, rows = fetch(traded, the_query(f"features: {title}"), view(symbols=HOSTILE))
    assert names == ["time", column]
    stored = {
        row[0]: row[1]
        for row in traded.execute(
            sql.SQL("SELECT bucket, {} FROM features_1m WHERE symbol = %s").format(
                sql.Identifier(column)
            ),
            [HOSTILE],
        )
    }
    assert [datetime.fromtimestamp(int(time), UTC) for time, _ in rows] == [
        NEWEST - timedelta(minutes=minutes) for minutes in range(360, -1, -1)
    ]
    for time, shown in rows:
        moment = datetime.fromtimestamp(int(time), UTC)
        assert shown == stored.get(moment)
        if MISSING[0] <= moment < MISSING[1]:
            assert shown is None


def test_candles_of_longer_intervals_combine_their_bars(
    traded: psycopg.Connection[Any],
) -> None:
    start = NEWEST.replace(minute=0) - timedelta(hours=4)
    look = view(symbols="BTC/USDT", interval="15m", start=start, end=start + timedelta(minutes=44))
    names, rows = fetch(traded, the_query("features: Bars of $symbol"), look)
    assert names == ["time", "open", "high", "low", "close", "volume"]
    bars = traded.execute(
        "SELECT extract(epoch FROM ts), open, high, low, close, vol FROM ohlcv_1m"
        " WHERE symbol = 'BTC/USDT' AND ts >= %s ORDER BY ts LIMIT 45",
        [start],
    ).fetchall()
    expected = []
    for first in range(0, 45, 15):
        _, opens, highs, lows, closes, volumes = zip(*bars[first : first + 15], strict=True)
        candle = (opens[0], max(highs), min(lows), closes[-1])
        expected.append((bars[first][0], *candle, pytest.approx(sum(volumes))))
    assert rows == expected


def test_missing_minutes_are_counted_by_state(traded: psycopg.Connection[Any]) -> None:
    for where in ("features: Minutes without a bar", "operations: Minutes without a bar, by state"):
        names, rows = fetch(traded, the_query(where), view(symbols=HOSTILE))
        shown = [name.replace(" ", "_") for name in names[1:]]
        assert set(shown) == set(STATES) - {"filled"}
        assert [sum(values) for values in list(zip(*rows, strict=True))[1:]] == [10] * len(shown)
        open_minutes = [int(row[0]) for row in rows if row[names.index("open")]]
        assert open_minutes == [int(MISSING[0].timestamp()) + 60 * n for n in range(10)]


def test_each_gap_is_marked_in_the_charts(traded: psycopg.Connection[Any]) -> None:
    marked = {
        row[0]
        for query in QUERIES
        if query.where.startswith("features: ") and query.where.endswith(" gaps")
        for row in fetch(traded, query, view(symbols=HOSTILE))[1]
    }
    listed = traded.execute(
        "SELECT start_ts FROM ohlcv_1m_gaps WHERE symbol = %s AND state <> 'filled'", [HOSTILE]
    )
    assert marked == {row[0] for row in listed}


def test_gaps_are_cut_to_the_range(traded: psycopg.Connection[Any]) -> None:
    inside = view(
        symbols=HOSTILE, start=MISSING[0] + timedelta(seconds=150), end=MISSING[1] - 4 * MINUTE
    )
    _, rows = fetch(traded, the_query("features: open gaps"), inside)
    assert [row[:2] for row in rows] == [(MISSING[0] + 2 * MINUTE, MISSING[1] - 4 * MINUTE)]
    for start, end in (MISSING[1], NEWEST), (MISSING[0] - 9 * MINUTE, MISSING[0]):
        outside = view(symbols=HOSTILE, start=start, end=end)
        assert fetch(traded, the_query("features: open gaps"), outside)[1] == []


@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
def test_time_bucket_gives_the_same_groups(traded: psycopg.Connection[Any], engine: str) -> None:
    assert engine == "timescaledb"
    for query in QUERIES:
        if "$__timeGroup" in query.sql:
            plain, hyper = (
                traded.execute(expand(query.sql, look).encode()).fetchall()
                for look in (view(symbols=HOSTILE), view(symbols=HOSTILE, timescaledb=True))
            )
            assert [(row[0].timestamp(), *row[1:]) for row in hyper] == plain


@pytest.fixture(scope="module")
def long_histories(
    histories: tuple[psycopg.Connection[Any], psycopg.Connection[Any]],
) -> tuple[psycopg.Connection[Any], ...]:
    """Return the histories, with a gap between any two bars and a policy run each minute."""
    for conn in histories:
        conn.execute(
            """INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts, state, changed_at)
               SELECT symbol, ts + interval '1 minute', ts + interval '10 minutes',
                      CASE WHEN ts > now() - interval '1 hour' THEN 'open'
                           WHEN extract(minute FROM ts)::integer % 20 < 10 THEN 'filled'
                           ELSE 'quiet' END, ts + interval '30 minutes'
                 FROM ohlcv_1m ORDER BY ts"""
        )
        conn.execute(
            """INSERT INTO feature_platform.policy_run (runner, started_at, finished_at)
               SELECT 'worker', t, t FROM (SELECT min(ts) AS first FROM ohlcv_1m) AS b,
                      generate_series(first, now(), interval '1 minute') AS t ORDER BY t"""
        )
        conn.execute(
            """INSERT INTO feature_platform.feed_outage (from_at, to_at, reason)
               SELECT ts, ts + interval '5 minutes', 'no' FROM ohlcv_1m
                WHERE symbol = 'S7' ORDER BY ts"""
        )
        conn.execute("VACUUM (ANALYZE)")
    return histories


@each_query
def test_the_cost_of_a_query_depends_on_its_range_not_on_the_history(
    long_histories: tuple[psycopg.Connection[Any], ...], query: Query, engine: str
) -> None:
    one = query.where.startswith("features")
    symbols = "S7" if one else [f"S{n}" for n in range(1, SYMBOLS + 1)]
    look = view(symbols=symbols)
    # A bar and a gap every ten minutes, a run every minute, and the ends of each symbol.
    most = max(36 * (1 if one else SYMBOLS), 360) + 3 * SYMBOLS
    pages = []
    for conn in long_histories:
        for _ in range(2):  # the session's first call reads the catalogues, too
            plan = explain(conn, expand(query.sql, look))
        pages.append(pages_of(plan))
        for node in nodes(plan["Plan"]):
            if "Relation Name" in node or node["Node Type"] == "Bitmap Index Scan":
                removed = sum(
                    node.get(f"Rows Removed by {step}", 0) for step in ("Filter", "Index Recheck")
                )
                read = (node["Actual Rows"] + removed) * node["Actual Loops"]
                assert read <= most, node
    if query.where.endswith(": symbol") and engine == "timescaledb":
        pages[1] //= 5  # symbols are looked up in each chunk of a week
    assert about_as_many(pages)


def test_the_documented_query_runs_unchanged(
    traded: psycopg.Connection[Any],
) -> None:
    documented = 'SELECT bucket AS "time", volume_z FROM features_1m WHERE $__timeFilter(bucket)'
    rows = traded.execute(expand(documented, view()).encode()).fetchall()
    assert len(rows) == 361 + 351
