"""Guards against rows "as they were known" that a reader could not have seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier, Literal

from feature_platform import read_features, training_set
from feature_platform._adbc import text_of
from feature_platform.errors import UserError
from feature_platform.settings import get_settings
from feature_platform.views import FeatureView, bar, catalog, count
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_knowledge import (
    MINUTE,
    MINUTES,
    SECOND,
    START,
    SYMBOLS,
    Past,
    Row,
    live_past,
    shown,
)
from feature_platform_tests.fix_plans import explain, nodes
from feature_platform_tests.fix_views import CANDLES, SHORT, refresh_all

AFTER = START + timedelta(days=1)
VIEWS = {
    "features_1m": MINUTE,
    SHORT.name: MINUTE,
    CANDLES.name: timedelta(hours=1),
}
DELAYS = {
    "0 seconds": timedelta(0),
    "2 seconds": 2 * SECOND,
    "1.5 minutes": 90 * SECOND,
    "1 hour": timedelta(hours=1),
}


@pytest.fixture(scope="module")
def past(databases: Databases) -> Iterator[Past]:
    """Yield the past of a live database with two views."""
    with live_past(databases, 12) as past:
        yield past


@pytest.fixture(autouse=True)
def configured(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settings name this database, for a user with the rights of a reader."""
    url = make_conninfo(past.conn.info.dsn, options="-c role=feature_platform_reader")
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    get_settings.cache_clear()


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows of a frame in the form of those that a reader saw."""
    names = [name for name in table.column_names if name not in ("symbol", "bucket")]
    return [
        (row["symbol"], row["bucket"], tuple(shown(row[name]) for name in names))
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize("view", VIEWS)
def test_rows_as_of_a_time_are_what_a_reader_saw_then(past: Past, view: str) -> None:
    rng = random.Random(5)
    seen = set()
    for at, _ in rng.sample(past.seen, 40):
        moment = at + rng.choice([0, 0, 7]) * SECOND
        frame = read_features(SYMBOLS, START, AFTER, as_="arrow", view=view, as_of=moment)
        assert rows_of(frame) == past.known_at(view, moment), moment
        seen.add(str(frame))
    assert len(seen) > (3 if view == CANDLES.name else 20)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("view", VIEWS)
def test_rows_after_close_are_what_a_reader_saw_then(past: Past, view: str, delay: str) -> None:
    frame = read_features(
        SYMBOLS, START, AFTER, as_="arrow", view=view, as_of=f"{delay} after close"
    )
    expected = past.known_after_close(view, VIEWS[view], DELAYS[delay])
    assert rows_of(frame) == expected
    stored = rows_of(read_features(SYMBOLS, START, AFTER, as_="arrow", view=view))
    if delay == "2 seconds":
        absent = {row[:2] for row in stored} - {row[:2] for row in expected}
        assert absent, "some rows were not known in time"


def test_rows_whose_time_has_not_come_are_absent(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = START + 100 * MINUTE
    clock = f"{now.isoformat()}@{datetime.now(UTC).isoformat()}x0.001"
    options = f"-c role=feature_platform_reader -c feature_platform.clock={clock}"
    monkeypatch.setenv(
        "FEATURE_PLATFORM_DATABASE_URL", make_conninfo(past.conn.info.dsn, options=options)
    )
    get_settings.cache_clear()
    frame = read_features(SYMBOLS, START, AFTER, as_="arrow", as_of="10 minutes after close")
    expected = past.known_after_close("features_1m", MINUTE, 10 * MINUTE)
    assert rows_of(frame) == [row for row in expected if row[1] + 11 * MINUTE <= now]


def test_several_views_and_all_forms_agree(past: Past) -> None:
    moment, seen = past.seen[len(past.seen) // 2]
    columns = ["volume_z", "last_close", "mean_5m", "ema_3m"]
    views = ["features_1m", SHORT.name]
    for as_of in (moment, moment.isoformat(), "5 seconds after close"):
        given: dict[str, Any] = {"columns": columns, "view": views, "as_of": as_of}
        table = read_features(SYMBOLS, START, AFTER, as_="arrow", **given)
        frame = read_features(SYMBOLS, START, AFTER, **given)
        polars = read_features(SYMBOLS, START, AFTER, as_="polars", **given)
        assert polars.to_arrow().to_pylist() == table.to_pylist()
        assert frame.reset_index().columns.tolist() == ["symbol", "bucket", *columns]
        assert len(frame) == table.num_rows > 0
        one = read_features("B", START, AFTER, **given)
        assert one.equals(frame.loc["B"])
    table = read_features(SYMBOLS, START, AFTER, as_="arrow", view=views, as_of=moment)
    joined = {row[:2]: row[2] for row in seen["features_1m"].rows}
    assert [(row[0], row[1], row[2][:9]) for row in rows_of(table)] == [
        (*key, values) for key, values in sorted(joined.items())
    ]


@pytest.mark.parametrize("views", [["features_1m", CANDLES.name], [CANDLES.name, SHORT.name]])
def test_views_of_different_widths_are_not_joined_after_close(views: list[str]) -> None:
    """A row of both would have the candle of an hour that closes after the minute."""
    with pytest.raises(UserError) as raised:
        read_features("A", START, AFTER, view=views, as_of="2 seconds after close")
    widths = {CANDLES.name: "1 hour"}
    first, second = (widths.get(view, "1 minute") for view in views)
    assert str(raised.value).startswith(
        f"the buckets of {views[0]} are {first} wide, those of {views[1]} {second}: "
    )
    assert str(raised.value).endswith("use training_set, or read each view alone")


@pytest.mark.parametrize(
    ("as_of", "message"),
    [
        ("2999-01-01T00:00Z", "is in the future: it is 20"),
        (START - timedelta(days=1), "is too early: knowledge begins at 2026-03-01T00:0"),
        ("2026-03-01T00:30", "has no time zone; write it as"),
        ("2 seconds before close", "or as '2 seconds after close'"),
        (
            "2 fortnights after close",
            "is not a delay; write a number of milliseconds, seconds, minutes, hours or days,",
        ),
        ("-1 seconds after close", "the delay of as_of, '-1 seconds', is not a delay"),
        ("9999999999999 days after close", "is longer than all history"),
        (5, "as_of, 5, is not a time"),
    ],
    ids=str,
)
def test_a_time_that_cannot_be_answered_gets_one_line(as_of: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_features("A", START, AFTER, as_of=as_of)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_rows_of_before_a_view_was_built_are_as_if_it_had_existed(past: Past) -> None:
    built = past.seen[-1][0] + timedelta(hours=1)
    past.set_clock(built)
    late = SHORT.__class__("late_1m", "1 minute", dict(SHORT.columns))
    catalog.apply(past.conn, [SHORT, CANDLES, late])
    refresh_all(past.conn)
    patient = f"{MINUTES + 120} minutes after close"
    for as_of in (past.seen[99][0], built + SECOND, "2 seconds after close", patient):
        rows = read_features("A", START, AFTER, view="late_1m", as_of=as_of)
        assert len(rows) > 50
        assert rows.equals(read_features("A", START, AFTER, view=SHORT.name, as_of=as_of))


def test_nothing_is_known_before_the_first_refresh(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    get_settings.cache_clear()
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
               VALUES ('A', '2026-03-01 00:00Z', 1, 1, 1, 1, 1)"""
        )
    error = "before the first refresh: nothing is known yet"
    for as_of in (START, "2 seconds after close"):
        with pytest.raises(UserError, match=error):
            read_features("A", START, AFTER, as_of=as_of)
    with pytest.raises(UserError, match=error):
        training_set(
            pd.DataFrame({"symbol": ["A"], "time": [START + MINUTE]}), ["features_1m.vol"], {}
        )


