"""Guards against an answer whose numbers differ from its rows, and against pages that change."""

from __future__ import annotations

import csv
import io
import random
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pyarrow as pa
import pyarrow.ipc
import pytest

from feature_platform.views import FeatureView, bar, catalog
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_processes import insert_bars, value
from feature_platform_tests.fix_service import ServedDatabase

Rows = list[dict[str, Any]]

LATEST, FEATURES = "/v1/features/latest", "/v1/features"
VIEW = "/v1/views/hourly"
HOURLY = FeatureView("hourly", "5 minutes", {"close": bar.close, "n_1d": bar.vol / 7 + 0.1})
CORRECT = "UPDATE ohlcv_1m SET vol = vol + 1, close = close + 0.5 WHERE symbol = %s AND ts = %s"
HIGHER = "UPDATE ohlcv_1m SET high = high + 1 WHERE symbol = %s AND ts = %s"
SLICE = """
    SELECT feature_platform.refresh_slice(
        %s, %s, feature_platform.dirty_horizon(), newest_first => false)
"""
NOW = "SELECT feature_platform.clock()"
NUMBER = "SELECT feature_platform.number_of(%s)"
KEEP = """
    UPDATE feature_platform.retention SET versions_from = %s
    RETURNING versions_from AT TIME ZONE 'UTC'
"""
HOUR = "SELECT date_trunc('hour', feature_platform.clock() - %s)"
VIEW_ID = "SELECT id FROM feature_platform.feature_view WHERE name = 'hourly' AND served"
VIEW_NUMBER = """
    SELECT s.no FROM feature_platform.view_symbol s JOIN feature_platform.feature_view v
        ON v.id = s.view WHERE v.name = 'hourly' AND v.served AND s.symbol = %s
"""
MINUTE = timedelta(minutes=1)


def get(served: ServedDatabase, path: str, **parameters: Any) -> httpx.Response:
    answer = served.http.get(path, params=parameters or None)
    assert answer.status_code == 200, answer.text
    return answer


def newest(served: ServedDatabase, symbol: str, path: str = LATEST) -> dict[str, Any]:
    (row,) = get(served, path, symbol=symbol).json()["rows"]
    found: dict[str, Any] = row
    return found


def window(symbol: str, first: datetime, minutes: int, **more: Any) -> dict[str, Any]:
    end = first + minutes * MINUTE
    return {"symbol": symbol, "start": first.isoformat(), "end": end.isoformat(), **more}


def all_pages(served: ServedDatabase, path: str, **parameters: Any) -> Rows:
    page = get(served, path, **parameters).json()
    rows: Rows = page["rows"]
    while page["next"]:
        page = get(served, page["next"]).json()
        rows += page["rows"]
    return rows


def refresh_views(conn: psycopg.Connection[Any]) -> None:
    refresh(conn)
    catalog.refresh_views(conn)


@pytest.fixture(scope="module", autouse=True)
def view(served: ServedDatabase) -> None:
    """Apply the view, and serve with the rights of a reader."""
    catalog.apply(served.conn, [HOURLY])
    served.service, served.http = served.serve(role="feature_platform_reader")


def test_the_newest_row_has_its_numbers(served: ServedDatabase) -> None:
    first = served.add("N", 10)
    row = newest(served, "N")
    assert row["refresh_no"] == row["symbol_no"] == value(served.conn, NUMBER, "N") > 0
    assert (row["waiting"], row["waiting_no"]) == ([], None)
    # A refresh of an older row changes the number of the symbol, and not the newest row, whose
    # values do not depend on it.
    served.conn.execute(HIGHER, ["N", first])
    refresh(served.conn)
    later = newest(served, "N")
    assert later["refresh_no"] == row["refresh_no"]
    assert later["symbol_no"] == value(served.conn, NUMBER, "N") > row["symbol_no"]


