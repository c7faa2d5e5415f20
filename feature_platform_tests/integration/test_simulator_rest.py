"""Guards against a simulated exchange whose answers or faults over REST differ from Binance's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ccxt
import httpx
import pandas as pd
import pytest

from feature_platform.clock import ManualClock
from feature_platform.errors import UserError
from feature_platform.simulator.binance_rest import create_app
from feature_platform.simulator.faults import Faults
from feature_platform.simulator.published import PublishedBars
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import GeneratedTruth, Truth
from feature_platform.simulator.weights import Weights
from feature_platform_tests.fix_processes import PATIENCE

NOW = datetime(2026, 3, 10, 12, 0, 30, tzinfo=UTC)
OPEN = NOW.replace(second=0)
START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
COLUMNS = ["open", "high", "low", "close", "vol"]
ADMIN_METHODS = ("GET", "POST", "DELETE")
COMMAND = [sys.executable, "-W", "error", "-m", "feature_platform.cli.app", "simulate"]


@pytest.fixture
def exchange_clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def http(simulator: SimulatedExchange) -> Iterator[httpx.Client]:
    with client_of(simulator.url) as client:
        yield client


def client_of(url: str) -> httpx.Client:
    # The simulator has no TLS; loading certificates takes a tenth of a second.
    return httpx.Client(base_url=url, verify=False)


def ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


def get_klines(http: httpx.Client, **given: Any) -> httpx.Response:
    return http.get("/api/v3/klines", params={"symbol": "BTCUSDT", "interval": "1m", **given})


def klines(http: httpx.Client, **given: Any) -> list[list[Any]]:
    response = get_klines(http, **given)
    assert response.status_code == 200, response.text
    rows: list[list[Any]] = response.json()
    return rows


def times(rows: list[list[Any]]) -> list[int]:
    return [row[0] for row in rows]


def minutes(start: datetime, end: datetime) -> list[int]:
    return list(range(ms(start), ms(end), 60_000))


def values(rows: list[list[Any]]) -> list[list[float]]:
    return [[float(text) for text in row[1:6]] for row in rows]


def truth(exchange_truth: Truth, start: datetime, end: datetime, symbol: str = "BTC/USDT") -> Any:
    return exchange_truth.bars(symbol, start, end)[COLUMNS].to_numpy().tolist()


def error(response: httpx.Response) -> tuple[int, int, str]:
    body = response.json()
    assert set(body) == {"code", "msg"}
    return response.status_code, body["code"], body["msg"]


# ---- answers of Binance ----


def test_ping_and_time_have_the_form_of_binance(http: httpx.Client) -> None:
    assert http.get("/api/v3/ping").json() == {}
    response = http.get("/api/v3/time")
    assert response.json() == {"serverTime": ms(NOW)}
    assert response.headers["date"] == "Tue, 10 Mar 2026 12:00:30 GMT"


def test_exchange_info_has_the_form_of_binance(http: httpx.Client) -> None:
    info = http.get("/api/v3/exchangeInfo").json()
    assert info["timezone"] == "UTC"
    assert info["serverTime"] == ms(NOW)
    assert info["rateLimits"][0]["limit"] == 6000
    assert [one["symbol"] for one in info["symbols"]] == ["BTCUSDT", "XRPETH", "LINKUSDT"]
    first = info["symbols"][0]
    assert (first["baseAsset"], first["quoteAsset"], first["status"]) == ("BTC", "USDT", "TRADING")
    assert {"filterType", "tickSize"} <= set(first["filters"][0])
    one = http.get("/api/v3/exchangeInfo", params={"symbol": "XRPETH"}).json()
    assert [symbol["symbol"] for symbol in one["symbols"]] == ["XRPETH"]
    two = http.get("/api/v3/exchangeInfo", params={"symbols": '["XRPETH","BTCUSDT"]'}).json()
    assert [symbol["symbol"] for symbol in two["symbols"]] == ["XRPETH", "BTCUSDT"]


def test_the_newest_bars_end_with_the_open_one(http: httpx.Client) -> None:
    rows = klines(http)
    assert times(rows) == minutes(OPEN - 499 * MINUTE, OPEN + MINUTE)


def test_a_row_has_the_form_of_binance(http: httpx.Client, exchange_truth: Truth) -> None:
    (row,) = klines(http, startTime=ms(START), limit=1)
    assert [type(field) for field in row] == [int, *[str] * 5, int, str, int, *[str] * 3]
    assert row[6] == row[0] + 59_999
    assert all(len(text.partition(".")[2]) == 8 for text in row[1:6])
    assert values([row]) == truth(exchange_truth, START, START + MINUTE)


def test_a_range_includes_both_ends(http: httpx.Client, exchange_truth: Truth) -> None:
    end = START + 10 * MINUTE
    rows = klines(http, startTime=ms(START), endTime=ms(end))
    assert times(rows) == minutes(START, end + MINUTE)
    assert values(rows) == truth(exchange_truth, START, end + MINUTE)
    assert times(klines(http, startTime=ms(START) + 1, endTime=ms(end) - 1)) == minutes(
        START + MINUTE, end
    )


def test_a_start_gives_the_first_bars_and_an_end_the_last(http: httpx.Client) -> None:
    first = klines(http, startTime=ms(START), limit=3)
    assert times(first) == minutes(START, START + 3 * MINUTE)
    last = klines(http, endTime=ms(START), limit=3)
    assert times(last) == minutes(START - 2 * MINUTE, START + MINUTE)


def test_the_limit_is_1000(http: httpx.Client) -> None:
    assert len(klines(http, startTime=ms(START), limit=1000)) == 1000
    assert len(klines(http, startTime=ms(START), limit=5000)) == 1000


def test_ranges_without_bars_are_empty(http: httpx.Client) -> None:
    assert klines(http, startTime=ms(START), endTime=ms(START - MINUTE)) == []
    assert klines(http, startTime=ms(NOW + MINUTE)) == []
    assert klines(http, endTime=ms(datetime(2001, 1, 1, tzinfo=UTC))) == []


def test_time_zero_gives_the_first_bar(http: httpx.Client) -> None:
    assert times(klines(http, startTime=0, limit=1)) == [ms(datetime(2020, 1, 1, tzinfo=UTC))]


def test_the_time_zone_parameter_has_no_effect(http: httpx.Client) -> None:
    assert klines(http, startTime=ms(START), timeZone="5:45") == klines(http, startTime=ms(START))


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"symbol": None}, -1102, "Mandatory parameter 'symbol' was not sent"),
        ({"symbol": ""}, -1102, "Mandatory parameter 'symbol' was not sent"),
        ({"interval": None}, -1102, "Mandatory parameter 'interval' was not sent"),
        ({"startTime": ""}, -1102, "Mandatory parameter 'startTime' was not sent"),
        ({"symbol": "DOGEUSDT"}, -1121, "Invalid symbol."),
        ({"symbol": "btcusdt"}, -1100, "Illegal characters found in parameter 'symbol'"),
        ({"symbol": "BTC/USDT"}, -1100, "Illegal characters found in parameter 'symbol'"),
        ({"interval": "1h"}, -1120, "Invalid interval."),
        ({"interval": "minute"}, -1120, "Invalid interval."),
        ({"limit": "many"}, -1100, "Illegal characters found in parameter 'limit'"),
        ({"startTime": "-5"}, -1100, "Illegal characters found in parameter 'startTime'"),
        ({"endTime": "1e9"}, -1100, "Illegal characters found in parameter 'endTime'"),
        ({"limit": 0}, -1130, "Data sent for parameter 'limit' is not valid."),
        ({"until": 1}, -1104, "Not all sent parameters were read; read '2' parameter(s)"),
        ({"symbol": ["BTCUSDT", "XRPETH"]}, -1101, "Duplicate values for a parameter detected."),
    ],
)
def test_wrong_parameters_have_the_codes_of_binance(
    http: httpx.Client, given: dict[str, Any], code: int, message: str
) -> None:
    parameters = {"symbol": "BTCUSDT", "interval": "1m", **given}
    parameters = {name: value for name, value in parameters.items() if value is not None}
    status, found, text = error(http.get("/api/v3/klines", params=parameters))
    assert (status, found) == (400, code)
    assert text.startswith(message)


def test_other_paths_and_methods_are_rejected(http: httpx.Client) -> None:
    assert http.get("/api/v3/depth").status_code == 404
    assert http.post("/api/v3/klines").status_code == 405


# ---- time ----


def test_the_open_candle_grows_into_the_bar(
    http: httpx.Client, exchange_clock: ManualClock, exchange_truth: Truth
) -> None:
    (bar,) = truth(exchange_truth, OPEN, OPEN + MINUTE)
    volumes = []
    for _ in range(3):
        (row,) = klines(http, startTime=ms(OPEN))
        ((opening, high, low, close, volume),) = values([row])
        assert opening == bar[0]
        assert bar[2] <= low <= min(opening, close) <= max(opening, close) <= high <= bar[1]
        volumes.append(volume)
        exchange_clock.advance(10)
    assert volumes == sorted(set(volumes))
    assert volumes[-1] < bar[4]
    rows = klines(http, startTime=ms(OPEN))
    assert values(rows[:1]) == [bar]
    assert times(rows) == minutes(OPEN, OPEN + 2 * MINUTE)


# ---- weights ----


def weight(response: httpx.Response) -> int:
    assert response.headers["x-mbx-used-weight"] == response.headers["x-mbx-used-weight-1m"]
    return int(response.headers["x-mbx-used-weight-1m"])


def test_weights_add_up_within_a_minute(http: httpx.Client, exchange_clock: ManualClock) -> None:
    assert weight(get_klines(http)) == 2
    assert weight(http.get("/api/v3/exchangeInfo")) == 22
    assert weight(http.get("/api/v3/time")) == 23
    exchange_clock.advance(30)
    assert weight(http.get("/api/v3/ping")) == 1


def test_too_much_weight_is_429_and_then_a_ban_of_418(
    exchange_truth: Truth, exchange_clock: ManualClock
) -> None:
    limited = SimulatedExchange(exchange_truth, clock=exchange_clock, weight_limit=10)
    with limited, client_of(limited.url) as http:
        for _ in range(5):
            assert get_klines(http).status_code == 200
        rejected = get_klines(http)
        assert error(rejected)[:2] == (429, -1003)
        assert "current limit is 10 request weight per 1 MINUTE" in rejected.text
        assert rejected.headers["retry-after"] == "30"
        exchange_clock.advance(30)
        assert get_klines(http).status_code == 200
        for _ in range(4):
            get_klines(http)
        statuses = [get_klines(http).status_code for _ in range(13)]
        assert statuses == [429] * 10 + [418] * 3
        banned = get_klines(http)
        assert banned.headers["retry-after"] == "120"
        assert "IP banned until" in banned.text
        exchange_clock.advance(119.5)
        assert get_klines(http).status_code == 418
        exchange_clock.advance(0.5)
        assert get_klines(http).status_code == 200


# ---- faults ----


def test_the_latency_fault_delays_an_answer(
    simulator: SimulatedExchange, http: httpx.Client
) -> None:
    simulator.set_faults({"kind": "latency", "seconds": 0.2, "count": 1})
    began = time.monotonic()
    get_klines(http)
    assert time.monotonic() - began >= 0.2
    get_klines(http)
    assert simulator.faults.fired("latency") == 1


@pytest.mark.parametrize(("kind", "status"), [("too_many_requests", 429), ("banned", 418)])
def test_a_rejection_lasts_until_its_retry_after(
    simulator: SimulatedExchange,
    http: httpx.Client,
    exchange_clock: ManualClock,
    kind: str,
    status: int,
) -> None:
    simulator.set_faults({"kind": kind, "retry_after": 7, "count": 1})
    for _ in range(2):
        rejected = get_klines(http)
        assert error(rejected)[:2] == (status, -1003)
        assert rejected.headers["retry-after"] == "7"
    assert http.get("/api/v3/time").status_code == status
    exchange_clock.advance(7)
    assert get_klines(http).status_code == 200


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, "application/json"), (502, "text/html"), (503, "application/json"), (504, "text/html")],
)
def test_a_server_error_has_its_status_and_type(
    simulator: SimulatedExchange, http: httpx.Client, status: int, kind: str
) -> None:
    simulator.set_faults({"kind": "server_error", "status": status, "count": 1})
    response = get_klines(http)
    assert response.status_code == status
    assert response.headers["content-type"].startswith(kind)
    assert get_klines(http).status_code == 200


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_reset_ends_the_connection(
    simulator: SimulatedExchange, http: httpx.Client, share: float
) -> None:
    simulator.set_faults({"kind": "reset", "at": share, "count": 1})
    with pytest.raises(httpx.ReadError):
        get_klines(http)
    assert get_klines(http).status_code == 200


def test_a_garbled_answer_is_no_json(simulator: SimulatedExchange, http: httpx.Client) -> None:
    simulator.set_faults({"kind": "garbled", "count": 1})
    response = get_klines(http)
    assert response.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        response.json()


def test_a_short_page_has_fewer_rows(simulator: SimulatedExchange, http: httpx.Client) -> None:
    simulator.set_faults({"kind": "short_page", "rows": 3, "count": 1})
    assert times(klines(http, startTime=ms(START))) == minutes(START, START + 3 * MINUTE)
    assert len(klines(http, startTime=ms(START))) == 500


def test_the_open_candle_is_inserted_anywhere(
    simulator: SimulatedExchange, http: httpx.Client
) -> None:
    simulator.set_faults({"kind": "open_candle", "position": "first"})
    rows = klines(http, startTime=ms(START), limit=4)
    assert times(rows) == [ms(OPEN), *minutes(START, START + 4 * MINUTE)]
    simulator.set_faults({"kind": "open_candle", "position": "middle"})
    assert times(klines(http, limit=4)) == [
        *minutes(OPEN - 3 * MINUTE, OPEN - 2 * MINUTE),
        ms(OPEN),
        *minutes(OPEN - 2 * MINUTE, OPEN),
    ]


def test_rows_are_shuffled_or_repeated(simulator: SimulatedExchange, http: httpx.Client) -> None:
    right = klines(http, startTime=ms(START), limit=50)
    simulator.set_faults({"kind": "shuffled"})
    rows = klines(http, startTime=ms(START), limit=50)
    assert rows != right
    assert sorted(rows) == right
    simulator.set_faults({"kind": "repeated", "rows": 3})
    rows = klines(http, startTime=ms(START), limit=50)
    assert rows[:50] == right
    assert len(rows) == 53
    assert all(row in right for row in rows)
    simulator.set_faults({"kind": "repeated", "rows": 3, "differing": True})
    rows = klines(http, startTime=ms(START), limit=50)
    assert set(times(rows)) == set(times(right))
    assert not any(row in right for row in rows[50:])


def test_start_and_end_are_ignored(simulator: SimulatedExchange, http: httpx.Client) -> None:
    given = {"startTime": ms(START), "endTime": ms(START + 2 * MINUTE), "limit": 5}
    simulator.set_faults({"kind": "ignored_start"})
    assert times(klines(http, **given)) == minutes(START - 2 * MINUTE, START + 3 * MINUTE)
    simulator.set_faults({"kind": "ignored_end"})
    assert times(klines(http, **given)) == minutes(START, START + 5 * MINUTE)
    simulator.set_faults({"kind": "ignored_start"}, {"kind": "ignored_end"})
    assert times(klines(http, **given)) == minutes(OPEN - 4 * MINUTE, OPEN + MINUTE)


def test_some_rows_are_malformed(simulator: SimulatedExchange, http: httpx.Client) -> None:
    right = klines(http, startTime=ms(START), limit=100)
    simulator.set_faults({"kind": "malformed", "rows": 13})
    rows: list[Any] = klines(http, startTime=ms(START), limit=100)
    assert len(rows) == 100
    assert sum(one != other for one, other in zip(rows, right, strict=True)) == 13
    assert "oops" in rows


def test_quiet_minutes_have_no_row(
    simulator: SimulatedExchange, http: httpx.Client, exchange_truth: Truth
) -> None:
    end = START + 300 * MINUTE
    given = {"symbol": "XRPETH", "startTime": ms(START), "endTime": ms(end) - 1, "limit": 1000}
    every = klines(http, **given)
    assert len(every) == 300
    simulator.set_faults({"kind": "quiet_left_out"})
    rows = klines(http, **given)
    bars = exchange_truth.bars("XRP/ETH", START, end)
    assert values(rows) == bars[bars["trades"] > 0][COLUMNS].to_numpy().tolist()
    assert 150 < len(rows) < 280
    # The limit counts bars, not minutes.
    assert len(klines(http, **{**given, "endTime": ms(NOW)})) == 1000
    assert len(klines(http, symbol="XRPETH", limit=1000)) == 1000


def test_late_bars_are_published_later(
    simulator: SimulatedExchange, http: httpx.Client, exchange_clock: ManualClock
) -> None:
    simulator.set_faults({"kind": "late", "seconds": 120})
    given = {"startTime": ms(OPEN - 5 * MINUTE)}
    assert times(klines(http, **given)) == minutes(OPEN - 5 * MINUTE, OPEN - 2 * MINUTE)
    exchange_clock.advance(60)
    assert times(klines(http, **given)) == minutes(OPEN - 5 * MINUTE, OPEN - MINUTE)
    simulator.set_faults({"kind": "late", "seconds": 1e9, "probability": 0.5})
    some = klines(http, startTime=ms(START), endTime=ms(START + 999 * MINUTE), limit=1000)
    assert 400 < len(some) < 600


def test_bars_are_corrected_at_a_given_time(
    simulator: SimulatedExchange,
    http: httpx.Client,
    exchange_clock: ManualClock,
    exchange_truth: Truth,
) -> None:
    end = START + 10 * MINUTE
    given = {"startTime": ms(START), "endTime": ms(end) - 1}
    right = truth(exchange_truth, START, end)
    until = (NOW + MINUTE).isoformat()
    span = {"start": START.isoformat(), "end": (START + 3 * MINUTE).isoformat()}
    simulator.set_faults({"kind": "corrected", "until": until, **span})
    early = values(klines(http, **given))
    assert [one == other for one, other in zip(early, right, strict=True)] == [False] * 3 + [
        True
    ] * 7
    for opening, high, low, close, volume in early:
        assert low <= min(opening, close) <= max(opening, close) <= high
        assert volume > 0
    exchange_clock.advance(60)
    assert values(klines(http, **given)) == right


def test_bars_are_corrected_after_given_seconds(
    simulator: SimulatedExchange,
    http: httpx.Client,
    exchange_clock: ManualClock,
    exchange_truth: Truth,
) -> None:
    simulator.set_faults({"kind": "corrected", "seconds": 100})
    rows = values(klines(http, startTime=ms(OPEN - 4 * MINUTE), endTime=ms(OPEN) - 1))
    right = truth(exchange_truth, OPEN - 4 * MINUTE, OPEN)
    assert [one == other for one, other in zip(rows, right, strict=True)] == [
        True,
        True,
        False,
        False,
    ]
    exchange_clock.advance(60)
    rows = values(klines(http, startTime=ms(OPEN - 4 * MINUTE), endTime=ms(OPEN) - 1))
    assert rows == right[:3] + rows[3:]


def test_an_outage_has_no_rows_or_an_error(
    simulator: SimulatedExchange, http: httpx.Client
) -> None:
    span = {
        "start": (START + 2 * MINUTE).isoformat(),
        "end": (START + 2000 * MINUTE).isoformat(),
        "symbol": "BTC/USDT",
    }
    simulator.set_faults({"kind": "outage", **span})
    assert times(klines(http, startTime=ms(START), limit=4)) == [
        *minutes(START, START + 2 * MINUTE),
        *minutes(START + 2000 * MINUTE, START + 2002 * MINUTE),
    ]
    assert len(klines(http, symbol="XRPETH", startTime=ms(START))) == 500
    simulator.set_faults({"kind": "outage", "status": 503, **span})
    assert get_klines(http, startTime=ms(START)).status_code == 503
    assert get_klines(http, startTime=ms(START), endTime=ms(START + MINUTE)).status_code == 200
    assert get_klines(http, startTime=ms(START + 2000 * MINUTE)).status_code == 200


def test_a_fault_is_limited_to_its_symbol_endpoint_and_count(
    simulator: SimulatedExchange, http: httpx.Client
) -> None:
    simulator.set_faults(
        {"kind": "server_error", "status": 500, "symbol": "BTC/USDT", "after": 1, "count": 2},
        {"kind": "server_error", "status": 502, "endpoint": "time"},
    )
    assert [get_klines(http).status_code for _ in range(5)] == [200, 500, 500, 200, 200]
    assert get_klines(http, symbol="XRPETH").status_code == 200
    assert http.get("/api/v3/time").status_code == 502
    assert simulator.faults.fired("server_error") == 3


def test_faults_follow_from_the_seed(exchange_truth: Truth, exchange_clock: ManualClock) -> None:
    def statuses(seed: int) -> list[int]:
        running = SimulatedExchange(exchange_truth, seed=seed, clock=exchange_clock)
        with running, client_of(running.url) as http:
            running.set_faults({"kind": "server_error", "probability": 0.3})
            return [get_klines(http, limit=1).status_code for _ in range(60)]

    first = statuses(1)
    assert statuses(1) == first
    assert statuses(2) != first
    assert 8 < first.count(503) < 30


# ---- the simulator's own ----


def test_faults_are_set_over_http(http: httpx.Client) -> None:
    assert http.get("/admin/faults").json() == {"faults": []}
    added = http.post("/admin/faults", json=[{"kind": "short_page", "rows": 1, "count": 1}])
    assert added.status_code == 200
    http.post("/admin/faults", json=[{"kind": "outage", "start": "2026-03-01T00:00Z"}])
    assert len(klines(http, startTime=ms(START - 5 * MINUTE))) == 1
    short, outage = http.get("/admin/faults").json()["faults"]
    assert (short["kind"], short["rows"], short["fired"]) == ("short_page", 1, 1)
    assert outage["start"] == "2026-03-01T00:00:00Z"
    assert http.delete("/admin/faults").json() == {"faults": []}
    assert len(klines(http)) == 500


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("nonsense", "Invalid JSON"),
        ('{"kind": "reset"}', "Input should be a valid array"),
        ('[{"kind": "flood"}]', "'flood' found using 'kind' does not match"),
        ('[{"kind": "latency"}]', "0.latency.seconds: Field required"),
        ('[{"kind": "reset", "at": 2}]', "0.reset.at: Input should be less than or equal to 1"),
        ('[{"kind": "reset", "att": 1}]', "0.reset.att: Extra inputs are not permitted"),
        ('[{"kind": "corrected"}]', "give either until or seconds"),
    ],
)
def test_wrong_faults_are_rejected(http: httpx.Client, body: str, message: str) -> None:
    response = http.post("/admin/faults", content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert http.get("/admin/faults").json() == {"faults": []}


def test_faults_are_not_set_from_other_machines(exchange_clock: ManualClock) -> None:
    published = PublishedBars(GeneratedTruth(["A/B"]), Faults(), exchange_clock)
    app = create_app(published, Weights(exchange_clock))
    far = httpx.ASGITransport(app, client=("192.0.2.1", 5))

    async def statuses() -> list[int]:
        async with httpx.AsyncClient(transport=far, base_url="http://simulator") as http:
            sent = [("GET", "/api/v3/ping"), *((m, "/admin/faults") for m in ADMIN_METHODS)]
            return [(await http.request(method, path)).status_code for method, path in sent]

    assert asyncio.run(statuses()) == [200, 403, 403, 403]


def test_the_client_of_ccxt_needs_only_another_url(
    simulator: SimulatedExchange, exchange_truth: Truth
) -> None:
    client = ccxt.binance({"options": {"fetchMarkets": {"types": ["spot"]}}})
    client.urls["api"] = {
        name: url.replace("https://api.binance.com", simulator.url)
        for name, url in client.urls["api"].items()
    }
    try:
        assert set(client.load_markets()) == set(exchange_truth.markets)
        assert client.market("BTC/USDT")["precision"]["price"] == 0.01
        assert client.fetch_time() == ms(NOW)
        rows = client.fetch_ohlcv("BTC/USDT", "1m", since=ms(START), limit=20)
        assert [row[1:] for row in rows] == truth(exchange_truth, START, START + 20 * MINUTE)
        with pytest.raises(ccxt.BadSymbol):
            client.publicGetKlines({"symbol": "DOGEUSDT", "interval": "1m"})
        with pytest.raises(ccxt.BadRequest):
            client.fetch_ohlcv("BTC/USDT", "1h")
    finally:
        client.close()


# ---- the command ----


def started(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("simulating Binance at http://127.0.0.1:"), line
    return line.split()[3].rstrip(":")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(number: signal.Signals) -> None:
    faults = '[{"kind": "short_page", "rows": 2}]'
    options = ("--symbols", "BTC/USDT, NEW/EUR", "--seed", "3", "--faults", faults)
    with started(*options) as process, client_of(url_of(process)) as http:
        rows = klines(http, symbol="NEWEUR", startTime=ms(START))
        seen = GeneratedTruth(["NEW/EUR"], seed=3)
        assert values(rows) == truth(seen, START, START + 2 * MINUTE, "NEW/EUR")
        # An open connection must not delay the stop.
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    request, *_, last = errors.splitlines()
    assert " path=/api/v3/klines query=symbol=NEWEUR" in request
    assert " status=200 " in request
    assert request.endswith(" faults=short_page")
    assert last == "feature-platform: stopped"
    assert "Traceback" not in errors


def test_the_command_serves_the_bars_of_a_file(tmp_path: Path, exchange_truth: Truth) -> None:
    path = tmp_path / "bars.csv.gz"
    bars = exchange_truth.bars("XRP/ETH", START, START + 30 * MINUTE)
    bars = bars[bars["trades"] > 0]
    bars.drop(columns="trades").to_csv(path, index=False)
    with started("--bars", str(path), "--symbol", "XRP/ETH") as process:
        with client_of(url_of(process)) as http:
            rows = klines(http, symbol="XRPETH", startTime=0)
            assert error(get_klines(http))[1] == -1121
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert values(rows) == bars[COLUMNS].to_numpy().tolist()
    assert [pd.Timestamp(at, unit="ms", tz="UTC") for at in times(rows)] == bars["ts"].tolist()


def test_a_port_in_use_gets_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--port", port], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == (
        f"feature-platform: cannot serve at 127.0.0.1:{port}: Address already in use;"
        " choose another with --port\n"
    )


def test_wrong_options_are_rejected(tmp_path: Path) -> None:
    from feature_platform.simulator.server import make_exchange

    fine: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "seed": 0,
        "symbols": None,
        "faults": None,
        "bars": None,
        "symbol": None,
    }
    for change, message in (
        ({"symbol": "A/B"}, "--bars and --symbol go together"),
        ({"bars": tmp_path}, "--bars and --symbol go together"),
        ({"bars": tmp_path, "symbol": "A/B", "symbols": "A/B"}, "do not use it with --bars"),
        ({"bars": tmp_path / "x", "symbol": "A/B"}, "no such file"),
        ({"symbols": "what"}, "is not a symbol of a spot market"),
        ({"symbols": ","}, "no symbol to simulate"),
        ({"faults": "@" + str(tmp_path / "x")}, "cannot be read"),
        ({"faults": "["}, "faults: Invalid JSON"),
        ({"host": "no.such.host.invalid"}, "cannot serve at no.such.host.invalid:0"),
    ):
        with pytest.raises(UserError, match=message):
            make_exchange(**{**fine, **change})