def test_a_symbol_whose_bars_were_deleted_has_its_known_rows(new_past: Past) -> None:
    catalog.apply(new_past.conn, [SHORT])
    for minute in range(5):
        new_past.write("A", minute)
        new_past.write("B", minute)
    new_past.refresh(START + 10 * MINUTE)
    for minute in range(5):
        new_past.delete("A", minute)
    new_past.refresh(START + 20 * MINUTE)
    new_past.set_clock(START + 60 * MINUTE)
    for view in ("features_1m", SHORT.name):
        for minutes, rows in ((12, 10), (30, 5)):
            for as_of in (f"{minutes} minutes after close", START + minutes * MINUTE):
                found = read_features(SYMBOLS, START, AFTER, view=view, as_of=as_of)
                assert len(found) == rows, as_of
        assert len(read_features("A", START, AFTER, view=view, as_of=START + 30 * MINUTE)) == 0


def test_a_time_before_a_symbol_was_forgotten_is_an_error(new_past: Past) -> None:
    catalog.apply(new_past.conn, [SHORT])
    for symbol in SYMBOLS:
        for minute in range(20):
            new_past.write(symbol, minute)
    new_past.refresh(START + 20 * MINUTE)
    new_past.set_clock(START + 30 * MINUTE)
    new_past.conn.execute("SELECT feature_platform.forget_symbol('A')")
    for minute in range(20):
        new_past.write("A", minute)
    new_past.refresh(START + 31 * MINUTE)
    error = "is too early for 'A': its rows were forgotten at 2026-03-01T00:30"
    early = START + 25 * MINUTE
    for view in ("features_1m", SHORT.name):
        with pytest.raises(UserError, match=error):
            read_features("A", START, AFTER, view=view, as_of=early)
        assert len(read_features("B", START, AFTER, view=view, as_of=early)) == 20
        later = early + 10 * MINUTE
        assert len(read_features("A", START, AFTER, view=view, as_of=later)) == 20
        events = pd.DataFrame({"symbol": ["B", "A"], "time": [early, later]})
        column = f"{view}.{'vol' if view == 'features_1m' else 'ema_3m'}"
        assert not training_set(events, [column], {})[column].isna().any()
        with pytest.raises(UserError, match=error):
            training_set(events.assign(time=early), [column], {})


