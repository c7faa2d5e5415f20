"""The part of Binance's spot REST that bars need.

GET /api/v3/ping, /time, /exchangeInfo and /klines are those of Binance. /admin/faults is the
simulator's own: GET lists the active faults, POST adds some, DELETE ends all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from feature_platform.errors import UserError
from feature_platform.settings import is_loopback
from feature_platform.simulator._noise import uniform
from feature_platform.simulator.binance_events import taker_columns
from feature_platform.simulator.damage import damaged
from feature_platform.simulator.faults import (
    Banned,
    Dripping,
    Endless,
    Endpoint,
    Garbled,
    Hit,
    IgnoredEnd,
    IgnoredStart,
    Latency,
    Malformed,
    Odd,
    OpenCandle,
    Repeated,
    Reset,
    ServerError,
    ShortPage,
    Shuffled,
    TooManyRequests,
    parse_faults,
)
from feature_platform.simulator.markets import Market
from feature_platform.simulator.published import OutageHitError, PublishedBars
from feature_platform.simulator.truth import MINUTE_MS, MinuteBars
from feature_platform.simulator.weights import Verdict, Weights

_log = logging.getLogger(__name__)

_DEFAULT_LIMIT, _LARGEST_LIMIT = 500, 1000
_WEIGHTS: dict[Endpoint, int] = {"ping": 1, "time": 1, "exchangeInfo": 20, "klines": 2}
_NUMBER = re.compile(r"[0-9]{1,20}")
_SYMBOL = re.compile(r"[A-Z0-9\-_.]{1,50}")
_INTERVALS = ("1m",)
_JSON = "application/json;charset=UTF-8"

Handler = Callable[[Mapping[str, str], list[Hit]], Any]
Abort = Callable[[tuple[str, int]], None]


class BinanceError(Exception):
    """An error that is answered in Binance's form."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "msg": message}


def create_app(published: PublishedBars, weights: Weights) -> FastAPI:
    """Return the web application; `weights` limits the requests of an address."""
    rest = _Rest(published, weights)
    app = FastAPI(title="Simulated Binance spot REST", openapi_url=None)
    for endpoint, handler in rest.handlers.items():
        app.add_api_route(
            f"/api/v3/{endpoint}", _route(rest, endpoint, handler), include_in_schema=False
        )
    app.add_api_route("/admin/faults", rest.list_faults, methods=["GET"])
    app.add_api_route("/admin/faults", rest.add_faults, methods=["POST"])
    app.add_api_route("/admin/faults", rest.end_faults, methods=["DELETE"])
    return app


def _route(rest: _Rest, endpoint: Endpoint, handler: Handler) -> Callable[..., Any]:
    async def route(request: Request) -> Response:
        return await rest.answer(request, endpoint, handler)

    return route


