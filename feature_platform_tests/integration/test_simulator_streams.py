"""The simulated exchange's streams: by ccxt's own client as it is, and by a bare one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import aiohttp
import ccxt.pro
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from feature_platform.clock import ManualClock
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import Truth
from feature_platform_tests.fix_exchange import SYMBOLS
from feature_platform_tests.fix_processes import PATIENCE

MINUTE = timedelta(minutes=1)
NOW = datetime(2026, 3, 1, 12, 0, 20, tzinfo=UTC)
OPEN = NOW.replace(second=0)

BARS = "btcusdt@kline_1m"
TRADES = "btcusdt@trade"


@pytest.fixture
def exchange_clock() -> ManualClock:
    return ManualClock(NOW)


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def within_patience(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine with a timeout."""

    async def bounded() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work()

    return asyncio.run(bounded())


class Watcher:
    """A bare client of streams, beside which time is moved."""

    def __init__(
        self, socket: ClientConnection, simulator: SimulatedExchange, clock: ManualClock
    ) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []
        self._publisher = simulator.publisher
        self._clock = clock

    async def read(self) -> None:
        """Take events for ever."""
        with suppress(ConnectionClosed):
            async for event in self.socket:
                self.seen.append(json.loads(event))

    async def until(self, moment: datetime) -> list[dict[str, Any]]:
        """Move time on in small steps; return the events up to there, all of them."""
        while self._clock.now() < moment:
            await self.move(min(5.0, (moment - self._clock.now()).total_seconds()))
            await self.settle()
        return self.seen

    async def move(self, seconds: float) -> None:
        """Advance the clock, and wait until the exchange has sent the events of that time."""
        self._clock.advance(seconds)
        while self._publisher.now < self._clock.milliseconds():
            await asyncio.sleep(0.002)

    async def settle(self) -> None:
        """Return the events that have been sent by now."""
        for _ in range(2):
            await (await self.socket.ping())


@asynccontextmanager
async def watching(
    simulator: SimulatedExchange, clock: ManualClock, *streams: str
) -> AsyncIterator[Watcher]:
    url = f"{simulator.url.replace('http://', 'ws://')}/ws/{'/'.join(streams)}"
    async with connect_websocket(url, ping_interval=None) as socket:
        watcher = Watcher(socket, simulator, clock)
        reader = asyncio.create_task(watcher.read())
        try:
            yield watcher
        finally:
            reader.cancel()


def closed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the closed bars among some events."""
    return [event["k"] for event in events if event["e"] == "kline" and event["k"]["x"]]


def values(bar: dict[str, Any]) -> list[float]:
    return [float(bar[name]) for name in "ohlcv"]


def true_bars(
    truth: Truth, start: datetime, end: datetime, symbol: str = "BTC/USDT"
) -> list[list[float]]:
    columns = ["open", "high", "low", "close", "vol"]
    return truth.bars(symbol, start, end)[columns].to_numpy().tolist()


def starts(bars: list[dict[str, Any]]) -> list[int]:
    """Return in which minutes bars began, counted from OPEN."""
    return [(bar["t"] - ms(OPEN)) // 60_000 for bar in bars]


# ---- events ----


@asynccontextmanager
async def ccxt_client(url: str) -> AsyncIterator[Any]:
    """Yield ccxt's own client, with nothing changed but where it connects to."""
    client = ccxt.pro.binance(
        {"enableRateLimit": False, "options": {"fetchMarkets": {"types": ["spot"]}}}
    )
    client.urls["api"]["public"] = url + "/api/v3"
    client.urls["api"]["ws"]["spot"] = url.replace("http://", "ws://") + "/ws"
    try:
        yield client
    finally:
        await client.close()


