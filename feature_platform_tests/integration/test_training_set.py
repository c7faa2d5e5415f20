"""Guards against training sets with values that were not known at their events."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from feature_platform import forward, forward_return, read_features, training_set
from feature_platform.errors import UserError
from feature_platform.importer import import_bars
from feature_platform.settings import get_settings
from feature_platform.tables import FEATURES
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_knowledge import (
    MINUTE,
    MINUTES,
    SECOND,
    START,
    SYMBOLS,
    Change,
    Past,
    changes,
    live_past,
    shown,
)
from feature_platform_tests.fix_views import CANDLES, SHORT, refresh_all

COLUMNS = {
    "features_1m": list(FEATURES),
    SHORT.name: list(SHORT.columns),
    CANDLES.name: list(CANDLES.columns),
}
EVERY = {"features_1m": MINUTE, SHORT.name: MINUTE, CANDLES.name: timedelta(hours=1)}
ALL = [f"{view}.{column}" for view, columns in COLUMNS.items() for column in columns]


@pytest.fixture(scope="module")
def past(databases: Databases) -> Iterator[Past]:
    """Yield the past of a live database with two views and some lost hours."""
    with live_past(databases, 21) as past:
        # An outage, which is filled later, and rows that are deleted.
        for minute in range(MINUTES, MINUTES + 60):
            past.write("A", minute, 7)
        past.refresh(START + (MINUTES + 100) * MINUTE)
        for minute in range(MINUTES + 30, MINUTES + 60):
            past.delete("A", minute)
        past.refresh(START + (MINUTES + 120) * MINUTE)
        yield past


@pytest.fixture(autouse=True)
def configured(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settings name this database, for a user with the rights of a reader."""
    name_in_settings(past, monkeypatch)