class _Rest:
    """Answer requests."""

    def __init__(self, published: PublishedBars, weights: Weights) -> None:
        self._published = published
        self._weights = weights
        self._by_id = {market.id: market for market in published.truth.markets.values()}
        self.handlers: dict[Endpoint, Handler] = {
            "ping": self._ping,
            "time": self._time,
            "exchangeInfo": self._exchange_info,
            "klines": self._klines,
        }

    async def answer(self, request: Request, endpoint: Endpoint, handler: Handler) -> Response:
        """Answer one request with the handler, unless a limit or a fault changes the answer."""
        began = time.perf_counter()
        address = request.client.host if request.client is not None else ""
        verdict = self._weights.charge(address, _WEIGHTS[endpoint])
        market = self._by_id.get(request.query_params.get("symbol", ""))
        hits: list[Hit] = []
        if verdict.status == 200:
            hits = list(
                self._published.faults.hitting(endpoint, None if market is None else market.symbol)
            )
            verdict = self._reject(address, hits) or verdict
        for hit in hits:
            if isinstance(hit.fault, Latency):
                await asyncio.sleep(hit.fault.seconds)
        response = self._respond(request, verdict, hits, handler)
        now = self._published.clock.milliseconds() / 1000
        response.headers["date"] = formatdate(now, usegmt=True)
        response.headers["x-mbx-used-weight"] = str(verdict.used)
        response.headers["x-mbx-used-weight-1m"] = str(verdict.used)
        # Requests without a fault or an error are logged only on demand (--log-requests).
        _log.log(
            logging.INFO if hits or response.status_code != 200 else logging.DEBUG,
            "request at=%s path=%s query=%s status=%d bytes=%d weight=%d ms=%.1f faults=%s",
            datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
            request.url.path,
            request.url.query or "-",
            response.status_code,
            len(response.body),
            verdict.used,
            (time.perf_counter() - began) * 1000,
            ",".join(hit.fault.kind for hit in hits) or "-",
        )
        for hit in hits:
            match hit.fault:
                case Reset():
                    return CutResponse(response, hit.fault.at)
                case Endless():
                    return _EndlessResponse(hit.fault)
                case Dripping():
                    return _EndlessResponse(hit.fault)
        return response

    def _reject(self, address: str, hits: list[Hit]) -> Verdict | None:
        now = self._published.clock.milliseconds()
        for hit in hits:
            if isinstance(hit.fault, TooManyRequests | Banned):
                status: Literal[418, 429] = 418 if isinstance(hit.fault, Banned) else 429
                return self._weights.block(address, status, now + hit.fault.retry_after * 1000)
        return None

    def _respond(
        self, request: Request, verdict: Verdict, hits: list[Hit], handler: Handler
    ) -> Response:
        if verdict.status != 200:
            return _too_much(verdict, self._weights.limit)
        for hit in hits:
            if isinstance(hit.fault, ServerError):
                return _server_error(hit.fault.status)
        try:
            body = handler(_once_each(request), hits)
        except BinanceError as rejection:
            return JSONResponse(rejection.body, rejection.status, media_type=_JSON)
        except OutageHitError as outage:
            return _server_error(outage.status)
        for hit in hits:
            if isinstance(hit.fault, Odd):
                return Response(hit.fault.text, media_type=_JSON)
        text = body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))
        if any(isinstance(hit.fault, Garbled) for hit in hits):
            text = text[: len(text) // 2]
        return Response(text, media_type=_JSON)

    def _ping(self, given: Mapping[str, str], _hits: list[Hit]) -> Any:
        _all_read(given, ())
        return {}

    def _time(self, given: Mapping[str, str], _hits: list[Hit]) -> Any:
        _all_read(given, ())
        return {"serverTime": self._published.clock.milliseconds()}

    def _exchange_info(self, given: Mapping[str, str], _hits: list[Hit]) -> Any:
        known = ("symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus")
        _all_read(given, known)
        ids = [given["symbol"]] if "symbol" in given else _list_of(given.get("symbols"))
        markets = self._by_id.values() if ids is None else [self._market(one) for one in ids]
        return {
            "timezone": "UTC",
            "serverTime": self._published.clock.milliseconds(),
            "rateLimits": [
                {
                    "rateLimitType": "REQUEST_WEIGHT",
                    "interval": "MINUTE",
                    "intervalNum": 1,
                    "limit": self._weights.limit,
                }
            ],
            "exchangeFilters": [],
            "symbols": [_market_info(market) for market in markets],
        }

    def _klines(self, given: Mapping[str, str], hits: list[Hit]) -> str:
        for name in ("symbol", "interval"):
            if not given.get(name):
                raise _missing(name)
        start, end, limit = (_number(given, name) for name in ("startTime", "endTime", "limit"))
        market = self._market(given["symbol"])
        if given["interval"] not in _INTERVALS:
            raise BinanceError(400, -1120, "Invalid interval.")
        if limit == 0:
            raise BinanceError(400, -1130, "Data sent for parameter 'limit' is not valid.")
        _all_read(given, ("symbol", "interval", "startTime", "endTime", "timeZone", "limit"))
        for hit in hits:
            if isinstance(hit.fault, IgnoredStart):
                start = None
            if isinstance(hit.fault, IgnoredEnd):
                end = None
        rows_wanted = min(limit or _DEFAULT_LIMIT, _LARGEST_LIMIT)
        rows = _rows(self._published.bars(market.symbol, start, end, rows_wanted))
        for hit in hits:
            rows = self._damaged(rows, market, hit)
        return f"[{','.join(rows)}]"

    def _damaged(self, rows: list[str], market: Market, hit: Hit) -> list[str]:
        """Return the rows of an answer, changed by a fault."""
        fault = hit.fault
        chance = uniform(hit.key, np.arange(len(rows)))
        match fault:
            case ShortPage():
                return rows[: fault.rows]
            case OpenCandle():
                candle = _rows(self._published.open_candle(market.symbol))
                rest = [row for row in rows if row not in candle]
                at = {"first": 0, "middle": len(rest) // 2, "last": len(rest)}[fault.position]
                return rest[:at] + candle + rest[at:]
            case Shuffled():
                return [rows[at] for at in np.argsort(chance)]
            case Repeated():
                again = [rows[at] for at in np.argsort(chance)[: fault.rows]]
                if fault.differing:
                    again = [_changed(row, _with_other_volume) for row in again]
                return rows + again
            case Malformed():
                for number, at in enumerate(np.argsort(chance)[: fault.rows]):
                    damage = fault.damages[number % len(fault.damages)]
                    rows[at] = _changed(rows[at], partial(damaged, damage=damage))
        return rows

    def _market(self, market_id: str) -> Market:
        if not _SYMBOL.fullmatch(market_id):
            raise _illegal("symbol", r"^[\w\-._&&[^a-z]]{1,50}$")
        if market_id not in self._by_id:
            raise BinanceError(400, -1121, "Invalid symbol.")
        return self._by_id[market_id]

    async def list_faults(self, request: Request) -> Response:
        """List the active faults."""
        return self._admin(request) or self._listing()

    async def add_faults(self, request: Request) -> Response:
        """Add faults: a JSON list of objects."""
        rejected = self._admin(request)
        if rejected is not None:
            return rejected
        try:
            faults = parse_faults(await request.body())
        except UserError as error:
            return JSONResponse({"error": str(error)}, 400)
        self._published.faults.add(faults)
        _log.info("faults added=%s", ",".join(fault.kind for fault in faults) or "-")
        return self._listing()

    async def end_faults(self, request: Request) -> Response:
        """End all faults."""
        rejected = self._admin(request)
        if rejected is not None:
            return rejected
        self._published.faults.replace(())
        _log.info("faults ended=all")
        return self._listing()

    def _listing(self) -> Response:
        return JSONResponse({"faults": self._published.faults.describe()})

    def _admin(self, request: Request) -> Response | None:
        """Return an error for a client of another machine, None for one of this machine."""
        if request.client is not None and is_loopback(request.client.host):
            return None
        return JSONResponse({"error": "faults are set from this machine only"}, 403)


class CutResponse(Response):
    """Send a part of another response, then reset the connection."""

    def __init__(self, whole: Response, at: float) -> None:
        super().__init__(whole.body, whole.status_code, dict(whole.headers))
        self._sent = int(len(whole.body) * at)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        if self._sent:
            part = bytes(self.body[: self._sent])
            await send({"type": "http.response.body", "body": part, "more_body": True})
        scope["state"]["abort"](tuple(scope["client"]))
        await _until_disconnect(receive)


class _EndlessResponse(Response):
    """Send an answer without an end, until the client leaves."""

    def __init__(self, fault: Endless | Dripping) -> None:
        super().__init__()
        self._pause = fault.seconds if isinstance(fault, Dripping) else 0.0
        self._first, self._part = b"[", b" " if isinstance(fault, Dripping) else b"1," * 500_000
        self._named = {"content-type": _JSON}
        if isinstance(fault, Endless) and fault.gzip:
            packer = zlib.compressobj(wbits=31)
            self._first = packer.compress(b"[") + packer.flush(zlib.Z_FULL_FLUSH)
            # After a full flush, compressing the same part gives the same bytes.
            self._part = packer.compress(b" " * 2**24) + packer.flush(zlib.Z_FULL_FLUSH)
            self._named["content-encoding"] = "gzip"

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_until_disconnect(receive))
        headers = [(name.encode(), value.encode()) for name, value in self._named.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        part = self._first
        while not gone.done():
            await send({"type": "http.response.body", "body": part, "more_body": True})
            part = self._part
            await asyncio.wait([gone], timeout=self._pause)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def abort_connection(transport: asyncio.BaseTransport) -> None:
    """Reset a connection; the other side loses the data that it has not read yet."""
    assert isinstance(transport, asyncio.Transport)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _once_each(request: Request) -> dict[str, str]:
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    if len(given) < len(pairs):
        raise BinanceError(400, -1101, "Duplicate values for a parameter detected.")
    return given


def _all_read(given: Mapping[str, str], known: tuple[str, ...]) -> None:
    read = sum(name in known for name in given)
    if read < len(given):
        raise BinanceError(
            400,
            -1104,
            f"Not all sent parameters were read; read '{read}' parameter(s)"
            f" but was sent '{len(given)}'.",
        )


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not text:
        raise _missing(name)
    if not _NUMBER.fullmatch(text):
        raise _illegal(name, "^[0-9]{1,20}$")
    return int(text)


def _list_of(text: str | None) -> list[str] | None:
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _illegal("symbols", r"^\[(\"[A-Z0-9-_.]{1,20}\"(,\"[A-Z0-9-_.]{1,20}\"){0,}){0,1}\]$")
    return names


def _missing(name: str) -> BinanceError:
    message = f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
    return BinanceError(400, -1102, message)


def _illegal(name: str, legal: str) -> BinanceError:
    message = f"Illegal characters found in parameter '{name}'; legal range is '{legal}'."
    return BinanceError(400, -1100, message)


def _too_much(verdict: Verdict, limit: int) -> Response:
    advice = "Please use WebSocket Streams for live updates to avoid"
    if verdict.status == 418:
        message = (
            f"Way too much request weight used; IP banned until {verdict.until}. {advice} bans."
        )
    else:
        message = (
            f"Too much request weight used; current limit is {limit} request weight per 1 MINUTE."
            f" {advice} polling the API."
        )
    return JSONResponse(
        {"code": -1003, "msg": message},
        verdict.status,
        {"retry-after": str(verdict.retry_after)},
        media_type=_JSON,
    )


def _server_error(status: int) -> Response:
    if status in (502, 504):
        name = {502: "Bad Gateway", 504: "Gateway Time-out"}[status]
        page = f"<html><head><title>{status} {name}</title></head><body>{name}</body></html>"
        return HTMLResponse(page, status)
    code, message = -1000, "An unknown error occurred while processing the request."
    if status == 503:
        code, message = -1001, "Internal error; unable to process your request. Please try again."
    return JSONResponse({"code": code, "msg": message}, status, media_type=_JSON)


def _market_info(market: Market) -> dict[str, Any]:
    tick, step = (f"{10.0**-n:.8f}" for n in (market.price_decimals, market.volume_decimals))
    return {
        "symbol": market.id,
        "status": "TRADING",
        "baseAsset": market.base,
        "baseAssetPrecision": 8,
        "quoteAsset": market.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "icebergAllowed": False,
        "ocoAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": tick,
                "maxPrice": "1000000.00000000",
                "tickSize": tick,
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": step,
                "maxQty": "900000000.00000000",
                "stepSize": step,
            },
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }


_ROW = '[%d,"%.8f","%.8f","%.8f","%.8f","%.8f",%d,"%.8f",%d,"%.8f","%.8f","0"]'


def _rows(bars: MinuteBars) -> list[str]:
    """Return bars as the rows of an answer: 12 fields each, numbers with eight decimals."""
    start = bars.minute * MINUTE_MS
    quote, bought, bought_quote = taker_columns(bars)
    columns = (
        start,
        bars.open,
        bars.high,
        bars.low,
        bars.close,
        bars.volume,
        start + MINUTE_MS - 1,
        quote,
        bars.trades,
        bought,
        bought_quote,
    )
    return [_ROW % row for row in zip(*(column.tolist() for column in columns), strict=True)]


def _changed(row: str, change: Callable[[list[Any]], Any]) -> str:
    return json.dumps(change(json.loads(row)), separators=(",", ":"))


def _with_other_volume(fields: list[Any]) -> list[Any]:
    return [*fields[:5], "1234567.00000000", *fields[6:]]
