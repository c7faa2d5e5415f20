"""The rows of one symbol over a time range, page by page, and each page part by part.

A part is one short query, and no connection or snapshot is held between two parts: a slow client
blocks no other client, and costs the memory of one part. All parts show the rows as of the
refreshes that the first query of the first page has found.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

import pyarrow as pa
from fastapi import APIRouter, Query, Request
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg.types.multirange import Multirange
from psycopg.types.numeric import Int8
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from feature_platform.clock import parse_time
from feature_platform.service.answers import RejectedError, error_responses
from feature_platform.service.formats import (
    FEATURES,
    MEDIA_TYPES,
    Format,
    Writer,
    choose,
    make_writer,
)
from feature_platform.service.pool import DatabaseUnavailableError, QueryPool
from feature_platform.service.rows import Buckets, Row, Symbol, buckets_of
from feature_platform.service.symbols import unknown_symbols

MOST_DAYS = 366
MOST_ROWS = 100_000
_DEFAULT_ROWS = 10_000
PART = 1000  # rows; writing them takes a few milliseconds, during which no other client is served

# Headers of a page: CSV and Arrow have no other place for it.
SYMBOL_NO = "Feature-Symbol-No"
WAITING = "Feature-Waiting"
WAITING_NO = "Feature-Waiting-No"

_log = logging.getLogger(__name__)


# An offset whose plus sign was not encoded: a query string has a space in its place.
_PLAIN_PLUS = re.compile(r"\d \d\d(:?\d\d)?$", re.ASCII)


def _read_time(text: object) -> datetime:
    try:
        return parse_time(str(text))
    except ValueError as error:
        hint = "; write + as %2B in an address" if _PLAIN_PLUS.search(str(text)) else ""
        raise ValueError(f"{error}{hint}") from None


Time = Annotated[
    datetime,
    BeforeValidator(_read_time),
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
    as_of: Annotated[
        Time | None,
        Field(
            description="Rows as of the newest refresh of the symbol that was known by this time."
            " Not final for a time in the last second."
        ),
    ] = None
    symbol_no: Annotated[
        int | None,
        Field(
            ge=0,
            le=2**63 - 1,
            description="Rows as of this refresh of the symbol, such as an earlier answer's.",
        ),
    ] = None


class PageFields(BaseModel):
    """A page's fields beside its rows."""

    model_config = ConfigDict(extra="forbid")

    symbol_no: int | None = Field(
        description="The symbol's last refresh that the page shows; null with as_of."
    )
    waiting: list[Buckets] | None = Field(
        description="Buckets from start to end whose change a refresh has begun to process and not"
        " finished; usually none. Changes that no refresh has begun to process are not in it. Null"
        " with as_of or symbol_no."
    )
    waiting_no: int | None = Field(
        description="The rows of these buckets are as of this refresh; null if there are none."
    )
    next: str | None = Field(description="Address of the next page; null on the last.")


class Page(PageFields):
    """Rows in the order of time."""

    rows: list[Row]


PAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of rows.",
        "content": {
            MEDIA_TYPES["csv"]: {"schema": {"type": "string"}},
            MEDIA_TYPES["arrow"]: {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            name: {"description": meaning, "schema": {"type": kind}}
            for name, meaning, kind in (
                ("Link", '`<PATH>; rel="next"`: the address of the next page, if any.', "string"),
                (SYMBOL_NO, "The page's `symbol_no`, if it has one.", "integer"),
                (WAITING, "`START/END` around all of `waiting`, if it is not empty.", "string"),
                (WAITING_NO, "The page's `waiting_no`, if it has one.", "integer"),
            )
        },
    },
    **error_responses(400, 404, 406, 422, 503),
}


@dataclass(frozen=True)
class Source:
    """A table of features: features_1m, or a version of a feature view.

    path: of its requests. width: of a bucket.
    page, rows: the names of its queries, with their own parameters and identifiers.
    check_symbol: raises RejectedError for a symbol that has no rows at any time.
    address: parameters of the next page beside those of the request.
    """

    path: str
    schema: pa.Schema
    width: timedelta
    page: str
    rows: str
    check_symbol: Callable[[str], Awaitable[None]]
    parameters: Mapping[str, object] = field(default_factory=dict)
    identifiers: Mapping[str, sql.Composable] = field(default_factory=dict)
    address: Mapping[str, object] = field(default_factory=dict)


class _Known(NamedTuple):
    """The refreshes that a page shows, in the order of the query; see `service_page`."""

    symbol_no: int
    upto: int | None
    late: list[int]
    is_future: bool
    first_known: datetime | None
    floor: int | None
    kept_from: datetime | None
    waiting: Multirange[datetime] | None
    waiting_no: int | None
    next_start: datetime | None


def make_router(pool: QueryPool) -> APIRouter:
    """Return the route of rows over time."""
    router = APIRouter()

    async def check_symbol(symbol: str) -> None:
        ((known,),) = await pool.fetch("service_symbol_is_known", {"symbol": symbol})
        if not known:
            raise await unknown_symbols(pool, [symbol])

    source = Source(
        path="/v1/features",
        schema=FEATURES,
        width=timedelta(minutes=1),
        page="service_page",
        rows="service_rows",
        check_symbol=check_symbol,
    )

    @router.get(source.path, response_model=Page, responses=PAGE)
    async def history(request: Request, query: Annotated[HistoryQuery, Query()]) -> Response:
        """Return rows of a symbol with `start <= bucket < end`, as JSON, CSV or an Arrow stream.

        All pages show the same refreshes. If the database fails meanwhile, the connection is
        closed before the page is complete.
        """
        return await answer_page(pool, source, check_page(request, query), query)

    return router


