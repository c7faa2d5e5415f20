"""Binance's archives of klines: a zip of each month and day, with its checksum.

GET /data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01.zip, the same with .CHECKSUM behind it,
and daily/…/BTCUSDT-1m-2024-01-01.zip. An archive is published after the end of its period.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import re
import zipfile
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from fastapi import FastAPI, Response

from feature_platform.simulator.binance_events import taker_columns
from feature_platform.simulator.binance_rest import CutResponse
from feature_platform.simulator.faults import (
    Latency,
    NotPublished,
    Reset,
    ServerError,
    WrongChecksum,
)
from feature_platform.simulator.published import PublishedBars
from feature_platform.simulator.truth import MINUTE_MS, minute_from

_log = logging.getLogger(__name__)

# Since then Binance writes spot archives in microseconds.
_MICROSECONDS_FROM = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp()) // 60

_NAME = re.compile(
    r"(?P<market>[A-Z0-9]+)-1m-(?P<period>\d{4}-\d\d(?:-\d\d)?)\.zip(?P<sum>\.CHECKSUM)?"
)
_ROW = "%d,%.8f,%.8f,%.8f,%.8f,%.8f,%d,%.8f,%d,%.8f,%.8f,0"
_ABSENT = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
)


def add_archives(app: FastAPI, published: PublishedBars) -> None:
    """Serve the archives of the symbols of an exchange."""
    by_id = {market.id: market.symbol for market in published.truth.markets.values()}

    @lru_cache(maxsize=16)
    def packed(name: str, generation: int) -> bytes | None:
        del generation  # other faults publish other bars
        return _archive(published, by_id, name)

    async def archive(span: str, market: str, name: str) -> Response:
        hits = list(published.faults.hitting("archive", by_id.get(market)))
        for hit in hits:
            if isinstance(hit.fault, Latency):
                await asyncio.sleep(hit.fault.seconds)
        match = _NAME.fullmatch(name)
        daily = match is not None and match["period"].count("-") == 2
        fits = match is not None and match["market"] == market and span == _SPANS[daily]
        body = packed(name.removesuffix(".CHECKSUM"), published.faults.generation) if fits else None
        failing = [hit.fault.status for hit in hits if isinstance(hit.fault, ServerError)]
        response: Response
        if failing:
            response = Response(status_code=failing[0])
        elif body is None or any(isinstance(hit.fault, NotPublished) for hit in hits):
            response = Response(_ABSENT, 404, media_type="application/xml")
        elif match is not None and match["sum"]:
            wrong = any(isinstance(hit.fault, WrongChecksum) for hit in hits)
            digest = hashlib.sha256(body + b"wrong" * wrong).hexdigest()
            text = f"{digest}  {name.removesuffix('.CHECKSUM')}\n"
            response = Response(text, media_type="text/plain")
        else:
            response = Response(body, media_type="application/zip")
        _log.debug("archive name=%s status=%d", name, response.status_code)
        for hit in hits:
            if isinstance(hit.fault, Reset):
                return CutResponse(response, hit.fault.at)
        return response

    app.add_api_route(
        "/data/spot/{span}/klines/{market}/1m/{name}", archive, include_in_schema=False
    )


_SPANS = {False: "monthly", True: "daily"}


def _archive(published: PublishedBars, by_id: dict[str, str], name: str) -> bytes | None:
    """Return the zip of a period that has ended, None if there is none."""
    match = _NAME.fullmatch(name)
    if match is None or match["market"] not in by_id:
        return None
    try:
        first, after = _bounds(match["period"])
    except ValueError:
        return None
    end = minute_from(after)
    if end * MINUTE_MS > published.clock.milliseconds():
        return None
    start = minute_from(first)
    bars = published.bars(
        by_id[match["market"]], start * MINUTE_MS, end * MINUTE_MS - 1, end - start
    )
    if not len(bars):
        return None
    unit = 1000 if start >= _MICROSECONDS_FROM else 1
    opened = bars.minute * MINUTE_MS * unit
    quote, bought, bought_quote = taker_columns(bars)
    columns = (
        *(opened, bars.open, bars.high, bars.low, bars.close, bars.volume),
        *(opened + MINUTE_MS * unit - 1, quote, bars.trades, bought, bought_quote),
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    text = "".join(_ROW % row + "\n" for row in rows)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(zipfile.ZipInfo(name.replace(".zip", ".csv")), text)
    return packed.getvalue()


def _bounds(period: str) -> tuple[datetime, datetime]:
    """Return the start of a month or day, and of the one after it."""
    if period.count("-") == 2:
        first = datetime.fromisoformat(period).replace(tzinfo=UTC)
        return first, first + timedelta(days=1)
    first = datetime.fromisoformat(f"{period}-01").replace(tzinfo=UTC)
    return first, (first + timedelta(days=31)).replace(day=1)
