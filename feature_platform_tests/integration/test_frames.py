"""Guards against frames that differ from the tables, and against unclear errors of wrong input."""

from __future__ import annotations

import subprocess
import sys
import traceback
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy
from psycopg.conninfo import make_conninfo

from feature_platform import latest, read_bars, read_features, schema
from feature_platform.database import connect
from feature_platform.embedded.server import embedded_server
from feature_platform.errors import UserError
from feature_platform.refresh import refresh
from feature_platform.settings import get_settings
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_embedded import is_running
from feature_platform_tests.fix_processes import insert_bars, insert_recent

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
AFTER = FIRST + 4 * 1440 * MINUTE
MISSING = range(2000, 2090)
FEATURES = (
    "last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol"
)

_BARS = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT symbol, %(first)s::timestamptz + minute * interval '1 minute',
           10 + sin(minute), 12 + sin(minute), 8 + sin(minute), 9 + sin(minute) + number,
           CASE WHEN symbol = 'FLAT/USDT' THEN 5 ELSE 1 + minute %% 7 END
      FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS s (symbol, number)
     CROSS JOIN generate_series(0, 3 * 1440) AS minute
     WHERE minute NOT BETWEEN %(missing)s AND %(missing_end)s
"""
SYMBOLS = ["BTC/USDT", "ETH/USDT", "FLAT/USDT"]


@pytest.fixture(scope="module")
def filled(databases: Databases) -> Any:
    """Yield the URL of a database with three days of three symbols, 90 minutes missing."""
    with databases.fresh() as url, connect(url) as connection:
        connection.execute(
            _BARS,
            {"first": FIRST, "symbols": SYMBOLS, "missing": MISSING[0], "missing_end": MISSING[-1]},
        )
        refresh(connection)
        yield url


@pytest.fixture(autouse=True)
def configured(filled: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the settings name this database."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", filled)
    get_settings.cache_clear()
    return filled


def rows(url: str, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query, parameters).fetchall()


def test_one_symbol_gives_a_frame_by_bucket_exact_to_the_last_bit(filled: str) -> None:
    frame = read_features("BTC/USDT", FIRST, AFTER)
    stored = rows(
        filled,
        """SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z,
                  vwap_gap, parkinson_vol
             FROM features_1m WHERE symbol = 'BTC/USDT' ORDER BY bucket""",
    )
    assert frame.index.name == "bucket"
    assert str(frame.index.dtype) == "datetime64[us, UTC]"
    assert frame.index.is_monotonic_increasing
    assert list(frame.columns) == FEATURES.split(", ")
    assert set(frame.dtypes) == {np.dtype("float64")}
    assert len(frame) == len(stored) == 3 * 1440 + 1 - len(MISSING)
    assert [moment.to_pydatetime() for moment in frame.index] == [row[0] for row in stored]
    expected = np.array([row[1:] for row in stored], dtype=float)  # NULL is NaN
    assert np.array_equal(frame.to_numpy(), expected, equal_nan=True)
    assert np.isnan(expected).any()


def test_several_symbols_give_a_frame_by_symbol_and_bucket() -> None:
    both = read_features(["ETH/USDT", "BTC/USDT", "ETH/USDT"], FIRST, AFTER, ["vol", "n_1d"])
    assert both.index.names == ["symbol", "bucket"]
    assert both.index.is_monotonic_increasing
    assert list(both.columns) == ["vol", "n_1d"]
    for symbol in ("BTC/USDT", "ETH/USDT"):
        alone = read_features(symbol, FIRST, AFTER, ["vol", "n_1d"])
        pd.testing.assert_frame_equal(both.loc[[symbol]].droplevel("symbol"), alone)
    assert read_features(["ETH/USDT"], FIRST, AFTER).index.names == ["symbol", "bucket"]


def test_the_window_includes_start_and_excludes_end() -> None:
    frame = read_features("BTC/USDT", FIRST + MINUTE, FIRST + 3 * MINUTE)
    assert list(frame.index) == [FIRST + MINUTE, FIRST + 2 * MINUTE]


@pytest.mark.parametrize(
    "start",
    [
        FIRST + MINUTE,
        "2026-01-01T00:01Z",
        "2026-01-01T02:01+02:00",
        pd.Timestamp("2026-01-01T00:01Z"),
        (FIRST + MINUTE).astimezone(timezone(timedelta(hours=-5))),
    ],
    ids=repr,
)
def test_a_time_may_be_written_in_any_zone(start: Any) -> None:
    assert read_bars("BTC/USDT", start, FIRST + 5 * MINUTE).index[0] == FIRST + MINUTE


def test_an_empty_window_gives_an_empty_frame_of_the_same_form() -> None:
    empty = read_features("BTC/USDT", AFTER, AFTER)
    assert empty.shape == (0, 9)
    assert str(empty.index.dtype) == "datetime64[us, UTC]"
    assert read_features(["BTC/USDT"], AFTER, AFTER).index.names == ["symbol", "bucket"]


def test_a_frame_can_be_changed() -> None:
    frame = read_features("BTC/USDT", FIRST, FIRST + 3 * MINUTE)
    frame.iloc[0, 0] = 1.5
    frame["vol"] *= 2
    assert frame.iloc[0, 0] == 1.5


@pytest.mark.parametrize("symbols", ["BTC/USDT", ["BTC/USDT", "ETH/USDT"]], ids=str)
def test_arrow_and_polars_give_the_same_values(symbols: Any) -> None:
    frame = read_features(symbols, FIRST, AFTER).reset_index()
    table = read_features(symbols, FIRST, AFTER, as_="arrow")
    polars = read_features(symbols, FIRST, AFTER, as_="polars")
    assert isinstance(table, pa.Table)
    assert table.column_names == list(frame.columns) == polars.columns
    assert table.schema.field("bucket").type == pa.timestamp("us", "UTC")
    assert polars.schema["bucket"] == pl.Datetime("us", "UTC")
    assert table["volume_z"].null_count == polars["volume_z"].null_count() > 0
    for name in FEATURES.split(", "):
        assert table.schema.field(name).type == pa.float64()
        assert polars.schema[name] == pl.Float64
        assert np.array_equal(table[name].to_numpy(), frame[name], equal_nan=True)
        assert polars[name].equals(pl.Series(name, table[name]))


def test_frames_of_bars_equal_the_table(filled: str) -> None:
    frame = read_bars("ETH/USDT", FIRST, AFTER)
    stored = rows(
        filled,
        "SELECT open, high, low, close, vol FROM ohlcv_1m WHERE symbol = %s ORDER BY ts",
        "ETH/USDT",
    )
    assert frame.index.name == "ts"
    assert list(frame.columns) == ["open", "high", "low", "close", "vol"]
    assert np.array_equal(frame.to_numpy(), np.array(stored))
    both = read_bars(SYMBOLS[:2], FIRST, AFTER, ["close"])
    assert both.index.names == ["symbol", "ts"]


def test_latest_is_the_newest_row_of_each_symbol() -> None:
    newest = latest()
    assert list(newest.index) == SYMBOLS
    assert newest.index.name == "symbol"
    assert list(newest.columns) == ["bucket", *FEATURES.split(", ")]
    for symbol in SYMBOLS:
        last = read_features(symbol, FIRST, AFTER).iloc[-1]
        assert newest.loc[symbol, "bucket"] == last.name
        assert np.array_equal(newest.loc[symbol].drop("bucket").astype(float), last, equal_nan=True)
    assert np.isnan(newest["volume_z"]["FLAT/USDT"])  # a deviation of 0
    assert list(latest("ETH/USDT", ["vol"]).columns) == ["bucket", "vol"]
    assert latest(["ETH/USDT"], as_="arrow").column_names[:2] == ["symbol", "bucket"]
    assert latest(as_="polars").height == len(SYMBOLS)


def test_latest_finds_rows_of_any_age(
    database: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    get_settings.cache_clear()
    for symbol in ("C/RECENT", "A/RECENT"):
        insert_recent(conn, symbol, 3)
    insert_bars(conn, "B/OLD", FIRST, 3)
    refresh(conn)
    insert_bars(conn, "D/BARS", FIRST, 3)
    everything = latest()
    assert list(everything.index) == ["A/RECENT", "B/OLD", "C/RECENT"]
    newest_of = "SELECT max(bucket) FROM features_1m WHERE symbol = %s"
    for name, row in everything.iterrows():
        (newest,) = rows(database, newest_of, str(name))
        assert row["bucket"] == newest[0]
    assert list(latest(["B/OLD"]).index) == ["B/OLD"]
    assert list(latest(["C/RECENT", "B/OLD"]).index) == ["B/OLD", "C/RECENT"]
    for read in (latest, lambda names: read_features(names, FIRST, AFTER)):
        with pytest.raises(UserError, match=r"no features of 'D/BARS'"):
            read(["C/RECENT", "D/BARS"])


HOSTILE = ["'; DROP TABLE ohlcv_1m; --", "{x", 'a"b', "$1", "%(x)s", "BTC/USDT}", "\\", "NULL"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"symbols": "BTC"}, "there are no features of 'BTC' (did you mean 'BTC/USDT'?)"),
        ({"symbols": ["ethusdt"]}, "no features of 'ethusdt' (did you mean 'ETH/USDT'?)"),
        ({"symbols": ["BTC/USDT", "EHT/USDT", "X"]}, "'EHT/USDT' (did you mean 'ETH/USDT'"),
        ({"symbols": []}, "no symbol is given"),
        ({"symbols": ""}, "'' is not a symbol"),
        ({"symbols": "A\0B"}, "is not a symbol"),
        ({"symbols": "\ud800"}, "is not a symbol"),
        ({"symbols": [None]}, "symbols has None, which is not a name"),
        ({"symbols": None}, "symbols is a NoneType, not a name or a list of names"),
        ({"symbols": pa.array(["BTC/USDT"])}, "StringScalar: 'BTC/USDT'>, which is not a name"),
        ({"symbols": [pd.DataFrame({"a": [1, 2]})]}, "symbols has a 0 1 1 2, which is not"),
        ({"view": 5}, "view is a int, not a name or a list of names"),
        ({"view": [["features_1m"]]}, "view has ['features_1m'], which is not a name"),
        ({"columns": 5}, "columns is a int, not a name or a list of names"),
        ({"columns": [["vol"]]}, "columns has ['vol'], which is not a name"),
        ({"columns": ["volumez"]}, "no column 'volumez' (did you mean 'volume_z'?); it"),
        ({"columns": ["spread"]}, "no column 'spread'; it has last_close, vol, log_return"),
        ({"columns": "vol"}, "a list of names, such as ['vol']"),
        ({"columns": ['vol" FROM pg_user --']}, "has no column"),
        ({"start": AFTER, "end": FIRST}, "start, 2026-01-05T00:00:00+00:00, is after end, 2026-"),
        ({"start": FIRST.replace(tzinfo=None)}, "start, 2026-01-01 00:00:00, has no time zone; wr"),
        ({"end": "2026-01-01"}, "end, 2026-01-01, has no time zone; write it as"),
        ({"start": "'; --"}, "is not a time; write it as"),
        ({"end": date(2026, 2, 1)}, "end, datetime.date(2026, 2, 1), is not a time"),
        ({"end": pd.NaT}, "end, NaT, is not a time"),
        ({"start": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))}, "is not a time"),
        ({"as_": "numpy"}, "as_ is 'numpy'; use 'pandas', 'arrow' or 'polars'"),
    ],
)
def test_wrong_arguments_get_one_line(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"symbols": "BTC/USDT", "start": FIRST, "end": AFTER} | changed
    with pytest.raises(UserError) as raised:
        read_features(**given)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_latest_rejects_the_same_arguments() -> None:
    with pytest.raises(UserError, match=r"no features of 'BTC' \(did you mean 'BTC/USDT'\?\)"):
        latest("BTC")
    with pytest.raises(UserError, match="no column 'close'"):
        latest(columns=["close"])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_symbol_is_only_a_value(name: str, filled: str) -> None:
    with pytest.raises(UserError, match="there are no bars of "):
        read_bars(["BTC/USDT", name], FIRST, AFTER)
    bar = (name, FIRST, 1, 1, 1, 1, 1)
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute(
            """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
               VALUES (%s, %s, %s, %s, %s, %s, %s)""",
            bar,
        )
        try:
            assert list(
                read_bars([name, "ETH/USDT"], FIRST, FIRST + MINUTE)["close"].loc[name]
            ) == [1]
        finally:
            connection.execute("DELETE FROM ohlcv_1m WHERE symbol = %s", [name])


PLAIN = """
    SELECT bucket, log_return, volume_z, vwap_gap, parkinson_vol FROM features_1m
     WHERE bucket BETWEEN %s AND %s