def test_an_answer_has_the_buckets_that_wait(served: ServedDatabase) -> None:
    first = served.add("WAITS", 60)
    before = newest(served, "WAITS")
    assert before["waiting_no"] is None
    served.conn.execute(CORRECT, ["WAITS", first])
    # This slice puts the newest half hour back.
    middle = first + 30 * MINUTE
    served.conn.execute(SLICE, [first, middle])
    row = newest(served, "WAITS")
    end = first + 60 * MINUTE
    bounds = [(row["bucket"], end.isoformat())]
    assert times(row["waiting"]) == times_of(bounds)
    assert row["waiting_no"] == before["symbol_no"] < row["symbol_no"]
    assert row["refresh_no"] <= row["waiting_no"]

    answer = get(served, FEATURES, **window("WAITS", first, 50, format="json"))
    page = answer.json()
    expected = [(middle.isoformat(), (first + 50 * MINUTE).isoformat())]
    assert times(page["waiting"]) == times_of(expected)
    assert page["waiting_no"] == row["waiting_no"]
    assert page["symbol_no"] == row["symbol_no"]
    for form in ("json", "csv", "arrow"):
        headers = get(served, FEATURES, **window("WAITS", first, 50, format=form)).headers
        assert headers["feature-symbol-no"] == str(row["symbol_no"])
        assert headers["feature-waiting-no"] == str(row["waiting_no"])
        assert times_of([tuple(headers["feature-waiting"].split("/"))]) == times_of(expected)

    refresh(served.conn)
    assert newest(served, "WAITS")["waiting"] == []
    answer = get(served, FEATURES, **window("WAITS", first, 50))
    assert answer.json()["waiting"] == []
    assert "feature-waiting" not in answer.headers


def times(waiting: list[dict[str, str]]) -> list[tuple[datetime, datetime]]:
    return times_of([(one["start"], one["end"]) for one in waiting])


def times_of(bounds: list[Any]) -> list[tuple[datetime, datetime]]:
    return [(datetime.fromisoformat(a), datetime.fromisoformat(b)) for a, b in bounds]


def test_a_view_has_the_numbers_of_its_own_refreshes(served: ServedDatabase) -> None:
    first = value(served.conn, HOUR, 100 * MINUTE)
    insert_bars(served.conn, "V", first, 32)
    refresh_views(served.conn)
    row = newest(served, "V", f"{VIEW}/latest")
    assert row["symbol_no"] == value(served.conn, VIEW_NUMBER, "V") >= row["refresh_no"] > 0
    assert row["waiting"] == []
    for at in (first, first + 31 * MINUTE):
        served.conn.execute(CORRECT, ["V", at])
    # The change becomes a mark of the view, which no slice of the view has processed.
    refresh(served.conn)
    assert newest(served, "V", f"{VIEW}/latest") | {"age_seconds": 0} == row | {"age_seconds": 0}
    number = value(served.conn, VIEW_ID)
    served.conn.execute(
        "SELECT feature_platform.view_slice(%s, %s, %s)", [number, first, first + 5 * MINUTE]
    )
    waits = newest(served, "V", f"{VIEW}/latest")
    assert waits["refresh_no"] == row["refresh_no"]
    assert times(waits["waiting"])[0][0] == datetime.fromisoformat(row["bucket"])
    assert waits["waiting_no"] == row["symbol_no"] < waits["symbol_no"]
    page = get(served, VIEW, **window("V", first, 60)).json()
    assert page["waiting_no"] == row["symbol_no"]
    assert page["symbol_no"] == waits["symbol_no"]
    catalog.refresh_views(served.conn)
    assert newest(served, "V", f"{VIEW}/latest")["waiting"] == []


def test_a_view_that_is_being_built_waits_without_an_end(served: ServedDatabase) -> None:
    first = served.add("BUILDS", 60)
    catalog.apply(served.conn, [FeatureView("built", "1 minute", {"x": bar.close})])
    number = value(served.conn, "SELECT id FROM feature_platform.feature_view WHERE name = 'built'")
    served.conn.execute(
        "SELECT feature_platform.view_slice(%s, %s, %s, slice_symbols => 100)",
        [number, first, first + 30 * MINUTE],
    )
    row = newest(served, "BUILDS", "/v1/views/built/latest")
    (waits,) = row["waiting"]
    assert datetime.fromisoformat(waits["start"]) == first + 30 * MINUTE
    assert row["waiting_no"] == 0
    page = get(served, "/v1/views/built", **window("BUILDS", first, 60)).json()
    assert times(page["waiting"]) == [(first + 30 * MINUTE, first + 60 * MINUTE)]
    now = value(served.conn, NOW).isoformat()
    answer = served.http.get("/v1/views/built", params=window("BUILDS", first, 60, as_of=now))
    assert answer.json() == {"detail": "as_of: built is not complete yet"}
    catalog.refresh_views(served.conn)
    assert newest(served, "BUILDS", "/v1/views/built/latest")["waiting"] == []


