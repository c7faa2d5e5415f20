"""Guards against training sets with rows of before a view was built that were not known then.

Some views are applied before all bars. Others with the same columns are applied after them. Their
values at an event must be those of the first ones, and of read_features as of the event.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from feature_platform import read_features, training_set
from feature_platform.errors import UserError
from feature_platform.importer import import_bars
from feature_platform.settings import get_settings
from feature_platform.views import FeatureView, bar, catalog, ema, mean
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
)
from feature_platform_tests.fix_views import CANDLES, SHORT, refresh_all

# SHORT has a lag over rows, which gaps lengthen; the look-back of this one is a span.
PLAIN = FeatureView(
    "plain_5m",
    "5 minutes",
    {"mean_15m": mean(bar.vol, "15 minutes"), "ema": ema(bar.close, "1 hour")},
)
EARLY = (SHORT, CANDLES, PLAIN)
LATE = tuple(replace(view, name=f"late_{view.name}") for view in EARLY)


def columns_of(views: tuple[FeatureView, ...]) -> list[str]:
    return [f"{view.name}.{column}" for view in views for column in view.columns]


@pytest.fixture(scope="module", params=[3, 4])
def past(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Past]:
    """Yield a past with gaps, late history, bars inside of minutes, and views built after it."""
    with live_past(databases, request.param, EARLY) as past:
        rng = random.Random(request.param)
        end = START + MINUTES * MINUTE
        for minute in range(MINUTES + 40, MINUTES + 70):
            past.write("A", minute, rng.randint(6, 19), rng.randint(0, 5))
            if rng.random() < 0.5:
                past.refresh(START + (minute + 1) * MINUTE + SECOND)
        past.refresh(end + 100 * MINUTE)
        # Bars before the first one, a deleted hour, and bars inside of a minute.
        for minute in range(-50, -40):
            past.write("A", minute, rng.randint(6, 19))
        past.refresh(end + 110 * MINUTE)
        for minute in range(MINUTES + 45, MINUTES + 70):
            past.delete("A", minute)
        past.refresh(end + 120 * MINUTE)
        for second in (7, 12):
            past.write("B", MINUTES + 130 + second / 60, 6 + second)
            past.refresh(end + 131 * MINUTE + second * SECOND)
        past.set_clock(end + 240 * MINUTE)
        catalog.apply(past.conn, [*EARLY, *LATE])
        refresh_all(past.conn)
        # A correction after the build is not known, too.
        past.write("B", 70, 6)
        past.refresh(end + 250 * MINUTE)
        yield past


def name_in_settings(conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settings name this database, for a user with the rights of a reader."""
    url = make_conninfo(conn.info.dsn, options="-c role=feature_platform_reader")
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    get_settings.cache_clear()


def events_of(past: Past, count: int, seed: int) -> pd.DataFrame:
    """Return random events since the first refresh; a third of them within a refresh's seconds."""
    rng = random.Random(seed)
    first = past.seen[0][0]
    times = [first + rng.randrange(MINUTES + 200) * MINUTE for _ in range(count)]
    for place in range(0, count, 3):
        times[place] = rng.choice(past.seen[:-1])[0] + rng.choice([-1, 0, 1]) * SECOND
    times = [max(time + rng.randrange(60_000) * SECOND / 60_000, first) for time in times]
    return pd.DataFrame(
        {"symbol": rng.choices(SYMBOLS, k=count), "time": pd.to_datetime(times, utc=True)}
    )