def test_views_of_counts_and_of_days_without_a_bucket_can_be_read(
    simulated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", simulated_database)
    get_settings.cache_clear()
    counts = FeatureView("counts", "1 minute", {"n_5m": count(bar.close, "5 minutes")})
    days = FeatureView("days", "1 day", {"close": bar.close})
    with psycopg.connect(simulated_database, autocommit=True) as conn:
        past = Past(conn)
        past.set_clock(START - MINUTE)
        for minute in range(1500):
            past.write("A", minute)
        past.write("B", 1490)
        past.refresh(START + 1500 * MINUTE)
        catalog.apply(conn, [counts, days])  # no day of B has closed
        past.refresh(START + 1501 * MINUTE)
        past.write("A", 1501)
        past.refresh(START + 1502 * MINUTE)
    end = START + timedelta(days=2)
    now = START + 1502 * MINUTE + SECOND
    stored = read_features("A", START, end, view="counts", as_="arrow")
    for as_of in ("10 minutes after close", START + 1501 * MINUTE, now):
        found = read_features("A", START, end, view="counts", as_="arrow", as_of=as_of)
        assert found.schema == stored.schema
    assert len(read_features("B", START, end, view="days")) == 0
    assert len(read_features(["A", "B"], START, end, view="days")) == 1
    assert len(read_features(["A", "B"], START, end, view="days", as_of=now)) == 1
    with pytest.raises(UserError, match="there are no rows in days of 'AA'"):
        read_features("AA", START, end, view="days")


def test_versions_of_rows_are_kept_for_their_time(
    simulated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", simulated_database)
    get_settings.cache_clear()
    day = timedelta(days=1)
    histories = ("feature_platform.features_1m_history", "feature_views.v1_history")
    with psycopg.connect(simulated_database, autocommit=True) as conn:
        past = Past(conn)
        past.set_clock(START - MINUTE)
        catalog.apply(conn, [SHORT])
        for number in range(5):
            for minute in range(20):
                past.write("A", minute, 6 + (minute + number) % 7)
            past.refresh(START + (number + 1) * day)
        conn.execute("SELECT set_features_1m_retention(versions => '2 days 1 hour')")
        kept_from = past.seen[-1][0] - 2 * day - timedelta(hours=1)
        before = {name: count_of(conn, name) for name in histories}
        while conn.execute("SELECT feature_platform.retention_step(30)").fetchone() == (True,):
            pass
        assert [count_of(conn, name) for name in histories] == [
            count * 3 // 4 for count in before.values()
        ]
        for view in ("features_1m", SHORT.name):
            for moment, seen in past.seen[2:]:
                frame = read_features(["A"], START, AFTER, as_="arrow", view=view, as_of=moment)
                assert rows_of(frame) == seen[view].rows
        error = r"as_of, .* is too early: versions of rows are kept since 2026-03-03T2"
        for moment in (past.seen[1][0], kept_from - MINUTE):
            with pytest.raises(UserError, match=error):
                read_features("A", START, AFTER, as_of=moment)
        with pytest.raises(UserError, match="is too early: versions of rows are kept since"):
            read_features("A", START, AFTER, as_of="2 seconds after close")
        events = pd.DataFrame({"symbol": "A", "time": [past.seen[1][0]]})
        with pytest.raises(UserError, match=r"an event, .* is too early: versions"):
            training_set(events, ["features_1m.vol"], {})
        conn.execute("SELECT set_features_1m_retention()")
        with pytest.raises(UserError, match="is too early"):
            read_features("A", START, AFTER, as_of=past.seen[1][0])


def count_of(conn: psycopg.Connection, name: str) -> int:
    return len(conn.execute(f"TABLE {name}".encode()).fetchall())


DAYS = 20
_BARS = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT 'S' || s, %s::timestamptz + m * interval '10 minutes', 10, 12, 9, 10 + m %% 3, m %% 7
    FROM generate_series(1, 20) AS s, generate_series(0, 144 * %s - 1) AS m
"""
_REFRESHES = """
    INSERT INTO feature_platform.refresh (known_by, newest_known, overtaken_by)
    SELECT %s::timestamptz + m * interval '1 minute', m, m - 1
    FROM generate_series(1, 1440 * %s) AS m
"""
_CORRECT = "UPDATE ohlcv_1m SET vol = vol + 1 WHERE extract(hour FROM ts AT TIME ZONE 'UTC') = 5"


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "statistics"])
@pytest.mark.parametrize("query", ["knowledge_read_at", "knowledge_read_after_close"])
def test_a_read_of_known_rows_scans_only_its_window(
    conn: psycopg.Connection, query: str, *, analyzed: bool
) -> None:
    conn.execute(_BARS, (START, DAYS))
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute(_CORRECT)
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    conn.execute(_REFRESHES, (START, DAYS))
    tables = "public.features_1m, feature_platform.features_1m_history, feature_platform.refresh"
    conn.execute(f"VACUUM {'(ANALYZE) ' if analyzed else ''}{tables}".encode())
    from_day = START + timedelta(days=DAYS // 2)
    statement = text_of(
        query,
        columns=SQL("v.symbol, v.bucket, v.vol"),
        versions=Identifier("feature_platform", "features_1m_versions"),
        symbols=Literal(["S3", "S7"]),
        start=Literal(from_day),
        end=Literal(from_day + timedelta(hours=8)),
        upto=Literal(2),
        late=Literal([]),
        view=Literal(0),
        every=Literal(60.0),
        seconds=Literal(62.0),
        built_at=Literal("-infinity"),
    )
    rows = {
        "features_1m": 2 * 6 * 8,
        "features_1m_history": 2 * 6 * 8 + 2,
        "refresh": 60 * 8 + 1440 + 10,
        "known_at_close": 0,
    }
    found = set()
    for node in nodes(explain(conn, statement)["Plan"]):
        name = node.get("Relation Name", "")
        # The name of a chunk of a hypertable has its number only.
        most = rows.get(name, rows["features_1m"])
        if name:
            found.add(name)
            read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            assert read * node["Actual Loops"] <= most, node
    assert len(found) >= 2
