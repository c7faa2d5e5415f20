"""The simulated exchange's streams, by the client that the platform uses, ccxt's, and bare ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import ccxt.pro
import pytest
from websockets.asyncio.client import connect as connect_websocket

from feature_platform.clock import ManualClock
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import Truth
from feature_platform_tests.fix_exchange import SYMBOLS

MINUTE = timedelta(minutes=1)
NOW = datetime(2026, 3, 1, 12, 0, 20, tzinfo=UTC)
OPEN = NOW.replace(second=0)
PATIENCE = 30.0


@pytest.fixture
def venue_clock() -> ManualClock:
    return ManualClock(NOW)


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


@asynccontextmanager
async def ccxt_client(url: str) -> Any:
    """Yield ccxt's own client, with nothing changed but where it connects to."""
    client = ccxt.pro.binance(
        {"enableRateLimit": False, "options": {"fetchMarkets": {"types": ["spot"]}}}
    )
    api = client.urls["api"]
    api["public"] = url + "/api/v3"
    api["ws"]["spot"] = url.replace("http://", "ws://") + "/ws"
    try:
        yield client
    finally:
        await client.close()


def within_patience(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run what is asynchronous, but not for ever."""

    async def bounded() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work()

    return asyncio.run(bounded())


def test_ccxt_watches_bars_and_trades(
    simulator: SimulatedExchange, venue_clock: ManualClock, venue_truth: Truth
) -> None:
    async def work() -> tuple[dict[str, Any], list[Any]]:
        async with ccxt_client(simulator.url) as client:
            watched: dict[str, list[Any]] = {}
            moved = False
            while not moved or not all(
                symbol in watched and watched[symbol][-1][0] > ms(OPEN) for symbol in SYMBOLS
            ):
                update = asyncio.ensure_future(
                    client.watch_ohlcv_for_symbols([[symbol, "1m"] for symbol in SYMBOLS])
                )
                while not update.done():
                    venue_clock.advance(1)
                    await asyncio.sleep(0.01)
                moved = True
                for symbol, bars in (await update).items():
                    watched[symbol] = [*watched.get(symbol, []), *bars["1m"]]
            trades = asyncio.ensure_future(client.watch_trades("BTC/USDT"))
            while not trades.done():
                venue_clock.advance(1)
                await asyncio.sleep(0.01)
            return watched, await trades

    bars, trades = within_patience(work)
    for symbol in SYMBOLS:
        truth = venue_truth.bars(symbol, OPEN, OPEN + MINUTE)
        closed = [bar for bar in bars[symbol] if bar[0] == ms(OPEN)][-1]
        assert closed[1:] == truth[["open", "high", "low", "close", "vol"]].to_numpy().tolist()[0]
    assert {trade["symbol"] for trade in trades} == {"BTC/USDT"}


def test_subscriptions(simulator: SimulatedExchange) -> None:
    async def work() -> None:
        url = simulator.url.replace("http://", "ws://") + "/stream?streams=btcusdt@trade"
        async with connect_websocket(url) as socket:

            async def ask(method: str, params: list[str] | None = None) -> Any:
                await socket.send(json.dumps({"method": method, "params": params, "id": 7}))
                return json.loads(await socket.recv())

            assert await ask("LIST_SUBSCRIPTIONS") == {"result": ["btcusdt@trade"], "id": 7}
            names = ["linkusdt@kline_1m", "xrpeth@aggTrade"]
            assert await ask("SUBSCRIBE", names) == {"result": None, "id": 7}
            assert await ask("UNSUBSCRIBE", ["btcusdt@trade"]) == {"result": None, "id": 7}
            assert (await ask("LIST_SUBSCRIPTIONS"))["result"] == names

    within_patience(work)
