"""Guards against exchange answers without a bound: of size, of time, or of their content."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from feature_platform.clock import Clock, ManualClock, WallClock
from feature_platform.errors import UserError
from feature_platform.exchange import bounded_http as _bounded_http
from feature_platform.exchange.bounded_http import MIB, Limit
from feature_platform.exchange.client import ExchangeUnavailable, Interrupted
from feature_platform.exchange.retry import retry_after
from feature_platform.simulator.server import SimulatedExchange
from feature_platform_tests.fix_exchange import MakeExchange, quick
from feature_platform_tests.fix_processes import PATIENCE, wait_until

MINUTE = timedelta(minutes=1)
SYMBOL = "BTC/USDT"
END = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
START = END - 30 * MINUTE


def fetch(make_exchange: MakeExchange, **options: Any) -> list[Any]:
    return list(make_exchange(**options).fetch_bars(SYMBOL, START, END))


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize(("endpoint", "most"), [("klines", 8), ("exchangeInfo", 32)])
def test_an_answer_above_the_size_limit_is_cut_off(
    simulator: SimulatedExchange, make_exchange: MakeExchange, gzip: bool, endpoint: str, most: int
) -> None:
    simulator.set_faults({"kind": "endless", "gzip": gzip, "endpoint": endpoint})
    with pytest.raises(ExchangeUnavailable, match=f"an answer of more than {most} MiB"):
        fetch(make_exchange, patience=quick(1))
    simulator.set_faults()
    assert len(fetch(make_exchange)[0].bars) == 30


@pytest.mark.timing
def test_a_slow_answer_ends_at_the_deadline(
    simulator: SimulatedExchange, make_exchange: MakeExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bounded_http, "BARS", Limit(MIB, 1.0))
    simulator.set_faults({"kind": "dripping", "seconds": 0.2})
    began = time.monotonic()
    with pytest.raises(ExchangeUnavailable, match="RequestTimeout"):
        fetch(make_exchange, patience=quick(2))
    assert 2 <= time.monotonic() - began < 20


@pytest.fixture
def silent() -> Iterator[tuple[str, threading.Event]]:
    """Yield the URL of a server that sends an endless header, and the event of its first byte."""
    stop, dripping = threading.Event(), threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while not stop.wait(0.1):
                try:
                    connection.send(b"H")
                    dripping.set()
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", dripping
        stop.set()
        thread.join()


def test_a_stop_ends_a_waiting_request(
    make_exchange: MakeExchange, silent: tuple[str, threading.Event]
) -> None:
    url, dripping = silent
    exchange = make_exchange(url=url, patience=quick(1))
    errors: list[BaseException] = []

    def check() -> None:
        try:
            exchange.check()
        except Interrupted as error:
            errors.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    assert dripping.wait(PATIENCE)
    exchange.interrupt()
    thread.join(PATIENCE)
    assert errors
    # No request goes on in the background, and none begins after a stop.
    wait_until(lambda: all(one.name != "request" for one in threading.enumerate()), "no request")
    with pytest.raises(Interrupted):
        exchange.check()


ODD = {
    "markup": "<html>" * 1000,
    "empty": "",
    "null": "null",
    "number": "5",
    "object": "{}",
    "nested": "[" * 200_000 + "]" * 200_000,
    "not finite": "[[1773143400000,NaN,Infinity,-Infinity,1e400,null,0,0,0,0,0,0],[null],[],{},5]",
    "huge number": f"[[{10**400},1,1,1,1,1]]",
    "year 3000": "[[32503680000000,1,1,1,1,1],[-60000,1,1,1,1,1]]",
    "half a character": '["\\ud800"]',
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("endpoint", ["klines", "exchangeInfo", "time"])
def test_an_odd_answer_gives_a_known_error_and_no_bar(
    simulator: SimulatedExchange, make_exchange: MakeExchange, name: str, endpoint: str
) -> None:
    simulator.set_faults({"kind": "odd", "text": ODD[name], "endpoint": endpoint})
    with suppress(ExchangeUnavailable, UserError):  # and no other error
        pages = fetch(make_exchange, patience=quick(1))
        assert not any(len(page.bars) or len(page.quiet) for page in pages)


@pytest.mark.parametrize(
    "server_time", ["NaN", "1e308", "-1", "0", '"x"', "null", "32503680000000"]
)
def test_an_impossible_server_time_is_rejected(
    simulator: SimulatedExchange, make_exchange: MakeExchange, server_time: str
) -> None:
    text = f'{{"serverTime":{server_time}}}'
    simulator.set_faults({"kind": "odd", "text": text, "endpoint": "time"})
    with pytest.raises(ExchangeUnavailable):
        fetch(make_exchange, patience=quick(1))


class TestExchangeClockAhead:
    """An exchange whose clock is a day ahead publishes bars of the future."""

    @pytest.fixture
    def exchange_clock(self) -> Clock:
        return ManualClock(datetime.now(UTC) + timedelta(days=1))

    def test_minutes_that_are_still_open_here_are_not_fetched(
        self, make_exchange: MakeExchange
    ) -> None:
        begun = WallClock().now()
        pages = make_exchange().fetch_bars(SYMBOL, begun - 5 * MINUTE, begun + 60 * MINUTE)
        assert max(page.end for page in pages) <= WallClock().now()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("60", 60),
        (" 60 ", 60),
        ("9" * 400, 3 * 86400),
        ("1e308", None),
        ("²", None),
        ("-5", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3 * 86400),
        ("Fri, 99 Dec 9999 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_bounded(header: str, seconds: float | None) -> None:
    response = requests.Response()
    response.headers["Retry-After"] = header
    assert retry_after(requests.HTTPError(response=response)) == seconds