def name_in_settings(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "-c role=feature_platform_reader"
    monkeypatch.setenv(
        "FEATURE_PLATFORM_DATABASE_URL", make_conninfo(past.conn.info.dsn, options=options)
    )
    get_settings.cache_clear()


def events_of(count: int, seed: int, until: int = MINUTES + 130) -> pd.DataFrame:
    """Return random events, half of them at the start of a minute."""
    rng = random.Random(seed)
    times = [START + rng.randrange(-5, until) * MINUTE for _ in range(count)]
    times = [time + rng.choice([0, rng.randrange(60_000)]) * SECOND / 1000 for time in times]
    return pd.DataFrame(
        {
            "note": range(count),
            "symbol": rng.choices(SYMBOLS, k=count),
            "time": pd.to_datetime(times, utc=True).as_unit("us"),
        },
        index=rng.sample(range(count), count),
    )


def newest_seen(past: Past, view: str, symbol: str, time: datetime) -> tuple[str, ...]:
    """Return the newest row of a symbol that a reader saw at a time."""
    rows = [row for row in past.known_at(view, time) if row[0] == symbol]
    return rows[-1][2] if rows else tuple(shown(None) for _ in COLUMNS[view])


def test_each_feature_is_the_newest_that_a_reader_saw(past: Past) -> None:
    events = events_of(400, 1)
    found = training_set(events, ALL, {})
    assert list(found.columns) == ["note", "symbol", "time", *ALL]
    pd.testing.assert_frame_equal(found[["note", "symbol", "time"]], events)
    late = 0
    for _, row in found.iterrows():
        for view, columns in COLUMNS.items():
            expected = newest_seen(past, view, row["symbol"], row["time"])
            assert tuple(shown(row[f"{view}.{name}"]) for name in columns) == expected, row
        late += row["features_1m.vol"] != row["features_1m.vol"]
    assert 0 < late < len(found)


def test_labels_are_the_final_truth_and_nan_where_it_is_not_known() -> None:
    events = events_of(300, 2)
    labels = {
        "return_15m": forward_return("15 minutes"),
        "vol_90s": forward("features_1m.vol", "90 seconds"),
        "close_2h": forward(f"{CANDLES.name}.close", "2 hours"),
        "now": forward("features_1m.last_close", "0 seconds"),
    }
    found = training_set(events, [], labels)
    stored = {view: read_features(SYMBOLS, START, START + timedelta(days=9), view=view)
              for view in COLUMNS}  # fmt: skip

    def at(view: str, column: str, symbol: str, time: Any) -> float:
        of: Any = stored[view].loc[symbol][column]
        if not len(of) or (time - EVERY[view]).floor(EVERY[view]) > of.index[-1]:
            return float("nan")
        closed = of[of.index + EVERY[view] <= time]
        return float(closed.iloc[-1]) if len(closed) else float("nan")

    for _, row in found.iterrows():
        symbol, time = row["symbol"], row["time"]
        close = at("features_1m", "last_close", symbol, time)
        later = at("features_1m", "last_close", symbol, time + 15 * MINUTE)
        expected = {
            "return_15m": np.log(later / close),
            "vol_90s": at("features_1m", "vol", symbol, time + 90 * SECOND),
            "close_2h": at(CANDLES.name, "close", symbol, time + timedelta(hours=2)),
            "now": close,
        }
        for name, value in expected.items():
            np.testing.assert_array_equal(row[name], value, err_msg=f"{name} of {row}")
    assert found["return_15m"].isna().any()
    assert found["return_15m"].notna().any()


def test_polars_and_arrow_give_the_same_values() -> None:
    events = events_of(50, 3)
    features = ["features_1m.volume_z", f"{SHORT.name}.mean_5m"]
    labels = {"y": forward_return("15 minutes")}
    pandas = training_set(events, features, labels)
    polars = training_set(pl.from_pandas(events), features, labels)
    arrow = training_set(pa.Table.from_pandas(events, preserve_index=False), features, labels)
    assert isinstance(polars, pl.DataFrame)
    assert isinstance(arrow, pa.Table)
    assert polars.columns == arrow.column_names == list(pandas.columns)
    for name in [*features, "y"]:
        assert np.array_equal(polars[name].to_numpy(), pandas[name], equal_nan=True)
        assert np.array_equal(arrow[name].to_numpy(), pandas[name], equal_nan=True)
    empty = training_set(events[:0], features, labels)
    assert list(empty.columns) == list(pandas.columns)
    categories = events.assign(symbol=events["symbol"].astype("category"))
    assert training_set(categories, features, labels)["y"].equals(pandas["y"])


def test_events_of_imported_history_have_their_rows(
    simulated_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    file = tmp_path / "bars.csv"
    rows = [f"{(START + m * MINUTE).isoformat()},10,20,5,{6 + m % 9},{m % 7}" for m in range(300)]
    file.write_text("\n".join(["ts,open,high,low,close,vol", *rows]) + "\n", encoding="utf-8")
    with psycopg.connect(simulated_database, autocommit=True) as conn:
        past = Past(conn)
        name_in_settings(past, monkeypatch)
        for symbol, known_at in (("CLOSE", "close"), ("NOW", "now")):
            import_bars(conn, [file], symbol=symbol, known_at=known_at)
        refresh_all(conn)
        times = [START + (100 + m) * MINUTE + m % 5 * SECOND for m in range(200)]
        events = pd.DataFrame({"symbol": "CLOSE", "time": times})
        close = training_set(events, ["features_1m.last_close"], {})["features_1m.last_close"]
        waits = [m % 5 < 2 for m in range(200)]
        assert list(close) == [6 + (99 + m - waits[m]) % 9 for m in range(200)]
        at_once = training_set(events, ["features_1m.last_close"], {}, delay="0 seconds")
        assert list(at_once["features_1m.last_close"]) == [6 + (99 + m) % 9 for m in range(200)]
        now = training_set(events.assign(symbol="NOW"), ["features_1m.last_close"], {})
        assert now["features_1m.last_close"].isna().all()


def test_rows_of_any_age_are_read_over_a_gap(
    simulated_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """docs/knowledge.md states it: a feature is as old as the gap, and a return of it is 0."""
    file = tmp_path / "bars.csv"
    gap = 3 * 24 * 60
    bars = {**dict.fromkeys(range(10), 10), **dict.fromkeys(range(gap, gap + 10), 15)}
    rows = [f"{(START + m * MINUTE).isoformat()},10,20,5,{close},1" for m, close in bars.items()]
    file.write_text("\n".join(["ts,open,high,low,close,vol", *rows]) + "\n", encoding="utf-8")
    with psycopg.connect(simulated_database, autocommit=True) as conn:
        name_in_settings(Past(conn), monkeypatch)
        import_bars(conn, [file], symbol="A")
        refresh_all(conn)
        times = [START + minutes * MINUTE + 5 * SECOND for minutes in (60, gap - 10)]
        events = pd.DataFrame({"symbol": "A", "time": times})
        labels = {"return": forward_return("15 minutes")}
        found = training_set(events, ["features_1m.last_close"], labels)
        assert list(found["features_1m.last_close"]) == [10, 10]
        assert list(found["return"]) == [0, np.log(15 / 10)]


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=changes(0, MINUTES - 1), seed=st.integers(0, 10_000))
def test_bars_that_are_known_only_later_change_no_feature(
    past: Past, changes: list[Change], seed: int
) -> None:
    last = past.seen[-1][0]
    until = int((last - START) / MINUTE)
    events = events_of(60, seed, until)
    before = training_set(events, ALL, {})
    past.change(changes, seed % 5)
    pd.testing.assert_frame_equal(training_set(events, ALL, {}), before)


TWO_EVENTS = pl.DataFrame({"symbol": ["A", "B"], "time": [START + timedelta(hours=1)] * 2})
REPEATED = ["symbol", "symbol", "time"]
TWICE = "events has the column 'symbol' 2 times; keep one"


def test_the_remedy_for_a_form_of_events_works() -> None:
    found = training_set(TWO_EVENTS, ["features_1m.vol"], {})
    assert training_set(TWO_EVENTS.lazy().collect(), ["features_1m.vol"], {}).equals(found)
    batch = TWO_EVENTS.to_arrow().to_batches()[0]
    table = training_set(pa.Table.from_batches([batch]), ["features_1m.vol"], {})
    assert table["features_1m.vol"].to_pylist() == found["features_1m.vol"].to_list()
    with duckdb.connect() as duck:
        relation = duck.from_arrow(TWO_EVENTS.to_arrow())
        with pytest.raises(UserError, match=r"; give events\.to_arrow_table\(\)$"):
            training_set(relation, ["features_1m.vol"], {})
        joined = training_set(relation.to_arrow_table(), ["features_1m.vol"], {})
    assert joined["features_1m.vol"] == table["features_1m.vol"]


@pytest.mark.parametrize("column", ["vol", ".vol", "features_1m.", 5])
def test_a_label_of_no_column_is_rejected_at_once(column: Any) -> None:
    with pytest.raises(UserError, match="is not a column; write it as"):
        forward(column, "1 minute")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"events": pd.DataFrame({"symbol": ["A"]})}, "events has no column 'time'"),
        ({"events": pd.DataFrame({"time": []})}, "events has no column 'symbol'"),
        ({"events": pl.DataFrame({"symbol": ["A"]})}, "events has no column 'time'"),
        ({"times": [datetime(2026, 3, 1)]}, "they need a time zone"),  # noqa: DTZ001
        ({"times": ["2026-03-01"]}, "string; they need a time zone"),
        ({"times": [pd.NaT, pd.Timestamp(START)]}, "1 event without a time"),
        ({"times": [START + timedelta(days=9999)]}, "is in the future: it is 20"),
        ({"symbols": [None]}, "1 event without a symbol"),
        ({"symbols": ["AA"]}, "there are no rows in features_1m of 'AA'"),
        ({"features": ["volume_z"]}, "write it as 'features_1m.volume_z'"),
        ({"features": ["features_1m.volumez"]}, "(did you mean 'volume_z'?)"),
        ({"features": ["short.x"]}, "there is no feature view 'short'"),
        ({"features": ["features_1m.vol"] * 2}, "the column 'features_1m.vol' twice"),
        ({"labels": {"symbol": forward_return("1 minute")}}, "the column 'symbol' twice"),
        ({"labels": {"y": forward("features_1m.x", "1 minute")}}, "features_1m has no column 'x'"),
        ({"features": []}, "neither features nor labels are given"),
        ({"features": "features_1m.vol"}, "give a list such as ['features_1m.volume_z']"),
        ({"labels": {"y": "15 minutes"}}, "write it as forward_return('15 minutes')"),
        ({"labels": None}, "labels is None; give a dict"),
        ({"labels": {5: forward_return("1 minute")}}, "the name of a label is 5; give a text"),
        ({"labels": pd.DataFrame({"a": [1, 2]})}, "labels is a 0 1 1 2; give a dict"),
        ({"features": pd.Series(["a", "b"])}, "give a list such as ['features_1m.volume_z']"),
        ({"features": [["a"]]}, "['a'] is not a column"),
        ({"events": [("A", START)]}, "events is a list, not a DataFrame of pandas or polars or a"),
        ({"events": TWO_EVENTS.lazy()}, "events is a LazyFrame, not a DataFrame"),
        ({"events": TWO_EVENTS.lazy()}, "; give events.collect()"),
        ({"events": TWO_EVENTS.to_arrow().to_batches()[0]}, "events is a RecordBatch, not a"),
        ({"events": pd.DataFrame([["A", "A", START]], columns=REPEATED)}, TWICE),
        ({"events": pa.table([["A"], ["A"], [START]], REPEATED)}, TWICE),
        ({"times": [datetime(1, 1, 1, tzinfo=UTC)]}, "is in no year of bars"),
        ({"delay": "99999999 days"}, "is longer than all history"),
        ({"delay": "soon"}, "delay, 'soon', is not a delay"),
    ],
)
def test_wrong_arguments_get_one_line(given: dict[str, Any], message: str) -> None:
    symbols = given.pop("symbols", None)
    times = given.pop("times", [START] * len(symbols or ["A"]))
    frame = pd.DataFrame({"symbol": symbols or ["A"] * len(times), "time": times})
    arguments: dict[str, Any] = {
        "events": frame,
        "features": ["features_1m.vol"],
        "labels": {},
    } | given
    with pytest.raises(UserError) as raised:
        training_set(**arguments)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