def change(conn: psycopg.Connection[Any], rng: random.Random, symbol: str, first: datetime) -> None:
    """Correct, delete and add some bars of a symbol, and refresh a part of their rows or all."""
    for _ in range(3):
        at = first + rng.randrange(90) * MINUTE
        what = rng.choice(("correct", "delete", "add"))
        if what == "correct":
            conn.execute(CORRECT, [symbol, at])
        elif what == "delete":
            conn.execute("DELETE FROM ohlcv_1m WHERE symbol = %s AND ts = %s", [symbol, at])
        elif not value(
            conn, "SELECT count(*) FROM ohlcv_1m WHERE symbol = %s AND ts = %s", symbol, at
        ):
            insert_bars(conn, symbol, at, 1)
    if rng.random() < 0.4:
        conn.execute(SLICE, [first, first + 40 * MINUTE])
        conn.execute("SELECT feature_platform.note_known()")
    else:
        refresh_views(conn)


@pytest.mark.parametrize("path", [FEATURES, VIEW])
def test_pages_as_of_a_time_or_a_number_are_those_of_then(
    served: ServedDatabase, path: str
) -> None:
    symbol = f"THEN{path}"
    rng = random.Random(3)
    first = served.add(symbol, 90)
    refresh_views(served.conn)
    seen = []
    for _ in range(12):
        asked = window(symbol, first, 90)
        page = get(served, path, **asked).json()
        seen.append((page["rows"], page["symbol_no"], value(served.conn, NOW)))
        change(served.conn, rng, symbol, first)
    assert len({str(rows) for rows, _, _ in seen}) > 6
    for rows, number, moment in seen:
        for limit in (7, 1000):
            asked = window(symbol, first, 90, limit=limit)
            assert all_pages(served, path, **asked, symbol_no=number) == rows
            assert all_pages(served, path, **asked, as_of=moment.isoformat()) == rows
        page = get(served, path, **window(symbol, first, 90, as_of=moment.isoformat())).json()
        assert (page["symbol_no"], page["waiting"], page["waiting_no"]) == (None, None, None)
        page = get(served, path, **window(symbol, first, 90, symbol_no=number)).json()
        assert (page["symbol_no"], page["waiting"]) == (number, None)


def test_every_format_has_the_rows_as_of_a_time(served: ServedDatabase) -> None:
    first = served.add("FORMS", 20)
    rows = get(served, FEATURES, **window("FORMS", first, 20)).json()["rows"]
    moment = value(served.conn, NOW)
    served.conn.execute(CORRECT, ["FORMS", first])
    refresh(served.conn)
    asked = window("FORMS", first, 20, as_of=moment.isoformat())
    names, *lines = csv.reader(io.StringIO(get(served, FEATURES, **asked, format="csv").text))
    of_csv = [dict(zip(names, line, strict=True)) for line in lines]
    with pa.ipc.open_stream(get(served, FEATURES, **asked, format="arrow").content) as stream:
        table = stream.read_all()
    assert table.schema.field("refresh_no").type == pa.int64()
    for old, line, other in zip(rows, of_csv, table.to_pylist(), strict=True):
        assert old["refresh_no"] == int(line["refresh_no"]) == other["refresh_no"]
        assert old["ma_vol_1d"] is None
        assert old["vol"] == float(line["vol"]) == other["vol"]
        assert old["last_close"] == float(line["last_close"]) == other["last_close"]


