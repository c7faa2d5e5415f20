"""Guards against impossible bars, each rejected by a constraint whose name shows the reason."""

from __future__ import annotations

import psycopg
import pytest

from feature_platform_tests.fix_engine import Bench

GOOD = {
    "symbol": "A",
    "ts": "2024-01-01 00:00:00Z",
    "open": 10.0,
    "high": 12.0,
    "low": 9.0,
    "close": 11.0,
    "vol": 5.0,
    "source": "stream",
}
NAN, INF = float("nan"), float("inf")
PRICES = ("open", "high", "low", "close")


def insert(bench: Bench, changes: dict[str, object]) -> None:
    with bench.conn.transaction(force_rollback=True):
        bench.conn.execute(
            """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol, source)
               VALUES (%(symbol)s, %(ts)s, %(open)s, %(high)s, %(low)s, %(close)s, %(vol)s,
                       %(source)s)""",
            {**GOOD, **changes},
        )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vol": 0},
        {"vol": 1e100},
        {"vol": 1e-100},
        {"open": 9, "high": 12, "low": 9, "close": 12},
        dict.fromkeys(PRICES, 1e100),
        dict.fromkeys(PRICES, 1e-100),
        {"symbol": "A B"},
        {"ts": "1970-01-01 00:00Z"},
        {"ts": "9999-12-31 23:59:59.999999Z"},
        {"ts": "2024-01-01 00:00:30.5Z"},
        {"source": "rest"},
        {"source": "import"},
    ],
)
def test_a_possible_bar_is_stored(bench: Bench, changes: dict[str, object]) -> None:
    insert(bench, changes)


@pytest.mark.parametrize(
    ("constraint", "changes"),
    [
        ("symbol", {"symbol": ""}),
        ("ts", {"ts": "infinity"}),
        ("ts", {"ts": "-infinity"}),
        ("ts", {"ts": "1969-12-31 23:59:59.999999Z"}),
        ("ts", {"ts": "10000-01-01 00:00Z"}),
        *(("price", {price: value}) for price in PRICES for value in (NAN, INF, -INF, 0, -1)),
        *(("price", dict.fromkeys(PRICES, value)) for value in (NAN, INF, -INF, 0, -1.0, 2e100)),
        ("price", dict.fromkeys(PRICES, 9e-101)),
        ("price", {"open": 13}),
        ("price", {"open": 8}),
        ("price", {"close": 13}),
        ("price", {"close": 8}),
        ("price", {"high": 10.5}),
        ("price", {"low": 10.5}),
        ("price", {"high": 9, "low": 12}),
        ("vol", {"vol": -1}),
        ("vol", {"vol": -1e-300}),
        ("vol", {"vol": 9e-101}),
        ("vol", {"vol": 1.1e100}),
        ("vol", {"vol": NAN}),
        ("vol", {"vol": INF}),
        ("vol", {"vol": -INF}),
        ("source", {"source": "guess"}),
        ("source", {"source": ""}),
    ],
)
def test_an_impossible_bar_is_rejected(
    bench: Bench, constraint: str, changes: dict[str, object]
) -> None:
    with pytest.raises(
        (psycopg.errors.CheckViolation, psycopg.errors.DatetimeFieldOverflow)
    ) as caught:
        insert(bench, changes)
    if bench.engine == "timescaledb" and changes.get("ts") == "-infinity":
        return  # TimescaleDB rejects a time without a chunk before it checks constraints
    assert caught.value.diag.constraint_name == f"ohlcv_1m_{constraint}_check"


@pytest.mark.parametrize("column", GOOD)
def test_no_column_may_be_null(bench: Bench, column: str) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation) as caught:
        insert(bench, {column: None})
    assert f'"{column}"' in str(caught.value)


def test_a_second_bar_of_a_time_is_rejected(bench: Bench) -> None:
    with bench.conn.transaction(force_rollback=True):
        insert_twice = """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
                          VALUES ('A', '2024-01-01Z', 1, 1, 1, 1, 1)"""
        bench.conn.execute(insert_twice)
        with pytest.raises(psycopg.errors.UniqueViolation, match="ohlcv_1m_pkey"):
            bench.conn.execute(insert_twice)


@pytest.mark.parametrize("bucket", ["2024-01-01 00:00:30Z", "2024-01-01 00:00:00.000001Z"])
def test_a_feature_row_must_begin_with_a_minute(bench: Bench, bucket: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        bench.conn.execute("INSERT INTO features_1m (symbol, bucket) VALUES ('A', %s)", [bucket])
    assert caught.value.diag.constraint_name == "features_1m_bucket_check"


def test_symbols_are_compared_by_their_bytes(bench: Bench) -> None:
    row = bench.conn.execute(
        """SELECT string_agg(column_name, ' ' ORDER BY table_name, column_name)
           FROM information_schema.columns
           WHERE column_name = 'symbol' AND collation_name IS DISTINCT FROM 'C'
             AND (table_schema = 'feature_platform' OR table_name IN ('ohlcv_1m', 'features_1m'))"""
    ).fetchone()
    assert row == (None,)
