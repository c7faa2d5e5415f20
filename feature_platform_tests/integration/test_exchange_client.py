"""Guards against wrong or missing bars after faults of an exchange's REST interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ccxt
import numpy as np
import psycopg
import pytest

from feature_platform.bar_rules import MINUTE_US
from feature_platform.bars import Bars, Stored, store_bars, time_of, ts_of
from feature_platform.clock import ManualClock
from feature_platform.errors import UserError
from feature_platform.exchange.client import Exchange, ExchangeUnavailable, Fetched
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import GeneratedTruth, RecordedTruth, Truth
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_exchange import MakeExchange, quick

NOW = datetime(2026, 3, 10, 12, 0, 30, tzinfo=UTC)
OPEN = NOW.replace(second=0)
START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DAYS_2 = START + timedelta(days=2)
COLUMNS = ["open", "high", "low", "close", "vol"]
FULL, THIN = "BTC/USDT", "XRP/ETH"
THIN_FILE = Path(__file__).resolve().parents[2].parent / "shared/data/XRPETH-1m-2019-10-11.csv.gz"

Fault = dict[str, Any]
Row = tuple[datetime, float, float, float, float, float]


@pytest.fixture
def exchange_clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture(scope="module")
def module_database(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        yield url


@pytest.fixture
def conn(module_database: str) -> Iterator[psycopg.Connection]:
    """Yield a connection to an emptied database, which is faster than a new one."""
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("TRUNCATE ohlcv_1m")
        yield connection


def fetch(
    connection: psycopg.Connection, exchange: Exchange, symbol: str, start: datetime, end: datetime
) -> tuple[Stored, list[Fetched]]:
    """Fetch and store, as a backfill does."""
    stored, pages = Stored(), []
    for page in exchange.fetch_bars(symbol, start, end):
        stored += store_bars(connection, symbol, page.bars, "rest")
        pages.append(page)
    return stored, pages


def fill(connection: psycopg.Connection, exchange: Exchange, symbol: str, end: datetime) -> None:
    """Fetch, then fetch again each missing minute that no answer showed to be quiet."""
    _, pages = fetch(connection, exchange, symbol, START, end)
    known = {int(ts) for page in pages for ts in page.quiet}
    known |= {ts_of(row[0]) for row in stored(connection, symbol)}
    missing = [ts for ts in range(ts_of(START), ts_of(end), MINUTE_US) if ts not in known]
    while missing:
        first = after = missing[0]
        while missing and missing[0] == after:
            after = missing.pop(0) + MINUTE_US
        fetch(connection, exchange, symbol, time_of(first), time_of(after))


def stored(connection: psycopg.Connection, symbol: str) -> list[Row]:
    return connection.execute(
        "SELECT ts AT TIME ZONE 'UTC' AT TIME ZONE 'UTC', open, high, low, close, vol"
        " FROM ohlcv_1m WHERE symbol = %s ORDER BY ts",
        [symbol],
    ).fetchall()


def traded(
    truth: Truth, symbol: str, start: datetime, end: datetime, *, quiet: bool = True
) -> list[Row]:
    bars = truth.bars(symbol, start, end)
    if not quiet:
        bars = bars[bars["trades"] > 0]
    times = [time.to_pydatetime() for time in bars["ts"]]
    return [(at, *row) for at, row in zip(times, bars[COLUMNS].to_numpy().tolist(), strict=True)]


def accounted(pages: list[Fetched]) -> Iterator[tuple[datetime, datetime]]:
    """Yield the ranges that pages account for, joined."""
    ranges = [(page.start, page.end) for page in pages]
    assert ranges == sorted(ranges)
    while ranges:
        start, end = ranges.pop(0)
        while ranges and ranges[0][0] == end:
            end = ranges.pop(0)[1]
        yield start, end


# ---- without faults ----


def test_a_range_is_fetched_in_pages_of_the_exchanges_limit(
    conn: psycopg.Connection, exchange: Exchange, exchange_truth: Truth
) -> None:
    counts, pages = fetch(conn, exchange, FULL, START, DAYS_2)
    assert counts == Stored(inserted=2880)
    assert [len(page.bars) for page in pages] == [1000, 1000, 880]
    assert list(accounted(pages)) == [(START, DAYS_2)]
    assert not any(page.rejected or len(page.quiet) for page in pages)
    assert stored(conn, FULL) == traded(exchange_truth, FULL, START, DAYS_2)
    assert fetch(conn, exchange, FULL, START, DAYS_2)[0] == Stored(unchanged=2880)


def test_a_range_may_begin_inside_a_minute(
    conn: psycopg.Connection, exchange: Exchange, exchange_truth: Truth
) -> None:
    second = timedelta(seconds=1)
    fetch(conn, exchange, FULL, START + second, START + 3 * MINUTE + second)
    assert stored(conn, FULL) == traded(exchange_truth, FULL, START + MINUTE, START + 4 * MINUTE)


@pytest.mark.parametrize("end", [START, START - MINUTE])
def test_an_empty_range_sends_no_request(exchange: Exchange, end: datetime) -> None:
    assert list(exchange.fetch_bars(FULL, START, end)) == []


# ---- faults ----

SOME = {"probability": 0.5, "count": 4}

PASSING: dict[str, list[Fault]] = {
    "none": [],
    "latency": [{"kind": "latency", "seconds": 0.01}],
    "too_many_requests": [{"kind": "too_many_requests", "retry_after": 3, "after": 1, "count": 2}],
    "banned": [{"kind": "banned", "retry_after": 60, "after": 1, "count": 1}],
    "server_error": [{"kind": "server_error", "status": 503, **SOME}],
    "bad_gateway": [{"kind": "server_error", "status": 502, **SOME}],
    "internal_error": [{"kind": "server_error", "status": 500, **SOME}],
    "reset_at_once": [{"kind": "reset", "at": 0, **SOME}],
    "reset_in_mid_answer": [{"kind": "reset", "at": 0.6, **SOME}],
    "reset_at_the_end": [{"kind": "reset", "at": 0.999, **SOME}],
    "garbled": [{"kind": "garbled", **SOME}],
    "short_pages": [{"kind": "short_page", "rows": 130}],
    "pages_of_any_length": [
        {"kind": "short_page", "rows": rows, "probability": 0.3} for rows in (77, 400, 999)
    ],
    "shuffled": [{"kind": "shuffled"}],
    "repeated": [{"kind": "repeated", "rows": 20}],
    "open_candle_first": [{"kind": "open_candle", "position": "first"}],
    "open_candle_amid": [{"kind": "open_candle", "position": "middle"}],
    "open_candle_last": [{"kind": "open_candle", "position": "last"}],
    "end_ignored": [{"kind": "ignored_end"}],
    "start_ignored": [{"kind": "ignored_start"}],
    "differing_rows": [{"kind": "repeated", "rows": 20, "differing": True, "count": 2}],
    "malformed": [{"kind": "malformed", "rows": 26, "count": 2}],
    "malformed_all": [{"kind": "malformed", "rows": 1000, "count": 1}],
    "times_missing": [{"kind": "malformed", "rows": 9, "damages": ["missing_time"], "count": 1}],
    "no_row": [{"kind": "malformed", "rows": 1000, "damages": ["not_a_row"], "count": 2}],
    "at_the_first_request": [{"kind": "server_error", "endpoint": "any", "count": 2}],
    "markets_garbled": [{"kind": "garbled", "endpoint": "exchangeInfo", "count": 2}],
    "time_garbled": [{"kind": "garbled", "endpoint": "time", "count": 2}],
    "everything": [
        {"kind": "short_page", "rows": 400, "probability": 0.5},
        {"kind": "shuffled", "probability": 0.5},
        {"kind": "open_candle", "probability": 0.5},
        {"kind": "reset", "probability": 0.2},
        {"kind": "server_error", "status": 504, "probability": 0.1},
        {"kind": "malformed", "rows": 13, "count": 2},
    ],
}


@pytest.mark.parametrize("name", PASSING)
def test_the_stored_bars_are_the_traded_ones_after_faults(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    make_exchange: MakeExchange,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
    name: str,
) -> None:
    simulator.set_faults(*PASSING[name])
    patience = quick(attempts=6, sleep=exchange_clock.advance, first_wait=0.01, jitter=0.001)
    fill(conn, make_exchange(patience=patience), FULL, DAYS_2)
    assert stored(conn, FULL) == traded(exchange_truth, FULL, START, DAYS_2)
    for fault in PASSING[name]:
        assert simulator.faults.fired(fault["kind"]) > 0


@pytest.mark.parametrize("faults", [[], [{"kind": "short_page", "rows": 170}]])
def test_quiet_minutes_are_distinguished_from_missing_ones(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    exchange: Exchange,
    exchange_truth: Truth,
    faults: list[Fault],
) -> None:
    simulator.set_faults({"kind": "quiet_left_out"}, *faults)
    _, pages = fetch(conn, exchange, THIN, START, DAYS_2)
    assert list(accounted(pages)) == [(START, DAYS_2)]
    assert stored(conn, THIN) == traded(exchange_truth, THIN, START, DAYS_2, quiet=False)
    bars = exchange_truth.bars(THIN, START, DAYS_2)
    quiet = [time_of(int(ts)) for page in pages for ts in page.quiet]
    assert quiet == bars["ts"][bars["trades"] == 0].tolist()
    assert len(quiet) > 500


def test_an_empty_answer_marks_its_minutes_as_quiet(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    exchange: Exchange,
    exchange_truth: Truth,
) -> None:
    outage = (START + timedelta(hours=2), START + timedelta(hours=40))
    start, end = (one.isoformat() for one in outage)
    simulator.set_faults({"kind": "outage", "start": start, "end": end})
    _, pages = fetch(conn, exchange, FULL, START, DAYS_2)
    assert list(accounted(pages)) == [(START, DAYS_2)]
    quiet = [time_of(int(ts)) for page in pages for ts in page.quiet]
    assert (quiet[0], quiet[-1] + MINUTE, len(quiet)) == (*outage, 38 * 60)
    simulator.set_faults()
    assert fetch(conn, exchange, FULL, *outage)[0] == Stored(inserted=38 * 60)
    assert stored(conn, FULL) == traded(exchange_truth, FULL, START, DAYS_2)


def test_an_error_in_mid_range_keeps_the_earlier_pages(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    exchange: Exchange,
    exchange_truth: Truth,
) -> None:
    begins = START + timedelta(hours=20)
    outage = {"kind": "outage", "start": begins.isoformat(), "status": 503}
    simulator.set_faults(outage)
    with pytest.raises(
        ExchangeUnavailable, match=r"tried 4 times: OperationFailed: .*-1001"
    ) as caught:
        fetch(conn, exchange, FULL, START, DAYS_2)
    assert isinstance(caught.value.last_error, ccxt.OperationFailed)
    reached = START + 1000 * MINUTE
    assert caught.value.unanswered == ((reached, DAYS_2),)
    assert stored(conn, FULL) == traded(exchange_truth, FULL, START, reached)
    simulator.set_faults()
    fetch(conn, exchange, FULL, reached, DAYS_2)
    assert stored(conn, FULL) == traded(exchange_truth, FULL, START, DAYS_2)


def test_late_bars_are_stored_by_a_later_fetch(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    exchange: Exchange,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
) -> None:
    start = OPEN - 60 * MINUTE
    simulator.set_faults({"kind": "late", "seconds": 600, "probability": 0.5})
    _, pages = fetch(conn, exchange, FULL, start, OPEN)
    late = [time_of(int(ts)) for page in pages for ts in page.quiet]
    assert 1 <= len(late) <= 9
    assert late[0] >= OPEN - 10 * MINUTE
    exchange_clock.advance(600)
    counts, _ = fetch(conn, exchange, FULL, start, OPEN)
    assert counts == Stored(inserted=len(late), unchanged=60 - len(late))
    assert stored(conn, FULL) == traded(exchange_truth, FULL, start, OPEN)


def test_corrections_are_stored(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    exchange: Exchange,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
) -> None:
    until = (NOW + MINUTE).isoformat()
    simulator.set_faults({"kind": "corrected", "until": until, "probability": 0.2})
    assert fetch(conn, exchange, FULL, START, DAYS_2)[0] == Stored(inserted=2880)
    right = traded(exchange_truth, FULL, START, DAYS_2)
    wrong = sum(one != other for one, other in zip(stored(conn, FULL), right, strict=True))
    assert 400 < wrong < 750
    exchange_clock.advance(60)
    counts, _ = fetch(conn, exchange, FULL, START, DAYS_2)
    assert counts == Stored(updated=wrong, unchanged=2880 - wrong)
    assert stored(conn, FULL) == right


# ---- rows that cannot be stored ----


def test_impossible_rows_are_rejected_with_a_reason(
    simulator: SimulatedExchange, exchange: Exchange
) -> None:
    simulator.set_faults({"kind": "malformed", "rows": 13})
    end = START + 100 * MINUTE
    pages = list(exchange.fetch_bars(FULL, START, end))
    reasons = {one.reason for page in pages for one in page.rejected if one.minute is not None}
    without_time = {one.reason for page in pages for one in page.rejected if one.minute is None}
    for message in (
        "open is missing",
        "close is missing",  # ccxt reads no number in a text
        "close is nan, not a finite number",
        "low is 0.0, not above 0",
        "high 1e+150 is outside of",
        "is below low",
        "vol is -1.0, below 0",
        "vol is inf, not a finite number",
        "is not the start of a minute",
        "is missing",
    ):
        assert any(message in reason for reason in reasons), (message, reasons)
    assert any("ts is missing" in reason for reason in without_time)
    assert any("is not in the years" in reason for reason in without_time)
    # If a row has no valid time, no missing minute is known to be quiet.
    assert sum(len(page.quiet) for page in pages) == 0
    assert all(one.text for page in pages for one in page.rejected)


def test_the_minute_of_a_rejected_row_is_not_quiet(
    simulator: SimulatedExchange, exchange: Exchange
) -> None:
    end = START + 60 * MINUTE
    damage: Fault = {"kind": "malformed", "rows": 3, "damages": ["zero_price"]}
    simulator.set_faults(damage, {"kind": "quiet_left_out"})
    (page, *rest) = exchange.fetch_bars(THIN, START, end)
    quiet = sum(len(one.quiet) for one in (page, *rest))
    assert len(page.rejected) == 3
    assert len(page.bars) + 3 + quiet == 60
    assert not {ts_of(one.minute) for one in page.rejected if one.minute} & set(page.quiet)


def test_rows_that_contradict_each_other_are_all_rejected(
    simulator: SimulatedExchange, exchange: Exchange
) -> None:
    simulator.set_faults({"kind": "repeated", "rows": 2, "differing": True})
    (page,) = exchange.fetch_bars(FULL, START, START + 10 * MINUTE)
    assert len(page.bars) == 8
    assert len(page.rejected) == 4
    assert len({one.minute for one in page.rejected}) == 2
    assert {one.reason for one in page.rejected} == {
        "another row of the same minute has other values"
    }


# ---- the open candle ----


@pytest.mark.parametrize("position", ["first", "middle", "last", "requested"])
def test_the_open_candle_is_never_stored(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    make_exchange: MakeExchange,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
    position: str,
) -> None:
    simulator.set_faults(
        {"kind": "ignored_end"}
        if position == "requested"
        else {"kind": "open_candle", "position": position}
    )
    start = OPEN - 5 * MINUTE
    for seconds in (0, 29.9, 0.1, 59):
        exchange_clock.advance(seconds)
        # By the exchange's clock alone, which stands still: 0.1 s before the minute closes.
        exchange = make_exchange(clock=exchange_clock)
        fetch(conn, exchange, FULL, start, OPEN + 60 * MINUTE)
        closed = time_of(exchange_clock.milliseconds() * 1000).replace(second=0, microsecond=0)
        assert stored(conn, FULL) == traded(exchange_truth, FULL, start, closed)


def test_a_candle_that_closes_during_the_request_is_not_used(
    simulator: SimulatedExchange, make_exchange: MakeExchange, exchange_clock: ManualClock
) -> None:
    """The exchange may have made the answer before the minute closed."""
    simulator.set_faults({"kind": "ignored_end"}, {"kind": "server_error", "count": 1})
    exchange = make_exchange(patience=quick(sleep=lambda _seconds: exchange_clock.advance(45)))
    (page,) = exchange.fetch_bars(FULL, OPEN - 3 * MINUTE, OPEN + 10 * MINUTE)
    assert page.end == OPEN


def test_a_minute_must_be_closed_by_both_clocks(
    make_exchange: MakeExchange, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = make_exchange()
    assert timedelta() <= exchange.now() - NOW < timedelta(seconds=20)
    assert "the clocks of binance and of this machine differ by" in caplog.text
    ours = ManualClock(OPEN - 10 * MINUTE)
    (page,) = make_exchange(clock=ours).fetch_bars(FULL, OPEN - 30 * MINUTE, OPEN)
    assert page.end == OPEN - 10 * MINUTE


# ---- answers for other minutes ----


def test_an_answer_for_other_minutes_is_an_error(
    conn: psycopg.Connection, simulator: SimulatedExchange, exchange: Exchange
) -> None:
    simulator.set_faults({"kind": "ignored_start"}, {"kind": "ignored_end"})
    with pytest.raises(ExchangeUnavailable) as caught:
        fetch(conn, exchange, FULL, START, DAYS_2)
    assert "with bars of 2026-03-09 19:21 to 2026-03-10 11:59 to a request for" in str(caught.value)
    assert caught.value.unanswered[0][0] == START
    assert caught.value.unanswered[-1][1] == DAYS_2
    assert stored(conn, FULL) == []


def test_only_the_answered_minutes_are_stored_if_the_start_is_ignored(
    conn: psycopg.Connection,
    simulator: SimulatedExchange,
    exchange: Exchange,
    exchange_truth: Truth,
) -> None:
    simulator.set_faults({"kind": "ignored_start"}, {"kind": "ignored_end"})
    start, first = OPEN - 2500 * MINUTE, OPEN - 999 * MINUTE
    with pytest.raises(ExchangeUnavailable) as caught:
        fetch(conn, exchange, FULL, start, OPEN)
    assert stored(conn, FULL) == traded(exchange_truth, FULL, first, OPEN)
    assert caught.value.unanswered[0][0] == start
    assert caught.value.unanswered[-1][1] == first


# ---- patience ----


class Sleeps(list[float]):
    """Record the seconds of each wait."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def __call__(self, seconds: float) -> None:
        self.append(seconds)
        self._clock.advance(seconds)