def test_a_page_shows_the_refreshes_of_its_beginning(served: ServedDatabase) -> None:
    """Rows that change while a page is sent, or between two pages, do not get into it."""
    count = 30_000
    first = served.add("LONG", count)
    asked = window("LONG", first, count, limit=20_000)
    with served.http.stream("GET", FEATURES, params=asked) as answer:
        parts = answer.iter_bytes()
        body = next(parts)
        for at in (15_000, 25_000):
            served.conn.execute(CORRECT, ["LONG", first + at * MINUTE])
        served.conn.execute(
            "DELETE FROM ohlcv_1m WHERE symbol = 'LONG' AND ts = %s", [first + 18_000 * MINUTE]
        )
        refresh(served.conn)
        body += b"".join(parts)
    page = httpx.Response(200, content=body).json()
    rows = page["rows"]
    last = get(served, page["next"]).json()
    rows += last["rows"]
    assert (len(rows), last["next"]) == (count, None)
    assert page["symbol_no"] == last["symbol_no"] < value(served.conn, NUMBER, "LONG")
    assert {row["refresh_no"] <= page["symbol_no"] for row in rows} == {True}
    assert len(all_pages(served, FEATURES, **asked)) == count - 1


def test_a_refresh_that_was_not_known_yet_does_not_count(served: ServedDatabase) -> None:
    """Of two refreshes of different symbols, the one with the smaller number commits last."""
    first = served.add("SLOW", 10)
    other = served.add("FAST", 10)
    rows = get(served, FEATURES, **window("SLOW", first, 10)).json()["rows"]
    with psycopg.connect(served.url) as slow:
        slow.execute(CORRECT, ["SLOW", first])
        slow.commit()
        slow.execute(SLICE, [None, first + 10 * MINUTE])
        served.conn.execute(CORRECT, ["FAST", other])
        served.conn.execute(SLICE, [None, other + 10 * MINUTE])
        served.conn.execute("SELECT feature_platform.note_known()")
        fast = get(served, FEATURES, **window("FAST", other, 10)).json()["rows"]
        moment = value(served.conn, NOW).isoformat()
        slow.commit()
    served.conn.execute("SELECT feature_platform.note_known()")
    refresh(served.conn)
    asked = window("SLOW", first, 10, limit=3)
    now = all_pages(served, FEATURES, **asked)
    assert now != rows
    assert now[0]["refresh_no"] < fast[0]["refresh_no"]
    assert all_pages(served, FEATURES, **asked, as_of=moment) == rows
    assert all_pages(served, FEATURES, **window("FAST", other, 10), as_of=moment) == fast


@pytest.mark.parametrize("path", [FEATURES, VIEW])
def test_what_was_not_known_is_an_error(served: ServedDatabase, path: str) -> None:
    symbol = f"ERR{path}"
    first = served.add(symbol, 10)
    refresh_views(served.conn)
    number = get(served, path, **window(symbol, first, 10)).json()["symbol_no"]

    def detail(status: int, **more: Any) -> str:
        answer = served.http.get(path, params=window(symbol, first, 10) | more)
        assert answer.status_code == status, answer.text
        text: str = answer.json()["detail"]
        assert "\n" not in text
        return text

    assert "as_of: 2999-01-01T00:00:00Z is in the future" in detail(400, as_of="2999-01-01")
    before = "as_of: 2020-01-01T00:00:00Z is before the first refresh that is known, at 2"
    complete = "as_of: 2020-01-01T00:00:00Z is too early: version 1 of hourly is complete since 2"
    assert (before if path == FEATURES else complete) in detail(400, as_of="2020-01-01")
    assert "as_of: 'yesterday' is not an ISO-8601 time" in detail(422, as_of="yesterday")
    assert detail(400, symbol_no=number + 10**6) == (
        f"symbol_no: {number + 10**6} is above the number of the symbol's last refresh, {number}"
    )
    assert "symbol_no: Input should be greater than or equal" in detail(422, symbol_no=-1)
    both = detail(400, symbol_no=number, as_of="2026-01-01")
    assert both == "as_of and symbol_no exclude each other"
    assert "'none'" in detail(404, symbol="none", symbol_no=7)