def test_rows_are_those_of_views_that_existed(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    name_in_settings(past.conn, monkeypatch)
    events = events_of(past, 1500, 1)
    found = training_set(events, columns_of(LATE), {})
    expected = training_set(events, columns_of(EARLY), {})
    names = dict(zip(columns_of(LATE), columns_of(EARLY), strict=True))
    pd.testing.assert_frame_equal(found.rename(columns=names), expected, check_exact=True)
    assert found[columns_of(LATE)].notna().any().all()
    # Alone, an event has the same row as among others.
    for place in range(0, 1500, 300):
        one = training_set(events.iloc[[place]], columns_of(LATE), {})
        pd.testing.assert_frame_equal(one, found.iloc[[place]], check_exact=True)


def test_rows_are_those_as_of_the_event(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    name_in_settings(past.conn, monkeypatch)
    events = events_of(past, 50, 2)
    found = training_set(events, columns_of(LATE), {})
    for view in LATE:
        for (_, row), (_, event) in zip(found.iterrows(), events.iterrows(), strict=True):
            known = read_features(
                [event["symbol"]],
                START - timedelta(days=1),
                event["time"].floor(view.width),
                view=view.name,
                as_of=event["time"].to_pydatetime(),
            )
            values = known.iloc[-1].to_numpy() if len(known) else np.full(len(view.columns), np.nan)
            got = row[columns_of((view,))].to_numpy().astype(float)
            np.testing.assert_array_equal(got, values, err_msg=str(event))


@settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=changes(-60, MINUTES + 130), seed=st.integers(0, 10_000))
def test_bars_that_are_known_only_later_change_no_row(
    past: Past,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[Change],
    seed: int,
) -> None:
    name_in_settings(past.conn, monkeypatch)
    events = events_of(past, 60, seed)
    before = training_set(events, columns_of(LATE), {})
    past.change(changes, seed % 5)
    pd.testing.assert_frame_equal(training_set(events, columns_of(LATE), {}), before)


@pytest.fixture
def small(simulated_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Past]:
    """Yield a past without bars."""
    with psycopg.connect(simulated_database, autocommit=True) as conn:
        name_in_settings(conn, monkeypatch)
        past = Past(conn)
        past.set_clock(START - MINUTE)
        yield past


def apply_late(past: Past, moment: datetime, *views: FeatureView) -> None:
    """Build views at a time, after all bars."""
    past.set_clock(moment)
    catalog.apply(past.conn, list(views or LATE[:1]))
    refresh_all(past.conn)


def at(time: datetime, symbol: str = "A") -> pd.DataFrame:
    return pd.DataFrame({"symbol": symbol, "time": [time]})


def test_imported_rows_are_known_at_close(small: Past, tmp_path: Path) -> None:
    catalog.apply(small.conn, [SHORT])
    refresh_all(small.conn)
    file = tmp_path / "bars.csv"
    minutes = [m for m in range(200) if not 50 <= m < 70]
    rows = [f"{(START + m * MINUTE).isoformat()},10,20,5,{6 + m % 9},{m % 7}" for m in minutes]
    file.write_text("\n".join(["ts,open,high,low,close,vol", *rows]) + "\n", encoding="utf-8")
    for minute in range(80, 90):
        small.write("A", minute, 7, minute % 3)  # a stream's bars, which the import leaves
    small.refresh(START + 95 * MINUTE)
    small.set_clock(START + 200 * MINUTE)
    import_bars(small.conn, [file], symbol="A")
    for minute in range(200, 230):
        if minute % 5:
            small.write("A", minute, 6 + minute % 11, minute % 4)
        small.refresh(START + (minute + 1) * MINUTE + SECOND)
    apply_late(small, START + 300 * MINUTE, SHORT, LATE[0])
    times = [START + m * MINUTE + m % 7 * SECOND / 2 for m in range(300)]
    events = pd.DataFrame({"symbol": "A", "time": pd.to_datetime(times, utc=True)})
    found = training_set(events, columns_of(LATE[:1]), {})
    expected = training_set(events, columns_of(EARLY[:1]), {})
    names = dict(zip(columns_of(LATE[:1]), columns_of(EARLY[:1]), strict=True))
    pd.testing.assert_frame_equal(found.rename(columns=names), expected, check_exact=True)
    assert expected[f"{SHORT.name}.mean_5m"][[90, 150, 225]].notna().all()


def test_a_refresh_of_another_symbol_hides_nothing(small: Past) -> None:
    """A refresh with a smaller number is known later: the bars of the other one are known."""
    for number, symbol in enumerate(SYMBOLS):
        small.write(symbol, 0, 7 + number)
        small.refresh(START + MINUTE + (1 + number) * SECOND)
    small.conn.execute(
        """UPDATE feature_platform.refresh SET known_by = known_by + interval '9 seconds',
                  newest_known = 2, overtaken_by = 2 WHERE no = 1"""
    )
    apply_late(small, START + 60 * MINUTE, FeatureView("late_1m", "1 minute", {"close": bar.close}))
    time = START + MINUTE + 5 * SECOND
    features = ["late_1m.close"]
    assert list(training_set(at(time, "B"), features, {})[features[0]]) == [8]
    assert training_set(at(time), features, {})[features[0]].isna().all()
    for as_of in (time, "5 seconds after close"):
        known = read_features(SYMBOLS, START, time, view="late_1m", as_of=as_of)
        assert [symbol for symbol, _ in known.index] == ["B"]


def test_a_refresh_that_is_not_noted_yet_is_not_known(small: Past) -> None:
    for minute in range(20):
        small.write("A", minute, 7, 1)
        small.refresh(START + (minute + 1) * MINUTE + SECOND)
    apply_late(small, START + 60 * MINUTE)
    features = [f"{LATE[0].name}.mean_5m"]
    small.write("A", 15, 7, 100)
    small.refresh(START + 70 * MINUTE)
    small.conn.execute(
        """UPDATE feature_platform.refresh SET known_by = NULL, newest_known = NULL,
                  overtaken_by = NULL WHERE known_by > %s""",
        [START + 65 * MINUTE],
    )
    assert list(training_set(at(START + 20 * MINUTE), features, {})[features[0]]) == [1]
    rows = read_features(
        "A", START, START + 20 * MINUTE, view=LATE[0].name, as_of="2 seconds after close"
    )
    assert set(rows["mean_5m"].dropna()) == {1}


def test_events_before_all_knowledge_are_an_error(small: Past) -> None:
    for minute in range(20):
        small.write("A", minute)
    small.refresh(START + 60 * MINUTE)
    apply_late(small, START + 120 * MINUTE)
    features = [f"{LATE[0].name}.mean_5m"]
    assert training_set(at(START), features, {})[features[0]].isna().all()
    error = r"late_short_1m had no row of 'A' at .*T00:10:00.*knowledge begins at .*T01:00:00"
    with pytest.raises(UserError, match=error):
        training_set(at(START + 10 * MINUTE), features, {})
    assert training_set(at(START + 61 * MINUTE), features, {})[features[0]].notna().all()


def test_events_before_a_truncate_are_an_error(small: Past) -> None:
    for minute in range(20):
        small.write("A", minute)
        small.refresh(START + (minute + 1) * MINUTE)
    small.conn.execute("TRUNCATE ohlcv_1m")
    for minute in range(10, 30):
        small.write("A", minute)
    small.refresh(START + 60 * MINUTE)
    apply_late(small, START + 120 * MINUTE)
    features = [f"{LATE[0].name}.mean_5m"]
    error = "^late_short_1m had other rows of 'A' at .* truncated or forgotten by 2026-03-01 01:0"
    for read in (
        lambda: training_set(at(START + 18 * MINUTE), features, {}),
        lambda: read_features(
            "A", START, START + 18 * MINUTE, view=LATE[0].name, as_of=START + 18 * MINUTE
        ),
        lambda: read_features(
            "A", START, START + 18 * MINUTE, view=LATE[0].name, as_of="2 seconds after close"
        ),
    ):
        with pytest.raises(UserError, match=error) as raised:
            read()
        assert len(str(raised.value).splitlines()) == 1
    assert training_set(at(START + 61 * MINUTE), features, {})[features[0]].notna().all()


def test_rows_whose_bars_have_no_versions_any_more_are_an_error(small: Past) -> None:
    day = timedelta(days=1)
    for hour in range(48):
        small.write_hour("A", hour, 7, 1)
        small.refresh(START + (hour + 1) * 60 * MINUTE)
    small.write("A", 29 * 60 + 58, 7, 100)
    small.refresh(START + 2 * day)
    apply_late(small, START + 2 * day + MINUTE)
    features = [f"{LATE[0].name}.mean_5m"]
    time = START + 30 * 60 * MINUTE + SECOND
    assert list(training_set(at(time), features, {})[features[0]]) == [1]
    small.set_clock(START + 2 * day + (5 * 60 + 57) * MINUTE)
    small.conn.execute("SELECT set_features_1m_retention(features => '1 day')")
    small.conn.execute("CALL feature_platform.apply_retention()")
    error = "^late_short_1m had other rows of 'A' at .* bars are kept since 2026-03-02 05:57"
    with pytest.raises(UserError, match=error):
        training_set(at(time), features, {})
    later = training_set(at(time + 60 * MINUTE), features, {})
    assert list(later[features[0]]) == [1]
