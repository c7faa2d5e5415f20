"""Guards against rows of a range that are missing, repeated or not exact, in any format."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pyarrow as pa
import pyarrow.ipc
import pytest

from feature_platform.service.formats import choose
from feature_platform.service.rows import COLUMNS
from feature_platform_tests.fix_processes import value
from feature_platform_tests.fix_service import STRANGE, ServedDatabase

FEATURES = "/v1/features"
ROWS = 2500  # more than two parts of an answer
STORED = """
    SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z,
           vwap_gap, parkinson_vol, refresh_no
    FROM features_1m WHERE symbol = %s AND bucket >= %s AND bucket < %s ORDER BY bucket
"""
Stored = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def stored(served: ServedDatabase) -> Stored:
    """Store the features of a symbol with a strange name, with a gap, and return them."""
    first = served.add(STRANGE, ROWS)
    served.conn.execute(
        "DELETE FROM features_1m WHERE symbol = %s AND bucket >= %s AND bucket < %s",
        [STRANGE, first + timedelta(minutes=1100), first + timedelta(minutes=1107)],
    )
    rows = served.conn.execute(STORED, [STRANGE, first, first + timedelta(days=9)]).fetchall()
    assert len(rows) == ROWS - 7
    return rows


def window(stored: Stored, **more: Any) -> dict[str, Any]:
    """Return the parameters of a request for all stored rows."""
    end = stored[-1][1] + timedelta(minutes=1)
    return {
        "symbol": STRANGE,
        "start": stored[0][1].isoformat(),
        "end": end.isoformat(),
        **more,
    }


def fetch(
    served: ServedDatabase, parameters: dict[str, Any], accept: str = "*/*"
) -> httpx.Response:
    answer = served.http.get(FEATURES, params=parameters, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


def values(row: dict[str, Any]) -> tuple[Any, ...]:
    assert tuple(row) == COLUMNS
    return (row["symbol"], datetime.fromisoformat(row["bucket"]), *list(row.values())[2:])


def parsed(line: list[str]) -> tuple[Any, ...]:
    """Return the values of a line of CSV."""
    numbers = [None if text == "" else float(text) for text in line[2:]]
    for name in ("n_1d", "refresh_no"):
        numbers[COLUMNS.index(name) - 2] = int(line[COLUMNS.index(name)])
    return (line[0], datetime.fromisoformat(line[1]), *numbers)


def exact(rows: Any) -> list[str]:
    """Return rows as texts that are exact to the last bit, with times in UTC."""
    return [repr((row[0], row[1].astimezone(UTC), *row[2:])) for row in rows]


def test_json_has_all_rows(served: ServedDatabase, stored: Stored) -> None:
    answer = fetch(served, window(stored))
    assert answer.headers["content-type"] == "application/json"
    page = answer.json()
    assert exact(map(values, page["rows"])) == exact(stored)
    assert page["next"] is None
    assert "link" not in answer.headers


def test_arrow_has_all_rows(served: ServedDatabase, stored: Stored) -> None:
    answer = fetch(served, window(stored), "application/vnd.apache.arrow.stream")
    with pa.ipc.open_stream(answer.content) as stream:
        batches = list(stream)
    assert len(batches) == 3
    table = pa.Table.from_batches(batches)
    assert table.column_names == list(COLUMNS)
    assert exact(zip(*(column.to_pylist() for column in table.columns), strict=True)) == exact(
        stored
    )


def test_csv_has_all_rows(served: ServedDatabase, stored: Stored) -> None:
    answer = fetch(served, window(stored), "text/csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    names, *lines = csv.reader(io.StringIO(answer.text, newline=""))
    assert names == list(COLUMNS)
    assert exact(map(parsed, lines)) == exact(stored)


@pytest.mark.parametrize("form", ["json", "csv", "arrow"])
def test_the_format_parameter_overrides_the_accept_header(
    served: ServedDatabase, stored: Stored, form: str
) -> None:
    answer = fetch(served, window(stored, format=form, limit=1), "text/nonsense")
    assert {"json": "json", "csv": "csv", "arrow": "arrow"}[form] in answer.headers["content-type"]


@pytest.mark.parametrize("limit", [1, 999, 1000, 1001, ROWS - 8, ROWS - 7])
def test_pages_follow_each_other_to_the_end(
    served: ServedDatabase, stored: Stored, limit: int
) -> None:
    start = stored[0][1] if limit > 1 else stored[-5][1]
    page = fetch(served, window(stored, limit=limit, start=start.isoformat())).json()
    rows, pages = page["rows"], 1
    while page["next"]:
        answer = served.http.get(page["next"])
        page = answer.json()
        assert len(page["rows"]) <= limit
        rows, pages = rows + page["rows"], pages + 1
    expected = [row for row in stored if row[1] >= start]
    assert exact(map(values, rows)) == exact(expected)
    assert pages == -(-len(expected) // limit)


def test_every_format_links_to_the_next_page(served: ServedDatabase, stored: Stored) -> None:
    for form in ("csv", "arrow", "json"):
        answer = fetch(served, window(stored, limit=1000, format=form))
        link = answer.links["next"]["url"]
        query = parse_qs(urlsplit(link).query)
        assert query["format"] == [form]
        assert query["symbol"] == [STRANGE]
        assert datetime.fromisoformat(query["start"][0]) == stored[1000][1]


@pytest.mark.usefixtures("stored")
def test_a_range_without_rows_is_empty(served: ServedDatabase) -> None:
    empty = {"symbol": STRANGE, "start": "1970-01-01", "end": "1970-01-02"}
    assert fetch(served, empty).json() == {
        "rows": [],
        "symbol_no": value(served.conn, "SELECT feature_platform.number_of(%s)", STRANGE),
        "waiting": [],
        "waiting_no": None,
        "next": None,
    }
    csv = fetch(served, {**empty, "format": "csv"}).text
    assert csv == ",".join(f'"{name}"' for name in COLUMNS) + "\n"
    with pa.ipc.open_stream(fetch(served, {**empty, "format": "arrow"}).content) as stream:
        assert stream.read_all().num_rows == 0


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"symbol": "none"}, 404, "no features of 'none'"),
        ({"start": "2026-02-02", "end": "2026-02-01"}, 400, "start is not before end"),
        ({"start": "2026-02-01", "end": "2026-02-01"}, 400, "start is not before end"),
        ({"start": "2024-01-01", "end": "2025-01-02"}, 400, "from start to end is more than 366"),
        ({"start": "now"}, 422, "start: 'now' is not an ISO-8601 time such as 2026-02-01T12:00Z"),
        ({"start": "2026-13-01"}, 422, "start: '2026-13-01' is not an ISO-8601 time"),
        ({"start": "1700000000"}, 422, "start: '1700000000' is not an ISO-8601 time"),
        (
            {"start": "0001-01-01T00:00:00+14:00"},
            422,
            "start: '0001-01-01T00:00:00+14:00' is outside",
        ),
        ({"end": "9999-12-31T23:59:59-14:00"}, 422, "end: '9999-12-31T23:59:59-14:00' is outside"),
        ({"limit": 0}, 422, "limit: Input should be greater than or equal to 1"),
        ({"limit": 100_001}, 422, "limit: Input should be less than or equal to 100000"),
        ({"limit": "x"}, 422, "limit: Input should be a valid integer"),
        ({"format": "xml"}, 422, "format: Input should be 'json', 'csv' or 'arrow'"),
        (
            {"columns": "vol"},
            422,
            "no parameter 'columns'; the parameters are symbol, start, end, limit, format, as_of,",
        ),
        ({"limits": 3}, 422, "no parameter 'limits' (did you mean 'limit'?); the"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named(
    served: ServedDatabase, change: dict[str, Any], status: int, message: str
) -> None:
    parameters = {"symbol": "X", "start": "2026-02-01", "end": "2026-02-02", **change}
    answer = served.http.get(FEATURES, params=parameters)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(message)


@pytest.mark.parametrize("name", ["symbol", "start", "end", "limit", "format", "as_of"])
def test_a_repeated_parameter_is_rejected(served: ServedDatabase, name: str) -> None:
    values = {"limit": "1", "format": "csv", "as_of": "2026-02-01"}
    parameters = {"symbol": "X", "start": "2026-02-01", "end": "2026-02-02"} | {
        name: [values.get(name, "X")] * 2
    }
    answer = served.http.get(FEATURES, params=parameters)
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{name}: the parameter is given more than once"


@pytest.mark.parametrize(("offset", "is_hinted"), [("+02:00", True), ("+0200", True), ("x", False)])
def test_a_plus_that_is_not_encoded_gets_a_hint(
    served: ServedDatabase, offset: str, is_hinted: bool
) -> None:
    window = f"symbol=X&start=2026-02-01&end=2026-02-02&as_of=2026-02-01T12:00:00{offset}"
    answer = served.http.get(f"{FEATURES}?{window}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("as_of: '2026-02-01T12:00:00")
    assert answer.json()["detail"].endswith("; write + as %2B in an address") == is_hinted


def test_an_accept_header_without_a_known_format_is_an_error(
    served: ServedDatabase, stored: Stored
) -> None:
    answer = served.http.get(
        FEATURES, params=window(stored), headers={"Accept": "text/html, image/*"}
    )
    assert answer.status_code == 406
    assert "text/csv" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/*", "json"),
        ("text/*, */*;q=0.1", "csv"),
        ("TEXT/CSV", "csv"),
        ("text/csv;q=0.5, application/vnd.apache.arrow.stream", "arrow"),
        ("application/json;q=0, */*", "csv"),
        ("text/csv;q=x", None),
        ("text/html", None),
        (",;,q=;", None),
    ],
)
def test_the_accept_header_selects_the_format(accept: str, form: str | None) -> None:
    assert choose(accept) == form


def test_the_list_of_symbols_has_their_range_and_age(
    served: ServedDatabase, stored: Stored
) -> None:
    served.add("STALE", 3, minutes_ago=9)
    answer = served.http.get("/v1/symbols")
    found = {one["symbol"]: one for one in answer.json()["symbols"]}
    assert list(found) == sorted(found)
    assert datetime.fromisoformat(found[STRANGE]["first_bucket"]) == stored[0][1]
    assert datetime.fromisoformat(found[STRANGE]["last_bucket"]) == stored[-1][1]
    assert found[STRANGE]["stale"] is False
    assert found["STALE"]["stale"] is True
    assert 540 <= found["STALE"]["age_seconds"] < 660
