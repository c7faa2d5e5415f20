"""The rows of one symbol over a time range, page by page, and each page part by part.

A part is one short query, and no connection or snapshot is held between two parts: a slow client
blocks no other client, and costs the memory of one part.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from psycopg.rows import TupleRow
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from feature_platform.clock import parse_time
from feature_platform.service.answers import RejectedError, error_responses
from feature_platform.service.formats import MEDIA_TYPES, Format, Writer, choose, make_writer
from feature_platform.service.pool import DatabaseUnavailableError, QueryPool
from feature_platform.service.rows import COLUMNS, Row, Symbol
from feature_platform.service.symbols import unknown_symbols

MOST_DAYS = 366
MOST_ROWS = 100_000
_DEFAULT_ROWS = 10_000
PART = 1000  # rows; writing them takes a few milliseconds, during which no other client is served

_PATH = "/v1/features"
_MINUTE = timedelta(minutes=1)

_log = logging.getLogger(__name__)


Time = Annotated[
    datetime,
    BeforeValidator(lambda text: parse_time(str(text))),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}
    ),
]


class HistoryQuery(BaseModel):
    """The parameters of a request for rows over time."""

    symbol: Symbol
    start: Annotated[Time, Field(description="First minute.", examples=["2026-02-01T12:00:00Z"])]
    end: Annotated[
        Time,
        Field(
            description=f"First minute after the last; at most {MOST_DAYS} days later.",
            examples=["2026-02-02"],
        ),
    ]
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS, description="Rows on a page.")] = _DEFAULT_ROWS
    format: Annotated[Format | None, Field(description="By default the header Accept decides.")] = (
        None
    )


class Page(BaseModel):
    """Rows in the order of time."""

    model_config = ConfigDict(extra="forbid")

    rows: list[Row]
    next: str | None = Field(description="Address of the next page; null on the last.")


PAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of rows.",
        "content": {
            MEDIA_TYPES["csv"]: {"schema": {"type": "string"}},
            MEDIA_TYPES["arrow"]: {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            "Link": {
                "description": '`<PATH>; rel="next"`: the address of the next page, if any.',
                "schema": {"type": "string"},
            }
        },
    },
    **error_responses(400, 404, 406, 422, 503),
}


def make_router(pool: QueryPool) -> APIRouter:
    """Return the route of rows over time."""
    router = APIRouter()

    @router.get(_PATH, response_model=Page, responses=PAGE)
    async def history(request: Request, query: Annotated[HistoryQuery, Query()]) -> Response:
        """Return rows of a symbol with `start <= bucket < end`, as JSON, CSV or an Arrow stream.

        If the database fails meanwhile, the connection is closed before the page is complete.
        """
        form = check_page(request, query)
        next_start = await _next_start(pool, query)
        end = next_start or query.end
        first = await _part(pool, query.symbol, query.start, end)
        if not first:
            await _check_symbol(pool, query.symbol)

        def after(bucket: datetime) -> Awaitable[list[TupleRow]]:
            return _part(pool, query.symbol, bucket + _MINUTE, end)

        return answer_page(form, _PATH, query, next_start, COLUMNS, first, after)

    return router


class Parts(StreamingResponse):
    """An answer that ends with an error if the database fails, so that it cannot look complete."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except DatabaseUnavailableError as error:
            _log.warning("an answer ended before it was complete: %s", error)


def answer_page(
    form: Format,
    path: str,
    query: HistoryQuery,
    next_start: datetime | None,
    columns: Sequence[str],
    rows: list[TupleRow],
    after: Callable[[datetime], Awaitable[list[TupleRow]]],
) -> Response:
    """Return a page of rows, which names the address of the next page, if any.

    path, next_start: of the next page; without a start this page is the last one.
    rows: the first part of the page.
    after: return the part after a bucket; a part has `PART` rows, the last one fewer.
    """
    next_page = None
    if next_start is not None:
        next_page = f"{path}?{urlencode(_page_parameters(query, next_start))}"
    return Parts(
        _write(make_writer(form, next_page, columns), rows, after),
        media_type=MEDIA_TYPES[form],
        headers={} if next_page is None else {"Link": f'<{next_page}>; rel="next"'},
    )


async def _write(
    writer: Writer,
    rows: list[TupleRow],
    after: Callable[[datetime], Awaitable[list[TupleRow]]],
) -> AsyncIterator[bytes]:
    yield writer.begin()
    while rows:
        yield writer.add(rows)
        rows = await after(rows[-1][1]) if len(rows) == PART else []
    yield writer.end()


async def _part(pool: QueryPool, symbol: str, start: datetime, end: datetime) -> list[TupleRow]:
    window = {"symbol": symbol, "start": start, "end": end, "rows": PART}
    return await pool.fetch("service_rows", window)


async def _next_start(pool: QueryPool, query: HistoryQuery) -> datetime | None:
    """Return the start of the page after this one, None if this is the last."""
    window = {"symbol": query.symbol, "start": query.start, "end": query.end, "rows": query.limit}
    found = await pool.fetch("service_next_start", window)
    return found[0][0] if found else None


async def _check_symbol(pool: QueryPool, symbol: str) -> None:
    """Raise RejectedError for a symbol that has no rows at any time."""
    ((known,),) = await pool.fetch("service_symbol_is_known", {"symbol": symbol})
    if not known:
        raise await unknown_symbols(pool, [symbol])


def check_page(request: Request, query: HistoryQuery) -> Format:
    """Return the format of a page; raise RejectedError if there is none, or for a bad range."""
    form = query.format or choose(",".join(request.headers.getlist("accept")))
    if form is None:
        raise RejectedError(406, f"the formats are {', '.join(MEDIA_TYPES.values())}")
    if query.start >= query.end:
        raise RejectedError(400, "start is not before end")
    if query.end - query.start > timedelta(days=MOST_DAYS):
        raise RejectedError(400, f"from start to end is more than {MOST_DAYS} days")
    return form


def _page_parameters(query: HistoryQuery, start: datetime) -> dict[str, object]:
    """Return the parameters of the page that begins at a bucket."""
    return {
        "symbol": query.symbol,
        "start": _text(start),
        "end": _text(query.end),
        "limit": query.limit,
        **({} if query.format is None else {"format": query.format}),
    }


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