def test_ccxt_watches_bars_and_trades(
    simulator: SimulatedExchange, exchange_clock: ManualClock, exchange_truth: Truth
) -> None:
    async def next_of(watched: Awaitable[Any]) -> Any:
        update = asyncio.ensure_future(watched)
        while not update.done():
            exchange_clock.advance(1)
            await asyncio.sleep(0.01)
        return await update

    async def work() -> tuple[dict[str, Any], list[Any]]:
        pairs = [[symbol, "1m"] for symbol in SYMBOLS]
        async with ccxt_client(simulator.url) as client:
            newest = dict.fromkeys(SYMBOLS, 0)
            while min(newest.values()) <= ms(OPEN):
                for symbol, bars in (await next_of(client.watch_ohlcv_for_symbols(pairs))).items():
                    newest[symbol] = bars["1m"][-1][0]
            bars = {symbol: list(client.ohlcvs[symbol]["1m"]) for symbol in SYMBOLS}
            trades = await next_of(client.watch_trades("BTC/USDT"))
            await client.un_watch_trades("BTC/USDT")
            await client.un_watch_ohlcv_for_symbols(pairs)
            return bars, trades

    bars, trades = within_patience(work)
    for symbol in SYMBOLS:
        (over,) = (bar for bar in bars[symbol] if bar[0] == ms(OPEN))
        assert over[1:] == true_bars(exchange_truth, OPEN, OPEN + MINUTE, symbol)[0]
    assert {trade["symbol"] for trade in trades} == {"BTC/USDT"}


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("kind", ["trade", "aggTrade"])
def test_trades_aggregate_to_the_bar(
    symbol: str,
    kind: str,
    simulator: SimulatedExchange,
    exchange_clock: ManualClock,
    exchange_truth: Truth,
) -> None:
    name = symbol.replace("/", "").lower()

    async def work() -> list[dict[str, Any]]:
        streams = (f"{name}@kline_1m", f"{name}@{kind}")
        async with watching(simulator, exchange_clock, *streams) as watcher:
            return await watcher.until(OPEN + 5 * MINUTE)

    events = within_patience(work)
    bars = closed(events)[1:]  # of the first minute a part had passed
    assert len(bars) == 4
    for bar in bars:
        trades = [
            event
            for event in events
            if event["e"] == kind and bar["t"] <= event["T"] <= bar["T"] < event["E"] + 60_000
        ]
        assert len(trades) == bar["n"]
        prices = [Decimal(trade["p"]) for trade in trades]
        assert sum(Decimal(trade["q"]) for trade in trades) == Decimal(bar["v"])
        if trades:
            numbers = [trade["t" if kind == "trade" else "a"] for trade in trades]
            assert [numbers[0], numbers[-1]] == [bar["f"], bar["L"]]
            assert [prices[0], max(prices), min(prices), prices[-1]] == [
                Decimal(bar[name]) for name in "ohlc"
            ]
            assert all(Decimal(trade["q"]) > 0 for trade in trades)
    assert [values(bar) for bar in bars] == true_bars(
        exchange_truth, OPEN + MINUTE, OPEN + 5 * MINUTE, symbol
    )


def test_a_bar_grows_while_it_is_open(
    simulator: SimulatedExchange, exchange_clock: ManualClock
) -> None:
    async def work() -> list[dict[str, Any]]:
        async with watching(simulator, exchange_clock, BARS) as watcher:
            return await watcher.until(OPEN + 2 * MINUTE)

    bars = [event["k"] for event in within_patience(work)]
    assert starts(closed([{"e": "kline", "k": bar} for bar in bars])) == [0, 1]
    for before, after in pairwise(bars):
        assert after["x"] or after["t"] + 60_000 > ms(OPEN)
        if before["t"] == after["t"]:
            assert before["n"] <= after["n"]
            assert float(before["l"]) >= float(after["l"])
            assert float(before["h"]) <= float(after["h"])
    assert sum(not bar["x"] for bar in bars) > 4


# ---- subscriptions ----


async def ask(socket: ClientConnection, method: str, params: Any = None) -> Any:
    """Send a request; return its answer. More than five in a second close the connection."""
    await socket.send(json.dumps({"method": method, "params": params, "id": 7}))
    while True:
        answer = json.loads(await socket.recv())
        if "stream" not in answer:
            assert answer.pop("id") == 7
            return answer