def test_attempts_are_bounded_and_back_off(
    simulator: SimulatedExchange, make_exchange: MakeExchange, exchange_clock: ManualClock
) -> None:
    simulator.set_faults({"kind": "server_error", "status": 502})
    sleeps = Sleeps(exchange_clock)
    patience = quick(5, first_wait=0.5, longest_wait=3, jitter=0.25, sleep=sleeps)
    exchange = make_exchange(patience=patience)
    with pytest.raises(
        ExchangeUnavailable, match=r"^binance does not answer, tried 5 times"
    ) as caught:
        list(exchange.fetch_bars(FULL, START, DAYS_2))
    assert simulator.faults.fired("server_error") == 5
    assert [
        least <= slept <= least + 0.25 for least, slept in zip((0.5, 1, 2, 3), sleeps, strict=True)
    ] == [True] * 4
    assert len(set(sleeps)) == 4
    assert isinstance(caught.value.last_error, ccxt.ExchangeNotAvailable)
    assert "502 Bad Gateway" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_retry_after_is_honoured(
    simulator: SimulatedExchange,
    make_exchange: MakeExchange,
    exchange_clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    simulator.set_faults({"kind": "too_many_requests", "retry_after": 17, "count": 1})
    sleeps = Sleeps(exchange_clock)
    exchange = make_exchange(patience=quick(sleep=sleeps, first_wait=0.1, jitter=0.1))
    assert len(list(exchange.fetch_bars(FULL, START, START + MINUTE))) == 1
    assert len(sleeps) == 1
    assert 17 <= sleeps[0] <= 17.1
    assert caplog.messages[-1] == "binance asks to slow down (429); next request in 17 s"


def test_a_long_ban_ends_all_requests_at_once(
    simulator: SimulatedExchange, make_exchange: MakeExchange, exchange_clock: ManualClock
) -> None:
    simulator.set_faults({"kind": "banned", "retry_after": 300, "count": 1})
    sleeps = Sleeps(exchange_clock)
    exchange = make_exchange(patience=quick(sleep=sleeps))
    with pytest.raises(ExchangeUnavailable, match=r"tried once: DDoSProtection: .*418") as caught:
        list(exchange.fetch_bars(FULL, START, DAYS_2))
    assert caught.value.retry_after == 300
    assert isinstance(caught.value.last_error, ccxt.DDoSProtection)
    simulator.set_faults()
    # The next symbol is not requested either.
    with pytest.raises(ExchangeUnavailable, match="accepts no requests for another") as caught:
        list(exchange.fetch_bars(THIN, START, DAYS_2))
    assert caught.value.unanswered == ((START, DAYS_2),)
    assert sleeps == []


def test_a_refused_connection_is_reported(make_exchange: MakeExchange) -> None:
    exchange = make_exchange(url="http://127.0.0.1:1")
    with pytest.raises(ExchangeUnavailable, match=r"NetworkError: .*\(Connection refused\)$"):
        exchange.check()
    with pytest.raises(ExchangeUnavailable) as caught:
        list(exchange.fetch_bars(FULL, START, DAYS_2))
    assert caught.value.unanswered == ((START, DAYS_2),)


def test_a_url_of_another_server_is_reported(
    simulator: SimulatedExchange, make_exchange: MakeExchange
) -> None:
    exchange = make_exchange(url=f"{simulator.url}/elsewhere")
    with pytest.raises(
        UserError, match=r"not at its URL .FEATURE_PLATFORM_EXCHANGE, .*_URL.: .*404"
    ):
        exchange.check()


def test_requests_keep_the_rate_limit(
    simulator: SimulatedExchange, make_exchange: MakeExchange
) -> None:
    exchange = make_exchange(rate_limit=True)
    exchange.check()
    exchange.now()
    simulator.set_faults({"kind": "short_page", "rows": 1})
    began = time.monotonic()
    assert len(list(exchange.fetch_bars(FULL, START, START + 30 * MINUTE))) == 30
    # Binance allows a weight of 6000 in a minute, and such a request weighs 2.
    assert time.monotonic() - began >= 29 * 60 / 3000


# ---- other answers ----


@contextmanager
def answering(status: int, body: str, **headers: str) -> Iterator[str]:
    """Run a server that gives the same answer to every request; give its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


PAGE = "<html><body>Back soon</body></html>"
KEY = '{"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}'
PLACE = '{"code": 0, "msg": "Service unavailable from a restricted location."}'


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            401,
            KEY,
            "binance requires credentials, and the platform sends none: AuthenticationError",
        ),
        (
            401,
            PAGE,
            "binance requires credentials, and the platform sends none: AuthenticationError",
        ),
        (451, PLACE, "binance is not available from this place"),
        (404, PAGE, "binance is not available from this place"),
        (
            400,
            '{"code": -1102, "msg": "Mandatory parameter"}',
            "binance rejects the request: BadRequest",
        ),
    ],
)
def test_a_permanent_error_is_reported_without_a_retry(
    make_exchange: MakeExchange, status: int, body: str, message: str
) -> None:
    def never(_seconds: float) -> None:
        raise AssertionError("waited after a permanent error")

    with answering(status, body) as url, pytest.raises(UserError) as caught:
        make_exchange(url=url, patience=quick(sleep=never)).check()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, PAGE, "BadResponse: an answer that is not JSON: '<html><body>Back soon"),
        (200, "", "BadResponse: an answer that is not JSON: ''"),
        (200, "[1, 2]", "BadResponse: an answer that cannot be read: "),
        (403, PAGE, "ExchangeNotAvailable: binance GET"),
        (520, PAGE, "ExchangeNotAvailable: binance GET"),
    ],
)
def test_a_transient_error_is_retried(
    make_exchange: MakeExchange, status: int, body: str, message: str
) -> None:
    sleeps: list[float] = []
    with answering(status, body) as url, pytest.raises(ExchangeUnavailable) as caught:
        make_exchange(url=url, patience=quick(3, sleep=sleeps.append)).check()
    assert str(caught.value).startswith(f"binance does not answer, tried 3 times: {message}")
    assert len(sleeps) == 2


def test_retry_after_may_be_a_date(make_exchange: MakeExchange) -> None:
    sleeps: list[float] = []
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    with answering(503, PAGE, Retry_After=date) as url:
        exchange = make_exchange(url=url, patience=quick(2, sleep=sleeps.append, jitter=0))
        with pytest.raises(ExchangeUnavailable) as caught:
            exchange.check()
    assert 20 < sleeps[0] <= 40
    assert caught.value.retry_after is not None
    assert 20 < caught.value.retry_after <= 40


# ---- mistakes ----


def test_settings_name_the_exchange(
    simulator: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_EXCHANGE_URL", simulator.url)
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", f"{THIN},{FULL}")
    get_settings.cache_clear()
    with Exchange.configured() as exchange:
        exchange.check()
        assert (exchange.name, exchange.symbols) == ("binance", (THIN, FULL))


def test_the_check_of_a_right_configuration_passes(exchange: Exchange) -> None:
    exchange.check()


@pytest.mark.parametrize(
    ("symbol", "hint"),
    [
        ("BTCUSDT", " (did you mean 'BTC/USDT'?)"),
        ("btc/usdt", " (did you mean 'BTC/USDT'?)"),
        ("EUR/CHF", ""),
    ],
)
def test_symbols_that_the_exchange_does_not_have_are_named(
    make_exchange: MakeExchange, symbol: str, hint: str
) -> None:
    exchange = make_exchange(symbols=(FULL, symbol))
    message = f"binance has no symbol '{symbol}'{hint}"
    with pytest.raises(UserError) as caught:
        exchange.check()
    assert str(caught.value) == f"FEATURE_PLATFORM_SYMBOLS: {message}"
    with pytest.raises(UserError) as caught:
        list(exchange.fetch_bars(symbol, START, DAYS_2))
    assert str(caught.value) == message


def test_a_symbol_that_the_exchange_has_removed_is_reported(
    make_exchange: MakeExchange, exchange_clock: ManualClock
) -> None:
    with SimulatedExchange(GeneratedTruth([FULL, THIN]), clock=exchange_clock) as today:
        exchange = make_exchange(url=today.url, symbols=(FULL, THIN))
        exchange.check()
    port = urlsplit(today.url).port
    assert port is not None
    tomorrow = SimulatedExchange(GeneratedTruth([FULL]), clock=exchange_clock, port=port)
    with (
        tomorrow,
        pytest.raises(
            UserError, match=r"does not know a symbol of FEATURE_PLATFORM_SYMBOLS: .*-1121"
        ),
    ):
        list(exchange.fetch_bars(THIN, START, DAYS_2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "binanse",
            (
                "ccxt knows no exchange 'binanse'"
                " (did you mean 'binance' or 'binanceus' or 'coinbase'?)"
            ),
        ),
        ("", "ccxt knows no exchange ''"),
        ("paymium", "paymium has no bars of one minute over REST"),
        ("coinmate", "coinmate has no bars of one minute over REST"),
    ],
)
def test_an_exchange_that_cannot_be_used_is_rejected(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Exchange(name)
    assert str(caught.value) == f"FEATURE_PLATFORM_EXCHANGE: {message}"


@pytest.mark.parametrize("name", ["kraken", "bybit", "okx", "kucoin", "coinbase", "bitfinex"])
def test_each_exchange_uses_the_configured_url(name: str) -> None:
    with Exchange(name, url="https://proxy.example/way") as exchange:
        urls = list(leaves(exchange._client.urls["api"]))
    assert urls
    assert all(url.startswith("https://proxy.example/way") for url in urls if "ws" not in url[:3])


def leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for branch in tree.values():
            yield from leaves(branch)
    else:
        yield tree


# ---- storing ----


def some_bars(close: float = 2.0, vol: float = 1.0) -> Bars:
    ts = ts_of(START) + MINUTE_US * np.arange(3)
    one = np.ones(3)
    return Bars(ts, one, 3 * one, one, np.array([1.5, close, 1.5]), np.array([vol, 0.0, 1.0]))


def test_storing_counts_changes_and_writes_no_equal_bar(conn: psycopg.Connection) -> None:
    def rows() -> list[tuple[Any, ...]]:
        return conn.execute(
            "SELECT ts, xmin::text, ctid::text, source, inserted_at FROM ohlcv_1m ORDER BY ts"
        ).fetchall()

    def marks() -> Any:
        return conn.execute("SELECT count(*) FROM feature_platform.dirty_log").fetchall()

    assert store_bars(conn, FULL, some_bars(), "stream") == Stored(inserted=3)
    before, marked = rows(), marks()
    assert store_bars(conn, FULL, some_bars(), "rest") == Stored(unchanged=3)
    assert (rows(), marks()) == (before, marked)
    assert store_bars(conn, FULL, some_bars(close=2.5), "rest") == Stored(updated=1, unchanged=2)
    after = rows()
    assert (after[0], after[2]) == (before[0], before[2])
    assert [row[3] for row in after] == ["stream", "rest", "stream"]
    assert after[1][4] > before[1][4]
    assert store_bars(conn, THIN, some_bars(), "rest") == Stored(inserted=3)
    assert store_bars(conn, FULL, some_bars().take(slice(0)), "rest") == Stored()
    assert Stored(1, 2, 3) + Stored(10, 20, 30) == Stored(11, 22, 33)


def test_storing_is_all_or_nothing(conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        store_bars(conn, FULL, some_bars(vol=-1.0), "rest")
    assert stored(conn, FULL) == []


def test_times_are_stored_exactly(conn: psycopg.Connection) -> None:
    for when in (datetime(1980, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, 23, 59, tzinfo=UTC)):
        bars = some_bars()
        bars.ts[:] = ts_of(when) + np.arange(3)
        store_bars(conn, f"A/{when.year}", bars, "rest")
        assert [ts_of(row[0]) for row in stored(conn, f"A/{when.year}")] == bars.ts.tolist()


# ---- prices of a real exchange ----


@pytest.mark.skipif(not THIN_FILE.exists(), reason="../shared/data does not exist")
class TestRealSymbolWithQuietMinutes:
    @pytest.fixture
    def exchange_truth(self) -> Truth:
        return RecordedTruth(THIN, THIN_FILE)

    def test_every_minute_is_a_bar_or_quiet(
        self, conn: psycopg.Connection, exchange: Exchange, exchange_truth: Truth
    ) -> None:
        start = time_of(exchange_truth.first * MINUTE_US)
        end = start + 3560 * MINUTE
        counts, pages = fetch(conn, exchange, THIN, start, end)
        assert counts == Stored(inserted=2469)
        assert list(accounted(pages)) == [(start, end)]
        assert sum(len(page.quiet) for page in pages) == 1091
        assert stored(conn, THIN) == traded(exchange_truth, THIN, start, end)