@pytest.mark.parametrize("path", [FEATURES, VIEW])
def test_a_past_that_is_not_kept_is_an_error(served: ServedDatabase, path: str) -> None:
    symbol = f"GONE{path}"
    first = served.add(symbol, 30)
    refresh_views(served.conn)
    page = get(served, path, **window(symbol, first, 30, limit=1)).json()
    moment = value(served.conn, NOW).isoformat()
    served.conn.execute("DELETE FROM ohlcv_1m WHERE symbol = %s", [symbol])
    served.conn.execute("SELECT feature_platform.forget_symbol(%s)", [symbol])
    insert_bars(served.conn, symbol, first, 30)
    refresh_views(served.conn)
    rows = all_pages(served, path, **window(symbol, first, 30, limit=2))
    assert all_pages(served, path, **window(symbol, first, 30), as_of=now(served)) == rows != []
    floor = value(
        served.conn, "SELECT no FROM feature_platform.knowledge_floor WHERE symbol = %s", symbol
    )
    detail = f": the rows of {symbol!r} before refresh {floor} are not kept"
    asked = window(symbol, first, 30, as_of=moment)
    answers = [served.http.get(path, params=asked), served.http.get(page["next"])]
    assert [answer.status_code for answer in answers] == [400, 400]
    details = [answer.json()["detail"] for answer in answers]
    assert details == ["as_of" + detail, "symbol_no" + detail]


@pytest.mark.parametrize("path", [FEATURES, VIEW])
def test_versions_that_the_retention_deleted_are_an_error(
    served: ServedDatabase, path: str
) -> None:
    symbol = f"KEPT{path}"
    first = served.add(symbol, 30)
    refresh_views(served.conn)
    old = get(served, path, **window(symbol, first, 30, limit=2)).json()
    moment = now(served)
    served.conn.execute(CORRECT, [symbol, first])
    refresh_views(served.conn)
    kept = value(served.conn, KEEP, now(served))
    served.conn.execute(CORRECT, [symbol, first + MINUTE])
    refresh_views(served.conn)
    try:
        new = get(served, path, **window(symbol, first, 30, limit=2)).json()
        get(served, new["next"])
        get(served, path, **window(symbol, first, 30, as_of=now(served)))
        asked = window(symbol, first, 30, as_of=moment)
        answers = [served.http.get(path, params=asked), served.http.get(old["next"])]
    finally:
        served.conn.execute("UPDATE feature_platform.retention SET versions_from = NULL")
    text = f": earlier versions of rows are kept since {kept.isoformat()}Z"
    assert [answer.status_code for answer in answers] == [400, 400]
    assert [one.json()["detail"] for one in answers] == ["as_of" + text, "symbol_no" + text]


def now(served: ServedDatabase) -> str:
    moment: datetime = value(served.conn, NOW)
    return moment.isoformat()


def test_pages_of_a_view_do_not_mix_versions(served: ServedDatabase) -> None:
    first = served.add("MIX", 60)
    catalog.apply(served.conn, [FeatureView("mixed", "5 minutes", {"x": bar.close})])
    refresh_views(served.conn)
    asked = window("MIX", first, 60, limit=3)
    page = get(served, "/v1/views/mixed", **asked).json()
    moment = value(served.conn, NOW).isoformat()
    catalog.apply(served.conn, [FeatureView("mixed", "5 minutes", {"x": bar.close + 1})])
    refresh_views(served.conn)
    answer = served.http.get(page["next"])
    assert answer.status_code == 400
    assert answer.json()["detail"] == (
        "version: mixed has version 2 now, not 1: read from the first page"
    )
    answer = served.http.get("/v1/views/mixed", params={**asked, "as_of": moment})
    assert answer.status_code == 400
    assert "is too early: version 2 of mixed is complete since " in answer.json()["detail"]
    assert len(all_pages(served, "/v1/views/mixed", **asked)) >= 10


def test_a_column_of_a_view_keeps_its_type(served: ServedDatabase) -> None:
    """The name of a column of features_1m may be that of a view's column of another type."""
    first = served.add("TYPE", 10)
    refresh_views(served.conn)
    asked = window("TYPE", first, 10)
    rows = get(served, VIEW, **asked).json()["rows"]
    assert rows[0]["n_1d"] % 1 > 0
    with pa.ipc.open_stream(get(served, VIEW, **asked, format="arrow").content) as stream:
        assert stream.read_all()["n_1d"].to_pylist() == [row["n_1d"] for row in rows]