def test_subscriptions(simulator: SimulatedExchange, exchange_clock: ManualClock) -> None:
    url = simulator.url.replace("http://", "ws://") + f"/stream?streams={TRADES}"
    names = ["linkusdt@kline_1m", "nosuchthing@trade"]

    async def work() -> None:
        async with connect_websocket(url) as socket:
            assert await ask(socket, "LIST_SUBSCRIPTIONS") == {"result": [TRADES]}
            assert await ask(socket, "SUBSCRIBE", names) == {"result": None}
            assert await ask(socket, "UNSUBSCRIBE", [TRADES]) == {"result": None}
            assert await ask(socket, "LIST_SUBSCRIPTIONS") == {"result": names}
            exchange_clock.advance(60)
            event = json.loads(await socket.recv())
            assert event["stream"] == names[0]
            assert event["data"]["s"] == "LINKUSDT"
        async with connect_websocket(url) as socket:
            rejected = await ask(socket, "SUBSCRIBE", ["btcusdt@depth"])
            assert rejected["error"]["code"] == 2
            assert "btcusdt@depth" in rejected["error"]["msg"]
            for wrong in ("SUBSCRIBE", "UNSUBSCRIBE", "NONSENSE"):
                assert (await ask(socket, wrong))["error"]["code"] == 2

    within_patience(work)


def test_limits_of_a_connection(simulator: SimulatedExchange, exchange_clock: ManualClock) -> None:
    async def work() -> None:
        async with watching(simulator, exchange_clock, BARS) as watcher:
            many = [f"s{number}@trade" for number in range(1024)]
            await watcher.socket.send(json.dumps({"method": "SUBSCRIBE", "params": many, "id": 1}))
            await watcher.settle()
            assert "1024" in watcher.seen[-1]["error"]["msg"]
            for _ in range(20):
                await watcher.socket.send('{"method": "LIST_SUBSCRIPTIONS", "id": 1}')
            with pytest.raises(ConnectionClosed) as ended:
                await watcher.settle()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1008

    within_patience(work)


# ---- faults ----


def watch(
    simulator: SimulatedExchange, clock: ManualClock, minutes: int, *streams: str
) -> list[dict[str, Any]]:
    """Return the events up to the end of some minutes."""

    async def work() -> list[dict[str, Any]]:
        async with watching(simulator, clock, *(streams or (BARS,))) as watcher:
            return await watcher.until(OPEN + minutes * MINUTE)

    events: list[dict[str, Any]] = within_patience(work)
    return events


def test_duplicates(simulator: SimulatedExchange, exchange_clock: ManualClock) -> None:
    simulator.set_faults({"kind": "duplicated"})
    events = watch(simulator, exchange_clock, 2, BARS, TRADES)
    bars, trades = closed(events), [event for event in events if event["e"] == "trade"]
    assert starts(bars) == [0, 0, 1, 1]
    assert bars[0::2] == bars[1::2]
    assert trades[0::2] == trades[1::2]
    assert trades


def test_disorder(simulator: SimulatedExchange, exchange_clock: ManualClock) -> None:
    simulator.set_faults({"kind": "reordered"})
    events = watch(simulator, exchange_clock, 5, BARS, TRADES)
    assert starts(closed(events)) == [1, 0, 3, 2]
    numbers = [event["t"] for event in events if event["e"] == "trade"]
    assert numbers != sorted(numbers)
    assert len(numbers) == len(set(numbers))
    # An update from before it closed comes after the closed bar.
    bars = [event["k"] for event in events if event["e"] == "kline"]
    at = next(at for at, bar in enumerate(bars) if bar["x"] and bar["t"] == ms(OPEN + MINUTE))
    assert not bars[at + 1]["x"]
    assert bars[at + 1]["t"] == bars[at]["t"]
    assert bars[at + 1]["n"] == bars[at]["n"] - 1