class Parts(StreamingResponse):
    """An answer that ends with an error if the database fails, so that it cannot look complete."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except DatabaseUnavailableError as error:
            _log.warning("an answer ended before it was complete: %s", error)


async def answer_page(
    pool: QueryPool, source: Source, form: Format, query: HistoryQuery
) -> Response:
    """Return a page of rows, which names the address of the next page, if any.

    Raises RejectedError for a symbol without rows, and for refreshes that are not known.
    """
    window = {**source.parameters, "symbol": query.symbol, "start": query.start, "end": query.end}
    of_page = {"rows": query.limit, "as_of": query.as_of, "symbol_no": query.symbol_no}
    (row,) = await pool.fetch(source.page, {**window, **of_page}, **source.identifiers)
    known = _Known(*row)
    upto = await _check_known(source, query, known)
    of_part = {
        "end": known.next_start or query.end,
        "upto": Int8(upto),
        "late": known.late,
        "rows": PART,
    }

    def part(start: datetime) -> Awaitable[list[TupleRow]]:
        return pool.fetch(source.rows, {**window, **of_part, "start": start}, **source.identifiers)

    rows = await part(query.start)
    if not rows:
        await source.check_symbol(query.symbol)
    fields, headers = _describe(source, query, known)
    return Parts(
        _write(make_writer(form, source.schema, fields), rows, lambda at: part(at + source.width)),
        media_type=MEDIA_TYPES[form],
        headers=headers,
    )


async def _write(
    writer: Writer,
    rows: list[TupleRow],
    after: Callable[[datetime], Awaitable[list[TupleRow]]],
) -> AsyncIterator[bytes]:
    """Write the parts of a page; each has `PART` rows, the last one fewer.

    after: return the part after a bucket.
    """
    yield writer.begin()
    while rows:
        yield writer.add(rows)
        rows = await after(rows[-1][1]) if len(rows) == PART else []
    yield writer.end()


async def _check_known(source: Source, query: HistoryQuery, known: _Known) -> int:
    """Return the last refresh of a page.

    Raises RejectedError for a time or a number whose refreshes are not known.
    """
    if known.is_future:
        raise RejectedError(400, f"as_of: {as_text(query.as_of)} is in the future")
    if known.upto is None:
        if known.first_known is None:
            raise RejectedError(400, "as_of: no refresh is known yet")
        raise RejectedError(
            400,
            f"as_of: {as_text(query.as_of)} is before the first refresh that is known, at"
            f" {as_text(known.first_known)}",
        )
    name = "symbol_no" if query.as_of is None else "as_of"
    if known.kept_from is not None:
        raise RejectedError(
            400, f"{name}: earlier versions of rows are kept since {as_text(known.kept_from)}"
        )
    # Rows from before numbers were counted have the number 0, and are kept.
    if known.floor is not None and (0 < known.upto < known.floor or known.floor in known.late):
        raise RejectedError(
            400, f"{name}: the rows of {query.symbol!r} before refresh {known.floor} are not kept"
        )
    if query.symbol_no is not None and query.symbol_no > known.symbol_no:
        await source.check_symbol(query.symbol)
        raise RejectedError(
            400,
            f"symbol_no: {query.symbol_no} is above the number of the symbol's last refresh,"
            f" {known.symbol_no}",
        )
    return known.upto


def check_page(request: Request, query: HistoryQuery) -> Format:
    """Return the format of a page; raise RejectedError if there is none, or for a bad range."""
    form = query.format or choose(",".join(request.headers.getlist("accept")))
    if form is None:
        raise RejectedError(406, f"the formats are {', '.join(MEDIA_TYPES.values())}")
    if query.start >= query.end:
        raise RejectedError(400, "start is not before end")
    if query.end - query.start > timedelta(days=MOST_DAYS):
        raise RejectedError(400, f"from start to end is more than {MOST_DAYS} days")
    if query.as_of is not None and query.symbol_no is not None:
        raise RejectedError(400, "as_of and symbol_no exclude each other")
    return form


def _describe(
    source: Source, query: HistoryQuery, known: _Known
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields and the headers of a page."""
    is_newest = query.as_of is None and query.symbol_no is None
    symbol_no = known.upto if query.as_of is None else None
    waiting = buckets_of(known.waiting) if is_newest else None
    waiting_no = known.waiting_no if is_newest else None
    next_page = None
    headers = {}
    if known.next_start is not None:
        parameters = _page_parameters(query, known.next_start, symbol_no)
        next_page = f"{source.path}?{urlencode({**parameters, **source.address})}"
        headers["Link"] = f'<{next_page}>; rel="next"'
    if symbol_no is not None:
        headers[SYMBOL_NO] = str(symbol_no)
    if waiting:
        # A header is short, however many ranges there are.
        headers[WAITING] = f"{as_text(waiting[0]['start'])}/{as_text(waiting[-1]['end'])}"
        headers[WAITING_NO] = str(waiting_no)
    fields = {
        "symbol_no": symbol_no,
        "waiting": waiting,
        "waiting_no": waiting_no,
        "next": next_page,
    }
    return fields, headers


def _page_parameters(
    query: HistoryQuery, start: datetime, symbol_no: int | None
) -> dict[str, object]:
    """Return the parameters of the page that begins at a bucket, of the same refreshes."""
    return {
        "symbol": query.symbol,
        "start": as_text(start),
        "end": as_text(query.end),
        "limit": query.limit,
        **({} if query.format is None else {"format": query.format}),
        **({"symbol_no": symbol_no} if query.as_of is None else {"as_of": as_text(query.as_of)}),
    }


def as_text(time: datetime | None) -> str:
    """Return a time in UTC, in ISO-8601."""
    assert time is not None
    return time.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
