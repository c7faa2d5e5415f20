"""WebSockets of Binance's spot streams.

/ws and /ws/NAME/NAME send bare events, /stream?streams=NAME/NAME wraps each event with the name of
its stream. A NAME is <symbol>@kline_1m, @trade or @aggTrade. SUBSCRIBE and UNSUBSCRIBE requests add
and remove streams.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from feature_platform.simulator.event_publisher import KINDS, EventPublisher
from feature_platform.simulator.faults import (
    Banned,
    Latency,
    Reset,
    ServerError,
    TooManyRequests,
)
from feature_platform.simulator.published import PublishedBars

_log = logging.getLogger(__name__)

MOST_STREAMS = 1024  # of one connection
_MOST_REQUESTS = 5  # of one connection, in a second
# A connection with more unread events is reset.
_LONGEST_BACKLOG = 20_000

_POLICY = 1008


class _StreamError(Exception):
    """An error that is answered in Binance's form."""


def add_streams(app: FastAPI, published: PublishedBars, publisher: EventPublisher) -> None:
    """Add the WebSocket routes of the streams to a web application."""

    async def raw(websocket: WebSocket) -> None:
        names = websocket.path_params.get("names", "").split("/")
        if await _is_welcome(websocket, published):
            await _Connection(websocket, publisher, combined=False).serve(names)

    async def combined(websocket: WebSocket) -> None:
        names = websocket.query_params.get("streams", "").split("/")
        if await _is_welcome(websocket, published):
            await _Connection(websocket, publisher, combined=True).serve(names)

    app.add_api_websocket_route("/ws", raw)
    app.add_api_websocket_route("/ws/{names:path}", raw)
    app.add_api_websocket_route("/stream", combined)


async def _is_welcome(websocket: WebSocket, published: PublishedBars) -> bool:
    """Apply faults to the opening of a WebSocket; return False if one rejected it."""
    for hit in published.faults.hitting("stream", None):
        match hit.fault:
            case Latency():
                await asyncio.sleep(hit.fault.seconds)
            case TooManyRequests() | Banned():
                status = 418 if isinstance(hit.fault, Banned) else 429
                headers = {"retry-after": str(hit.fault.retry_after)}
                await websocket.send_denial_response(Response("", status, headers))
                return False
            case ServerError():
                await websocket.send_denial_response(Response("", hit.fault.status))
                return False
            case Reset():
                _abort(websocket)
                return False
    return True


def _abort(websocket: WebSocket) -> None:
    websocket.scope["state"]["abort"](tuple(websocket.scope["client"]))


@dataclass(frozen=True)
class _Close:
    """The end of an outbox: close the connection with a code."""

    code: int
    reason: str = ""


class _Connection:
    """One WebSocket."""

    def __init__(self, websocket: WebSocket, publisher: EventPublisher, *, combined: bool) -> None:
        self._websocket = websocket
        self._publisher = publisher
        self._combined = combined
        self._streams: dict[str, None] = {}
        self._outbox: deque[str | bytes | _Close] = deque()
        self._more = asyncio.Event()
        self._asked: deque[float] = deque(maxlen=_MOST_REQUESTS)
        self._stalled = self._deaf = False

    async def serve(self, names: list[str]) -> None:
        """Serve until either side closes it."""
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
            self._publisher.leave(self, self._streams)

    def take(self, stream: str, event: str | bytes) -> None:
        """Add an event of a stream, or a binary frame, to the outbox."""
        if isinstance(event, bytes):
            self._put(event)
            return
        self._put(f'{{"stream":"{stream}","data":{event}}}' if self._combined else event)

    def drop(self, code: int | None) -> None:
        """Close the connection with a code, or reset it."""
        _log.info("stream dropped client=%s code=%s", self._client, code)
        if code is None:
            _abort(self._websocket)
        else:
            self._put(_Close(code))

    def stall(self, *, pongs: bool) -> None:
        """Keep the connection open without sending events; with pongs, answer pings."""
        _log.info("stream stalled client=%s", self._client)
        self._stalled = True
        self._outbox.clear()
        if not pongs and not self._deaf:
            self._deafen(True)

    def resume(self) -> None:
        """End a stall."""
        self._stalled = False
        if self._deaf:
            self._deafen(False)

    def _deafen(self, deaf: bool) -> None:
        self._deaf = deaf
        self._websocket.scope["state"]["deafen"](tuple(self._websocket.scope["client"]), deaf)

    def _put(self, item: str | bytes | _Close) -> None:
        if self._stalled:
            return
        if len(self._outbox) == _LONGEST_BACKLOG:
            _log.warning("stream too slow client=%s", self._client)
            self._stalled = True  # until the connection is reset
            self._outbox.clear()
            _abort(self._websocket)
            return
        self._outbox.append(item)
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
                item = self._outbox.popleft()
                if isinstance(item, _Close):
                    await self._websocket.close(item.code, item.reason)
                    return
                if isinstance(item, bytes):
                    await self._websocket.send_bytes(item)
                else:
                    await self._websocket.send_text(item)

    async def _answer_requests(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            text = await self._websocket.receive_text()
            if len(self._asked) == _MOST_REQUESTS and loop.time() - self._asked[0] < 1:
                self._put(_Close(_POLICY, "Too many requests"))
                continue
            self._asked.append(loop.time())
            self._put(json.dumps(self._answer(text), separators=(",", ":")))

    def _answer(self, text: str) -> dict[str, Any]:
        number = None
        try:
            request = _parse(text)
            number = request.get("id")
            return {"result": self._do(request.get("method"), request.get("params")), "id": number}
        except _StreamError as error:
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
        raise _StreamError(f"unknown method or property {method!r}")

    def _subscribe(self, names: list[str]) -> None:
        streams = {**self._streams, **dict.fromkeys(names)}
        if len(streams) > MOST_STREAMS:
            raise _StreamError(f"more than {MOST_STREAMS} streams of one connection")
        self._streams = streams
        self._publisher.join(self, names)

    def _unsubscribe(self, names: list[str]) -> None:
        self._publisher.leave(self, names)
        for name in names:
            self._streams.pop(name, None)


def _parse(text: str) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except ValueError:
        raise _StreamError("not JSON") from None
    if not isinstance(request, dict) or not isinstance(request.get("id"), int | str | None):
        raise _StreamError("not an object with an id")
    return request


def _stream_names(params: Any) -> list[str]:
    if not isinstance(params, list) or not params:
        raise _StreamError("params is not a list of streams")
    for name in params:
        if not isinstance(name, str) or not _is_known(name):
            raise _StreamError(f"there is no stream {name!r} here; there are {', '.join(KINDS)}")
    return params


def _is_known(name: str) -> bool:
    """Return whether the kind of a stream exists; a stream of an unknown symbol has no events."""
    symbol, _, kind = name.partition("@")
    return bool(symbol) and kind in KINDS