def test_lost_events(simulator: SimulatedExchange, exchange_clock: ManualClock) -> None:
    simulator.set_faults({"kind": "lost", "start": "2026-03-01T12:01Z", "end": "2026-03-01T12:03Z"})
    events = watch(simulator, exchange_clock, 4, BARS, TRADES)
    assert starts(closed(events)) == [0, 3]
    there = {(event["T"] - ms(OPEN)) // 60_000 for event in events if event["e"] == "trade"}
    assert there == {0, 3}


def rest_bar(simulator: SimulatedExchange, minute: datetime) -> list[float]:
    bar = simulator.published.bars("BTC/USDT", ms(minute), ms(minute), 1)
    return [float(column[0]) for column in (bar.open, bar.high, bar.low, bar.close, bar.volume)]


def test_bars_revised_after_close(
    simulator: SimulatedExchange, exchange_clock: ManualClock, exchange_truth: Truth
) -> None:
    simulator.set_faults({"kind": "corrected", "seconds": 90})
    events = watch(simulator, exchange_clock, 4)
    bars = closed(events)
    # Two minutes closed before the subscription were corrected later.
    assert starts(bars) == [-2, 0, -1, 1, 0, 2, 1, 3]
    right = true_bars(exchange_truth, OPEN, OPEN + 2 * MINUTE)
    assert [values(bars[at]) for at in (4, 6)] == right
    assert values(bars[1]) != right[0]
    # The first minute is put right over REST by now, the last is not.
    assert rest_bar(simulator, OPEN) == right[0]
    assert rest_bar(simulator, OPEN + 3 * MINUTE) == values(bars[7])


def test_bars_late_by_minutes(
    simulator: SimulatedExchange, exchange_clock: ManualClock, exchange_truth: Truth
) -> None:
    simulator.set_faults({"kind": "late", "seconds": 150})
    events = watch(simulator, exchange_clock, 4)
    # Events that were sent before the request arrive, too.
    assert starts(closed(events)) == [-3, -2, -1, 0]
    assert values(closed(events)[3]) == true_bars(exchange_truth, OPEN, OPEN + MINUTE)[0]
    assert [event["E"] - ms(OPEN) for event in events] == [30_000, 90_000, 150_000, 210_000]


def test_an_outage_is_one_of_streams_too(
    simulator: SimulatedExchange, exchange_clock: ManualClock
) -> None:
    simulator.set_faults(
        {"kind": "outage", "start": "2026-03-01T12:01Z", "end": "2026-03-01T12:02Z"}
    )
    events = watch(simulator, exchange_clock, 3, BARS, TRADES)
    assert starts(closed(events)) == [0, 2]
    assert not [
        e for e in events if e["e"] == "trade" and e["T"] // 60_000 == ms(OPEN) // 60_000 + 1
    ]


def test_minutes_without_trades_may_have_no_bar(
    simulator: SimulatedExchange, exchange_clock: ManualClock, exchange_truth: Truth
) -> None:
    simulator.set_faults({"kind": "quiet_left_out"})
    events = watch(simulator, exchange_clock, 8, "xrpeth@kline_1m")
    trades = exchange_truth.bars("XRP/ETH", OPEN, OPEN + 8 * MINUTE)["trades"]
    assert starts(closed(events)) == [at for at, count in enumerate(trades) if count]
    assert 0 < len(closed(events)) < 8


def test_bars_that_cannot_be(simulator: SimulatedExchange, exchange_clock: ManualClock) -> None:
    simulator.set_faults({"kind": "impossible", "damages": ["high_below_low", "short_row"]})
    bars = closed(watch(simulator, exchange_clock, 2))
    by_minute = {bar["t"] // 60_000 % 2: bar for bar in bars}
    assert float(by_minute[0]["h"]) < float(by_minute[0]["l"])
    assert "v" not in by_minute[1]
    simulator.set_faults({"kind": "impossible", "damages": ["not_a_row"]})
    (event,) = (
        event
        for event in watch(simulator, exchange_clock, 3)
        if event["k"] == "oops" or event["k"]["x"]
    )
    assert event["k"] == "oops"


@pytest.mark.parametrize("code", [None, 1001])
def test_connections_dropped(
    code: int | None, simulator: SimulatedExchange, exchange_clock: ManualClock
) -> None:
    simulator.set_faults({"kind": "dropped", "second": 30, "code": code, "count": 1})

    async def work() -> None:
        async with watching(simulator, exchange_clock, BARS) as watcher:
            with pytest.raises(ConnectionClosed) as ended:
                await watcher.until(OPEN + MINUTE)
            assert code == (None if ended.value.rcvd is None else ended.value.rcvd.code)
            assert exchange_clock.now() < OPEN + MINUTE
        async with watching(simulator, exchange_clock, BARS) as watcher:
            assert starts(closed(await watcher.until(OPEN + 2 * MINUTE))) == [0, 1]

    within_patience(work)
    assert simulator.faults.fired("dropped") == 1


def test_only_connections_with_that_market_are_dropped(
    simulator: SimulatedExchange, exchange_clock: ManualClock
) -> None:
    simulator.set_faults({"kind": "dropped", "symbol": "LINK/USDT"})
    assert starts(closed(watch(simulator, exchange_clock, 2))) == [0, 1]
    with pytest.raises(ConnectionClosed):
        watch(simulator, exchange_clock, 4, "linkusdt@trade")


@pytest.mark.parametrize("pongs", [True, False])
def test_stalls_without_close(
    pongs: bool, simulator: SimulatedExchange, exchange_clock: ManualClock
) -> None:
    fault = {"kind": "stalled", "second": 30, "seconds": 60, "pongs": pongs, "count": 1}
    simulator.set_faults(fault)

    async def work() -> list[dict[str, Any]]:
        async with watching(simulator, exchange_clock, BARS) as watcher:
            await watcher.until(OPEN + timedelta(seconds=30))
            there = len(watcher.seen)
            await watcher.move(15)
            pong = asyncio.ensure_future(await watcher.socket.ping())
            # A second connection, which is not stalled, gets the events over the end of a minute.
            # By then, the first one would have them, too.
            async with watching(simulator, exchange_clock, BARS) as other:
                await other.move(40)
                await other.settle()
                assert closed(other.seen)
            assert len(watcher.seen) == there
            assert pong.done() is pongs
            await watcher.move(10)
            await pong
            return await watcher.until(OPEN + 3 * MINUTE)

    assert starts(closed(within_patience(work))) == [1, 2]


def test_connections_refused(simulator: SimulatedExchange, exchange_clock: ManualClock) -> None:
    simulator.set_faults(
        {"kind": "server_error", "endpoint": "stream", "count": 1},
        {"kind": "too_many_requests", "endpoint": "stream", "retry_after": 9, "count": 1},
        {"kind": "reset", "endpoint": "stream", "count": 1},
    )

    async def refused() -> InvalidStatus:
        with pytest.raises(InvalidStatus) as rejection:
            async with watching(simulator, exchange_clock, BARS):
                pass
        return rejection.value

    async def work() -> None:
        assert (await refused()).response.status_code == 503
        limited = (await refused()).response
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "9")
        with pytest.raises((InvalidMessage, ConnectionResetError)):
            async with watching(simulator, exchange_clock, BARS):
                pass
        async with watching(simulator, exchange_clock, BARS) as watcher:
            await watcher.settle()

    within_patience(work)


@pytest.fixture
def two_exchanges(exchange_truth: Truth) -> Iterator[list[tuple[SimulatedExchange, ManualClock]]]:
    faults = [{"kind": kind, "probability": 0.5} for kind in ("lost", "duplicated", "corrected")]
    faults[2]["seconds"] = 70
    running = []
    for _ in range(2):
        clock = ManualClock(NOW)
        exchange = SimulatedExchange(exchange_truth, seed=3, clock=clock)
        exchange.set_faults(*faults)
        running.append((exchange, clock))
    with running[0][0], running[1][0]:
        yield running


def test_faults_follow_from_the_seed(
    two_exchanges: list[tuple[SimulatedExchange, ManualClock]],
) -> None:
    first, second = (closed(watch(exchange, clock, 12)) for exchange, clock in two_exchanges)
    assert first == second
    assert 4 < len(starts(first)) < 24
    assert len(set(starts(first))) < 12


def test_it_stops_in_order_while_others_are_leaving(exchange_truth: Truth) -> None:
    async def leave(exchange: SimulatedExchange) -> None:
        async with aiohttp.ClientSession() as session:
            url = exchange.url.replace("http", "ws") + "/ws/0"
            sockets = [await session.ws_connect(url) for _ in range(20)]
            leaving = [asyncio.ensure_future(socket.close()) for socket in sockets]
            await asyncio.sleep(0)
            exchange._server.stop()
            await asyncio.gather(*leaving)

    # An error in the server's thread is a warning here, and so a failure.
    for _ in range(5):
        with SimulatedExchange(exchange_truth) as exchange:
            asyncio.run(leave(exchange))