"""


def test_pandas_read_sql_gives_the_same_values(filled: str) -> None:
    window = (FIRST + 1500 * MINUTE, FIRST + 1510 * MINUTE)
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=connect)
    over_sqlalchemy = pd.read_sql(PLAIN, engine, params=window)  # without a warning
    engine.dispose()
    warning = pytest.warns(UserWarning, match="pandas only supports SQLAlchemy")
    with psycopg.connect(filled) as connection, warning:
        # pandas' stubs know connections of SQLAlchemy only.
        over_psycopg = pd.read_sql(PLAIN, connection, params=window)  # type: ignore[call-overload]
    columns = list(over_psycopg.columns[1:])
    ours = read_features(SYMBOLS, window[0], window[1] + MINUTE, columns).droplevel("symbol")
    for plain in (over_psycopg, over_sqlalchemy):
        assert len(plain) == 11 * len(SYMBOLS)
        there = plain.set_index(pd.DatetimeIndex(plain.pop("bucket")))
        for moment, rows_of_minute in ours.groupby("bucket"):
            left, right = (
                frame.sort_values(columns).to_numpy()
                for frame in (rows_of_minute, there.loc[[moment]])
            )
            assert np.array_equal(left, right, equal_nan=True)


def test_the_embedded_server_is_read_over_its_socket(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEATURE_PLATFORM_DATABASE_URL")
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", str(home))
    get_settings.cache_clear()
    try:
        with pytest.raises(UserError, match="run `feature-platform db apply`"):
            latest()
        with connect() as connection:
            schema.apply(connection)
        assert latest().empty
        assert list(latest().columns) == ["bucket", *FEATURES.split(", ")]
        with pytest.raises(UserError, match="there are no features yet"):
            read_features("BTC/USDT", FIRST, AFTER)
        embedded_server(home).release()
        assert not is_running(home)
        assert latest().empty  # the read has started the server again
    finally:
        embedded_server(home).release()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://reader:s3cret-w0rd@127.0.0.1:1/nothing",
        "host=127.0.0.1 port=1 user=reader password='s3cret-w0rd with spaces' dbname=nothing",
        "postgresql://reader@%2Fnowhere/nothing?password=s3cret-w0rd&sslpassword=s3cret-w0rd",
    ],
)
def test_the_error_of_an_unreachable_database_hides_the_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    get_settings.cache_clear()
    with pytest.raises(UserError, match=r"cannot read from .*nothing.*connect") as raised:
        latest()
    text = "".join(traceback.format_exception(raised.value))
    assert "s3cret" not in text
    assert len(str(raised.value).splitlines()) == 1


def test_the_error_of_a_wrong_password_hides_it(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = make_conninfo(filled, user="no_such_user", password="s3cret")
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", bad)
    get_settings.cache_clear()
    with pytest.raises(UserError, match="no_such_user") as raised:
        latest()
    assert "s3cret" not in "".join(traceback.format_exception(raised.value))


def test_the_reader_role_can_read_all_frames(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_reader = make_conninfo(filled, options="-c role=feature_platform_reader")
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", as_reader)
    get_settings.cache_clear()
    assert not read_features("BTC/USDT", FIRST, AFTER).empty
    assert not read_bars(SYMBOLS, FIRST, AFTER).empty
    assert len(latest()) == len(SYMBOLS)
    with pytest.raises(UserError, match="did you mean"):
        read_bars("BTC", FIRST, AFTER)


def test_the_error_without_polars_states_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)  # the import fails as without polars
    with pytest.raises(UserError, match=r'pip install "feature_platform\[polars\]"'):
        latest(as_="polars")
    assert len(latest()) == len(SYMBOLS)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys, feature_platform
from feature_platform.cli import app as cli
heavy = {"pandas", "numpy", "pyarrow", "polars", "adbc_driver_postgresql", "psycopg", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from feature_platform import read_features, read_bars, latest
slow = {"pandas", "pyarrow", "polars", "adbc_driver_manager", "dagster", "matplotlib", "ccxt"}
assert not slow & set(sys.modules), slow & set(sys.modules)
assert {"read_features", "read_bars", "latest"} <= set(feature_platform.__all__)
try:
    feature_platform.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'feature_platform' has no attribute 'nothing'\n"
