"""Binance's spot streams: how a WebSocket asks for them, and what it is answered.

/ws and /ws/NAME/NAME send bare events, /stream?streams=NAME/NAME wraps each with its stream's
name; a NAME is <symbol>@kline_1m, @trade or @aggTrade. Further ones come and go by SUBSCRIBE and
UNSUBSCRIBE requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from feature_platform.simulator.feed import KINDS, Feed

_log = logging.getLogger(__name__)

MOST_STREAMS = 1024  # of one connection
_MOST_REQUESTS = 5  # of one connection, in a second
# Who does not read for so many events is cut off.
_LONGEST_BACKLOG = 20_000

_POLICY = 1008


class _RefusedError(Exception):
    """Answer a request with Binance's form of an error."""


def add_streams(app: FastAPI, feed: Feed) -> None:
    """Add the streams of a feed to a web application."""

    async def raw(websocket: WebSocket) -> None:
        names = websocket.path_params.get("names", "").split("/")
        await _Connection(websocket, feed, combined=False).serve(names)

    async def combined(websocket: WebSocket) -> None:
        names = websocket.query_params.get("streams", "").split("/")
        await _Connection(websocket, feed, combined=True).serve(names)

    app.add_api_websocket_route("/ws", raw)
    app.add_api_websocket_route("/ws/{names:path}", raw)
    app.add_api_websocket_route("/stream", combined)


class _Connection:
    """Serve one WebSocket."""

    def __init__(self, websocket: WebSocket, feed: Feed, *, combined: bool) -> None:
        self._websocket = websocket
        self._feed = feed
        self._combined = combined
        self._streams: dict[str, None] = {}
        self._outbox: deque[str] = deque()
        self._more = asyncio.Event()
        self._asked: deque[float] = deque(maxlen=_MOST_REQUESTS)

    async def serve(self, names: list[str]) -> None:
        """Serve until either side ends it."""
        await self._websocket.accept()
        self._subscribe([name for name in names if _is_known(name)])
        _log.info("stream connected client=%s streams=%d", self._client, len(self._streams))
        sender = asyncio.create_task(self._send())
        try:
            await self._answer_requests()
        except WebSocketDisconnect as end:
            _log.info("stream ended client=%s code=%d", self._client, end.code)
        finally:
            sender.cancel()
            self._feed.leave(self, self._streams)

    def take(self, stream: str, event: str) -> None:
        """Take an event of a stream for sending."""
        if len(self._outbox) < _LONGEST_BACKLOG:
            wrapped = f'{{"stream":"{stream}","data":{event}}}' if self._combined else event
            self._outbox.append(wrapped)
            self._more.set()

    @property
    def _client(self) -> str:
        client = self._websocket.client
        return "-" if client is None else f"{client.host}:{client.port}"

    async def _send(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._outbox:
                await self._websocket.send_text(self._outbox.popleft())

    async def _answer_requests(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            text = await self._websocket.receive_text()
            if len(self._asked) == _MOST_REQUESTS and loop.time() - self._asked[0] < 1:
                await self._websocket.close(_POLICY, "Too many requests")
                raise WebSocketDisconnect(_POLICY)
            self._asked.append(loop.time())
            self._outbox.append(json.dumps(self._answer(text), separators=(",", ":")))
            self._more.set()

    def _answer(self, text: str) -> dict[str, Any]:
        number = None
        try:
            request = _parse(text)
            number = request.get("id")
            return {"result": self._do(request.get("method"), request.get("params")), "id": number}
        except _RefusedError as error:
            return {"error": {"code": 2, "msg": f"Invalid request: {error}"}, "id": number}

    def _do(self, method: Any, params: Any) -> Any:
        match method:
            case "LIST_SUBSCRIPTIONS":
                return list(self._streams)
            case "GET_PROPERTY" if params == ["combined"]:
                return self._combined
            case "SET_PROPERTY" if params in (["combined", True], ["combined", False]):
                self._combined = params[1]
                return None
            case "SUBSCRIBE" | "UNSUBSCRIBE":
                names = _stream_names(params)
                if method == "SUBSCRIBE":
                    self._subscribe(names)
                else:
                    self._unsubscribe(names)
                return None
        raise _RefusedError(f"unknown method or property {method!r}")

    def _subscribe(self, names: list[str]) -> None:
        streams = {**self._streams, **dict.fromkeys(names)}
        if len(streams) > MOST_STREAMS:
            raise _RefusedError(f"more than {MOST_STREAMS} streams of one connection")
        self._streams = streams
        self._feed.join(self, names)

    def _unsubscribe(self, names: list[str]) -> None:
        self._feed.leave(self, names)
        for name in names:
            self._streams.pop(name, None)


def _parse(text: str) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except ValueError:
        raise _RefusedError("not JSON") from None
    if not isinstance(request, dict) or not isinstance(request.get("id"), int | str | None):
        raise _RefusedError("not an object with an id")
    return request


def _stream_names(params: Any) -> list[str]:
    if not isinstance(params, list) or not params:
        raise _RefusedError("params is no list of streams")
    for name in params:
        if not isinstance(name, str) or not _is_known(name):
            raise _RefusedError(f"there is no stream {name!r} here; there are {', '.join(KINDS)}")
    return params


def _is_known(name: str) -> bool:
    """Tell whether a stream is of a kind that there is; nobody ever trades an unknown market."""
    symbol, _, kind = name.partition("@")
    return bool(symbol) and kind in KINDS
