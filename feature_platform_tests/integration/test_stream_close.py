"""Guards against a stop that waits for an exchange which sends messages without a pause."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiohttp import ClientConnectionResetError, web

from feature_platform.clock import WallClock
from feature_platform.exchange.stream import Stream
from feature_platform_tests.fix_processes import PATIENCE

SYMBOL = {
    "symbol": "BTCUSDT",
    "status": "TRADING",
    "baseAsset": "BTC",
    "quoteAsset": "USDT",
    "isSpotTradingAllowed": True,
    "permissionSets": [["SPOT"]],
    "filters": [],
}
BAR = {"t": 1_772_323_200_000, "T": 1_772_323_259_999, "s": "BTCUSDT", "i": "1m", "x": False}
PRICES = {"o": "10", "h": "12", "l": "9", "c": "11", "v": "1"}
MESSAGE = json.dumps({"e": "kline", "E": 1, "s": "BTCUSDT", "k": {**BAR, **PRICES}})


class Handler:
    """A handler with an event of the first update."""

    def __init__(self) -> None:
        self.updated = asyncio.Event()

    def on_bar(self, symbol: str, row: Sequence[Any], *, final: bool | None) -> None:  # noqa: ARG002
        self.updated.set()

    def on_trade(self, _symbol: str, _trade: dict[str, Any]) -> None: ...

    def on_connected(self) -> None: ...

    def on_unknown(self, _unknown: Mapping[str, str]) -> None: ...

    def on_disconnected(self, _reason: str) -> None: ...


def test_a_stop_does_not_wait_for_the_exchange_to_end_its_messages() -> None:
    asyncio.run(asyncio.wait_for(stop_while_messages_arrive(), 4 * PATIENCE))


async def stop_while_messages_arrive() -> None:
    disconnected = asyncio.Event()

    async def list_symbols(_request: web.Request) -> web.Response:
        return web.json_response({"symbols": [SYMBOL]})

    async def send_forever(request: web.Request) -> web.WebSocketResponse:
        """Send updates and read nothing, so that a CLOSE frame has no answer."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with suppress(ClientConnectionResetError):
            while True:
                await socket.send_str(MESSAGE)
                await asyncio.sleep(0.01)
        disconnected.set()
        return socket

    app = web.Application()
    app.router.add_get("/api/v3/exchangeInfo", list_symbols)
    app.router.add_get("/{path:.*}", send_forever)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        handler = Handler()
        stream = Stream(
            "binance", ("BTC/USDT",), f"http://{host}:{port}", handler, clock=WallClock(), stall=60
        )
        running = asyncio.create_task(stream.run())
        await asyncio.wait_for(handler.updated.wait(), PATIENCE)
        running.cancel()
        await asyncio.wait([running], timeout=PATIENCE)
        assert running.cancelled()
        await asyncio.wait_for(disconnected.wait(), PATIENCE)
    finally:
        await runner.cleanup()
